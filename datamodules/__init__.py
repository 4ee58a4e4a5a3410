"""Streams: one data set a file."""

from typing import TYPE_CHECKING

from lightning_cl._lazy import lazy

if TYPE_CHECKING:
    from lightning_cl.datamodules.split_digits import SplitDigits as SplitDigits
    from lightning_cl.datamodules.split_fashion_mnist import SplitFashionMNIST as SplitFashionMNIST

__getattr__, __dir__ = lazy(__name__, {"SplitDigits": "split_digits", "SplitFashionMNIST": "split_fashion_mnist"})
