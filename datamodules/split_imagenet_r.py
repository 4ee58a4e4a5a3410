"""Split ImageNet-R: 30 000 renditions of 200 ImageNet classes, cut by class."""

from typing import Any

from lightning_cl.scenarios import SourceStream
from lightning_cl.sources.imagenet_r import ImageNetR, Split


class SplitImageNetR(SourceStream):
    """ImageNet-R (Hendrycks et al., ICCV 2021) in experiences of new classes.

    Images are read one by one, by ``num_workers`` processes, and cropped as by LAMDA-PILOT; they are not normalised.
    The usual form is ten experiences of 20 classes, with ``class_order`` 1993 in LAMDA-PILOT.

    Args:
        root: Folder that holds ``imagenet-r``, or that folder itself.
        num_experiences: Length of the stream; ``None`` is 10, unless ``increment`` says otherwise.
        split: Which 6 000 images are for testing: that of ``"pilot"`` (LAMDA-PILOT), ``"l2p"``, ``"mammoth"`` or
            ``"l2p_pytorch"``, see :class:`~lightning_cl.sources.imagenet_r.ImageNetR`. Figures on different ones cannot
            be compared: name it beside them.
        image_size: Height and width.
        download: Download missing images; the folders of ``"pilot"`` and the lists of ``"mammoth"`` cannot be.
        **kwargs: As for :class:`lightning_cl.SourceStream`.

    Example:
        >>> SplitImageNetR(split="l2p", num_experiences=100).classes[:2]
        [(0, 1), (2, 3)]
    """

    standard_length = 10

    def __init__(
        self,
        root: str = "data",
        num_experiences: int | None = None,
        *,
        split: Split = "pilot",
        image_size: int = 224,
        download: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(ImageNetR(root, download, split, image_size), num_experiences, **kwargs)
