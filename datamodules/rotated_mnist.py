"""Rotated MNIST: the same ten digits in each experience, rotated by another angle."""

import math
from collections.abc import Sequence
from typing import Any

from typing_extensions import override

from lightning_cl.pixels import PixelMap, RotationConvention, draw_angles, rotation_map
from lightning_cl.samples import Samples
from lightning_cl.scenarios import DomainStream
from lightning_cl.sources import make_source


class RotatedMNIST(DomainStream):
    """MNIST (LeCun et al., 1998) in experiences that each rotate all images by an angle of their own.

    Introduced by Lopez-Paz & Ranzato, NeurIPS 2017. Images are ``(1, 28, 28)``, uint8, 60 000 to train and 10 000 to
    test in each experience; they are rotated as stored, to the nearest pixel, then normalised. Which angles are drawn
    depends on ``convention`` and ``angle_seed`` only:

    - ``"mammoth"``: 20 experiences, uniform in [0, 180).
    - ``"gem"``: 20 experiences, one angle in each of as many equal parts of [0, 180]. Its protocol trains on 1 000
      samples of each, once, in batches of 10. GEM's own angles cannot be had again: nothing seeds them there.
    - ``"avalanche"``: whole numbers in [-180, 180], and the rotation of tensors, which rounds differently; 10
      experiences, a length that Avalanche leaves to the user.

    The first two train on pixels in [0, 1]: their figures want ``mean=(0,)`` and ``std=(1,)``.

    Args:
        root: Folder of the data, as for the stream that cuts it by class.
        num_experiences: Length of the stream; ``None`` is that of ``angles``, else of the convention.
        data_set: The data set by name; any of small images will do, ``"digits"`` needs no files.
        convention: Whose angles and whose rotation; see :func:`lightning_cl.pixels.draw_angles`.
        angles: The angles themselves, in degrees, counter-clockwise, one for each experience.
        angle_seed: Fixes the angles that are drawn, and ``seed`` the order of samples.
        download: Download missing files.
        **kwargs: As for :class:`lightning_cl.DomainStream`.

    Attributes:
        angles: The angle of each experience, in degrees, counter-clockwise.

    Raises:
        ValueError: If an argument is out of its range; the message names it.

    Example:
        >>> stream = RotatedMNIST(num_experiences=3, data_set="digits", convention="gem")
        >>> [round(angle) for angle in stream.angles]
        [51, 105, 145]
    """

    def __init__(
        self,
        root: str = "data",
        num_experiences: int | None = None,
        *,
        data_set: str = "mnist",
        convention: RotationConvention = "mammoth",
        angles: Sequence[float] | None = None,
        angle_seed: int = 0,
        download: bool = True,
        **kwargs: Any,
    ) -> None:
        if num_experiences is None:
            num_experiences = len(angles) if angles is not None else 10 if convention == "avalanche" else 20
        drawn = draw_angles(num_experiences, convention, angle_seed)
        if angles is not None and (len(angles) != num_experiences or not all(map(math.isfinite, angles))):
            raise ValueError(f"`angles` must be {num_experiences} finite numbers (`num_experiences`), got {angles}.")
        super().__init__(make_source(data_set, root, download), num_experiences, None, **kwargs)
        self.angles = drawn if angles is None else [float(angle) for angle in angles]
        self.convention = convention

    @override
    def domain(self, experience: int, data: Samples, train: bool) -> Samples:
        _, height, width = self.input_shape
        angle = self.angles[experience]
        pixels = rotation_map(height, width, angle, "tensor" if self.convention == "avalanche" else "pil")
        return PixelMap.of(data, pixels)

    @override
    def name_of_group(self, group: int) -> str:
        return f"rotated by {self.angles[group]:.1f} degrees"

    @override
    def shape(self) -> dict[str, Any]:
        return {**super().shape(), "rotations": [self.convention, self.angles]}
