"""Files of several data sets: one in its published layout, one in folders."""

from pathlib import Path
from typing import Any

from PIL import Image

from tests.helpers.fakes._images import distinct_images, labels_in_turn, write_idx_set


def write(root: Path) -> dict[str, Any]:
    """MNIST with 60 images of 28x28 pixels in 10 classes, and COIL 20 with 12 of 40x40 pixels in 2."""
    write_idx_set(root / "MNIST" / "raw")
    for part, each, first in (("train", 4, 101), ("test", 2, 201)):
        labels = labels_in_turn(2, each)
        for i, (label, image) in enumerate(zip(labels, distinct_images(len(labels), 3, 40, first), strict=True)):
            path = root / "coil_20" / part / f"obj{label}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.transpose(1, 2, 0)).save(path)
    return {"root": str(root), "data_sets": ["MNIST", "COIL 20"], "image_size": 32, "download": False}
