"""ER-ACE: experience replay in which new classes do not push old ones away."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from lightning_cl.callback import Unpack, gather_rows
from lightning_cl.rehearsal import (
    Current,
    Epochs,
    ForwardOf,
    LossRehearsal,
    Replayed,
    Storage,
    as_float32,
    beside,
    without_boundaries,
)

Absent = Literal["seen", "all"]
MASKED = -1e9


def mask_absent(scores: Tensor, absent: Tensor) -> Tensor:
    """Return scores, in float32 at least, in which absent classes have no part: -1e9, with exactly no gradient.

    In float16 the number would overflow, and minus infinity makes NaN of a loss that multiplies it with 0.

    Args:
        scores: ``(B, C)``.
        absent: Which classes, bool ``(C,)``.

    Example:
        >>> mask_absent(torch.zeros(1, 3), torch.tensor([False, True, False])).softmax(1)
        tensor([[0.5000, 0.0000, 0.5000]])
    """
    return as_float32(scores).masked_fill(absent, MASKED)


class ERACE(LossRehearsal):
    r"""Replay with an asymmetric loss: only the classes of a batch compete in its own loss.

    Caccia et al., "New Insights on Reducing Abrupt Representation Change in Online Continual Learning", ICLR 2022:
    :math:`L(\mathrm{mask}(f(x)), y) + \mathrm{CE}(f(x_m), y_m)`. :math:`L` is what ``training_step`` computes. The
    scores that it gets of absent classes are -1e9, so that their gradient is exactly 0, and new samples do not push the
    features of old ones away; the scores of replayed samples are not masked. Both losses are means.

    Absent are classes that are not in the batch, that of all processes. With ``absent="seen"``, as in the authors' code
    and Mammoth, those of them that were in an earlier batch; classes that never came keep their scores (these codes go
    by the largest label, which fits labels in order of appearance only). With ``"all"``, as in Avalanche, all of them.

    Mammoth adds a cosine head (scale 10); that is a matter of the module.

    Args:
        capacity: Number of samples in memory, 1 or more.
        batch_size: Replayed samples per batch and process; ``None`` is as many as the batch has, 0 is fine-tuning.
        absent: Which of the classes that are not in the batch are masked.
        task_free: Mask from the first batch on; else from the second experience on, so that the first is learned as
            with ``Replay(loss="sum")``. A stream without boundaries needs it.
        loss: The ``"sum"`` of both losses, or their ``"mean"`` as in Avalanche.
        forward: ``"separate"`` forwards of current and replayed samples, as published, or one ``"joint"`` one (see
            :class:`lightning_cl.rehearsal.LossRehearsal`).
        insert_epochs: As in :class:`Replay`.
        policy: As in :class:`Replay`.
        storage: As in :class:`Replay`.
        seed: As in :class:`Replay`.
        unpack: Function from a batch to ``(x, y)``, where that is not its form.

    Raises:
        ValueError: If an argument is out of its range; the message names it.

    Example:
        >>> import lightning as L
        >>> er_ace = ERACE(capacity=200, task_free=True)
        >>> trainer = L.Trainer(callbacks=[er_ace], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        capacity: int = 500,
        batch_size: int | None = None,
        absent: Absent = "seen",
        task_free: bool = False,
        loss: Literal["sum", "mean"] = "sum",
        forward: ForwardOf = "separate",
        insert_epochs: Epochs = "first",
        policy: str = "reservoir",
        storage: Storage | None = None,
        seed: int | None = None,
        unpack: Unpack | None = None,
    ) -> None:
        super().__init__(capacity, batch_size, insert_epochs, policy, forward, storage, seed, unpack)
        if absent not in get_args(Absent):
            raise ValueError(f"`absent` must be 'seen' or 'all', got {absent!r}.")
        if loss not in ("sum", "mean"):
            raise ValueError(f"`loss` must be 'sum' or 'mean', got {loss!r}.")
        self.absent = absent
        self.task_free = task_free
        self.loss: Literal["sum", "mean"] = loss
        self.experiences = 0  # that have been learned
        self.seen = torch.empty(0, dtype=torch.int64)  # classes, ascending
        self._present = self.seen

    @override
    def check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().check(trainer, pl_module)
        if not self.task_free and without_boundaries(trainer):
            raise ValueError("`task_free` must be True in a stream without boundaries, or nothing is ever masked.")

    @override
    def rehearse(self, trainer: Trainer, pl_module: LightningModule, batch: Any, current: Current) -> None:
        super().rehearse(trainer, pl_module, batch, current)
        if self.batch_size == 0:
            return
        y = self.unpacked(batch, current.columns)[1]
        self._present = torch.unique(gather_rows(trainer, torch.unique(y)))
        if self.task_free or self.experiences:
            self.forwards_in(pl_module).adjust(self._mask)
        self.seen = torch.unique(torch.cat([self.seen.to(y.device), self._present]))

    def _mask(self, scores: Tensor) -> Tensor:
        absent = torch.full(scores.shape[1:], self.absent == "all", device=scores.device)
        absent[self.seen] = True
        absent[self._present] = False
        return mask_absent(scores, absent)

    @override
    def replay_loss(self, pl_module: LightningModule, replayed: Sequence[Replayed], outputs: Any) -> Tensor:
        return beside(outputs, super().replay_loss(pl_module, replayed, outputs), self.loss)

    @override
    def consolidate(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().consolidate(trainer, pl_module)
        self.experiences += 1

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "experiences": self.experiences, "seen": self.seen}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.experiences, self.seen = state_dict["experiences"], state_dict["seen"]
