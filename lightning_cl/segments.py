"""Streams for test time: the same test images under one corruption after another."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from typing_extensions import override

from lightning_cl.corruptions import CORRUPTIONS, Segment, cotta_order, gradual_schedule, standard_schedule
from lightning_cl.samples import TensorData, check_samples
from lightning_cl.sources.base import Source
from lightning_cl.stream import StreamDataModule


class SegmentStream(StreamDataModule):
    """A stream of test segments, each the whole test set under one corruption at one severity.

    An experience is a segment, so ``lightning-cl test`` reports the accuracy on each, and what adapts at test time
    meets them one after another in one loader. A concrete stream implements ``dataset``; ``segments[i]`` says what
    experience ``i`` is.

    Args:
        num_classes: Number of classes.
        input_shape: Shape of one sample, ``(C, H, W)``.
        schedule: ``"standard"``: each corruption once at ``severity``, as in CoTTA (Wang et al., CVPR 2022).
            ``"gradual"``: severities that rise and fall, 131 segments for all 15 corruptions.
        severity: Severity of the standard schedule, 1 to 5; ``None`` is 5.
        corruptions: One corruption, or several in their order; ``None`` is all 15 in CoTTA's. A number 0 to 9 is one of
            the ten orders over which CoTTA averages.
        **kwargs: As for :class:`StreamDataModule`.

    Raises:
        ValueError: If an argument is out of its range; the message names it.
    """

    def __init__(
        self,
        num_classes: int,
        input_shape: tuple[int, ...],
        *,
        schedule: Literal["standard", "gradual"] = "standard",
        severity: int | None = None,
        corruptions: int | str | Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        if schedule not in ("standard", "gradual"):
            raise ValueError(f"`schedule` must be 'standard' or 'gradual', got {schedule!r}.")
        names = _ordered(corruptions)
        if schedule == "standard":
            self.segments: list[Segment] = standard_schedule(names, 5 if severity is None else severity)
        elif severity is None:
            self.segments = gradual_schedule(names)
        else:
            raise ValueError(f"`severity` is for the standard `schedule`, the gradual one has all: got {severity}.")
        super().__init__([range(num_classes)] * len(self.segments), num_classes, input_shape, **kwargs)

    @override
    def name_of_group(self, group: int) -> str:
        return "{}, severity {}".format(*self.segments[group])

    @override
    def shape(self) -> dict[str, Any]:
        return {**super().shape(), "segments": [list(segment) for segment in self.segments]}


def _ordered(corruptions: int | str | Sequence[str] | None) -> Sequence[str]:
    if corruptions is None:
        return CORRUPTIONS
    if isinstance(corruptions, str):
        return (corruptions,)
    if isinstance(corruptions, int):
        if isinstance(corruptions, bool) or not 0 <= corruptions < 10:
            raise ValueError(f"`corruptions` must be names or one of the orders 0 to 9, got {corruptions}.")
        return cotta_order(corruptions)
    if not corruptions:
        raise ValueError("`corruptions` must name at least one corruption, got none.")
    return corruptions


class CorruptedFiles(SegmentStream):
    """The published CIFAR-10-C and CIFAR-100-C: one array of 50 000 images per corruption, memory-mapped.

    Severity ``s`` is the ``s``-th fifth of the rows. There is nothing to train on. CoTTA's continual protocol is the
    default: all 15 corruptions at severity 5, in batches of 200. A concrete stream states the class attributes.

    Args:
        root: Folder of the files ``<corruption>.npy``, ``(5 N, 32, 32, 3)`` uint8, and ``labels.npy``, or its parent.
        eval_batch_size: Images per batch.
        mean: Mean that is subtracted from pixels in ``[0, 1]``; ``None`` is that of the clean data set. The models of
            RobustBench normalise by themselves: 0 and 1 for them.
        std: Standard deviation that is divided by, likewise.
        **kwargs: As for :class:`SegmentStream`.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If one is damaged or of another shape.
    """

    folder: ClassVar[str]
    """The name of the published folder."""
    clean: ClassVar[type[Source]]
    """The data set that was corrupted."""

    def __init__(
        self,
        root: str = "data",
        *,
        eval_batch_size: int = 200,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            self.clean.num_classes,
            self.clean.input_shape,
            eval_batch_size=eval_batch_size,
            mean=self.clean.mean if mean is None else mean,
            std=self.clean.std if std is None else std,
            **kwargs,
        )
        self.root = Path(root).expanduser()
        self._arrays: dict[str, TensorData] = {}

    @override
    def prepare_data(self) -> None:
        wanted = [*dict.fromkeys(f"{segment.corruption}.npy" for segment in self.segments), "labels.npy"]
        if missing := [name for name in wanted if not (self._place() / name).is_file()]:
            raise FileNotFoundError(
                f"{self.folder} is missing: looked for {', '.join(missing[:4])} in `root` {str(self.root)!r} and in "
                f"its folder {self.folder!r}, and it cannot be downloaded automatically. Get {self.folder}.tar from "
                "Zenodo (Hendrycks & Dietterich, ICLR 2019) and unpack it there."
            )

    @override
    def dataset(self, experience: int, train: bool) -> TensorData:
        if train:
            raise ValueError(self.test_only)
        name, severity = self.segments[experience]
        if name not in self._arrays:
            self._arrays[name] = self._read(name)
        count = len(self._arrays[name]) // 5
        return self._arrays[name].subset(torch.arange((severity - 1) * count, severity * count))

    def _place(self) -> Path:
        inner = self.root / self.folder
        return inner if inner.is_dir() else self.root

    def _read(self, name: str) -> TensorData:
        self.prepare_data()
        images, labels = load_rows(self._place() / f"{name}.npy"), load_rows(self._place() / "labels.npy")
        fits = images.dtype == np.uint8 and images.shape[1:] == (32, 32, 3) and labels.shape == images.shape[:1]
        if not fits or not len(images) or len(images) % 5:
            raise ValueError(
                f"{str(self._place() / f'{name}.npy')!r} should hold uint8 (5 N, 32, 32, 3) with as many labels in "
                f"labels.npy, and holds {images.dtype} {images.shape} with {labels.shape}: get it again."
            )
        data = TensorData(torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels.astype(np.int64)))
        check_samples(data, self.num_classes, self.input_shape, train=False)
        return data


def load_rows(path: Path) -> Any:
    """Map an ``.npy`` file into memory; pages are read when they are needed.

    Raises:
        ValueError: If it is no such file, or shorter than its header says.
    """
    try:
        return np.load(path, mmap_mode="c")  # private pages: writable, as torch wants them, and never written back
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{str(path)!r} is damaged or not downloaded whole ({error}): get it again.") from error
