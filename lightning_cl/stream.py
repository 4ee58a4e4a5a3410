"""Streams: a sequence of experiences as one LightningDataModule, in an order that never depends on who drew what."""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self, cast

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, default_collate
from typing_extensions import override

from lightning_cl.utilities import default_seed, derive_seed, isolated_rng, seed_generators


@dataclass(frozen=True)
class Experience:
    """One unit of a stream (elsewhere: task, session, increment).

    Attributes:
        index: Position in the stream, from 0.
        classes: Labels that occur in it.
        task_label: Id that a task-incremental method may use; ``None`` in the other scenarios.
        num_train: Training samples (without the validation part).
        num_val: Validation samples.
        num_test: Test samples.
    """

    index: int
    classes: tuple[int, ...]
    task_label: int | None
    num_train: int
    num_val: int
    num_test: int


class TensorData(Dataset[list[Tensor]]):
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

    def __init__(
        self, inputs: Tensor, targets: Tensor, indices: Tensor | None = None, tasks: Tensor | None = None
    ) -> None:
        if len(inputs) != len(targets):
            raise ValueError(f"`inputs` and `targets` must be of one length, got {len(inputs)} and {len(targets)}.")
        self.inputs = inputs
        self.targets = targets.long()
        self.indices = torch.arange(len(targets)) if indices is None else indices
        self.tasks = tasks

    def __len__(self) -> int:
        return len(self.indices)

    @override
    def __getitem__(self, index: int) -> list[Tensor]:
        return [column[0] for column in self.batch(torch.tensor([index]))]

    def batch(self, index: Tensor) -> list[Tensor]:
        """Return the samples at the positions ``index`` ``(b,)``, as columns ``[x, y]`` or ``[x, y, task]``."""
        at = self.indices[index]
        batch = [self.inputs.index_select(0, at), self.targets.index_select(0, at)]
        return batch if self.tasks is None else [*batch, self.tasks[index]]

    def subset(self, index: Tensor) -> Self:
        """The part of this part at the positions ``index``; shares the storage."""
        return self._replaced(self.indices[index], None if self.tasks is None else self.tasks[index])

    def _replaced(self, indices: Tensor, tasks: Tensor | None) -> Self:
        part = copy(self)
        part.indices, part.tasks = indices, tasks
        return part


class StreamBatch(list[Any]):
    """A batch ``[x, y]`` or ``[x, y, task]`` that remembers what it was before normalisation and augmentation.

    Attributes:
        raw: The same columns as the data set holds them (``uint8`` images), on the CPU.
    """

    raw: list[Tensor]


def shuffled_batches(
    count: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1, drop_last: bool = False
) -> list[Tensor]:
    """Cut a permutation of ``range(count)`` into batches for one rank.

    All ranks share the permutation, and the ``k``-th batches of all ranks together are the ``k``-th batch of one
    process with ``world_size`` times the batch size. Every rank gets as many batches, none of them empty, and no sample
    comes twice (it would be twice in a replay memory): what is left over for fewer than all ranks joins the last batch.

    Args:
        count: Number of samples, at least ``world_size``.
        batch_size: Samples per batch and rank.
        seed: Fixes the permutation.
        rank: Number of this process.
        world_size: Number of processes.
        drop_last: Leave out a last batch that is not full, unless it is the only one.

    Returns:
        Index tensors ``(b,)``, ``b <= batch_size``, or one more in the last.

    Example:
        >>> batches = shuffled_batches(5, 2, seed=0)
        >>> [len(batch) for batch in batches], torch.cat(batches).sort().values
        ([2, 2, 1], tensor([0, 1, 2, 3, 4]))
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    parts = list(torch.split(order, batch_size * world_size))
    if drop_last and len(parts) > 1 and len(parts[-1]) < batch_size * world_size:
        parts.pop()
    if len(parts) > 1 and len(parts[-1]) < world_size:
        parts[-2:] = [torch.cat(parts[-2:])]
    return [part[rank::world_size] for part in parts]


def sharded_batches(count: int, batch_size: int, rank: int = 0, world_size: int = 1) -> list[Tensor]:
    """Cut ``range(count)`` into batches for one rank, every index on exactly one rank (no padding).

    If there is a sample for each rank, all get equally many batches, so that nobody waits for one that does not come;
    their sizes differ by at most one. (With several ranks and ``batch_size`` 1, one batch of a rank may have to be 2.)

    Example:
        >>> [[b.tolist() for b in sharded_batches(5, 2, rank, 2)] for rank in (0, 1)]
        [[[0, 2], [4]], [[1], [3]]]
    """
    shard = torch.arange(count)[rank::world_size]
    batches = min(math.ceil(math.ceil(count / world_size) / batch_size), count // world_size)
    return [part for part in shard.tensor_split(max(batches, 1)) if len(part)]


class _SeededFetch(Dataset[Any]):
    """Fetch whole batches of an ordinary data set, each under its own seed, wherever it is fetched.

    The random transforms of a sample so depend on the batch's place in the stream alone: not on the number of
    workers, not on where an interrupted epoch goes on.
    """

    def __init__(self, dataset: Any, collate: Callable[[list[Any]], Any]) -> None:
        self.dataset = dataset
        self.collate = collate

    @override
    def __getitem__(self, index: int) -> Any:
        return self.dataset[index]

    def __getitems__(self, seed_and_index: tuple[int, list[int]]) -> Any:
        seed, index = seed_and_index
        with isolated_rng():
            seed_generators(seed)
            return self.collate([self.dataset[i] for i in index])


def _identity(batch: Any) -> Any:
    return batch


class StreamLoader:
    """A loader whose order is a pure function and whose position can be saved.

    Lightning asks a loader for ``state_dict`` in each checkpoint and gives it back on resume, so that an interrupted
    epoch goes on with the batch that comes next.

    Args:
        dataset: A :class:`TensorData`, or any map-style data set.
        batches: Function of the epoch that returns the batches as index tensors.
        length: Number of batches.
        epoch: Function that tells the epoch; asked when the first batch is fetched.
        seed: Seed of random per-sample transforms; mixed with the epoch and the number of the batch.
        num_workers: Worker processes; not used for :class:`TensorData`.
        before_first: Called right before the first batch is fetched.
    """

    def __init__(
        self,
        dataset: Any,
        batches: Callable[[int], Sequence[Tensor]],
        length: int,
        epoch: Callable[[], int] = lambda: 0,
        seed: int = 0,
        num_workers: int = 0,
        before_first: Callable[[], None] | None = None,
    ) -> None:
        self.dataset = dataset
        self.batches = batches
        self.length = length
        self.epoch = epoch
        self.seed = seed
        self.num_workers = num_workers
        self.before_first = before_first
        self.position = 0
        self._resume_at = 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Any]:
        # A generator: nothing happens before the first batch is asked for (Lightning calls `iter` more than once).
        start, self._resume_at = self._resume_at, 0
        self.position = start
        epoch = self.epoch()
        batches = self.batches(epoch)[start:]
        if self.before_first is not None:
            self.before_first()
        for batch in self._fetch(batches, epoch, start):
            self.position += 1
            yield batch

    def _fetch(self, batches: Sequence[Tensor], epoch: int, start: int) -> Iterator[Any]:
        if isinstance(self.dataset, TensorData):
            return map(self.dataset.batch, batches)
        seeded = [(derive_seed(self.seed, epoch, start + i), index.tolist()) for i, index in enumerate(batches)]
        loader = DataLoader(
            _SeededFetch(self.dataset, default_collate),
            batch_sampler=cast(Any, seeded),
            collate_fn=_identity,
            num_workers=self.num_workers,
            generator=torch.Generator().manual_seed(self.seed),  # else it draws from the global one
            pin_memory=torch.cuda.is_available(),
        )
        return iter(loader)

    def state_dict(self) -> dict[str, int]:
        """The number of batches handed out in this epoch."""
        return {"position": self.position}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Let the next pass begin after the batches that were handed out."""
        self.position = self._resume_at = state_dict["position"]


class ChainLoader:
    """Loaders one after another, as one loader, so that a ``test_step(batch, batch_idx)`` can stay as it is.

    Args:
        loaders: One per experience.
        experiences: The index of the experience of each.
    """

    def __init__(self, loaders: Sequence[StreamLoader], experiences: Sequence[int]) -> None:
        self.loaders = loaders
        self.experience_of_batch = [
            j for j, loader in zip(experiences, loaders, strict=True) for _ in range(len(loader))
        ]

    def __len__(self) -> int:
        return len(self.experience_of_batch)

    def __iter__(self) -> Iterator[Any]:
        for loader in self.loaders:
            yield from loader


class _WithTask(Dataset[Any]):
    """A map-style data set whose samples carry the task label as a third column."""

    def __init__(self, dataset: Any, task: int) -> None:
        self.dataset = dataset
        self.task = task

    def __len__(self) -> int:
        return len(self.dataset)

    @override
    def __getitem__(self, index: int) -> Any:
        return (*self.dataset[index], self.task)


class StreamDataModule(LightningDataModule):
    """A stream of experiences; the base of every stream in ``lightning_cl.datamodules``.

    A concrete stream says what the data is: it calls ``super().__init__``, and implements :meth:`dataset` and,
    where something must be downloaded, ``prepare_data``. Everything else is here: loaders, the order of samples, the
    validation part, ranks, the position in the stream and its state, normalisation and augmentation on the device.

    ``train_dataloader`` gives the current experience (with ``cumulative`` all so far), ``val_dataloader`` the
    held-out part of the same, ``test_dataloader`` all experiences in ``evaluated``, one after another in one loader.

    The order of training samples is a function of (seed, experience, epoch, rank) and nothing else. In ``test``,
    ``validate`` and in :meth:`statistics_dataloader` every sample comes exactly once, on one rank.

    Args:
        classes: The labels of each experience.
        num_classes: Number of labels in the whole stream; labels are in ``[0, num_classes)``.
        input_shape: Shape of one sample, ``(C, H, W)`` for images.
        batch_size: Training samples per batch and process.
        eval_batch_size: Samples per batch and process in validation, test and statistics passes.
        seed: Fixes the order of samples and the validation part; ``None`` is the seed of ``seed_everything``, else 0.
        val_fraction: Part of each experience's training data that is held out for validation, in ``[0, 1)``.
        cumulative: Train on all experiences so far instead of the current one (joint training, the usual upper line).
        task_labels: Add the task label as a third column to each batch (task-incremental scenario).
        drop_last: Leave out a last training batch that is not full.
        num_workers: Worker processes; only used where samples are read one by one.
        mean: Mean that is subtracted after scaling ``uint8`` to ``[0, 1]``: one, or one per channel.
        std: Standard deviation that is divided by: one, or one per channel.
        augment: Applied to training batches on the device before normalisation, ``(B, *input_shape)`` to the same.

    Raises:
        ValueError: If an argument is out of its range; the message names it.
    """

    def __init__(
        self,
        classes: Sequence[Sequence[int]],
        num_classes: int,
        input_shape: tuple[int, ...],
        *,
        batch_size: int = 64,
        eval_batch_size: int = 512,
        seed: int | None = None,
        val_fraction: float = 0.0,
        cumulative: bool = False,
        task_labels: bool = False,
        drop_last: bool = False,
        num_workers: int = 0,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        augment: Callable[[Tensor], Any] | None = None,  # of a Tensor jsonargparse would want a subclass of Tensor
    ) -> None:
        super().__init__()
        if not classes or not all(len(group) for group in classes):
            raise ValueError(f"`classes` must name at least one class for each experience, got {classes}.")
        if out := sorted({c for group in classes for c in group if not 0 <= c < num_classes}):
            raise ValueError(f"`classes` must be in [0, {num_classes}) (`num_classes`), got {out}.")
        for name, value in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if value < 1:
                raise ValueError(f"`{name}` must be 1 or more, got {value}.")
        if not 0 <= val_fraction < 1:
            raise ValueError(f"`val_fraction` must be in [0, 1), got {val_fraction}.")
        if num_workers < 0:
            raise ValueError(f"`num_workers` must be 0 or more, got {num_workers}.")
        for name, values in (("mean", mean), ("std", std)):
            if len(values) not in (1, *input_shape[:1]):
                raise ValueError(f"`{name}` must hold one value, or one per channel of {input_shape}, got {values}.")
        if not all(value > 0 for value in std):
            raise ValueError(f"`std` must be above 0, got {std}.")
        self.classes = [tuple(int(c) for c in group) for group in classes]
        self.num_classes = num_classes
        self.input_shape = tuple(input_shape)
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.seed = default_seed(seed)
        self.val_fraction = val_fraction
        self.cumulative = cumulative
        self.task_labels = task_labels
        self.drop_last = drop_last
        self.num_workers = num_workers
        # (x / 255 - mean) / std in two operations
        shape = (-1, *[1] * (len(self.input_shape) - 1))
        self._scale = 1 / (255 * torch.tensor(std, dtype=torch.float32).view(shape))
        self._shift = -255 * torch.tensor(mean, dtype=torch.float32).view(shape) * self._scale
        self._normalizes = set(mean) != {0} or set(std) != {1}
        self.augment = augment
        self.evaluated: Sequence[int] = range(len(classes))
        self.before_first_batch: Callable[[], None] | None = None
        self._current = 0
        self._parts: dict[tuple[int, str], Any] = {}
        self._raw: list[Tensor] = []
        self._deterministic = False

    # -- what a concrete stream says ----------------------------------------------------------------------------

    @abstractmethod
    def dataset(self, experience: int, train: bool) -> Dataset[Any]:
        """Return the samples ``(x, y)`` of one experience: a :class:`TensorData`, or any map-style data set."""

    # -- the stream ---------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def current(self) -> int:
        """Index of the experience that ``train_dataloader`` gives; set it to move on.

        Raises:
            IndexError: If there is no such experience.
        """
        return self._current

    @current.setter
    def current(self, index: int) -> None:
        self._check_index("current", index)
        self._current = index

    def _check_index(self, name: str, index: int) -> None:
        if not 0 <= index < len(self):
            raise IndexError(f"There is no experience {index}: `{name}` must be in [0, {len(self)}).")

    @property
    def seen_classes(self) -> tuple[int, ...]:
        """Labels of the current and all earlier experiences, in order of appearance."""
        return tuple(dict.fromkeys(c for group in self.classes[: self.current + 1] for c in group))

    @cached_property
    def experiences(self) -> list[Experience]:
        """The experiences with their sizes (reads the data)."""
        return [
            Experience(
                index=i,
                classes=group,
                task_label=i if self.task_labels else None,
                num_train=len(self.part(i, "train")),
                num_val=len(self.part(i, "val")),
                num_test=len(self.part(i, "test")),
            )
            for i, group in enumerate(self.classes)
        ]

    def part(self, experience: int, name: str) -> Any:
        """Return the data set of one experience and part: ``train``, ``val`` (may be empty) or ``test``.

        Raises:
            ValueError: If there is no such part, or no sample in it.
            IndexError: If there is no such experience.
        """
        if name not in ("train", "val", "test"):
            raise ValueError(f"`name` must be 'train', 'val' or 'test', got {name!r}.")
        self._check_index("experience", experience)
        key = (experience, name)
        if key not in self._parts:
            data: Any = self.dataset(experience, train=name != "test")
            held_out = int(len(data) * self.val_fraction)
            if name == "val" or (name == "train" and held_out):
                generator = torch.Generator().manual_seed(derive_seed(self.seed, experience))
                order = torch.randperm(len(data), generator=generator)
                data = _subset(data, (order[:held_out] if name == "val" else order[held_out:]).sort().values)
            if not len(data) and name != "val":
                group = self.classes[experience]
                raise ValueError(f"Experience {experience} has no {name} sample: leave {group} out of `classes`.")
            self._parts[key] = _with_task(data, experience) if self.task_labels else data
        return self._parts[key]

    def shape(self) -> dict[str, Any]:
        """Everything that the order of samples depends on, in plain values: what a checkpoint must agree with."""
        sizes = [(e.num_train, e.num_val, e.num_test) for e in self.experiences]
        return {
            "stream": type(self).__qualname__,
            "classes": [list(group) for group in self.classes],
            "num_classes": self.num_classes,
            "input_shape": list(self.input_shape),
            "sizes": [list(size) for size in sizes],
            "batch_size": self.batch_size,
            "eval_batch_size": self.eval_batch_size,  # sums over statistics passes are taken in its order
            "seed": self.seed,
            "val_fraction": self.val_fraction,
            "cumulative": self.cumulative,
            "task_labels": self.task_labels,
            "drop_last": self.drop_last,
        }

    # -- loaders ------------------------------------------------------------------------------------------------

    @override
    def setup(self, stage: str) -> None:
        """Look at the data of all experiences before any training.

        Raises:
            ValueError: If an experience has no sample, or less than one for each process.
        """
        world_size = self._rank[1]
        for e in self.experiences if stage == "fit" else ():
            if (fewest := min(e.num_train, e.num_val or world_size, e.num_test)) < world_size:
                raise ValueError(
                    f"Experience {e.index} has a part of {fewest} sample(s), too few for {world_size} processes: set "
                    f"`devices` and `num_nodes` so that there are {fewest} or less."
                )

    @property
    def _rank(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def _training_part(self, name: str) -> Any:
        first = 0 if self.cumulative else self.current
        return _concatenated([self.part(i, name) for i in range(first, self.current + 1)])

    def _once(self, data: Any) -> StreamLoader:
        batches = sharded_batches(len(data), self.eval_batch_size, *self._rank)
        return StreamLoader(data, lambda _: batches, len(batches), num_workers=self.num_workers)

    @override
    def train_dataloader(self) -> StreamLoader:
        data = self._training_part("train")
        rank, world_size = self._rank
        seed = derive_seed(self.seed, self.current)

        def batches(epoch: int) -> list[Tensor]:
            order_seed = derive_seed(seed, epoch)
            return shuffled_batches(len(data), self.batch_size, order_seed, rank, world_size, self.drop_last)

        return StreamLoader(
            data,
            batches,
            len(batches(0)),
            epoch=lambda: self.trainer.current_epoch if self.trainer is not None else 0,
            seed=derive_seed(seed, rank),
            num_workers=self.num_workers,
            before_first=self.before_first_batch,
        )

    @override
    def val_dataloader(self) -> StreamLoader | list[Any]:
        return self._once(self._training_part("val")) if self.val_fraction else []

    @override
    def test_dataloader(self) -> ChainLoader:
        return ChainLoader([self._once(self.part(i, "test")) for i in self.evaluated], list(self.evaluated))

    @override
    def predict_dataloader(self) -> ChainLoader:
        return self.test_dataloader()

    def statistics_dataloader(self) -> StreamLoader:
        """The training samples of the current experience, each exactly once on one rank, in order of the data set.

        For what a method computes at the end of an experience: Fisher information, prototypes, herding.
        """
        return self._once(self.part(self.current, "train"))

    # -- batches on the device ----------------------------------------------------------------------------------

    @contextmanager
    def without_augmentation(self) -> Iterator[None]:
        """Let batches pass without augmentation, also while training."""
        before, self._deterministic = self._deterministic, True
        try:
            yield
        finally:
            self._deterministic = before

    def transform_batch(self, batch: Sequence[Any], augment: bool = False) -> list[Any]:
        """Turn a batch as it is stored into what the model gets: augmented if asked for, scaled, normalised.

        Args:
            batch: ``[x, ...]`` on the device, ``x`` ``(B, *input_shape)``. Of ``uint8`` inputs 255 counts as 1.
            augment: Apply ``augment`` first.

        Returns:
            ``[x, ...]``, ``x`` in the floating type that the trainer's precision works with.

        Raises:
            TypeError: If the batch is no list or tuple of tensors.
        """
        if not isinstance(batch, list | tuple) or not isinstance(batch[0], Tensor):
            kind = type(batch[0] if isinstance(batch, list | tuple) else batch).__name__
            raise TypeError(f"`dataset` must return samples (x, y) with a tensor x, got a {kind}.")
        x, *rest = batch
        if augment and self.augment is not None:
            x = self.augment(x)
        if self._scale.device != x.device:
            self._scale, self._shift = self._scale.to(x.device), self._shift.to(x.device)
        if x.dtype == torch.uint8:
            x = x.to(torch.float32).mul_(self._scale).add_(self._shift)
        elif self._normalizes:
            x = x * (255 * self._scale) + self._shift
        if self.trainer is not None:
            x = self.trainer.precision_plugin.convert_input(x)
        return [x, *rest]

    @override
    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self._raw = batch
        return batch

    @override
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        training = self.trainer is not None and self.trainer.training
        result = StreamBatch(self.transform_batch(batch, augment=training and not self._deterministic))
        result.raw, self._raw = self._raw, []
        return result

    # -- state --------------------------------------------------------------------------------------------------

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"current": self.current}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.current = state_dict["current"]


class ClassStream(StreamDataModule):
    """A stream of a labelled data set that is cut by class: each experience brings new classes.

    A concrete stream implements :meth:`load`.

    Args:
        num_classes: Number of classes of the data set.
        input_shape: Shape of one sample, ``(C, H, W)`` for images.
        num_experiences: Length of the stream; divides ``num_classes``.
        class_order: Permutation of the classes, cut into equal groups; ``None`` is the numeric order.
        **kwargs: As for :class:`StreamDataModule`.
    """

    def __init__(
        self,
        num_classes: int,
        input_shape: tuple[int, ...],
        num_experiences: int,
        class_order: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        order = list(range(num_classes)) if class_order is None else list(class_order)
        if sorted(order) != list(range(num_classes)):
            raise ValueError(f"`class_order` must be a permutation of 0 to {num_classes - 1}, got {class_order}.")
        if num_experiences < 1 or num_classes % num_experiences:
            allowed = [n for n in range(1, num_classes + 1) if num_classes % n == 0]
            raise ValueError(
                f"`num_experiences` must divide the {num_classes} classes: one of {allowed}, got {num_experiences}."
            )
        size = num_classes // num_experiences
        groups = [order[i : i + size] for i in range(0, num_classes, size)]
        super().__init__(groups, num_classes, input_shape, **kwargs)
        self._loaded: dict[bool, TensorData] = {}

    @abstractmethod
    def load(self, train: bool) -> tuple[Tensor, Tensor]:
        """Return all inputs ``(N, *input_shape)`` (``uint8``) and labels ``(N,)`` of the training or test set."""

    @override
    def dataset(self, experience: int, train: bool) -> TensorData:
        if train not in self._loaded:
            inputs, targets = self.load(train)
            if tuple(inputs.shape[1:]) != self.input_shape:
                shape = tuple(inputs.shape[1:])
                raise ValueError(f"`input_shape` is {self.input_shape}, and the samples are of shape {shape}.")
            labels, classes = set(targets.tolist()), set(range(self.num_classes))
            if out := sorted(labels - classes):
                raise ValueError(f"Labels must be in [0, {self.num_classes}) (`num_classes`), got {out}.")
            if train and (empty := sorted(classes - labels)):
                raise ValueError(f"`num_classes` is {self.num_classes}, and there is no training sample of {empty}.")
            self._loaded[train] = TensorData(inputs, targets)
        data = self._loaded[train]
        return data.subset(torch.isin(data.targets, torch.tensor(self.classes[experience])).nonzero().flatten())


def _subset(data: Any, index: Tensor) -> Any:
    return data.subset(index) if isinstance(data, TensorData) else Subset(data, index.tolist())


def _with_task(data: Any, task: int) -> Any:
    if isinstance(data, TensorData):
        return data._replaced(data.indices, torch.full((len(data),), task))
    return _WithTask(data, task)


def _concatenated(parts: list[Any]) -> Any:
    first = parts[0]
    if len(parts) > 1 and all(isinstance(part, TensorData) and _share(part, first) for part in parts):
        tasks = None if first.tasks is None else torch.cat([part.tasks for part in parts])
        return first._replaced(torch.cat([part.indices for part in parts]), tasks)
    return first if len(parts) == 1 else ConcatDataset(parts)


def _share(one: TensorData, other: TensorData) -> bool:
    return one.inputs is other.inputs and torch.equal(one.targets, other.targets)
