"""A folder of images."""

from pathlib import Path
from typing import Any

from tests.helpers.fakes._files import colours, write_images


def write(root: Path) -> dict[str, Any]:
    """10 images in each of 4 folders, in 2 experiences."""
    palette = colours()
    for name in ("bee", "cat", "dog", "emu"):
        write_images(root / name, [f"{k}.jpg" for k in range(10)], palette)
    return {"root": str(root), "num_experiences": 2, "image_size": 8}
