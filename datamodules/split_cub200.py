"""Split CUB-200: photographs of 200 species of birds, cut by class."""

from typing import Any, Literal

from lightning_cl.scenarios import SourceStream
from lightning_cl.sources.cub200 import CUB200


class SplitCUB200(SourceStream):
    """CUB-200-2011 (Wah et al., technical report 2011) in experiences of new species.

    There are 11 788 photographs, which are read one by one, by ``num_workers`` processes, and cropped as by
    LAMDA-PILOT. The usual form is ten experiences of 20 species, with ``class_order`` 1993 in LAMDA-PILOT. The mean and
    standard deviation are mammoth's.

    Args:
        root: Folder that holds ``CUB_200_2011`` or ``cub``, or that folder itself.
        num_experiences: Length of the stream; ``None`` is 10, unless ``increment`` says otherwise.
        split: Which images are for testing: ``"official"``, 5 994 to train and 5 794 to test; or ``"pilot"``, the
            folders ``cub/{train,test}/<class>/*`` of LAMDA-PILOT, 9 430 and 2 358. Figures on the two cannot be
            compared.
        image_size: Height and width.
        download: Download missing files of the official split.
        **kwargs: As for :class:`lightning_cl.SourceStream`.

    Example:
        >>> SplitCUB200(num_experiences=20, class_order=1993).classes[0][:4]
        (168, 136, 51, 9)
    """

    standard_length = 10

    def __init__(
        self,
        root: str = "data",
        num_experiences: int | None = None,
        *,
        split: Literal["official", "pilot"] = "official",
        image_size: int = 224,
        download: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(CUB200(root, download, split, image_size), num_experiences, **kwargs)
