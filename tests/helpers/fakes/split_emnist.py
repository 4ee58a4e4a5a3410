"""Files of EMNIST, of the split with 47 classes."""

from pathlib import Path
from typing import Any

from tests.helpers.fakes._images import write_idx_set


def write(root: Path) -> dict[str, Any]:
    """282 images in 47 classes."""
    write_idx_set(root / "EMNIST" / "raw", 47, ("emnist-balanced-train", "emnist-balanced-test"))
    return {"root": str(root), "download": False}
