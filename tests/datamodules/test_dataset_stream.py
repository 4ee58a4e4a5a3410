from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from lightning_cl.datamodules import DatasetStream
from lightning_cl.datamodules.dataset_stream import targets_of


class Labelled(Dataset[Any]):
    """As those of torchvision: pairs, with the labels in an attribute."""

    def __init__(self, attribute: str) -> None:
        setattr(self, attribute, [k % 4 for k in range(24)])

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return Image.fromarray(np.full((2, 2, 3), index, np.uint8)), index % 4


class Columns:
    """As those of Hugging Face: dicts, with columns that are read at once."""

    column_names = ("image", "label")

    def __len__(self) -> int:
        return 24

    def __getitem__(self, key: Any) -> Any:
        if key == "label":
            return [k % 4 for k in range(24)]
        return {"image": Image.fromarray(np.full((2, 2, 3), key, np.uint8)), "label": key % 4}


@pytest.mark.parametrize("data", [Labelled("targets"), Labelled("labels"), Columns()])
def test_data_sets_of_others(data: Any) -> None:
    stream = DatasetStream(data, data, num_experiences=2, batch_size=5, eval_batch_size=100)
    assert stream.classes == [(0, 1), (2, 3)]
    assert (stream.num_classes, stream.input_shape) == (4, (3, 2, 2))
    ((x, y),) = stream.test_dataloader().loaders[1]
    assert (x.dtype, x.shape) == (torch.uint8, (12, 3, 2, 2))
    assert x[:, 0, 0, 0].tolist() == [k for k in range(24) if k % 4 > 1]
    assert y.tolist() == [2, 3] * 6
    assert sum(len(labels) for _, labels in stream.train_dataloader()) == 12


def test_parts_of_data_sets_of_columns() -> None:
    parts = ConcatDataset([Subset(Columns(), range(12)), Subset(Columns(), range(12, 24))])  # type: ignore[arg-type]
    assert [e.num_train for e in DatasetStream(parts, parts, num_experiences=2).experiences] == [12, 12]


def test_transform_and_labels_of_the_user() -> None:
    stream = DatasetStream(
        Columns(),
        num_experiences=2,
        targets=torch.arange(24) % 6,
        transform=lambda image: torch.tensor([float(image.getpixel((0, 0))[0])]),
    )
    assert (stream.num_classes, stream.input_shape) == (6, (1,))
    assert [int(stream.part(0, "train")[k][0]) % 6 for k in range(3)] == [0, 1, 2]


def test_labels_are_found_inside() -> None:
    parts = ConcatDataset([Subset(Labelled("targets"), [3, 1]), TensorDataset(torch.zeros(2), torch.tensor([8, 9]))])
    assert targets_of(parts).tolist() == [3, 1, 8, 9]
    with pytest.raises(ValueError, match="`test_targets` must be given: Anything has no column 'label'"):
        DatasetStream(Labelled("targets"), type("Anything", (list,), {})([1]), num_experiences=2)


def test_a_column_that_is_no_image_is_named() -> None:
    class Numbered(Columns):
        column_names = ("id", "label")

        def __getitem__(self, key: Any) -> Any:
            return super().__getitem__(key) if key == "label" else {"id": key, "label": key % 4}

    with pytest.raises(ValueError, match=r"Samples must be tensors, .*, got 0: choose another `input_key`"):
        DatasetStream(Numbered(), Numbered(), num_experiences=2)
    with pytest.raises(ValueError, match=r"`test_targets` go with `test`"):
        DatasetStream(Columns(), test_targets=torch.zeros(3), num_experiences=2)


class Fine(Columns):
    """The label comes first, and under another name."""

    column_names = ("fine", "image")

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__("label" if key == "fine" else key)


def test_the_label_may_have_any_name_and_place() -> None:
    parts = ConcatDataset([Subset(Fine(), range(12)), Subset(Fine(), range(12, 24))])  # type: ignore[arg-type]
    for data in (Fine(), parts):
        stream = DatasetStream(data, data, target_key="fine", num_experiences=2)
        assert (stream.classes, stream.input_shape) == ([(0, 1), (2, 3)], (3, 2, 2))


def test_labels_of_the_test_samples_may_be_given() -> None:
    data = Labelled("targets")
    stream = DatasetStream(data, data, targets=[k % 2 for k in range(24)], test_targets=[0] * 24, num_experiences=1)  # type: ignore[arg-type]
    assert stream.part(0, "train").labels.tolist() == [0, 1] * 12
    assert stream.part(0, "test").labels.tolist() == [0] * 24


def test_inputs_and_labels_that_are_nowhere_are_refused() -> None:
    with pytest.raises(ValueError, match="`input_key` must be 0 or more where it is a position, got -1"):
        DatasetStream(Labelled("targets"), input_key=-1, num_experiences=2)
    with pytest.raises(ValueError, match="`targets` must be given: TensorDataset has no column 'label'"):
        DatasetStream(TensorDataset(torch.zeros(4, 1)), num_experiences=2)
