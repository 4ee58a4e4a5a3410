"""A map-style data set for a DatasetStream."""

from pathlib import Path
from typing import Any

import torch
from torch.utils.data import TensorDataset

from tests.helpers.fakes._images import distinct_images, labels_in_turn


def write(root: Path) -> dict[str, Any]:
    """40 images of 4 classes to train and 12 to test in 2 experiences; no files."""
    x, y = torch.from_numpy(distinct_images(52, 3, 8)), torch.from_numpy(labels_in_turn(4, 13))
    return {"train": TensorDataset(x[:40], y[:40]), "test": TensorDataset(x[40:], y[40:]), "num_experiences": 2}
