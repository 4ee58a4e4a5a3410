"""Experience replay (ER): train on each batch together with as many samples from a memory of the past."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from lightning_cl.callback import Unpack, columns_of, prepared, replace_columns
from lightning_cl.rehearsal import Current, Epochs, ForwardOf, LossRehearsal, Replayed, Storage, beside
from lightning_cl.utilities import derive_seed, permutation

Retrieval = Literal["uniform", "balanced", "passes"]
Loss = Literal["joint", "sum", "mean"]


class Replay(LossRehearsal):
    r"""Train on samples of a memory beside those of each batch.

    ER as in Chaudhry et al., "On Tiny Episodic Memories in Continual Learning", 2019. With :math:`\ell_n` the loss of a
    sample, :math:`b` current and :math:`m` replayed ones, libraries minimise

    =========  ========================================================================  ====================
    ``loss``   what is minimised
    =========  ========================================================================  ====================
    ``joint``  :math:`\frac{1}{b + m} \sum_{n \le b + m} \ell_n`                         Mammoth, Avalanche
    ``sum``    :math:`\frac{1}{b} \sum_{n \le b} \ell_n + \frac{1}{m} \sum_{n > b} \ell_n`  AML, online-CL code
    ``mean``   half of ``sum``
    =========  ========================================================================  ====================

    With ``joint`` replayed samples join the batch before ``training_step`` gets it, whatever loss that computes, and
    batch norm sees both together. With the others ``training_step`` gets its own batch, and the replayed samples'
    part is their cross-entropy.

    On a :class:`lightning_cl.StreamDataModule` the memory holds samples as the data set does (``uint8`` images, one
    byte per pixel and channel) and augments and normalises them afresh, on the device, each time they are replayed. On
    other data it holds them as they reach ``training_step``. The memory is drawn from before the current batch is
    offered to it.

    Several instances in one trainer each add their own samples, and each is offered those of the data loader only.

    Args:
        capacity: Number of samples in memory, of all processes together if it is sharded; 1 or more.
        batch_size: Replayed samples per batch and process; ``None`` is as many as the batch has, 0 is fine-tuning.
        insert_epochs: Offer the samples of an experience to the memory in its ``"first"`` epoch, so that each is
            offered once and the reservoir is uniform over the stream; or in ``"all"`` epochs, as Mammoth does, which
            makes it uniform over presentations and lets it hold duplicates; or at the ``"end"``, in one more pass over
            the data of the experience, as Avalanche does, so that only earlier experiences are replayed.
        policy: Which samples stay (see :class:`lightning_cl.Memory`); what is counted by are the labels.
        retrieval: Draw ``"uniform"``, each time anew; ``"balanced"``: as many of each class; or in ``"passes"`` through
            the memory in random order, as a data loader does: each sample once before any comes again.
        loss: See the table.
        forward: With ``sum`` and ``mean``: one ``"joint"`` forward of current and replayed samples, or ``"separate"``
            ones, which batch norm sees and counts apart.
        storage: Where the memory is, and how processes share it; ``None`` is in RAM, replicated.
        seed: Fixes what is kept and drawn; ``None`` is the seed of ``seed_everything``, else 0.
        unpack: Function from a batch to ``(x, y)``, where that is not its form.

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
        insert_epochs: Epochs = "first",
        policy: str = "reservoir",
        retrieval: Retrieval = "uniform",
        loss: Loss = "joint",
        forward: ForwardOf = "joint",
        storage: Storage | None = None,
        seed: int | None = None,
        unpack: Unpack | None = None,
    ) -> None:
        super().__init__(capacity, batch_size, insert_epochs, policy, forward, storage, seed, unpack)
        if retrieval not in get_args(Retrieval):
            raise ValueError(f"`retrieval` must be one of {get_args(Retrieval)}, got {retrieval!r}.")
        if loss not in get_args(Loss):
            raise ValueError(f"`loss` must be one of {get_args(Loss)}, got {loss!r}.")
        if loss == "joint" and forward != "joint":
            raise ValueError(
                "`forward` must be 'joint' for the joint loss of one batch: set `loss` to 'sum' or 'mean'."
            )
        if retrieval == "passes" and self.storage.sharing == "sharded":
            raise ValueError("`retrieval='passes'` goes through one memory: set `storage.sharing` to 'replicated'.")
        self.retrieval = retrieval
        self.loss = loss
        self._left = torch.empty(0, dtype=torch.int64)  # slots that are still to come in the current pass

    @override
    def check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().check(trainer, pl_module)
        if self.retrieval == "passes" and self.batch_size is None and trainer.world_size > 1:
            raise ValueError(
                "`batch_size` must be a number for `retrieval='passes'` with several processes, whose last batches may "
                "differ in size."
            )

    @property
    @override
    def needs_groups(self) -> bool:
        return super().needs_groups or self.retrieval == "balanced"

    @override
    def draw_beside(self, trainer: Trainer, batch: Any, current: Current, count: int) -> dict[str, Tensor]:
        if self.retrieval != "passes":
            return self.draw(trainer, count, balanced=self.retrieval == "balanced")
        slots = self._next(count * trainer.world_size)[trainer.global_rank :: trainer.world_size]
        return prepared(trainer, self.memory.take(slots)) if len(slots) else {}

    def _next(self, count: int) -> Tensor:
        """The next slots ``(min(count, len(memory)),)`` of the pass, and of the one that follows it."""
        self._left = self._left[self._left < len(self.memory)]  # where quotas shrink, it does
        if len(self._left) < count and len(self.memory):
            self._draws += 1
            order = permutation(len(self.memory), derive_seed(self.seed, 3, self._draws))
            here = torch.isin(order, self._left)
            self._left = torch.cat([self._left, order[~here], order[here]])  # none twice in one batch
        count = min(count, len(self.memory))
        slots, self._left = self._left[:count], self._left[count:]
        return slots

    @override
    def _has(self, method: str) -> bool:
        return super()._has(method) and (method != "extra_loss" or self.loss != "joint")

    @override
    def rehearse(self, trainer: Trainer, pl_module: LightningModule, batch: Any, current: Current) -> None:
        if self.loss != "joint":
            super().rehearse(trainer, pl_module, batch, current)
        elif drawn := self.draw_beside(trainer, batch, current, self.wanted(current)):
            columns = columns_of(batch, "Replay")
            replace_columns(batch, {name: torch.cat([column, drawn[name]]) for name, column in columns.items()})

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "left": self._left.clone()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._left = state_dict["left"]

    @override
    def replay_loss(self, pl_module: LightningModule, replayed: Sequence[Replayed], outputs: Any) -> Tensor:
        assert self.loss != "joint"
        return beside(outputs, super().replay_loss(pl_module, replayed, outputs), self.loss)
