"""Permuted MNIST: the same ten digits in each experience, their pixels permuted anew."""

from typing import Any

from typing_extensions import override

from lightning_cl.pixels import PermutationConvention, PixelMap, draw_permutations, permutation_map
from lightning_cl.samples import Samples
from lightning_cl.scenarios import DomainStream
from lightning_cl.sources import make_source


class PermutedMNIST(DomainStream):
    """MNIST (LeCun et al., 1998) in experiences that each permute the pixels of all images in their own way.

    Introduced by Goodfellow et al., ICLR 2014. Images are ``(1, 28, 28)``, uint8, 60 000 to train and 10 000 to test in
    each experience; they are permuted as stored, then normalised. All channels are permuted alike. Which permutations
    are drawn depends on ``convention`` and ``permutation_seed`` only:

    - ``"mammoth"``: 20 experiences, NumPy's permutations of 784 pixels.
    - ``"gem"``: 20 experiences, PyTorch's. Its protocol trains on 1 000 samples of each, once, in batches of 10.
    - ``"van_de_ven"``: 10 experiences of images ``(1, 32, 32)``, two zeros added on each side; NumPy's permutations of
      1 024 pixels.
    - ``"avalanche"``: NumPy's, as for mammoth; 10 experiences, a length that Avalanche leaves to the user.

    The first three train on pixels in [0, 1]: their figures want ``mean=(0,)`` and ``std=(1,)``.

    Args:
        root: Folder of the data, as for the stream that cuts it by class.
        num_experiences: Length of the stream; ``None`` is that of the convention.
        data_set: The data set by name; any of small images will do, ``"digits"`` needs no files.
        convention: Whose permutations; see :func:`lightning_cl.pixels.draw_permutations`.
        permute_first: ``False`` leaves the images of the first experience as they are.
        permutation_seed: Fixes the permutations, and ``seed`` the order of samples.
        download: Download missing files.
        **kwargs: As for :class:`lightning_cl.DomainStream`.

    Attributes:
        permutations: One for each experience: pixel ``i``, row by row, comes from pixel ``permutation[i]`` of the image
            with its padding.

    Example:
        >>> stream = PermutedMNIST(data_set="digits", convention="van_de_ven", permute_first=False)
        >>> len(stream), stream.input_shape, stream.permutations[0][:4]
        (10, (1, 12, 12), tensor([0, 1, 2, 3]))
    """

    def __init__(
        self,
        root: str = "data",
        num_experiences: int | None = None,
        *,
        data_set: str = "mnist",
        convention: PermutationConvention = "mammoth",
        permute_first: bool = True,
        permutation_seed: int = 0,
        download: bool = True,
        **kwargs: Any,
    ) -> None:
        if num_experiences is None:
            num_experiences = 20 if convention in ("mammoth", "gem") else 10
        padding = 2 if convention == "van_de_ven" else 0
        source = make_source(data_set, root, download)
        channels, height, width = source.input_shape
        shape = (channels, height + 2 * padding, width + 2 * padding)
        drawn = draw_permutations(shape[1] * shape[2], num_experiences, convention, permutation_seed, permute_first)
        super().__init__(source, num_experiences, shape, **kwargs)
        self.permutations = drawn
        self.padding = padding
        self._drawn_by = [convention, permute_first, permutation_seed]

    @override
    def domain(self, experience: int, data: Samples, train: bool) -> Samples:
        height, width = self.source.input_shape[1:]
        return PixelMap.of(data, permutation_map(height, width, self.permutations[experience], self.padding))

    @override
    def name_of_group(self, group: int) -> str:
        return f"permutation {group}"

    @override
    def shape(self) -> dict[str, Any]:
        return {**super().shape(), "permutations": self._drawn_by}
