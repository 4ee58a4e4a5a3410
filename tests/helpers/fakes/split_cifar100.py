"""Files of CIFAR-100."""

from pathlib import Path
from typing import Any

from tests.helpers.fakes._images import distinct_images, labels_in_turn, python2_pickle


def write(root: Path) -> dict[str, Any]:
    """600 images in 100 classes; the coarse class of a fine one is a fifth of it."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True, exist_ok=True)
    for name, each, first in (("train", 4, 1), ("test", 2, 401)):
        fine = labels_in_turn(100, each)
        images = distinct_images(len(fine), 3, 32, first).reshape(-1, 3072)
        content = {"data": images, "fine_labels": fine.tolist(), "coarse_labels": (fine // 5).tolist()}
        (folder / name).write_bytes(python2_pickle(content))
    return {"root": str(root), "download": False}
