"""Writers of tiny image data sets, for every fake that needs one: distinct images, and file formats."""

import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def distinct_images(count: int, channels: int, size: int, first: int = 1) -> Any:
    """Images ``(count, channels, size, size)``, uint8, of which no two are alike, also after resizing and in JPEG.

    Image ``i`` shows the 16 binary digits of ``first + i`` as light or dark squares, four by four, in its own colour
    for each channel. ``size`` is a multiple of 4, and ``first + count`` at most 65 536.
    """
    digits = (np.arange(first, first + count)[:, None] >> np.arange(16)) & 1
    squares = np.kron(digits.reshape(count, 4, 4), np.ones((size // 4, size // 4), dtype=int))
    colour = 255 - 60 * np.arange(channels)
    return (squares[:, None] * colour[:, None, None]).astype(np.uint8)


def labels_in_turn(num_classes: int, each: int) -> Any:
    """Labels 0, 1, ..., 0, 1, ...: every class ``each`` times, ``(num_classes * each,)``, int64."""
    return np.arange(num_classes * each) % num_classes


def write_idx(path: Path, array: Any) -> None:
    """Write unsigned bytes in the format of MNIST; gzip if the name ends with ``.gz``."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    content = header + array.astype(np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_idx_set(
    folder: Path,
    num_classes: int = 10,
    parts: Sequence[str] = ("train", "t10k"),
    first_label: int = 0,
    per_class: tuple[int, int] = (4, 2),
) -> None:
    """Write the four files of MNIST, 28x28 pixels, with ``per_class`` images to train and to test."""
    for part, each, first in zip(parts, per_class, (1, 1 + per_class[0] * num_classes), strict=True):
        labels = labels_in_turn(num_classes, each)
        write_idx(folder / f"{part}-images-idx3-ubyte", distinct_images(len(labels), 1, 28, first)[:, 0])
        write_idx(folder / f"{part}-labels-idx1-ubyte", labels + first_label)


def python2_pickle(values: Mapping[str, Any]) -> bytes:
    """Pickle a dictionary of uint8 matrices and lists of numbers below 2**31 as Python 2 did, in which CIFAR came.

    Its keys and the contents of arrays are byte strings there, which Python 3 cannot write.
    """
    items = b"".join(_python2_text(name.encode()) + _python2_value(value) for name, value in values.items())
    return b"\x80\x02}(" + items + b"u."


def _python2_text(text: bytes) -> bytes:
    return b"T" + len(text).to_bytes(4, "little") + text


def _python2_number(number: int) -> bytes:
    return b"J" + int(number).to_bytes(4, "little", signed=True)


def _python2_value(value: Any) -> bytes:
    if not isinstance(value, np.ndarray):
        return b"](" + b"".join(map(_python2_number, value)) + b"e"
    uint8 = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNN" + _python2_number(-1) * 2 + b"K\x00tb"
    made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    shape = b"(" + b"".join(map(_python2_number, value.shape)) + b"t"
    return made + b"(K\x01" + shape + uint8 + b"\x89" + _python2_text(value.tobytes()) + b"tb"
