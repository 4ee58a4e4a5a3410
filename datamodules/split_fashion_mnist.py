"""Split Fashion-MNIST: 70 000 images of clothes, 28x28 pixels, cut by class."""

from typing import Any

from lightning_cl.scenarios import SourceStream
from lightning_cl.sources.mnist import FashionMNIST


class SplitFashionMNIST(SourceStream):
    """Fashion-MNIST (Xiao et al., arXiv 2017) in experiences of new classes.

    Images are ``(1, 28, 28)``, uint8, 60 000 to train and 10 000 to test.

    Args:
        root: Folder of the data: either one that torchvision uses (``root/FashionMNIST/raw``; downloaded there if
            missing), or the folder of the four IDX files themselves, plain or gzip (Debian's package
            dataset-fashion-mnist puts them into ``/usr/share/datasets/fashion-mnist``).
        num_experiences: Length of the stream; ``None`` is 5, unless ``increment`` says otherwise.
        download: Let torchvision download missing files.
        **kwargs: As for :class:`lightning_cl.SourceStream`.

    Example:
        >>> SplitFashionMNIST(class_order=1993).classes
        [(4, 2), (7, 6), (0, 3), (5, 8), (9, 1)]
    """

    standard_length = 5

    def __init__(
        self, root: str = "data", num_experiences: int | None = None, *, download: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(FashionMNIST(root, download), num_experiences, **kwargs)
