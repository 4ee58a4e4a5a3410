"""Split CIFAR-10: 60 000 colour images of 32x32 pixels in 10 classes, cut by class."""

from typing import Any

from lightning_cl.scenarios import SourceStream
from lightning_cl.sources.cifar import CIFAR10


class SplitCIFAR10(SourceStream):
    """CIFAR-10 (Krizhevsky, technical report 2009) in experiences of new classes.

    Images are ``(3, 32, 32)``, uint8, 50 000 to train and 10 000 to test. The usual form is five experiences of two
    classes in numeric order, mammoth's seq-cifar10; the mean and standard deviation are mammoth's, too.

    Args:
        root: Folder that holds ``cifar-10-batches-py``, or that folder itself; downloaded if missing.
        num_experiences: Length of the stream; ``None`` is 5, unless ``increment`` says otherwise.
        download: Let torchvision download missing files.
        **kwargs: As for :class:`lightning_cl.SourceStream`.

    Example:
        >>> SplitCIFAR10().classes
        [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]
    """

    standard_length = 5

    def __init__(
        self, root: str = "data", num_experiences: int | None = None, *, download: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(CIFAR10(root, download), num_experiences, **kwargs)
