"""Files of CIFAR-10-C."""

from pathlib import Path
from typing import Any

from tests.helpers.fakes._corrupted import write_arrays


def write(root: Path) -> dict[str, Any]:
    """20 images of 10 classes for each corruption and severity."""
    return write_arrays(root, "CIFAR-10-C", 10)
