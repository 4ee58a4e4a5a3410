"""The IDX format of the MNIST family."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def read_idx(path: str | Path) -> Tensor:
    """Read an IDX file of unsigned bytes, plain or gzip.

    The header is big-endian: two zero bytes, the type (8 is uint8), the number of dimensions, then each size.

    Returns:
        uint8, of the shape in the header.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not such a file, or shorter or longer than its header says.
    """
    path = Path(path)
    data = path.read_bytes()
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise ValueError(f"{str(path)!r} is damaged or not downloaded whole ({error}): get it again.") from error
    start = 4 + 4 * (data[3] if len(data) > 3 else 0)
    if data[:3] != b"\x00\x00\x08" or len(data) < start:
        raise ValueError(
            f"{str(path)!r} is no IDX file of unsigned bytes: it starts with {data[:4].hex() or 'nothing'}."
        )
    shape = [int.from_bytes(data[at : at + 4], "big") for at in range(4, start, 4)]
    expected = math.prod(shape)
    if len(data) - start != expected:
        raise ValueError(
            f"{str(path)!r} should hold {expected} bytes of data (shape {shape}) and holds {len(data) - start}: "
            "it was not downloaded whole, get it again."
        )
    return torch.from_numpy(np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape).copy())
