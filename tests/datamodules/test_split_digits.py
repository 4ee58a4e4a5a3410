import pytest
import torch

from lightning_cl.datamodules import SplitDigits


def test_order_of_classes() -> None:
    stream = SplitDigits(num_experiences=2, class_order=[4, 2, 7, 6, 0, 3, 5, 8, 9, 1])
    assert stream.classes == [(4, 2, 7, 6, 0), (3, 5, 8, 9, 1)]
    part = stream.part(1, "test")
    assert set(part.batch(torch.arange(len(part)))[1].tolist()) == {3, 5, 8, 9, 1}


@pytest.mark.parametrize("num_experiences", [3, 4, 11])
def test_number_of_experiences_must_divide_the_classes(num_experiences: int) -> None:
    with pytest.raises(ValueError, match=r"`num_experiences` must divide the 10 classes: one of \[1, 2, 5, 10\]"):
        SplitDigits(num_experiences)
