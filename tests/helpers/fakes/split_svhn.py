"""Files of SVHN."""

from pathlib import Path
from typing import Any

from tests.helpers.fakes._images import distinct_images, labels_in_turn


def write(root: Path) -> dict[str, Any]:
    """60 images in 10 classes; the digit 0 is labelled 10."""
    from scipy.io import savemat

    root.mkdir(parents=True, exist_ok=True)
    for part, each, first in (("train", 4, 1), ("test", 2, 41)):
        labels = labels_in_turn(10, each)
        images = distinct_images(len(labels), 3, 32, first).transpose(2, 3, 1, 0)
        content = {"X": images, "y": (labels + 10 * (labels == 0)).astype("uint8")[:, None]}
        savemat(root / f"{part}_32x32.mat", content, do_compression=True)
    return {"root": str(root), "download": False}
