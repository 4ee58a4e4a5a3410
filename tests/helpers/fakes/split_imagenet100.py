"""Files of ImageNet, of 100 classes."""

from pathlib import Path
from typing import Any

from tests.helpers.fakes.split_imagenet import write_imagenet


def write(root: Path) -> dict[str, Any]:
    """A folder that is cut to 100 classes already."""
    write_imagenet(root, [f"n{number:08d}" for number in range(100)])
    return {"root": str(root), "subset": "as_is", "image_size": 8}
