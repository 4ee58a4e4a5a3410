"""Tensors for a TensorStream."""

from pathlib import Path
from typing import Any

import torch

from tests.helpers.fakes._images import distinct_images, labels_in_turn


def write(root: Path) -> dict[str, Any]:
    """40 images of 4 classes in 2 experiences; no files."""
    x, y = torch.from_numpy(distinct_images(40, 3, 8)), torch.from_numpy(labels_in_turn(4, 10))
    return {"x": x, "y": y, "num_experiences": 2}
