"""Rehearsal: what the methods that replay a memory of past samples have in common as callbacks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy
from typing_extensions import override

from lightning_cl.callback import (
    ContinualCallback,
    Unpack,
    columns_of,
    gather_objects,
    gather_rows,
    is_logged,
    prepared,
    scores_aside,
    statistics_batches,
    unpack_batch,
)
from lightning_cl.forwards import scores_in
from lightning_cl.memory import Memory, deal, share
from lightning_cl.stream import StreamBatch, StreamDataModule
from lightning_cl.utilities import at_least_float32, default_seed, derive_seed, evaluating

LOGITS = "logits"
"""The column of a memory with the scores that samples had when they were offered."""
Epochs = Literal["first", "all", "end"]
ForwardOf = Literal["joint", "separate"]


@dataclass(frozen=True)
class Storage:
    """Where a memory is kept, and how processes share it.

    Args:
        sharing: With several processes: ``"replicated"``: each offers the batches of all, in the order of ranks, to a
            memory with the same generator, so that all hold the same as one process would with the joined batches.
            ``"sharded"``: each keeps its own samples in its part of the capacity, and together they hold a sample of
            the stream that is stratified by process. Balance between classes is then that of each shard.
        device: Device of the memory.
        file: A memory-mapped file to keep it in, for more than there is RAM; a checkpoint then holds no samples.
            With several processes, which must be ``"sharded"``, each has its own, with ``.<rank>`` at the end.

    Raises:
        ValueError: If an argument is out of its range.
    """

    sharing: Literal["replicated", "sharded"] = "replicated"
    device: str = "cpu"
    file: str | None = None

    def __post_init__(self) -> None:
        if self.sharing not in ("replicated", "sharded"):
            raise ValueError(f"`sharing` must be 'replicated' or 'sharded', got {self.sharing!r}.")


class Current(NamedTuple):
    """What the data loader gave for the current batch.

    Attributes:
        columns: By name or position, as ``training_step`` would get them.
        raw: The same as they are kept: on a stream as the data set holds them.
    """

    columns: dict[str, Tensor]
    raw: dict[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))


class RehearsalCallback(ContinualCallback):
    """A callback that keeps a memory of the samples that training sees.

    A method says in :meth:`rehearse` what it does with the memory before each batch. Afterwards the batch is offered to
    the memory, which so was drawn from before it could replay the batch itself. Callbacks of this kind in one trainer
    are offered what the data loader gave, whatever the others made of it.

    On a :class:`lightning_cl.StreamDataModule` the memory holds samples as the data set does (``uint8`` images, one
    byte per pixel and channel) and augments and normalises them afresh, on the device, each time they are drawn. On
    other data it holds them as they reach ``training_step``.

    Args:
        capacity: Number of samples in memory, of all processes together if it is sharded; 1 or more.
        batch_size: Replayed samples per batch and process; ``None`` is as many as the batch has, 0 is fine-tuning.
        insert_epochs: Offer the samples of an experience to the memory in its ``"first"`` epoch, so that each is
            offered once and a reservoir is uniform over the stream; or in ``"all"`` epochs, as Mammoth does, which
            makes it uniform over presentations and lets it hold duplicates; or at the ``"end"``, in one more pass over
            the data of the experience, as Avalanche does, so that only earlier experiences are replayed.
        policy: Which samples stay (see :class:`lightning_cl.Memory`); what quotas count are the labels.
        storage: Where the memory is, and how processes share it.
        seed: Fixes what is kept and drawn; ``None`` is the seed of ``seed_everything``, else 0.
        unpack: Function from a batch to ``(x, y)``, where that is not its form.

    Raises:
        ValueError: If an argument is out of its range; the message names it.
        TypeError: While training, if the batch is not a list or dict of tensors.
    """

    gives_scores: ClassVar[bool] = False
    """Whether :meth:`offer` is overridden to give the scores that some policies need."""

    def __init__(
        self,
        capacity: int,
        batch_size: int | None,
        insert_epochs: Epochs,
        policy: str,
        storage: Storage | None,
        seed: int | None,
        unpack: Unpack | None,
    ) -> None:
        super().__init__()
        if batch_size is not None and batch_size < 0:
            raise ValueError(f"`batch_size` must be 0 or more, or None for that of the batch, got {batch_size}.")
        if insert_epochs not in get_args(Epochs):
            raise ValueError(f"`insert_epochs` must be 'first', 'all' or 'end', got {insert_epochs!r}.")
        self.capacity = capacity
        self.batch_size = batch_size
        self.policy = policy
        self.insert_epochs = insert_epochs
        if not isinstance(storage, Storage | None):
            raise TypeError(f"`storage` must be a Storage, as Storage(sharing='sharded'), got {storage!r}.")
        self.storage = storage or Storage()
        self.seed = default_seed(seed)
        self.unpack = unpack
        self.memory = Memory(capacity, policy, derive_seed(self.seed, 0), self.storage.device, self.storage.file)
        if "scores" in self.memory.needs and not self.gives_scores:
            raise ValueError(f"`policy` must not be {policy!r}, which needs scores: use the callback that gives them.")
        self._draws = 0
        self._generator = Generator()  # seeded for each draw: there is no state of it to save
        self._rank_seed = 0
        self._shards: list[Any] | None = None  # of a checkpoint, until it is known which are of this process
        self._trainer: Trainer | None = None
        self._current: Current | None = None  # what the first callback of this kind found, for the others

    # -- what a method says --------------------------------------------------------------------------------------------

    def rehearse(self, trainer: Trainer, pl_module: LightningModule, batch: Any, current: Current) -> None:
        """Draw from the memory before a batch, and perhaps change the batch in place."""

    def offer(self, trainer: Trainer, pl_module: LightningModule, batch: Any, current: Current) -> None:
        """Offer a batch to the memory, before ``training_step`` can change it."""
        if self.offers(trainer):
            self.keep(trainer, current.raw, self.groups_of(batch, current))

    def offer_at_end(self, trainer: Trainer, pl_module: LightningModule, batch: Any, current: Current) -> None:
        """Offer a batch of the data of an experience at its end, without augmentation."""
        self.keep(trainer, current.raw, self.groups_of(batch, current))

    # -- what a method may ask -----------------------------------------------------------------------------------------

    @property
    def needs_groups(self) -> bool:
        """Whether labels are kept with the samples."""
        return "groups" in self.memory.needs

    def draw(self, trainer: Trainer, count: int, balanced: bool = False) -> dict[str, Tensor]:
        """Draw samples as ``training_step`` gets them: a function of memory, seed, rank and the number of the draw.

        Args:
            trainer: The trainer.
            count: How many; nothing is drawn of an empty memory.
            balanced: As many of each class.
        """
        if not count or not len(self.memory):
            return {}
        generator = self._generator.manual_seed((self._rank_seed + self._draws) % 2**63)
        self._draws += 1
        return prepared(trainer, self.memory.draw(count, generator, balanced))

    def offers(self, trainer: Trainer) -> bool:
        """Whether samples are offered in this epoch."""
        first = self.insert_epochs == "first" and self.epoch_of_experience(trainer) == 0
        return first or self.insert_epochs == "all"

    def wanted(self, current: Current) -> int:
        """How many samples are replayed beside these."""
        return len(current) if self.batch_size is None else self.batch_size

    def keep(
        self, trainer: Trainer, columns: Mapping[str, Tensor], groups: Tensor | None, scores: Tensor | None = None
    ) -> None:
        """Offer rows to the memory, of all processes if it is replicated.

        Args:
            trainer: The trainer.
            columns: Rows ``(B, *)`` by name.
            groups: Their labels ``(B,)``, if :attr:`needs_groups`.
            scores: What the policy chooses by, ``(B,)``.
        """
        if self.storage.sharing == "replicated" and trainer.world_size > 1:
            columns = {name: gather_rows(trainer, rows) for name, rows in columns.items()}
            groups = None if groups is None else gather_rows(trainer, groups)
            scores = None if scores is None else gather_rows(trainer, scores)
        self.memory.insert(columns, groups=groups, scores=scores)

    def groups_of(self, batch: Any, current: Current) -> Tensor | None:
        """The labels ``(B,)`` of the current samples, if they are kept."""
        return self.unpacked(batch, current.columns)[1] if self.needs_groups else None

    def unpacked(self, batch: Any, columns: Mapping[str, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Inputs and labels of a batch, or of rows by column in the form of the batch."""
        if columns is not None:
            keys = range(len(batch)) if isinstance(batch, list) else list(batch)
            rows = {key: columns[str(key)] for key in keys}
            batch = list(rows.values()) if isinstance(batch, list) else rows
        return (self.unpack or unpack_batch)(batch)

    # -- how it is wired -----------------------------------------------------------------------------------------------

    @override
    def check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.world_size > 1 and self.storage.file and self.storage.sharing == "replicated":
            raise ValueError("`storage.sharing` must be 'sharded' for a `storage.file` with several processes.")
        if self.insert_epochs == "end" and without_boundaries(trainer):
            raise ValueError("`insert_epochs` must be 'first' or 'all' in a stream without boundaries, got 'end'.")
        if self.storage.sharing == "sharded" and self.capacity < trainer.world_size:
            raise ValueError(f"`capacity` must be {trainer.world_size} or more, one for each process.")

    @override
    def start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._rank_seed = derive_seed(self.seed, 1, trainer.global_rank)
        self._trainer = trainer
        if self.storage.sharing == "sharded":
            self._take_shard(trainer.global_rank, trainer.world_size)

    def _take_shard(self, rank: int, world_size: int) -> None:
        """Make the memory that of this rank: it was made for one process, or comes from a checkpoint."""
        before, self._shards = self._shards, None
        own = self._memory_of(rank, world_size)
        if before is None:
            if self.memory.capacity == own.capacity:
                return
            shards = [self.memory] if len(self.memory) else []
        elif len(before) == world_size:
            own.load_state_dict(before[rank])
            shards = []
        else:
            shards = [self._memory_of(k, len(before)) for k in range(len(before))]
            for shard, state in zip(shards, before, strict=True):
                shard.load_state_dict(state, read_only=True)
        self.memory = own
        if shards:
            deal(shards, own, rank, world_size)

    def _memory_of(self, rank: int, world_size: int) -> Memory:
        """The empty memory of one of several processes."""
        file = self.storage.file
        return Memory(
            share(self.capacity, rank, world_size),
            self.policy,
            derive_seed(self.seed, 0, rank),
            self.storage.device,
            f"{file}.{rank}-of-{world_size}" if file and world_size > 1 else file,
        )

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        current = self._current_of(trainer, batch)
        self.rehearse(trainer, pl_module, batch, current)
        self.offer(trainer, pl_module, batch, current)

    @override
    def consolidate(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.insert_epochs == "end":
            for batch in statistics_batches(trainer):
                self.offer_at_end(trainer, pl_module, batch, _current(batch, type(self).__name__))

    def _current_of(self, trainer: Trainer, batch: Any) -> Current:
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        first = next(callback for callback in callbacks if isinstance(callback, RehearsalCallback))
        if first is self:
            self._current = _current(batch, type(self).__name__)
        assert first._current is not None
        return first._current

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._current = None

    @override
    def state_dict(self) -> dict[str, Any]:
        memory: Any = self._shards
        if memory is None:
            memory = self.memory.state_dict()
            if self.storage.sharing == "sharded":
                memory = [memory] if self._trainer is None else gather_objects(self._trainer, memory)
        return {**super().state_dict(), "memory": memory, "draws": self._draws}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        memory = state_dict["memory"]
        if isinstance(memory, list):
            self._shards = memory
        else:
            self.memory.load_state_dict(memory)
        self._draws = state_dict["draws"]


def without_boundaries(trainer: Trainer) -> bool:
    """Whether the whole stream is one experience, in which no method is told where a part of it ends."""
    stream = getattr(trainer, "datamodule", None)
    return isinstance(stream, StreamDataModule) and not stream.boundaries


def _current(batch: Any, owner: str) -> Current:
    columns = columns_of(batch, owner)
    raw = dict(zip(columns, batch.raw, strict=True)) if isinstance(batch, StreamBatch) else columns
    return Current(columns, raw)


class Replayed(NamedTuple):
    """Samples of the memory, and what the module says of them.

    Attributes:
        columns: All that the memory has of them.
        x: Inputs ``(b, *)`` as the module gets them.
        y: Labels ``(b,)``.
        scores: ``(b, C)``, in float32 at least, with their graph.
    """

    columns: dict[str, Tensor]
    x: Tensor
    y: Tensor
    scores: Tensor


class LossRehearsal(RehearsalCallback):
    """A callback that adds to the loss of ``training_step`` one of its own on samples of the memory.

    ``training_step`` gets the batch as it was, so that its loss is that of the current samples, and a method says in
    :meth:`replay_loss` what is added. With ``forward="separate"`` the module is called once more for each draw, so that
    batch normalisation sees and counts current and replayed samples apart. With ``forward="joint"`` the rows of each
    draw go through the forward that ``training_step`` makes, which then has one batch statistic for all, and is
    faster; ``training_step`` gets to see only its own.

    The value that is added is logged as ``replay/<name of the class>`` at steps that the trainer logs.
    """

    num_draws: int = 1
    """How many independent draws there are in each step."""
    keeps_logits: bool = False
    """Keep with each sample, in a column :data:`LOGITS`, the scores of the forward that its loss was computed from."""

    def __init__(
        self,
        capacity: int,
        batch_size: int | None,
        insert_epochs: Epochs,
        policy: str,
        forward: ForwardOf,
        storage: Storage | None,
        seed: int | None,
        unpack: Unpack | None,
    ) -> None:
        super().__init__(capacity, batch_size, insert_epochs, policy, storage, seed, unpack)
        if forward not in get_args(ForwardOf):
            raise ValueError(f"`forward` must be 'joint' or 'separate', got {forward!r}.")
        self.forward = forward
        self._drawn: list[tuple[dict[str, Tensor], Tensor, Tensor, int]] = []
        self._offered: tuple[Any, Current] | None = None  # until its scores are known
        self._logits: Tensor | None = None
        self._name = ""

    @property
    def is_off(self) -> bool:
        """Whether nothing is replayed, so that training is bit-identical to fine-tuning."""
        return self.batch_size == 0

    def replayed_output(self, pl_module: LightningModule, x: Tensor) -> Any:
        """What the module returns for replayed inputs, in a forward of their own."""
        return pl_module(x)

    def draw_beside(self, trainer: Trainer, batch: Any, current: Current, count: int) -> dict[str, Tensor]:
        """Draw what is replayed beside a batch, as :meth:`draw`."""
        return self.draw(trainer, count)

    def replay_loss(self, pl_module: LightningModule, replayed: Sequence[Replayed], outputs: Any) -> Tensor:
        """Return what is added to the loss ``outputs`` of ``training_step``, a scalar: here the cross-entropy."""
        return cross_entropy(replayed[0].scores, replayed[0].y)

    @override
    def start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().start(trainer, pl_module)
        if self._has("extra_loss"):
            self._name = self.logged_as(trainer)
            self.watch(trainer, pl_module)

    @override
    def rehearse(self, trainer: Trainer, pl_module: LightningModule, batch: Any, current: Current) -> None:
        self._drawn = []
        for _ in range(0 if self.is_off else self.num_draws):
            columns = self.draw_beside(trainer, batch, current, self.wanted(current))
            if columns:
                x, y = self.unpacked(batch, columns)
                number = self.forwards_in(pl_module).join(x) if self.forward == "joint" else -1
                self._drawn.append((columns, x, y, number))

    @override
    def offer(self, trainer: Trainer, pl_module: LightningModule, batch: Any, current: Current) -> None:
        if not self.keeps_logits:
            super().offer(trainer, pl_module, batch, current)
        elif self.offers(trainer):
            if not isinstance(batch, StreamBatch):  # the step may change what it gets
                current = Current(current.columns, {name: rows.clone() for name, rows in current.raw.items()})
            groups = self.groups_of(batch, current)
            self._offered = None if groups is None else groups.clone(), current

    @override
    def offer_at_end(self, trainer: Trainer, pl_module: LightningModule, batch: Any, current: Current) -> None:
        if not self.keeps_logits:
            super().offer_at_end(trainer, pl_module, batch, current)
            return
        with evaluating(pl_module), torch.no_grad():
            logits = scores_aside(trainer, pl_module, self.unpacked(batch)[0])
        self.keep(trainer, {**current.raw, LOGITS: logits}, self.groups_of(batch, current))

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._offered is not None and self._logits is not None:
            groups, current = self._offered
            self.keep(trainer, {**current.raw, LOGITS: self._logits}, groups)
        self._offered = self._logits = None

    @override
    def extra_loss(self, trainer: Trainer, pl_module: LightningModule, batch: Any, outputs: Any) -> Tensor | None:
        if self._offered is not None:
            scores, count = self.scores(pl_module, self.unpacked(batch)[0], outputs), len(self._offered[1])
            if len(scores) < count:
                raise ValueError(
                    f"{type(self).__name__} needs the scores of all {count} current samples, and another callback took "
                    f"them out of the batch, which has {len(scores)}: leave one of both out (as GDumb)."
                )
            self._logits = as_float32(scores[:count].detach())
        if not self._drawn:
            return None
        replayed = []
        for columns, x, y, number in self._drawn:
            apart = number < 0
            output = self.replayed_output(pl_module, x) if apart else self.forwards_in(pl_module).joined(number)
            replayed.append(Replayed(columns, x, y, as_float32(scores_in(output))))
        self._drawn = []
        loss = self.replay_loss(pl_module, replayed, outputs)
        if is_logged(trainer):
            pl_module.log(f"replay/{self._name}", loss.detach())
        return loss


def as_float32(scores: Tensor) -> Tensor:
    """Scores in float32 at least."""
    return scores.to(at_least_float32(scores.dtype))


def logit_matching(scores: Tensor, stored: Tensor) -> Tensor:
    r"""Return the mean squared difference :math:`\frac{1}{B K} \sum_{n, c} (f_c(x_n) - z_{nc})^2`.

    Columns that are minus infinity in one of the two, as those of classes that a growing head did not have, or that
    are not stored, have no part, and :math:`K` counts the others. Computed in float32 at least.

    Args:
        scores: :math:`f(x)`, ``(B, C)``.
        stored: :math:`z`, ``(B, C)``; may have fewer columns.

    Returns:
        A scalar.

    Example:
        >>> z = torch.tensor([[1.0, 2.0, -torch.inf], [0.0, 1.0, 3.0]])
        >>> logit_matching(z.masked_fill(z.isinf(), 0.0) + 1.0, z)
        tensor(1.)
    """
    error = as_float32(scores[:, : stored.shape[1]]) - stored
    counts = error.isfinite()
    return error.masked_fill(~counts, 0.0).square().sum() / counts.sum().clamp(min=1)


def beside(outputs: Any, replay: Tensor, reduction: Literal["sum", "mean"]) -> Tensor:
    """What must be added to the loss of ``training_step`` so that both make their sum, or their mean."""
    current: Tensor = outputs["loss"] if isinstance(outputs, Mapping) else outputs
    return replay if reduction == "sum" else (replay - current) / 2
