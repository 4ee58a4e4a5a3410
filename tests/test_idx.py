import gzip
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_cl.idx import read_idx


def idx(*shape: int, values: bytes | None = None, kind: int = 8) -> bytes:
    """A file written from the description of the format, not with the code under test."""
    header = struct.pack(f">HBB{len(shape)}I", 0, kind, len(shape), *shape)
    return header + (bytes(range(torch.Size(shape).numel())) if values is None else values)


@pytest.mark.parametrize("shape", [(4,), (2, 3), (2, 3, 4), (1, 1, 1, 1), (0, 28, 28)])
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_reads_plain_and_gzip(shape: tuple[int, ...], ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"images-idx{len(shape)}-ubyte{ending}"
    path.write_bytes(gzip.compress(idx(*shape)) if ending else idx(*shape))
    for argument in (path, str(path)):
        data = read_idx(argument)
        assert (data.dtype, tuple(data.shape)) == (torch.uint8, shape)
        assert data.flatten().tolist() == list(range(data.numel()))
    data.fill_(0)  # belongs to the caller


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (idx(2, 3)[:-1], r"should hold 6 bytes of data \(shape \[2, 3\]\) and holds 5: it was not downloaded whole"),
        (idx(2, 3) + b"\0", r"should hold 6 bytes of data \(shape \[2, 3\]\) and holds 7"),
        (idx(2**31, 2**31, 4, values=b""), rf"should hold {2**64} bytes"),
        (idx(2, 3)[:9], "is no IDX file of unsigned bytes: it starts with 00000802"),
        (idx(2, 3)[:3], ".*it starts with 000008"),
        (b"", ".*it starts with nothing"),
        (idx(2, kind=0x0D), ".*it starts with 00000d01"),
        (b"<html>", ".*it starts with 3c68746d"),
    ],
)
def test_other_files_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    for name, stored in (("file", content), ("file.gz", gzip.compress(content))):
        (tmp_path / name).write_bytes(stored)
        with pytest.raises(ValueError, match=rf"{name}' {message}"):
            read_idx(tmp_path / name)


@pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b[:10] + b"\xff" + b[11:], lambda b: b"no" + b])
def test_damaged_gzip_is_named(damage: Any, tmp_path: Path) -> None:
    path = tmp_path / "labels-idx1-ubyte.gz"
    path.write_bytes(damage(gzip.compress(idx(100))))
    with pytest.raises(ValueError, match=r"labels-idx1-ubyte\.gz' is damaged or not downloaded whole \(.*\): get it"):
        read_idx(path)


def test_missing_file_is_not_called_damaged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing"):
        read_idx(tmp_path / "nothing.gz")
