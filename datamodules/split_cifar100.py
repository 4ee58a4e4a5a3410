"""Split CIFAR-100: 60 000 colour images of 32x32 pixels in 100 classes, cut by class."""

from typing import Any, Literal

from lightning_cl.scenarios import SourceStream
from lightning_cl.sources.cifar import CIFAR100


class SplitCIFAR100(SourceStream):
    """CIFAR-100 (Krizhevsky, technical report 2009) in experiences of new classes.

    Images are ``(3, 32, 32)``, uint8, 50 000 to train and 10 000 to test. The mean and standard deviation are those of
    PyCIL and mammoth. Usual forms are

    - 10 experiences of 10 classes or 20 of 5: ``num_experiences`` 10 or 20, with ``class_order`` 1993 in PyCIL and its
      kin ("B0"), in numeric order in mammoth (seq-cifar100) and for GEM (Lopez-Paz & Ranzato, NeurIPS 2017);
    - 50 classes, then 10, 5 or 2 at a time ("B50"): ``base_classes`` 50 and ``increment``.

    Args:
        root: Folder that holds ``cifar-100-python``, or that folder itself; downloaded if missing.
        num_experiences: Length of the stream; ``None`` is 10, unless ``increment`` says otherwise.
        labels: The 100 ``"fine"`` classes, or the 20 ``"coarse"`` ones.
        download: Let torchvision download missing files.
        **kwargs: As for :class:`lightning_cl.SourceStream`.

    Example:
        >>> SplitCIFAR100(class_order=1993).classes[0]
        (68, 56, 78, 8, 23, 84, 90, 65, 74, 76)
        >>> [len(group) for group in SplitCIFAR100(base_classes=50, increment=10).classes]
        [50, 10, 10, 10, 10, 10]
    """

    standard_length = 10

    def __init__(
        self,
        root: str = "data",
        num_experiences: int | None = None,
        *,
        labels: Literal["fine", "coarse"] = "fine",
        download: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(CIFAR100(root, download, labels), num_experiences, **kwargs)
