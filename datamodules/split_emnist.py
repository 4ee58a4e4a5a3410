"""Split EMNIST: handwritten digits and letters of 28x28 pixels, cut by class."""

from typing import Any

from lightning_cl.scenarios import SourceStream
from lightning_cl.sources.mnist import EMNIST, EMNISTSplit


class SplitEMNIST(SourceStream):
    """EMNIST (Cohen et al., IJCNN 2017) in experiences of new classes.

    Images are ``(1, 28, 28)``, uint8, and upright: the files hold them transposed, and torchvision leaves them so.

    There is no usual length, and 47 is prime. Without ``num_experiences`` and ``increment`` the classes come two at a
    time in ``"letters"`` (13 experiences), ``"digits"`` and ``"mnist"`` (5), and else five at a time, at last the two
    that remain (10; 13 in ``"byclass"``).

    Args:
        root: Folder of the data: either one that torchvision uses (``root/EMNIST/raw``; downloaded there if missing,
            some 560 MB for all six splits), or the folder of the IDX files themselves, plain or gzip.
        num_experiences: Length of the stream.
        split: ``"balanced"`` (47 classes, 112 800 images to train and 18 800 to test), ``"bymerge"`` (47),
            ``"byclass"`` (62), ``"letters"`` (26), ``"digits"`` (10) or ``"mnist"`` (10), see
            :class:`lightning_cl.sources.mnist.EMNIST`.
        increment: Classes of each further experience.
        download: Let torchvision download missing files.
        **kwargs: As for :class:`lightning_cl.SourceStream`.

    Example:
        >>> SplitEMNIST(split="letters").classes[-2:]
        [(22, 23), (24, 25)]
        >>> [len(group) for group in SplitEMNIST().classes]
        [5, 5, 5, 5, 5, 5, 5, 5, 5, 2]
    """

    def __init__(
        self,
        root: str = "data",
        num_experiences: int | None = None,
        *,
        split: EMNISTSplit = "balanced",
        increment: int | None = None,
        download: bool = True,
        **kwargs: Any,
    ) -> None:
        source = EMNIST(root, download, split)
        if num_experiences is None and increment is None:
            increment = 2 if source.num_classes <= 26 else 5
        super().__init__(source, num_experiences, increment=increment, **kwargs)
