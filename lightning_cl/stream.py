"""Streams: a sequence of experiences as one LightningDataModule, in an order that never depends on who drew what."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import Dataset
from typing_extensions import override

from lightning_cl.loader import ChainLoader, StreamLoader, ordered_batches, sharded_batches
from lightning_cl.revisit import Revisit, check_counts, draw
from lightning_cl.samples import MapData, Samples, joined
from lightning_cl.utilities import default_seed, derive_seed, permutation

Competing: TypeAlias = Literal["all", "seen", "current"]


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


class StreamBatch(list[Any]):
    """A batch ``[x, y]`` or ``[x, y, task]`` that remembers what it was before normalisation and augmentation.

    Attributes:
        raw: The same columns as the data set holds them (``uint8`` images), on the CPU.
    """

    raw: list[Tensor]


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
        samples_per_experience: Training samples of each experience, chosen by the seed (1 000 in the protocol of
            Lopez-Paz & Ranzato, NeurIPS 2017); ``None`` is all. The validation part is taken from them.
        cumulative: Train on all experiences so far instead of the current one (joint training, the usual upper line).
        revisit: How many samples of the current and of each earlier experience training sees; ``None`` is all of the
            current one. An environment in which the old comes back, not a memory: see :mod:`lightning_cl.revisit`.
        boundaries: ``False``: one experience, in which the samples of the experiences come one after another and no
            method is told where one ends (online, task-free; one pass with ``max_epochs=1``).
        task_labels: Add the task label as a third column to each batch (task-incremental scenario).
        drop_last: Leave out a last training batch that is not full.
        num_workers: Worker processes, used where samples are read one by one.
        mean: Mean that is subtracted after scaling ``uint8`` to ``[0, 1]``: one, or one per channel.
        std: Standard deviation that is divided by: one, or one per channel.
        augment: Applied to training batches on the device before normalisation, ``(B, *input_shape)`` to the same.

    Raises:
        ValueError: If an argument is out of its range; the message names it.
    """

    same_samples: ClassVar[bool] = False
    """Whether experiences show the same samples in other forms: those for validation are then the same in all."""
    test_only: ClassVar[str] = ""
    """Why there is nothing to train on and what to do instead, in a stream that is only tested on; else empty."""

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
        samples_per_experience: int | None = None,
        cumulative: bool = False,
        revisit: Revisit | None = None,
        boundaries: bool = True,
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
        at_least_one = {"batch_size": batch_size, "eval_batch_size": eval_batch_size}
        for name, value in {**at_least_one, "samples_per_experience": samples_per_experience}.items():
            if value is not None and value < 1:
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
        if revisit is not None and cumulative:
            raise ValueError("`revisit` and `cumulative` both say what of the past is trained on: leave one out.")
        if not boundaries:
            for name, on in {"cumulative": cumulative, "revisit": revisit, "task_labels": task_labels}.items():
                if on:
                    raise ValueError(f"`boundaries=False` is a stream of one experience: it cannot go with `{name}`.")
        self.num_classes = num_classes
        self.input_shape = tuple(input_shape)
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.seed = default_seed(seed)
        self.val_fraction = val_fraction
        self.samples_per_experience = samples_per_experience
        self.cumulative = cumulative
        self.revisit = revisit
        self.boundaries = boundaries
        self.task_labels = task_labels
        self.drop_last = drop_last
        self.num_workers = num_workers
        # (x / 255 - mean) / std in two operations
        shape = (-1, *[1] * (len(self.input_shape) - 1))
        self._scale = 1 / (255 * torch.tensor(std, dtype=torch.float32).view(shape))
        self._shift = -255 * torch.tensor(mean, dtype=torch.float32).view(shape) * self._scale
        self._normalizes = set(mean) != {0} or set(std) != {1}
        self.augment = augment
        self._set_groups(classes)
        self.before_first_batch: Callable[[], None] | None = None
        self._current = 0
        self._parts: dict[tuple[int, str], Samples] = {}
        self._raw: list[Tensor] = []
        self._deterministic = False

    def _set_groups(self, groups: Sequence[Sequence[int]]) -> None:
        self._groups = [tuple(int(c) for c in group) for group in groups]
        self.evaluated: Sequence[int] = range(len(self))

    # -- what a concrete stream says ----------------------------------------------------------------------------

    @abstractmethod
    def dataset(self, experience: int, train: bool) -> Dataset[Any]:
        """Return the samples ``(x, y)`` of one experience: a :class:`TensorData`, or any map-style data set."""

    # -- the stream ---------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._groups) if self.boundaries else 1

    @property
    def groups(self) -> list[tuple[int, ...]]:
        """The labels of each part that the data are cut into: of each experience, unless ``boundaries`` is off."""
        return self._groups

    @property
    def classes(self) -> list[tuple[int, ...]]:
        """The labels that occur in each experience."""
        return self.groups if self.boundaries else [tuple(dict.fromkeys(c for group in self.groups for c in group))]

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

    def competing(self, which: Competing) -> tuple[int, ...]:
        """Labels that compete with each other: of ``"all"`` the stream, those ``"seen"``, or of the ``"current"`` part.

        Example:
            >>> from lightning_cl.datamodules import SplitDigits
            >>> stream = SplitDigits(num_experiences=5)
            >>> stream.current = 1
            >>> stream.competing("seen"), stream.competing("current")
            ((0, 1, 2, 3), (2, 3))
        """
        if which == "all":
            return tuple(range(self.num_classes))
        return self.seen_classes if which == "seen" else self.classes[self.current]

    def name_of(self, experience: int) -> str:
        """What the experience is, in a few words for people."""
        return self.name_of_group(experience) if self.boundaries else _named(self.classes[0])

    def name_of_group(self, group: int) -> str:
        """What a part that the data are cut into is, in a few words for people."""
        return _named(self.groups[group])

    @cached_property
    def experiences(self) -> list[Experience]:
        """The experiences with their sizes (reads the data)."""
        return [
            Experience(
                index=i,
                classes=group,
                task_label=self.task_of(i) if self.task_labels else None,
                num_train=0 if self.test_only else len(self.part(i, "train")),
                num_val=0 if self.test_only else len(self.part(i, "val")),
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
        if self.boundaries:
            return self._part_of_group(experience, name)
        parts = [self._part_of_group(group, name) for group in range(len(self._groups))]
        if name != "test":
            return joined(parts)
        whole = joined(_once_each(parts))  # a test sample counts once
        return whole.distinct() if isinstance(whole, Samples) else whole

    def first_of(self, experience: int) -> int:
        """The first experience with the same samples: what comes again is cut and labelled as the first time."""
        return experience

    def test_of(self, experience: int) -> int:
        """The first experience that is tested on the same samples: they are measured once for all that share them."""
        return self.first_of(experience)

    def task_of(self, experience: int) -> int:
        """The task label of an experience."""
        return self.first_of(experience)

    def _part_of_group(self, group: int, name: str) -> Samples:
        first = self.test_of(group) if name == "test" else self.first_of(group)
        if (first, name) not in self._parts:
            self._parts[first, name] = self._cut_part(first, name)
        return self._parts[first, name]

    def _cut_part(self, group: int, name: str) -> Samples:
        given = self.dataset(group, train=name != "test")
        data = given if isinstance(given, Samples) else MapData(given)
        if name != "test":
            data = data.subset(self._chosen(group, data)[name == "val"].sort().values)
        if not len(data) and name != "val":
            which = self.groups[group]
            raise ValueError(f"Experience {group} has no {name} sample: leave {which} out of `classes`.")
        return data.with_task(self.task_of(group)) if self.task_labels else data

    def _chosen(self, group: int, data: Samples) -> tuple[Tensor, Tensor]:
        """The samples of a group that are for training, and those for validation."""
        limit, count = self.samples_per_experience, len(data)
        if limit is not None and limit > count:
            raise ValueError(f"`samples_per_experience` must be {count} or less in experience {group}, got {limit}.")
        size = count if limit is None else limit
        held_out, rest = self._held_out(group, data, int(size * self.val_fraction + 1e-9))
        return rest[: size - len(held_out)], held_out

    def _held_out(self, group: int, data: Samples, count: int) -> tuple[Tensor, Tensor]:
        """``count`` samples of a group for validation, and the others in random order."""
        order = permutation(len(data), derive_seed(self.seed, 0 if self.same_samples else group))
        held_out, rest = order[:count], order[count:]
        if self.same_samples:
            rest = rest[permutation(len(rest), derive_seed(self.seed, group, 1))]
        return held_out, rest

    def shape(self) -> dict[str, Any]:
        """Everything that the order of samples depends on, in plain values: what a checkpoint must agree with."""
        return {
            "stream": type(self).__qualname__,
            "classes": [list(group) for group in self.classes],
            "num_classes": self.num_classes,
            "input_shape": list(self.input_shape),
            "sizes": [[e.num_train, e.num_val, e.num_test] for e in self.experiences],
            "batch_size": self.batch_size,
            "eval_batch_size": self.eval_batch_size,  # sums over statistics passes are taken in its order
            "seed": self.seed,
            "val_fraction": self.val_fraction,
            "samples_per_experience": self.samples_per_experience,
            "cumulative": self.cumulative,
            "revisit": None if self.revisit is None else [type(self.revisit).__name__, vars(self.revisit)],
            "boundaries": self.boundaries,
            "task_labels": self.task_labels,
            "drop_last": self.drop_last,
        }

    # -- loaders ------------------------------------------------------------------------------------------------

    @override
    def setup(self, stage: str) -> None:
        """Look at the data of all experiences before any training.

        Raises:
            ValueError: If there is nothing to train on, or an experience has less than one sample for each process.
        """
        if stage == "fit" and self.test_only:
            raise ValueError(self.test_only)
        if self.task_labels and any(self.task_of(self.test_of(i)) != self.task_of(i) for i in range(len(self))):
            raise ValueError("`task_labels` must be off: experiences share test samples, which are of no one's task.")
        if stage == "fit":
            self._check_sizes()

    def _check_sizes(self) -> None:
        if self.val_fraction and (none := [e.index for e in self.experiences if not e.num_val]):
            raise ValueError(
                f"`val_fraction` {self.val_fraction} is less than one sample of experiences {none}: set it higher, or "
                "to 0."
            )
        if self.revisit is not None:
            sizes = [e.num_train for e in self.experiences]
            for i in range(1, len(sizes) + 1):
                check_counts(self.revisit.counts(sizes[:i]), sizes[:i])
        world_size = self._rank[1]
        for e in self.experiences:
            if (fewest := min(e.num_train, e.num_val or world_size, e.num_test)) < world_size:
                raise ValueError(
                    f"Experience {e.index} has a part of {fewest} sample(s), too few for {world_size} processes: set "
                    f"`devices` and `num_nodes` so that there are {fewest} or less."
                )

    @property
    def _rank(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def _training_parts(self, name: str) -> list[Samples]:
        revisited = self.revisit if name == "train" else None
        first = 0 if self.cumulative or revisited or not self.boundaries else self.current
        last = self.current if self.boundaries else len(self._groups) - 1
        parts = [self._part_of_group(i, name) for i in range(first, last + 1)]
        if revisited is None:
            return _once_each(parts) if self.cumulative else parts
        sizes = [len(part) for part in parts]
        chosen = draw(revisited.counts(sizes), sizes, self.seed, self.current)
        return [part.subset(index) for part, index in zip(parts, chosen, strict=True) if len(index)]

    def _once(self, data: Any, index: Tensor | None = None) -> StreamLoader:
        count = len(data) if index is None else len(index)
        batches = sharded_batches(count, self.eval_batch_size, *self._rank)
        batches = batches if index is None else [index[batch] for batch in batches]
        return StreamLoader(data, lambda _: batches, len(batches), num_workers=self.num_workers)

    @override
    def train_dataloader(self) -> StreamLoader:
        data = joined([part.for_training() for part in self._training_parts("train")])
        rank, world_size = self._rank
        seed = derive_seed(self.seed, self.current)

        def batches(epoch: int) -> list[Tensor]:
            order = self._order(len(data), derive_seed(seed, epoch))
            return ordered_batches(order, self.batch_size, rank, world_size, self.drop_last)

        return StreamLoader(
            data,
            batches,
            len(batches(0)),
            epoch=lambda: self.trainer.current_epoch if self.trainer is not None else 0,
            seed=derive_seed(seed, rank),
            num_workers=self.num_workers,
            before_first=self.before_first_batch,
        )

    def _order(self, count: int, seed: int) -> Tensor:
        """The order of one epoch: a permutation, or without boundaries one of each group after the other."""
        if self.boundaries:
            return permutation(count, seed)
        sizes = [len(part) for part in self._training_parts("train")]
        parts = [permutation(size, derive_seed(seed, group)) for group, size in enumerate(sizes)]
        return torch.cat([part + sum(sizes[:group]) for group, part in enumerate(parts)])

    @override
    def val_dataloader(self) -> StreamLoader | list[Any]:
        return self._once(joined(self._training_parts("val"))) if self.val_fraction else []

    @override
    def test_dataloader(self) -> ChainLoader:
        return ChainLoader([self._once(self.part(i, "test")) for i in self.evaluated], list(self.evaluated))

    @override
    def predict_dataloader(self) -> ChainLoader:
        return self.test_dataloader()

    def statistics_dataloader(self, samples: int | None = None) -> StreamLoader:
        """The training samples of the current experience, each exactly once on one rank, in order of the data set.

        For what a method computes at the end of an experience: Fisher information, prototypes, herding.

        Args:
            samples: Only so many of them, chosen by the seed of the stream; ``None``, or more than there are, is all.
        """
        if self.boundaries and self.revisit is None:
            data = self._part_of_group(self.current, "train")
        else:
            parts = self._training_parts("train")
            data = parts[-1] if self.boundaries else joined(parts)
        if samples is None or samples >= len(data):
            return self._once(data)
        order = permutation(len(data), derive_seed(self.seed, self.current, 2))
        return self._once(data, order[:samples].sort().values)

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
        if x.dtype == torch.float64 and getattr(self.trainer, "precision", None) != "64-true":
            x = x.float()
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
        self.current = min(state_dict["current"], len(self) - 1)  # in a test the stream may be another, shorter one


def _once_each(parts: Sequence[Samples]) -> list[Samples]:
    """The same parts, those that come again left out."""
    return list({id(part): part for part in parts}.values())


def _named(classes: Sequence[int]) -> str:
    return f"classes {', '.join(map(str, classes))}" if len(classes) <= 10 else f"{len(classes)} classes"
