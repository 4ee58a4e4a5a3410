"""Files of ImageNet-C."""

from pathlib import Path
from typing import Any

from PIL import Image

from tests.helpers.fakes._images import distinct_images


def write(root: Path) -> dict[str, Any]:
    """Four images of two classes for two corruptions at two severities, one of them in the folder of its archive."""
    images = iter(distinct_images(16, 3, 32).transpose(0, 2, 3, 1))
    for corruption in ("noise/gaussian_noise", "fog"):
        for severity in (1, 5):
            for wnid in ("n01440764", "n01443537"):
                folder = root / "ImageNet-C" / corruption / str(severity) / wnid
                folder.mkdir(parents=True)
                for number in range(2):
                    name = f"ILSVRC2012_val_{number:08}.JPEG"
                    Image.fromarray(next(images)).save(folder / name, quality=95)
    return {"root": str(root), "corruptions": ["gaussian_noise", "fog"], "image_size": 32}
