import gzip
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision  # type: ignore[import-untyped]

from lightning_cl.datamodules import SplitFashionMNIST

FILES = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
DEBIAN = Path(os.environ.get("FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))


def contents() -> dict[str, bytes]:
    """Forty images to train and twenty to test, in the layout of the real files."""
    made = {}
    for part, count in (("train", 40), ("t10k", 20)):
        labels = bytes(i * 7 % 10 for i in range(count))
        images = b"".join(bytes([i]) * 784 for i in range(count))
        made[f"{part}-images-idx3-ubyte"] = struct.pack(">4i", 2051, count, 28, 28) + images
        made[f"{part}-labels-idx1-ubyte"] = struct.pack(">2i", 2049, count) + labels
    return made


def write(folder: Path, zipped: Callable[[str], bool] = lambda name: False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents().items():
        (folder / (f"{name}.gz" if zipped(name) else name)).write_bytes(
            gzip.compress(content) if zipped(name) else content
        )
    return folder


@pytest.fixture(autouse=True)
def no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here may reach for the network."""

    def refuse(root: str, download: bool) -> None:
        raise RuntimeError(f"tried to download to {root}\nand more")

    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", refuse)


@pytest.mark.parametrize("inner", ["", "FashionMNIST/raw"])
@pytest.mark.parametrize(
    "zipped", [lambda name: False, lambda name: True, lambda name: "images" in name], ids=["plain", "gzip", "mixed"]
)
def test_files_are_found_and_read(inner: str, zipped: Callable[[str], bool], tmp_path: Path) -> None:
    write(tmp_path / inner, zipped)
    stream = SplitFashionMNIST(str(tmp_path), download=False)
    stream.prepare_data()
    assert [(e.classes, e.num_train, e.num_test) for e in stream.experiences] == [
        ((0, 1), 8, 4),
        ((2, 3), 8, 4),
        ((4, 5), 8, 4),
        ((6, 7), 8, 4),
        ((8, 9), 8, 4),
    ]
    x, y = stream.part(2, "test").batch(torch.arange(4))
    assert (x.shape, x.dtype, y.dtype) == ((4, 1, 28, 28), torch.uint8, torch.int64)
    assert x[:, 0, 27, 27].tolist() == [2, 5, 12, 15]  # i * 7 % 10 in (4, 5)
    assert y.tolist() == [4, 5, 4, 5]


def test_home_folder_is_that_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torchvision, which would download there, understands it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "data" / "FashionMNIST" / "raw")
    assert len(SplitFashionMNIST("~/data").part(0, "train")) == 8


def test_default_normalisation_is_that_of_the_training_set(tmp_path: Path) -> None:
    x = torch.tensor([[[[0, 255]]]], dtype=torch.uint8)
    (normal,) = SplitFashionMNIST(str(tmp_path)).transform_batch([x])
    torch.testing.assert_close(normal.flatten(), torch.tensor([-0.2860 / 0.3530, (1 - 0.2860) / 0.3530]))


@pytest.mark.parametrize("missing", FILES)
def test_a_missing_file_is_downloaded(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (write(tmp_path) / missing).unlink()

    def download(root: str, download: bool) -> None:
        assert download
        write(Path(root) / "FashionMNIST" / "raw")

    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", download)
    for prepare in (True, False):
        stream = SplitFashionMNIST(str(tmp_path))
        if prepare:
            stream.prepare_data()
        assert [e.num_train for e in stream.experiences] == [8] * 5


@pytest.mark.parametrize(
    ("download", "why"),
    [(False, "`download` is off"), (True, r"the download failed \(RuntimeError: tried to download to [^\n]*\)")],
)
@pytest.mark.parametrize("call", [lambda s: s.prepare_data(), lambda s: s.part(0, "test")], ids=["prepare", "load"])
def test_missing_files_are_named(download: bool, why: str, call: Any, tmp_path: Path) -> None:
    (write(tmp_path) / "t10k-labels-idx1-ubyte").unlink()
    stream = SplitFashionMNIST(str(tmp_path), download=download)
    places = f"in `root` {str(tmp_path)!r} and in {str(tmp_path / 'FashionMNIST' / 'raw')!r}"
    with pytest.raises(FileNotFoundError, match=rf"looked for .* {re.escape(places)}, and {why}\. .* install Debian's"):
        call(stream)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b[:-1], r"should hold 31360 bytes .* and holds 31359: it was not downloaded whole, get it again"),
        (lambda b: b"\0\0\x0d" + b[3:], "is no IDX file of unsigned bytes"),
        (lambda b: contents()["t10k-images-idx3-ubyte"], "`inputs` and `targets` must be of one length, got 20 and 40"),
        (lambda b: contents()["train-labels-idx1-ubyte"], r"`input_shape` is \(1, 28, 28\), and the samples are of"),
    ],
    ids=["truncated", "wrong type", "other file", "labels"],
)
def test_damaged_files_are_named(change: Callable[[bytes], bytes], message: str, tmp_path: Path) -> None:
    path = write(tmp_path) / "train-images-idx3-ubyte"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=message):
        SplitFashionMNIST(str(tmp_path)).setup("fit")


@pytest.mark.fashion_mnist
@pytest.mark.skipif(not DEBIAN.is_dir(), reason="needs dataset-fashion-mnist, or its folder in FASHION_MNIST")
def test_real_files_hold_what_their_authors_say() -> None:
    stream = SplitFashionMNIST(str(DEBIAN), num_experiences=10, download=False)
    assert [(e.num_train, e.num_test) for e in stream.experiences] == [(6000, 1000)] * 10
    images = stream.part(0, "train").inputs
    assert images.shape == (60000, 1, 28, 28)
    assert images.float().mean().item() / 255 == pytest.approx(0.2860, abs=5e-5)
    assert images.float().std().item() / 255 == pytest.approx(0.3530, abs=5e-5)
