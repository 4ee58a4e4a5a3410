"""Split Digits: scikit-learn's 1 797 handwritten digits of 8x8 pixels, cut by class. Needs no download."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_cl.stream import ClassStream


class SplitDigits(ClassStream):
    """The digits that come with scikit-learn, in experiences of new classes: a whole run takes seconds.

    Images are ``(1, 8, 8)``, uint8; the 17 grey levels of the file are spread over 0 to 255. Every fifth image of each
    class is for testing (1 442 to train, 355 to test).

    Args:
        num_experiences: Length of the stream; divides the 10 classes.
        class_order: Permutation of 0 to 9; ``None`` is the numeric order.
        **kwargs: As for :class:`lightning_cl.StreamDataModule`.

    Example:
        >>> stream = SplitDigits(num_experiences=5)
        >>> stream.classes
        [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]
        >>> stream.experiences[0].num_train
        289
    """

    def __init__(self, num_experiences: int = 5, class_order: Sequence[int] | None = None, **kwargs: Any) -> None:
        super().__init__(10, (1, 8, 8), num_experiences, class_order, **kwargs)

    @override
    def load(self, train: bool) -> tuple[Tensor, Tensor]:
        from sklearn.datasets import load_digits

        digits = load_digits()
        inputs = torch.from_numpy(digits.images * 255 / 16).round().to(torch.uint8).unsqueeze(1)
        targets = torch.from_numpy(digits.target)
        position = torch.stack([(targets == c).cumsum(0) for c in range(10)])[targets, torch.arange(len(targets))]
        chosen = (position % 5 != 0) == train
        return inputs[chosen], targets[chosen]
