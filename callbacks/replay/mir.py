"""Maximally interfered retrieval (MIR): replay the samples that the coming step would harm most."""

from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from lightning_cl.callback import Unpack, mean_gradients, scores_aside
from lightning_cl.rehearsal import Current, Epochs, ForwardOf, LossRehearsal, Storage


class MIR(LossRehearsal):
    r"""Replay those of a number of random candidates whose loss the step on the current batch would raise most.

    Aljundi et al., "Online Continual Learning with Maximal Interfered Retrieval", NeurIPS 2019, as in the authors' code
    (ER-MIR): with :math:`\theta_v = \theta - \eta \nabla L(x, y)`, a step of plain gradient descent on the
    cross-entropy of the current batch, the score of a candidate is :math:`\ell(\theta_v) - \ell(\theta)`, its
    cross-entropy after and before. The ``batch_size`` highest of ``candidates`` are replayed: their mean cross-entropy
    is added to the loss of ``training_step``. With ``candidates`` at most ``batch_size`` it is
    ``Replay(loss="sum")``.

    Parameters, buffers, gradients, optimizer and the random state are as before when the step begins. It costs one
    forward and backward of the current batch and two forwards of the candidates. The authors' variant that compares
    with the lowest loss a candidate ever had is left out, and they leave the current task out of the candidates, which
    needs its label.

    With several processes each chooses among candidates of its own; :math:`\nabla L` is the mean of all.

    Args:
        capacity: Number of samples in memory, 1 or more.
        batch_size: Replayed samples per batch and process; ``None`` is as many as the batch has, 0 is fine-tuning.
        candidates: Number of candidates, 1 or more. The authors' is 50, for 10 replayed ones.
        lr: Rate :math:`\eta` of the virtual step; ``None`` is that of the first parameter group of the optimizer.
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
        >>> mir = MIR(capacity=500, batch_size=10, candidates=50)
        >>> trainer = L.Trainer(callbacks=[mir], logger=False, enable_checkpointing=False)
    """

    needs_whole_parameters = True

    def __init__(
        self,
        capacity: int = 500,
        batch_size: int | None = None,
        candidates: int = 200,
        lr: float | None = None,
        forward: ForwardOf = "separate",
        insert_epochs: Epochs = "first",
        policy: str = "reservoir",
        storage: Storage | None = None,
        seed: int | None = None,
        unpack: Unpack | None = None,
    ) -> None:
        super().__init__(capacity, batch_size, insert_epochs, policy, forward, storage, seed, unpack)
        if candidates < 1:
            raise ValueError(f"`candidates` must be 1 or more, got {candidates}.")
        if lr is not None and not lr >= 0:
            raise ValueError(f"`lr` must be 0 or more, or None for that of the optimizer, got {lr}.")
        self.candidates = candidates
        self.lr = lr

    @override
    def draw_beside(self, trainer: Trainer, batch: Any, current: Current, count: int) -> dict[str, Tensor]:
        columns = self.draw(trainer, max(count, self.candidates))
        drawn = len(next(iter(columns.values()), ()))
        # Ranks may differ in both numbers, and all of them must take part in the virtual step.
        if not drawn or (drawn <= count and trainer.world_size == 1):
            return columns
        harm = self._interference(trainer, self.unpacked(batch, current.columns), self.unpacked(batch, columns))
        chosen = harm.topk(min(count, drawn)).indices
        return {name: rows[chosen] for name, rows in columns.items()}

    def _interference(
        self, trainer: Trainer, current: tuple[Tensor, Tensor], candidates: tuple[Tensor, Tensor]
    ) -> Tensor:
        """By how much the virtual step raises the loss of each candidate ``(n,)``; 0 if its gradient overflowed."""
        module = trainer.lightning_module
        named = {name: p for name, p in module.named_parameters() if p.requires_grad}
        loss = F.cross_entropy(scores_aside(trainer, module, current[0]), current[1])
        gradients = mean_gradients(trainer, loss, list(named.values()))
        x, y = candidates
        if gradients is None:
            return torch.zeros(len(y), device=y.device)
        lr = trainer.optimizers[0].param_groups[0]["lr"] if self.lr is None else self.lr
        with torch.no_grad():
            after = dict(zip(named, torch._foreach_add(list(named.values()), gradients, alpha=-float(lr)), strict=True))
            losses = [
                F.cross_entropy(scores_aside(trainer, module, x, weights), y, reduction="none")
                for weights in (after, None)
            ]
        return losses[0] - losses[1]
