import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from lightning_cl.sources.digits import Digits


def test_every_digit_is_in_one_part() -> None:
    """1 797 images, of which the 5th, 10th, ... of each class are for testing."""
    digits, train, test = load_digits(), Digits().read(train=True), Digits().read(train=False)
    assert (len(train), len(test)) == (1442, 355)
    for label in range(10):
        images = digits.images[digits.target == label]
        for data, expected in ((test, images[4::5]), (train, np.delete(images, slice(4, None, 5), axis=0))):
            x = data.inputs[data.targets == label]
            assert (x.shape, x.dtype) == ((len(expected), 1, 8, 8), torch.uint8)
            assert np.abs(x[:, 0].numpy() / 255 * 16 - expected).max() <= 0.5 / 255 * 16


def test_mean_and_deviation_are_those_of_the_training_images() -> None:
    pixels = Digits().load(train=True).inputs / 255
    assert [float(pixels.mean()), float(pixels.std())] == pytest.approx([*Digits.mean, *Digits.std], abs=1e-4)
