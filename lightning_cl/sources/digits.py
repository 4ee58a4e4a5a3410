"""The digits that come with scikit-learn."""

import torch
from typing_extensions import override

from lightning_cl.samples import TensorData
from lightning_cl.sources.base import Source


class Digits(Source):
    """scikit-learn's 1 797 handwritten digits of 8x8 pixels; needs no files.

    Images are ``(1, 8, 8)``, uint8; the 17 grey levels of the file are spread over 0 to 255. Every fifth image of each
    class is for testing (1 442 to train, 355 to test).
    """

    name = "Digits"
    num_classes = 10
    input_shape = (1, 8, 8)
    mean = (0.3052,)
    std = (0.3760,)
    remedy = ""

    @override
    def missing(self) -> list[str]:
        return []

    @override
    def load(self, train: bool) -> TensorData:
        from sklearn.datasets import load_digits

        digits = load_digits()
        inputs = torch.from_numpy(digits.images * 255 / 16).round().to(torch.uint8).unsqueeze(1)
        targets = torch.from_numpy(digits.target)
        position = torch.stack([(targets == c).cumsum(0) for c in range(10)])[targets, torch.arange(len(targets))]
        chosen = (position % 5 != 0) == train
        return TensorData(inputs[chosen], targets[chosen])
