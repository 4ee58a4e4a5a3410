"""Split KMNIST: 70 000 cursive hiragana of 28x28 pixels, cut by class."""

from typing import Any

from lightning_cl.scenarios import SourceStream
from lightning_cl.sources.mnist import KMNIST


class SplitKMNIST(SourceStream):
    """Kuzushiji-MNIST (Clanuwat et al., arXiv 2018) in experiences of new classes.

    Images are ``(1, 28, 28)``, uint8, 60 000 to train and 10 000 to test.

    Args:
        root: Folder of the data: either one that torchvision uses (``root/KMNIST/raw``; downloaded there if missing),
            or the folder of the four IDX files themselves, plain or gzip.
        num_experiences: Length of the stream; ``None`` is 5, unless ``increment`` says otherwise.
        download: Let torchvision download missing files.
        **kwargs: As for :class:`lightning_cl.SourceStream`.

    Example:
        >>> SplitKMNIST(num_experiences=2).classes
        [(0, 1, 2, 3, 4), (5, 6, 7, 8, 9)]
    """

    standard_length = 5

    def __init__(
        self, root: str = "data", num_experiences: int | None = None, *, download: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(KMNIST(root, download), num_experiences, **kwargs)
