"""Data sets that streams are cut from: one a module, found by name."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_cl.sources.base import Source

SOURCES = {
    "digits": "digits.Digits",
    "mnist": "mnist.MNIST",
    "fashion_mnist": "mnist.FashionMNIST",
    "kmnist": "mnist.KMNIST",
    "emnist": "mnist.EMNIST",
    "svhn": "svhn.SVHN",
    "cifar10": "cifar.CIFAR10",
    "cifar100": "cifar.CIFAR100",
    "tiny_imagenet": "tiny_imagenet.TinyImageNet",
    "cub200": "cub200.CUB200",
    "imagenet": "imagenet.ImageNet",
    "imagenet_r": "imagenet_r.ImageNetR",
}
"""Name to ``module.Class``."""


def make_source(name: str, root: str = "data", download: bool = True) -> "Source":
    """Make a source by name.

    Args:
        name: A key of :data:`SOURCES`.
        root: Folder of the data.
        download: Download missing files.

    Raises:
        ValueError: If there is no such source; names the nearest.

    Example:
        >>> make_source("digits").num_classes
        10
    """
    from lightning_cl.spelling import nearest

    if name not in SOURCES:
        raise ValueError(f"`data_set`: there is no data set {name!r}. {nearest(name, list(SOURCES))}")
    module, cls = SOURCES[name].split(".")
    source: Source = getattr(importlib.import_module(f"lightning_cl.sources.{module}"), cls)(root, download)
    return source
