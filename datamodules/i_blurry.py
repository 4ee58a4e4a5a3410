"""i-Blurry: CIFAR-10, CIFAR-100 and Tiny-ImageNet in the published blurry streams."""

from typing import Any, Literal

import torch
from torch import Tensor
from typing_extensions import override

from lightning_cl.listed import ListedStream
from lightning_cl.sources import i_blurry


class IBlurry(ListedStream):
    """The published i-Blurry-N-M streams (Koh et al., ICLR 2022), by the lists of their authors.

    N percent of the classes occur in one experience only; of the others M percent of the samples are spread over all
    experiences. There are no boundaries in the protocol: with ``boundaries=False``, ``listed_order=True`` and one epoch
    training sees each sample once, in the order of the lists. (For a split of any data set by the same rule see
    ``blurry`` of :class:`lightning_cl.ClassStream`.)

    Classes are numbered in order of appearance in the lists. An experience is tested on the classes of which most
    samples are in it.

    Args:
        root: Folder with ``train/<class>/*`` and the test images, or the one that holds it under the name of the data
            set; as laid out by the scripts of the code base naver-ai/i-Blurry.
        num_experiences: Length of the stream, the number after ``split`` in the names of the lists; ``None`` is 5.
        lists: Folder of the lists and of ``<data_set>_val.json``, or the one that holds it under the name of the data
            set; ``None`` is ``root/collections``. From that code base's ``collections``.
        data_set: ``"cifar10"``, ``"cifar100"`` (32 pixels) or ``"tinyimagenet"`` (64).
        disjoint_percent: N.
        blurry_percent: M; N of 100 or M of 0 both mean that no class is blurry.
        split_seed: The number after ``rand``.
        listed_order: Train on the samples in the order of the lists instead of one drawn with ``seed``.
        **kwargs: As for :class:`lightning_cl.DomainStream`. Mean and standard deviation are those of the code base.

    Raises:
        ValueError: If an argument is out of its range, or the lists are not of the files that are there.
        FileNotFoundError: If files are missing.

    Example:
        >>> stream = IBlurry(data_set="cifar100", num_experiences=10)
        >>> len(stream), stream.num_classes
        (10, 100)
    """

    standard_length = 5

    def __init__(
        self,
        root: str = "data",
        num_experiences: int | None = None,
        *,
        lists: str | None = None,
        data_set: Literal["cifar10", "cifar100", "tinyimagenet"] = "cifar10",
        disjoint_percent: int = 50,
        blurry_percent: int = 10,
        split_seed: int = 1,
        listed_order: bool = False,
        **kwargs: Any,
    ) -> None:
        length = self.standard_length if num_experiences is None else num_experiences
        cut = (data_set, length, disjoint_percent, blurry_percent, split_seed)
        super().__init__(i_blurry.IBlurry(root, lists, *cut), length, **kwargs)
        self.listed_order = listed_order

    @override
    def shape(self) -> dict[str, Any]:
        return {**super().shape(), "listed_order": self.listed_order}

    @override
    def _order(self, count: int, seed: int) -> Tensor:
        return torch.arange(count) if self.listed_order else super()._order(count, seed)
