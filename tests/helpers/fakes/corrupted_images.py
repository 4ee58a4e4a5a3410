"""A stream of corrupted Fashion-MNIST."""

from pathlib import Path
from typing import Any

from tests.helpers.fakes import split_fashion_mnist


def write(root: Path) -> dict[str, Any]:
    """Two corruptions that leave images different from each other."""
    return {**split_fashion_mnist.write(root), "corruptions": ["gaussian_noise", "shot_noise"]}
