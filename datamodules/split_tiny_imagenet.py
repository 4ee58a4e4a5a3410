"""Split Tiny ImageNet: 110 000 colour images of 64x64 pixels in 200 classes, cut by class."""

from typing import Any

from lightning_cl.scenarios import SourceStream
from lightning_cl.sources.tiny_imagenet import TinyImageNet


class SplitTinyImageNet(SourceStream):
    """Tiny ImageNet (Le & Yang, CS 231N 2015) in experiences of new classes.

    Images are ``(3, 64, 64)``, uint8, 100 000 to train and 10 000 (the published validation images) to test. They are
    decoded once, which takes a minute, and kept in a file beside the data. The usual form is ten experiences of 20
    classes in the order of ``wnids.txt``, mammoth's seq-tinyimg; the mean and standard deviation are mammoth's, too.

    Args:
        root: Folder that holds ``tiny-imagenet-200``, or that folder itself, or mammoth's ``processed`` or ``TINYIMG``;
            downloaded if missing.
        num_experiences: Length of the stream; ``None`` is 10, unless ``increment`` says otherwise.
        download: Download missing files.
        **kwargs: As for :class:`lightning_cl.SourceStream`.

    Example:
        >>> [len(group) for group in SplitTinyImageNet(base_classes=100, increment=20).classes]
        [100, 20, 20, 20, 20, 20]
    """

    standard_length = 10

    def __init__(
        self, root: str = "data", num_experiences: int | None = None, *, download: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(TinyImageNet(root, download), num_experiences, **kwargs)
