"""Split SVHN: 99 289 digits of house numbers, 32x32 pixels, cut by class."""

from typing import Any

from lightning_cl.scenarios import SourceStream
from lightning_cl.sources.svhn import SVHN


class SplitSVHN(SourceStream):
    """Street View House Numbers (Netzer et al., NIPS workshop 2011), cropped digits, in experiences of new classes.

    Images are ``(3, 32, 32)``, uint8, 73 257 to train and 26 032 to test; the label of the digit 0 is 0. Classes are of
    unequal size: there are 13 861 ones and 4 659 nines to train.

    Args:
        root: Folder of ``train_32x32.mat`` and ``test_32x32.mat``; downloaded there if missing.
        num_experiences: Length of the stream; ``None`` is 5, unless ``increment`` says otherwise.
        download: Let torchvision download missing files.
        **kwargs: As for :class:`lightning_cl.SourceStream`.

    Example:
        >>> SplitSVHN(base_classes=4, increment=3).classes
        [(0, 1, 2, 3), (4, 5, 6), (7, 8, 9)]
    """

    standard_length = 5

    def __init__(
        self, root: str = "data", num_experiences: int | None = None, *, download: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(SVHN(root, download), num_experiences, **kwargs)
