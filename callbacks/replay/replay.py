"""Experience replay (ER): train on each batch together with as many samples from a memory of the past."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from lightning_cl.callback import Unpack, columns_of, replace_columns
from lightning_cl.rehearsal import Current, Epochs, ForwardOf, LossRehearsal, Replayed, Storage, beside

Retrieval = Literal["uniform", "balanced"]
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
            makes it uniform over presentations and lets it hold duplicates.
        policy: Which samples stay (see :class:`lightning_cl.Memory`); what is counted by are the labels.
        retrieval: Draw ``"uniform"``, or ``"balanced"``: as many of each class.
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
            raise ValueError(f"`retrieval` must be 'uniform' or 'balanced', got {retrieval!r}.")
        if loss not in get_args(Loss):
            raise ValueError(f"`loss` must be one of {get_args(Loss)}, got {loss!r}.")
        if loss == "joint" and forward != "joint":
            raise ValueError(
                "`forward` must be 'joint' for the joint loss of one batch: set `loss` to 'sum' or 'mean'."
            )
        self.retrieval = retrieval
        self.loss = loss

    @property
    @override
    def needs_groups(self) -> bool:
        return super().needs_groups or self.retrieval == "balanced"

    @override
    def draw_beside(self, trainer: Trainer, batch: Any, current: Current, count: int) -> dict[str, Tensor]:
        return self.draw(trainer, count, balanced=self.retrieval == "balanced")

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
    def replay_loss(self, pl_module: LightningModule, replayed: Sequence[Replayed], outputs: Any) -> Tensor:
        assert self.loss != "joint"
        return beside(outputs, F.cross_entropy(replayed[0].scores, replayed[0].y), self.loss)
