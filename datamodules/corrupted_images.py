"""Any data set of images in memory under 15 corruptions, made here: nothing needs to be downloaded."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_cl.corruptions import Segment, corrupt
from lightning_cl.samples import Samples, TensorData, in_memory
from lightning_cl.scenarios import FromSource
from lightning_cl.segments import SegmentStream
from lightning_cl.sources import make_source


class CorruptedImages(SegmentStream, FromSource):
    """The images of a data set under one corruption after another.

    Training images are corrupted too, so that the stream is also a domain-incremental one: ``lightning-cl fit`` learns
    it corruption by corruption. For test-time adaptation train on the clean data set (``num_experiences=1``) and give
    the checkpoint to ``lightning-cl test``. How the corruptions differ from the published files, above all frost, which
    needs photographs there, says :func:`lightning_cl.corruptions.corrupt`.

    Args:
        data_set: Name of a data set of small images (:data:`lightning_cl.sources.SOURCES`), e.g. ``"digits"``.
        root: Folder of the data.
        download: Download missing files.
        corruption_seed: Fixes what the corruptions draw; an image is corrupted alike in every run and every batch.
        in_memory: Keep corrupted images once they are made (a byte per pixel, channel, image and segment); else they
            are made anew for each batch.
        mean: Mean that is subtracted from pixels in ``[0, 1]``: one, or one per channel; ``None`` is the data set's.
        std: Standard deviation that is divided by, likewise.
        **kwargs: As for :class:`lightning_cl.segments.SegmentStream`.

    Example:
        >>> stream = CorruptedImages("digits", corruptions=["fog", "contrast"])
        >>> stream.name_of(1), stream.part(1, "test")[0][0].shape
        ('contrast, severity 5', torch.Size([1, 8, 8]))
    """

    same_samples = True

    def __init__(
        self,
        data_set: str = "fashion_mnist",
        root: str = "data",
        *,
        download: bool = True,
        corruption_seed: int = 0,
        in_memory: bool = True,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        **kwargs: Any,
    ) -> None:
        source = make_source(data_set, root, download)
        if corruption_seed < 0:
            raise ValueError(f"`corruption_seed` must be 0 or more, got {corruption_seed}.")
        super().__init__(
            source.num_classes,
            source.input_shape,
            mean=source.mean if mean is None else mean,
            std=source.std if std is None else std,
            **kwargs,
        )
        self.source = source
        self.corruption_seed = corruption_seed
        self.in_memory = in_memory
        self._loaded = {}
        self._kept: dict[tuple[bool, Segment], TensorData] = {}

    @override
    def dataset(self, experience: int, train: bool) -> Samples:
        segment = self.segments[experience]
        if (train, segment) not in self._kept:
            # Of another part of the data set the draws are others.
            seed = 2 * self.corruption_seed + train
            self._kept[train, segment] = _Corrupted(in_memory(self._data(train)), segment, seed, self.in_memory)
        return self._kept[train, segment]

    @override
    def shape(self) -> dict[str, Any]:
        return {**super().shape(), "corruption_seed": self.corruption_seed}


class _Corrupted(TensorData):
    """Samples that are corrupted when they are first asked for."""

    def __init__(self, clean: TensorData, segment: Segment, seed: int, in_memory: bool) -> None:
        super().__init__(clean.inputs, clean.targets, clean.indices)
        self.segment = segment
        self.seed = seed
        # Filled as images are asked for; one for all parts of these samples.
        self.kept = torch.empty_like(clean.inputs) if in_memory else None
        self.made = torch.zeros(len(clean.inputs), dtype=torch.bool)

    @override
    def batch(self, index: Tensor) -> list[Tensor]:
        x, *columns = super().batch(index)
        at = self.indices[index]
        if self.kept is None:
            return [corrupt(x, *self.segment, self.seed, at), *columns]
        new = ~self.made[at]
        if new.any():
            self.kept[at[new]] = corrupt(x[new], *self.segment, self.seed, at[new])
            self.made[at] = True
        return [self.kept.index_select(0, at), *columns]
