"""Dark experience replay (DER): replay what the network answered when a sample was new."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor
from typing_extensions import override

from lightning_cl.callback import Unpack
from lightning_cl.rehearsal import LOGITS, Epochs, ForwardOf, LossRehearsal, Replayed, Storage, logit_matching


class DER(LossRehearsal):
    r"""Add the squared difference of the scores of replayed samples from those they had when they were stored.

    Buzzega et al., "Dark Experience for General Continual Learning", NeurIPS 2020, as in the Mammoth code:
    :math:`L(x, y) + \alpha \, \mathrm{MSE}(f(x_m), z_m)`, the mean over samples and classes. :math:`L` is what
    ``training_step`` computes. :math:`z` are the scores of the augmented sample in the very forward that the loss was
    computed from, in train mode and before the step; they are kept in float32 beside the sample, which is kept without
    augmentation. The labels of replayed samples are not used.

    Scores have one width from start to end, or are minus infinity for classes that the head does not have yet (see
    :func:`lightning_cl.rehearsal.logit_matching`). With ``insert_epochs="end"`` they are computed at the end of the
    experience, in eval mode and without augmentation, as Avalanche does, which uses one draw for all its terms.

    Args:
        capacity: Number of samples in memory, 1 or more.
        alpha: Factor of the squared difference, 0 or more; at 0 training is bit-identical to fine-tuning. Mammoth: 0.3
            for Seq-CIFAR-100 with 500 samples.
        batch_size: As in :class:`Replay`.
        forward: ``"separate"`` forwards of current and replayed samples, as published, or one ``"joint"`` one (see
            :class:`lightning_cl.rehearsal.LossRehearsal`).
        insert_epochs: As in :class:`Replay`. Mammoth offers in ``"all"``.
        policy: As in :class:`Replay`.
        storage: As in :class:`Replay`.
        seed: As in :class:`Replay`.
        unpack: Function from a batch to ``(x, y)``, where that is not its form.

    Raises:
        ValueError: If an argument is out of its range; the message names it.

    Example:
        >>> import lightning as L
        >>> trainer = L.Trainer(callbacks=[DER(capacity=500, alpha=0.3)], logger=False, enable_checkpointing=False)
    """

    keeps_logits = True

    def __init__(
        self,
        capacity: int = 500,
        alpha: float = 0.3,
        batch_size: int | None = None,
        forward: ForwardOf = "separate",
        insert_epochs: Epochs = "first",
        policy: str = "reservoir",
        storage: Storage | None = None,
        seed: int | None = None,
        unpack: Unpack | None = None,
    ) -> None:
        super().__init__(capacity, batch_size, insert_epochs, policy, forward, storage, seed, unpack)
        if not alpha >= 0:
            raise ValueError(f"`alpha` must be 0 or more, got {alpha}.")
        self.alpha = alpha

    @property
    @override
    def is_off(self) -> bool:
        return super().is_off or self.alpha == 0

    @override
    def replay_loss(self, pl_module: LightningModule, replayed: Sequence[Replayed], outputs: Any) -> Tensor:
        return self.alpha * logit_matching(replayed[0].scores, replayed[0].columns[LOGITS])
