"""Your own tensors as a stream."""

from typing import Any

import torch
from torch import Tensor

from lightning_cl.samples import TensorData
from lightning_cl.scenarios import OwnStream


class TensorStream(OwnStream):
    """Inputs and labels in memory, cut by class, by domain or by lists of indices.

    Args:
        x: Training inputs ``(N, *)``, a tensor or an array; images as ``uint8`` ``(N, C, H, W)`` stay so in memory.
        y: Their labels ``(N,)``.
        x_test: Test inputs ``(M, *)``; ``None`` cuts ``test_fraction`` off the training samples, of each class.
        y_test: Their labels ``(M,)``.
        **kwargs: As for :class:`lightning_cl.scenarios.OwnStream`.

    Example:
        >>> x, y = torch.rand(60, 3), torch.arange(60) % 6
        >>> TensorStream(x, y, num_experiences=3).classes
        [(0, 1), (2, 3), (4, 5)]
        >>> TensorStream(x, y, domains=torch.arange(60) // 20, test_fraction=0.5).classes
        [(0, 1, 2, 3, 4, 5), (0, 1, 2, 3, 4, 5), (0, 1, 2, 3, 4, 5)]
    """

    def __init__(
        self, x: Tensor, y: Tensor, x_test: Tensor | None = None, y_test: Tensor | None = None, **kwargs: Any
    ) -> None:
        if (x_test is None) != (y_test is None):
            raise ValueError("`x_test` and `y_test` go together: give both or neither.")
        as_tensor = torch.as_tensor  # NumPy's arrays and lists will do
        if as_tensor(y).is_floating_point():
            raise ValueError(f"`y` must hold integers, the classes, got {as_tensor(y).dtype}.")
        test = None if x_test is None or y_test is None else TensorData(as_tensor(x_test), as_tensor(y_test))
        super().__init__(TensorData(as_tensor(x), as_tensor(y)), test, **kwargs)
