from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_cl.datamodules import IBlurry
from tests.helpers.fakes import i_blurry


def test_blurry_classes_come_in_both_experiences(tmp_path: Path) -> None:
    """Trucks and ships appear first, so they are 0 and 1; a class is tested once."""
    stream = IBlurry(**i_blurry.write(tmp_path))
    assert stream.classes == [(0, 1, 2, 3, 4, 5), (0, 1, 6, 7, 8, 9)]
    assert [stream.part(k, "train").labels.bincount(minlength=2)[:2].tolist() for k in range(2)] == [[4, 8], [8, 4]]
    assert [stream.part(k, "test").labels.unique().tolist() for k in range(2)] == [[1, 2, 3, 4, 5], [0, 6, 7, 8, 9]]


def labels_in_order(**arguments: Any) -> list[int]:
    stream = IBlurry(**arguments, batch_size=5)
    return torch.cat([y for _, y in stream.train_dataloader()]).tolist()


@pytest.mark.parametrize("boundaries", [True, False])
def test_training_may_follow_the_lists(boundaries: bool, tmp_path: Path) -> None:
    arguments = {**i_blurry.write(tmp_path), "boundaries": boundaries}
    first = [0] * 4 + [1] * 8 + [2] * 4 + [3] * 4 + [4] * 4 + [5] * 4
    second = [0] * 8 + [1] * 4 + [6] * 4 + [7] * 4 + [8] * 4 + [9] * 4
    listed = first if boundaries else first + second
    assert labels_in_order(**arguments, listed_order=True) == listed
    drawn = labels_in_order(**arguments, seed=1)
    assert drawn != listed
    assert sorted(drawn) == sorted(listed)


@pytest.mark.parametrize(
    ("data_set", "num_classes", "size", "mean", "std"),
    [("cifar100", 100, 32, 0.5071, 0.2675), ("tinyimagenet", 200, 64, 0.4802, 0.2302)],
)
def test_data_sets(data_set: Any, num_classes: int, size: int, mean: float, std: float) -> None:
    stream = IBlurry(data_set=data_set)
    assert (len(stream), stream.num_classes, stream.input_shape) == (5, num_classes, (3, size, size))
    (black,) = stream.transform_batch([torch.zeros(1, 3, size, size, dtype=torch.uint8)])
    assert black[0, 0, 0, 0].item() == pytest.approx(-mean / std)


def test_what_was_cut_is_in_the_shape(tmp_path: Path) -> None:
    shape = IBlurry(**i_blurry.write(tmp_path), listed_order=True).shape()
    assert (shape["folder"], shape["split"], shape["listed_order"]) == ("cifar10", (2, 50, 10, 1), True)
