"""Data sets for a SequenceStream."""

from pathlib import Path
from typing import Any

import torch
from torch.utils.data import TensorDataset

from tests.helpers.fakes._images import distinct_images, labels_in_turn


def write(root: Path) -> dict[str, Any]:
    """20 images of 2 classes to train and 6 to test in each of 2 experiences; no files."""
    x, y = torch.from_numpy(distinct_images(52, 3, 8)).split(13), torch.from_numpy(labels_in_turn(2, 26)).split(13)
    sets = [TensorDataset(torch.cat([x[t], x[t + 2]]), torch.cat([y[t], y[t + 2]]) + 2 * t) for t in (0, 1)]
    train, test = ([torch.utils.data.Subset(part, span) for part in sets] for span in (range(20), range(20, 26)))
    return {"train": train, "test": test, "classes": [[0, 1], [2, 3]]}
