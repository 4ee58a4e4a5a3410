"""Experience replay (ER): train on each batch joined with as many samples from a memory of the past."""

from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from lightning_cl.callback import ContinualCallback, columns_of, gather_rows, prepared, replace_columns
from lightning_cl.memory import POLICIES, Memory
from lightning_cl.stream import StreamBatch
from lightning_cl.utilities import default_seed, derive_seed


class Replay(ContinualCallback):
    """Join each training batch with samples drawn from a memory, before ``training_step`` gets it.

    ER as in Chaudhry et al., "On Tiny Episodic Memories in Continual Learning", 2019, in the form of the Mammoth code:
    one forward over current and replayed samples together, so that a mean loss weighs every sample alike and
    batch norm sees both. The memory is drawn from before the current batch is offered to it.

    On a :class:`lightning_cl.StreamDataModule` the memory holds samples as the data set does (``uint8`` images, one
    byte per pixel and channel) and augments and normalises them afresh, on the device, each time they are replayed. On
    other data it holds them as they reach ``training_step``.

    With several processes the memory is *replicated*: every process offers the batches of all, in the order of ranks,
    to a memory with the same generator, so that all hold the same, as one process would with the joined batches; each
    draws its own replay samples.

    Several instances in one trainer each add their own samples, and each is offered those of the data loader only.

    Args:
        capacity: Number of samples in memory, 1 or more.
        batch_size: Replayed samples per batch and process; ``None`` is as many as the batch has, 0 is fine-tuning.
        insert_epochs: Offer the samples of an experience to the memory in its ``"first"`` epoch, so that each is
            offered once and the reservoir is uniform over the stream; or in ``"all"`` epochs, as Mammoth does, which
            makes it uniform over presentations and lets it hold duplicates.
        policy: Which samples stay (see :class:`lightning_cl.Memory`).
        seed: Fixes what is kept and drawn; ``None`` is the seed of ``seed_everything``, else 0.

    Raises:
        ValueError: If an argument is out of its range; the message names it.
        TypeError: While training, if the batch is a tuple, which cannot be changed in place.

    Example:
        >>> import lightning as L
        >>> trainer = L.Trainer(callbacks=[Replay(capacity=500)], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        capacity: int = 500,
        batch_size: int | None = None,
        insert_epochs: Literal["first", "all"] = "first",
        policy: str = "reservoir",
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if batch_size is not None and batch_size < 0:
            raise ValueError(f"`batch_size` must be 0 or more, or None for that of the batch, got {batch_size}.")
        if insert_epochs not in ("first", "all"):
            raise ValueError(f"`insert_epochs` must be 'first' or 'all', got {insert_epochs!r}.")
        if policy not in POLICIES:
            raise ValueError(f"`policy` must be one of {sorted(POLICIES)}, got {policy!r}.")
        self.capacity = capacity
        self.batch_size = batch_size
        self.insert_epochs = insert_epochs
        self.policy = policy
        self.seed = default_seed(seed)
        self.memory = Memory(capacity, policy, derive_seed(self.seed, 0))
        self._draws = 0
        self._generator = torch.Generator()  # seeded for each draw: there is no state of it to save
        self._rank_seed = 0
        self._replayed = 0  # samples added to the current batch

    @override
    def start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._rank_seed = derive_seed(self.seed, 1, trainer.global_rank)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        columns = columns_of(batch, "Replay")
        current = len(next(iter(columns.values()))) - self._replayed_by_others(trainer)
        wanted = current if self.batch_size is None else self.batch_size
        drawn = self._draw(trainer, wanted) if wanted and len(self.memory) else {}
        self._replayed = len(next(iter(drawn.values()), ()))
        if drawn:
            replace_columns(batch, {name: torch.cat([column, drawn[name]]) for name, column in columns.items()})
        # After the draw, or the batch could replay itself; before the step, which may change inputs in place.
        if self.insert_epochs == "all" or self.epoch_of_experience(trainer) == 0:
            raw = batch.raw if isinstance(batch, StreamBatch) else [column[:current] for column in columns.values()]
            self.memory.insert({name: gather_rows(trainer, x) for name, x in zip(columns, raw, strict=True)})

    def _replayed_by_others(self, trainer: Trainer) -> int:
        """How many rows, at the end of the batch, were added by the instances that come before this one."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        return sum(c._replayed for c in callbacks[: callbacks.index(self)] if isinstance(c, Replay))

    def _draw(self, trainer: Trainer, count: int) -> dict[str, Tensor]:
        """Draw samples as ``training_step`` gets them: a function of memory, seed, rank and the number of the draw."""
        generator = self._generator.manual_seed((self._rank_seed + self._draws) % 2**63)
        drawn = self.memory.draw(count, generator)
        self._draws += 1
        return prepared(trainer, drawn)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "memory": self.memory.state_dict(), "draws": self._draws}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.memory.load_state_dict(state_dict["memory"])
        self._draws = state_dict["draws"]
