from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_cl.datamodules.split_emnist import SplitEMNIST
from tests.helpers.fakes import split_emnist
from tests.helpers.fakes._images import distinct_images

SIZES = {
    "balanced": [5] * 9 + [2],
    "bymerge": [5] * 9 + [2],
    "byclass": [5] * 12 + [2],
    "letters": [2] * 13,
    "digits": [2] * 5,
    "mnist": [2] * 5,
}


@pytest.mark.parametrize(("split", "sizes"), SIZES.items())
def test_default_length(split: Any, sizes: list[int]) -> None:
    assert [len(group) for group in SplitEMNIST(split=split).classes] == sizes


def test_length_by_arguments() -> None:
    assert len(SplitEMNIST(split="letters", num_experiences=2)) == 2
    assert len(SplitEMNIST(base_classes=7, increment=10)) == 5
    assert [len(group) for group in SplitEMNIST(num_experiences=4, convention="facil").classes] == [12, 12, 12, 11]
    with pytest.raises(ValueError, match="`num_experiences` and `increment` both cut the classes"):
        SplitEMNIST(num_experiences=2, increment=5)


def test_samples_of_a_file(tmp_path: Path) -> None:
    """The 47 classes come in turn in the fake; its images lie transposed there."""
    stream = SplitEMNIST(**split_emnist.write(tmp_path))
    stream.prepare_data()
    assert [(e.num_train, e.num_test) for e in stream.experiences] == [(20, 10)] * 9 + [(8, 4)]
    x, y = stream.part(9, "test").batch(torch.arange(4))
    assert y.tolist() == [45, 46, 45, 46]
    expected = torch.from_numpy(distinct_images(94, 1, 28, first=1 + 4 * 47)[[45, 46, 92, 93]])
    assert torch.equal(x, expected.transpose(2, 3))
