"""Files of ImageNet-C."""

from pathlib import Path
from typing import Any

from PIL import Image

from tests.helpers.fakes._images import distinct_images

CLASSES = [f"n{number:08}" for number in range(1000, 2000)]


def write(root: Path) -> dict[str, Any]:
    """1 000 folders for one corruption in the folder of its archive and for one beside it, two images of each class."""
    images = iter(distinct_images(4000, 1, 8)[:, 0])
    for corruption in ("noise/gaussian_noise", "fog"):
        for wnid in CLASSES:
            folder = root / "ImageNet-C" / corruption / "5" / wnid
            folder.mkdir(parents=True)
            for number in range(2):
                Image.fromarray(next(images)).save(folder / f"ILSVRC2012_val_{number:08}.JPEG", quality=95)
    return {"root": str(root), "corruptions": ["gaussian_noise", "fog"], "image_size": 8}
