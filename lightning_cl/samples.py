"""What a stream is cut from: samples with known labels, in memory or in files, of which a part shares the storage."""

import os
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset
from typing_extensions import override


@runtime_checkable
class Batched(Protocol):
    """A data set that makes a whole batch at once, in the main process."""

    def batch(self, index: Tensor) -> list[Tensor]:
        """Return the samples at the positions ``index`` ``(b,)`` as columns."""
        ...


class Samples(Dataset[Any]):
    """Samples, or a part of them; every part shares what they are stored in.

    A concrete kind implements ``__getitem__`` for the position in the part: ``self.indices`` has the position in the
    storage, :meth:`labelled` adds the other columns.

    Args:
        count: Number of samples in the storage.
        targets: Labels of all samples in the storage ``(count,)``; ``None`` if only the samples themselves tell.
        indices: The samples that belong to this part, ``(n,)``; ``None`` is all.
        tasks: Their task labels ``(n,)``, given as a third column; ``None`` is no such column.

    Raises:
        ValueError: If there are not as many labels as samples.
    """

    def __init__(
        self, count: int, targets: Tensor | None, indices: Tensor | None = None, tasks: Tensor | None = None
    ) -> None:
        if targets is not None and len(targets) != count:
            raise ValueError(f"`inputs` and `targets` must be of one length, got {count} and {len(targets)}.")
        self.targets = None if targets is None else targets.long()
        self.indices = torch.arange(count) if indices is None else indices
        self.tasks = tasks

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def labels(self) -> Tensor:
        """The labels of this part ``(n,)``.

        Raises:
            ValueError: If they are not known without reading every sample.
        """
        if self.targets is None:
            raise ValueError(f"The labels of this {type(self).__name__} are not known: make it with `targets`.")
        return self.targets[self.indices]

    def subset(self, index: Tensor) -> Self:
        """The part of this part at the positions ``index``; shares the storage."""
        return self._replaced(indices=self.indices[index], tasks=None if self.tasks is None else self.tasks[index])

    def distinct(self) -> Self:
        """The same samples, each once."""
        _, first = np.unique(self.indices.numpy(), return_index=True)
        return self.subset(torch.from_numpy(np.sort(first)))

    def with_task(self, task: int) -> Self:
        """The same samples with the task label ``task`` as a third column."""
        return self._replaced(tasks=torch.full((len(self),), task))

    def relabelled(self, new: Sequence[int]) -> Self:
        """The same samples, their labels ``c`` replaced by ``new[c]``."""
        return self._replaced(targets=torch.tensor(new)[self.targets])

    def for_training(self) -> Self:
        """The same samples as training sees them: those that are read one by one may be augmented."""
        return self

    def shares_storage(self, other: "Samples") -> bool:
        """Whether both are parts of the same samples, labelled alike."""
        mine = {name: value for name, value in vars(self).items() if name not in ("indices", "tasks")}
        return type(self) is type(other) and all(_same(vars(other).get(name), value) for name, value in mine.items())

    def labelled(self, sample: Any, index: int) -> list[Any]:
        """``sample`` at the position ``index`` of this part, with its label and task label."""
        columns = [sample, self.targets[self.indices[index]]] if self.targets is not None else [*sample]
        return columns if self.tasks is None else [*columns, self.tasks[index]]

    def _replaced(self, **changes: Any) -> Self:
        part = copy(self)
        vars(part).update(changes)
        return part


class TensorData(Samples):
    """Samples that lie in memory as one tensor; a batch is one ``index_select``.

    Args:
        inputs: All samples ``(N, *)``; images stay ``uint8``. Shared, never copied.
        targets: Labels ``(N,)``.
        indices: The samples that belong to this part, ``(n,)``; ``None`` is all.
        tasks: Their task labels ``(n,)``, given as a third column; ``None`` is no such column.

    Example:
        >>> data = TensorData(torch.arange(8).view(4, 2), torch.tensor([0, 1, 0, 1]), torch.tensor([3, 1]))
        >>> len(data), data.batch(torch.tensor([0]))
        (2, [tensor([[6, 7]]), tensor([1])])
    """

    targets: Tensor

    def __init__(
        self, inputs: Tensor, targets: Tensor, indices: Tensor | None = None, tasks: Tensor | None = None
    ) -> None:
        super().__init__(len(inputs), targets, indices, tasks)
        self.inputs = inputs

    @override
    def __getitem__(self, index: int) -> list[Tensor]:
        return [column[0] for column in self.batch(torch.tensor([index]))]

    def batch(self, index: Tensor) -> list[Tensor]:
        """Return the samples at the positions ``index`` ``(b,)``, as columns ``[x, y]`` or ``[x, y, task]``."""
        at = self.indices[index]
        batch = [self.inputs.index_select(0, at), self.targets.index_select(0, at)]
        return batch if self.tasks is None else [*batch, self.tasks[index]]


class MapData(Samples):
    """Any map-style data set of pairs ``(x, y)``, or of dicts.

    Args:
        dataset: The data set.
        targets: Its labels ``(N,)``, which then stand for those that it gives; ``None`` keeps what it gives.
        input_key: Where the input is in a sample: its position, or its key in a dict.
        transform: Applied to the input; ``None`` turns a ``PIL.Image`` into ``uint8`` ``(C, H, W)``.

    Raises:
        ValueError: If ``targets`` are missing where samples are not pairs.

    Example:
        >>> data = MapData([(torch.zeros(2), 7), (torch.ones(2), 8)])
        >>> data.subset(torch.tensor([1]))[0]
        [tensor([1., 1.]), 8]
    """

    def __init__(
        self,
        dataset: Any,
        targets: Tensor | None = None,
        input_key: int | str = 0,
        transform: Callable[[Any], Any] | None = None,
    ) -> None:
        if targets is None and input_key != 0:
            raise ValueError(f"`input_key` {input_key!r} says where the input is: `targets` must be given too.")
        super().__init__(len(dataset), targets)
        self.dataset = dataset
        self.input_key = input_key
        self.transform = as_tensor if transform is None else transform

    @override
    def __getitem__(self, index: int) -> list[Any]:
        sample = self.dataset[int(self.indices[index])]
        if self.targets is None:
            if isinstance(sample, Mapping):
                raise ValueError("`targets` must be given where samples are dicts.")
            return self.labelled([self.transform(sample[0]), *sample[1:]], index)
        if isinstance(sample, Mapping) and self.input_key not in sample:
            raise ValueError(
                f"`input_key` must be one of {list(sample)}, as samples are dicts, got {self.input_key!r}."
            )
        return self.labelled(self.transform(sample[self.input_key]), index)


class ImageFiles(Samples):
    """Images that are read from their files one by one, by worker processes.

    Args:
        paths: The files ``(N,)``.
        targets: Their labels ``(N,)``.
        transform: From an RGB ``PIL.Image`` to a tensor ``(C, H, W)``, ``uint8`` as a rule; draws nothing at random.
        train_transform: The same for training, where it may draw; ``None`` is ``transform``.
    """

    targets: Tensor

    def __init__(
        self,
        paths: Sequence[str | Path],
        targets: Tensor,
        transform: Callable[[Any], Tensor],
        train_transform: Callable[[Any], Tensor] | None = None,
    ) -> None:
        super().__init__(len(paths), targets)
        # An array, not a list, which workers would copy object by object; of bytes, a quarter of what text takes.
        self._paths = np.array([os.fsencode(path) for path in paths])
        self.transform = transform
        self.train_transform = train_transform

    @property
    def paths(self) -> list[str]:
        """The files of this part."""
        return [os.fsdecode(path) for path in self._paths[self.indices.numpy()]]

    @override
    def __getitem__(self, index: int) -> list[Any]:
        path = os.fsdecode(self._paths[int(self.indices[index])])
        return self.labelled(self.transform(read_image(path)), index)

    @override
    def for_training(self) -> Self:
        return self if self.train_transform is None else self._replaced(transform=self.train_transform)


class _JoinedTensors(Dataset[Any]):
    """Parts that make whole batches, one after another."""

    def __init__(self, parts: Sequence[TensorData]) -> None:
        self.parts = parts
        self.ends = torch.tensor([len(part) for part in parts]).cumsum(0)

    def __len__(self) -> int:
        return int(self.ends[-1])

    @property
    def labels(self) -> Tensor:
        return torch.cat([part.labels for part in self.parts])

    @override
    def __getitem__(self, index: int) -> list[Tensor]:
        return [column[0] for column in self.batch(torch.tensor([index]))]

    def batch(self, index: Tensor) -> list[Tensor]:
        part = torch.bucketize(index, self.ends, right=True)
        order = part.argsort(stable=True)
        counts = torch.bincount(part, minlength=len(self.parts)).tolist()
        pieces = []
        for k, at in enumerate(torch.split(index[order], counts)):
            if len(at):
                pieces.append(self.parts[k].batch(at - (self.ends[k] - len(self.parts[k]))))
        back = order.argsort()
        return [torch.cat(columns)[back] for columns in zip(*pieces, strict=True)]


def joined(parts: Sequence[Any]) -> Any:
    """One data set of several, one after another; parts of the same samples become one part of them.

    Example:
        >>> x, y = torch.arange(4), torch.zeros(4)
        >>> joined([TensorData(x, y, torch.tensor([3])), TensorData(x, y, torch.tensor([1, 0]))]).batch(torch.arange(3))
        [tensor([3, 1, 0]), tensor([0, 0, 0])]
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    if isinstance(first, Samples) and all(isinstance(p, Samples) and first.shares_storage(p) for p in parts[1:]):
        tasks = None if first.tasks is None else torch.cat([part.tasks for part in parts])
        return first._replaced(indices=torch.cat([part.indices for part in parts]), tasks=tasks)
    return _JoinedTensors(parts) if all(isinstance(part, TensorData) for part in parts) else ConcatDataset(parts)


def check_samples(data: Samples, num_classes: int, input_shape: tuple[int, ...], train: bool) -> None:
    """Look whether samples are what a stream says of them.

    Raises:
        ValueError: If shapes or labels are others, or a class has no training sample.
    """
    if isinstance(data, TensorData) and (found := tuple(data.inputs.shape[1:])) != tuple(input_shape):
        raise ValueError(f"`input_shape` is {tuple(input_shape)}, and the samples are of shape {found}.")
    labels, classes = set(torch.unique(data.labels).tolist()), set(range(num_classes))
    if out := sorted(labels - classes):
        raise ValueError(f"Labels must be in [0, {num_classes}) (`num_classes`), got {out}.")
    if train and (empty := sorted(classes - labels)):
        raise ValueError(f"`num_classes` is {num_classes}, and there is no training sample of {empty}.")


def in_memory(data: Samples) -> TensorData:
    """Return ``data`` if its images lie in memory as one tensor.

    Raises:
        ValueError: If they do not.
    """
    if not isinstance(data, TensorData):
        raise ValueError(
            "`data_set` must be one whose images lie in memory as one tensor, and this one's are "
            f"{type(data).__name__}: choose one of small images, such as 'mnist'."
        )
    return data


def read_image(path: str | Path) -> Any:
    """Read an image file as an RGB ``PIL.Image``.

    Raises:
        ValueError: If it cannot be read as an image.
        FileNotFoundError: If there is no such file.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{str(path)!r} is no image or not downloaded whole ({error}): get it again.") from error


def as_tensor(x: Any) -> Any:
    """A ``PIL.Image`` as ``uint8`` ``(C, H, W)``, an array as a tensor; anything else as it is."""
    if isinstance(x, np.ndarray):
        return torch.from_numpy(x)
    if hasattr(x, "getbands"):  # of PIL, without importing it
        from torchvision.transforms.functional import pil_to_tensor

        return pil_to_tensor(x)
    return x


def center_crop(size: int, resize: int | None = None) -> Callable[[Any], Tensor]:
    """A transform for testing: the shorter side to ``resize`` pixels, then the middle ``size`` by ``size``.

    Args:
        size: Height and width of the result.
        resize: ``None`` is ``size`` itself; 256 is usual for 224. Bicubic.

    Returns:
        A function from a ``PIL.Image`` to uint8 ``(3, size, size)``.
    """
    from torchvision.transforms import InterpolationMode, v2

    resizing = v2.Resize(size if resize is None else resize, interpolation=InterpolationMode.BICUBIC)
    crop: Callable[[Any], Tensor] = v2.Compose([resizing, v2.CenterCrop(size), v2.PILToTensor()])
    return crop


def random_crop(size: int, scale: tuple[float, float] = (0.05, 1.0), flip: float = 0.5) -> Callable[[Any], Tensor]:
    """A transform for training: a random part of the image resized to ``size`` by ``size``, perhaps mirrored.

    Args:
        size: Height and width of the result.
        scale: Range of the part's area, relative to the image's; ``(0.05, 1)`` is that of LAMDA-PILOT.
        flip: Probability of mirroring.

    Returns:
        A function from a ``PIL.Image`` to uint8 ``(3, size, size)``, which draws from the global generators.
    """
    from torchvision.transforms import v2

    steps = [v2.RandomResizedCrop(size, scale=scale), v2.RandomHorizontalFlip(flip), v2.PILToTensor()]
    crop: Callable[[Any], Tensor] = v2.Compose(steps)
    return crop


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    tensors = isinstance(one, Tensor) and isinstance(other, Tensor)
    return tensors and one.dtype == other.dtype and torch.equal(one, other)
