import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from lightning_cl.datamodules import SplitDigits


def test_every_digit_is_in_one_part() -> None:
    """1 797 images, of which the 5th, 10th, ... of each class are for testing."""
    stream = SplitDigits(num_experiences=10)
    digits = load_digits()
    for e in stream.experiences:
        (label,) = e.classes
        images = digits.images[digits.target == label]
        for name, expected in (("test", images[4::5]), ("train", np.delete(images, slice(4, None, 5), axis=0))):
            x, y = stream.part(e.index, name).batch(torch.arange(len(expected)))
            assert len(stream.part(e.index, name)) == len(expected)
            assert (x.shape[1:], x.dtype) == ((1, 8, 8), torch.uint8)
            assert np.abs(x[:, 0].numpy() / 255 * 16 - expected).max() <= 0.5 / 255 * 16
            assert set(y.tolist()) == {label}
    assert sum(e.num_train for e in stream.experiences) == 1442
    assert sum(e.num_test for e in stream.experiences) == 355


def test_order_of_classes() -> None:
    stream = SplitDigits(num_experiences=2, class_order=[4, 2, 7, 6, 0, 3, 5, 8, 9, 1])
    assert stream.classes == [(4, 2, 7, 6, 0), (3, 5, 8, 9, 1)]
    part = stream.part(1, "test")
    assert set(part.batch(torch.arange(len(part)))[1].tolist()) == {3, 5, 8, 9, 1}


@pytest.mark.parametrize("num_experiences", [3, 4, 11])
def test_number_of_experiences_must_divide_the_classes(num_experiences: int) -> None:
    with pytest.raises(ValueError, match=r"`num_experiences` must divide the 10 classes: one of \[1, 2, 5, 10\]"):
        SplitDigits(num_experiences)
