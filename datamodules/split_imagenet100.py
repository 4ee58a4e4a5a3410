"""Split ImageNet-100: 100 classes of ImageNet, cut by class."""

from typing import Any

from lightning_cl.scenarios import SourceStream
from lightning_cl.sources.imagenet import ImageNet


class SplitImageNet100(SourceStream):
    """One hundred classes of ImageNet (Deng et al., CVPR 2009) in experiences of new classes.

    There are about 129 000 images to train and 5 000 (validation images) to test. They are read one by one, by
    ``num_workers`` processes, and cropped as by PyCIL. The usual form is ten experiences of ten classes with
    ``class_order`` 1993, applied to the 100.

    Args:
        root: Folder that holds ``{train,val}/<WordNet id>/*``, or FACIL's lists ``train.txt`` and ``test.txt``, or a
            folder ``imagenet`` with one of them; of all 1 000 classes unless ``subset`` is ``"as_is"``.
        num_experiences: Length of the stream; ``None`` is 10, unless ``increment`` says otherwise.
        subset: Which classes; the field has several, whose figures cannot be compared. They are numbered anew, in
            alphabetical order.

            - ``"pycil"``: the first 100 of the seed-1993 order of all 1 000 (iCaRL's and LUCIR's ImageNet-Subset;
              FOSTER, PyCIL).
            - ``"podnet"``: the first 100 in alphabetical order (BiC, PODNet, DER of Yan et al.).
            - ``"as_is"``: the 100 classes that are there, in a folder or lists that somebody has cut.
            - a file with a WordNet id at the start of each line.
        image_size: Height and width.
        **kwargs: As for :class:`lightning_cl.SourceStream`.

    Example:
        >>> SplitImageNet100(base_classes=50, increment=10, class_order=1993).classes[0][:4]
        (68, 56, 78, 8)
    """

    standard_length = 10

    def __init__(
        self,
        root: str = "data",
        num_experiences: int | None = None,
        *,
        subset: str = "pycil",
        image_size: int = 224,
        **kwargs: Any,
    ) -> None:
        source = ImageNet(root, subset=subset, image_size=image_size)
        super().__init__(source, num_experiences, **kwargs)
