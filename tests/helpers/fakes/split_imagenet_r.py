"""Files of ImageNet-R, as LAMDA-PILOT cuts them."""

from pathlib import Path
from typing import Any

from tests.helpers.fakes._files import colours, write_images

WNIDS = [f"n{1443537 + number:08d}" for number in range(200)]


def write(root: Path) -> dict[str, Any]:
    """Four images of each of 200 classes to train and two to test."""
    palette = colours()
    for wnid in WNIDS:
        write_images(
            root / "imagenet-r" / "train" / wnid, ["art_0.jpg", "art_1.jpg", "toy_0.jpg", "toy_1.jpg"], palette
        )
        write_images(root / "imagenet-r" / "test" / wnid, ["art_2.jpg", "toy_2.jpg"], palette)
    return {"root": str(root), "download": False, "split": "pilot", "image_size": 8}
