"""Files of MNIST."""

from pathlib import Path
from typing import Any

from tests.helpers.fakes._images import write_idx_set


def write(root: Path) -> dict[str, Any]:
    """60 images in 10 classes."""
    write_idx_set(root / "MNIST" / "raw")
    return {"root": str(root), "download": False}
