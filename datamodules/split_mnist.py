"""Split MNIST: 70 000 handwritten digits of 28x28 pixels, cut by class."""

from typing import Any

from lightning_cl.scenarios import SourceStream
from lightning_cl.sources.mnist import MNIST


class SplitMNIST(SourceStream):
    """MNIST (LeCun et al., Proceedings of the IEEE 1998) in experiences of new classes.

    Images are ``(1, 28, 28)``, uint8, 60 000 to train and 10 000 to test. The usual form is five experiences of two
    digits in numeric order (Zenke et al., ICML 2017).

    Args:
        root: Folder of the data: either one that torchvision uses (``root/MNIST/raw``; downloaded there if missing), or
            the folder of the four IDX files themselves, plain or gzip.
        num_experiences: Length of the stream; ``None`` is 5, unless ``increment`` says otherwise.
        download: Let torchvision download missing files.
        **kwargs: As for :class:`lightning_cl.SourceStream`.

    Example:
        >>> SplitMNIST().classes
        [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]
    """

    standard_length = 5

    def __init__(
        self, root: str = "data", num_experiences: int | None = None, *, download: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(MNIST(root, download), num_experiences, **kwargs)
