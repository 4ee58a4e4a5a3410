"""Files of CIFAR-10."""

from pathlib import Path
from typing import Any

from tests.helpers.fakes._images import distinct_images, python2_pickle


def write(root: Path) -> dict[str, Any]:
    """Six files of 20 images in 10 classes."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True, exist_ok=True)
    images = distinct_images(120, 3, 32).reshape(6, 20, 3072)
    for number, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        labels = [(number + i) % 10 for i in range(20)]
        (folder / name).write_bytes(python2_pickle({"data": images[number], "labels": labels}))
    return {"root": str(root), "download": False}
