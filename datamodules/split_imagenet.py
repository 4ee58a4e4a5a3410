"""Split ImageNet: 1.3 million photographs in 1 000 classes, cut by class."""

from typing import Any

from lightning_cl.scenarios import SourceStream
from lightning_cl.sources.imagenet import ImageNet


class SplitImageNet(SourceStream):
    """ImageNet (Deng et al., CVPR 2009; Russakovsky et al., IJCV 2015) in experiences of new classes.

    There are 1 281 167 images to train and 50 000 (the validation images) to test. They are read one by one, by
    ``num_workers`` processes, and cropped as by PyCIL. The usual form is ten experiences of 100 classes with
    ``class_order`` 1993.

    Args:
        root: Folder that holds ``{train,val}/<WordNet id>/*``, or FACIL's lists ``train.txt`` and ``test.txt``, or a
            folder ``imagenet`` with one of them.
        num_experiences: Length of the stream; ``None`` is 10, unless ``increment`` says otherwise.
        subset: A file with a WordNet id at the start of each line: only those classes, numbered anew in alphabetical
            order. ``None`` is all 1 000.
        image_size: Height and width.
        **kwargs: As for :class:`lightning_cl.SourceStream`.

    Example:
        >>> SplitImageNet(class_order=1993).classes[0][:4]
        (54, 7, 894, 512)
    """

    standard_length = 10

    def __init__(
        self,
        root: str = "data",
        num_experiences: int | None = None,
        *,
        subset: str | None = None,
        image_size: int = 224,
        **kwargs: Any,
    ) -> None:
        source = ImageNet(root, subset=subset, image_size=image_size)
        super().__init__(source, num_experiences, **kwargs)
