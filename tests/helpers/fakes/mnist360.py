"""Files of MNIST, enough of them that there is something to shuffle between two changes of digits."""

from pathlib import Path
from typing import Any

from tests.helpers.fakes._images import write_idx_set


def write(root: Path) -> dict[str, Any]:
    """200 images in 10 classes: 14 of each to train and 6 to test."""
    write_idx_set(root / "MNIST" / "raw", per_class=(14, 6))
    return {"root": str(root), "download": False}
