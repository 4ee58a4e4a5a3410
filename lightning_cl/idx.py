"""The IDX format of the MNIST family."""

import gzip
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
        ValueError: If the file is not such a file, or shorter or longer than its header says.
    """
    path = Path(path)
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise ValueError(f"{str(path)!r} is damaged or not downloaded whole ({error}): get it again.") from error
    if data[:3] != b"\x00\x00\x08":
        raise ValueError(f"{str(path)!r} is no IDX file of unsigned bytes: its first bytes are {data[:4].hex()}.")
    dimensions = data[3]
    start = 4 + 4 * dimensions
    shape = [int(size) for size in np.frombuffer(data[4:start], dtype=">u4")]
    expected = int(np.prod(shape))
    if len(data) - start != expected:
        raise ValueError(
            f"{str(path)!r} should hold {expected} bytes of data (shape {shape}) and holds {len(data) - start}: "
            "it was not downloaded whole, get it again."
        )
    return torch.from_numpy(np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape).copy())
