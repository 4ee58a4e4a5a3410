"""Files of MNIST, to be rotated."""

from pathlib import Path
from typing import Any

from tests.helpers.fakes import split_mnist


def write(root: Path) -> dict[str, Any]:
    """60 images in 10 classes, in each of two experiences."""
    return {**split_mnist.write(root), "num_experiences": 2}
