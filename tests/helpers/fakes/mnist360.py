"""Files of MNIST, enough of them that there is something to shuffle between two changes of digits."""

from pathlib import Path
from typing import Any

from tests.helpers.fakes._images import distinct_images, labels_in_turn, write_idx


def write(root: Path) -> dict[str, Any]:
    """200 images in 10 classes: 14 of each to train and 6 to test."""
    for part, each, first in (("train", 14, 1), ("t10k", 6, 141)):
        labels = labels_in_turn(10, each)
        folder = root / "MNIST" / "raw"
        write_idx(folder / f"{part}-images-idx3-ubyte", distinct_images(len(labels), 1, 28, first)[:, 0])
        write_idx(folder / f"{part}-labels-idx1-ubyte", labels)
    return {"root": str(root), "download": False}
