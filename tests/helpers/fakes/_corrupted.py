"""The arrays of CIFAR-10-C and its kin."""

from pathlib import Path
from typing import Any

import numpy as np

from lightning_cl.corruptions import CORRUPTIONS
from tests.helpers.fakes._images import labels_in_turn


def write_arrays(root: Path, folder: str, num_classes: int, each: int = 2) -> dict[str, Any]:
    """15 arrays; a pixel tells the corruption (red), the severity (green) and the image (blue)."""
    (root / folder).mkdir(parents=True)
    count = num_classes * each
    np.save(root / folder / "labels.npy", np.tile(labels_in_turn(num_classes, each), 5))
    for number, name in enumerate(CORRUPTIONS):
        rows = np.arange(5 * count)
        pixels = np.stack([np.full_like(rows, number), rows // count + 1, rows % count], axis=1)
        images = np.broadcast_to(pixels[:, None, None], (5 * count, 32, 32, 3)).astype(np.uint8)
        np.save(root / folder / f"{name}.npy", images)
    return {"root": str(root)}
