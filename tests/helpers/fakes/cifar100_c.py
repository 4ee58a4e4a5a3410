"""Files of CIFAR-100-C."""

from pathlib import Path
from typing import Any

from tests.helpers.fakes._corrupted import write_arrays


def write(root: Path) -> dict[str, Any]:
    """100 images of 100 classes for each of 3 corruptions and 5 severities."""
    return {**write_arrays(root, "CIFAR-100-C", 100, each=1), "corruptions": ["fog", "snow", "frost"]}
