"""Split Digits: scikit-learn's 1 797 handwritten digits of 8x8 pixels, cut by class. Needs no download."""

from typing import Any

from lightning_cl.scenarios import SourceStream
from lightning_cl.sources.digits import Digits


class SplitDigits(SourceStream):
    """The digits that come with scikit-learn, in experiences of new classes: a whole run takes seconds.

    Images are ``(1, 8, 8)``, uint8; the 17 grey levels of the file are spread over 0 to 255. Every fifth image of each
    class is for testing (1 442 to train, 355 to test).

    Args:
        num_experiences: Length of the stream; ``None`` is 5, unless ``increment`` says otherwise.
        **kwargs: As for :class:`lightning_cl.SourceStream`.

    Example:
        >>> stream = SplitDigits(num_experiences=5)
        >>> stream.classes
        [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]
        >>> stream.experiences[0].num_train
        289
    """

    standard_length = 5

    def __init__(self, num_experiences: int | None = None, **kwargs: Any) -> None:
        super().__init__(Digits(), num_experiences, **kwargs)
