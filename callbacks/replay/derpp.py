"""DER++: dark experience replay with the labels of replayed samples."""

from collections.abc import Sequence
from typing import Any, Literal

from lightning.pytorch import LightningModule
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from lightning_cl.callback import Unpack
from lightning_cl.callbacks.replay.der import DER
from lightning_cl.rehearsal import Epochs, ForwardOf, Replayed, Storage


class DERpp(DER):
    r"""Dark experience replay with the cross-entropy of replayed samples beside it.

    Buzzega et al., "Dark Experience for General Continual Learning", NeurIPS 2020, as in the Mammoth code:
    :math:`L(x, y) + \alpha \, \mathrm{MSE}(f(x_m), z_m) + \beta \, \mathrm{CE}(f(x'_m), y'_m)`, where the samples of
    the two terms are independent draws; Avalanche makes one serve both. All else is as in :class:`DER`.

    Args:
        capacity: Number of samples in memory, 1 or more.
        alpha: Factor of the squared difference, 0 or more.
        beta: Factor of the cross-entropy, 0 or more; where both are 0, training is bit-identical to fine-tuning.
            Mammoth: 0.3 and 0.5 for Seq-CIFAR-100 with 500 samples.
        num_draws: ``2``, as published, or ``1`` for both terms, at the cost of one forward less.
        batch_size: As in :class:`Replay`; of each draw.
        forward: As in :class:`DER`.
        insert_epochs: As in :class:`Replay`. Mammoth offers in ``"all"``.
        policy: As in :class:`Replay`.
        storage: As in :class:`Replay`.
        seed: As in :class:`Replay`.
        unpack: Function from a batch to ``(x, y)``, where that is not its form.

    Raises:
        ValueError: If an argument is out of its range; the message names it.

    Example:
        >>> import lightning as L
        >>> derpp = DERpp(capacity=500, alpha=0.3, beta=0.5)
        >>> trainer = L.Trainer(callbacks=[derpp], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        capacity: int = 500,
        alpha: float = 0.3,
        beta: float = 0.5,
        num_draws: Literal[1, 2] = 2,
        batch_size: int | None = None,
        forward: ForwardOf = "separate",
        insert_epochs: Epochs = "first",
        policy: str = "reservoir",
        storage: Storage | None = None,
        seed: int | None = None,
        unpack: Unpack | None = None,
    ) -> None:
        super().__init__(capacity, alpha, batch_size, forward, insert_epochs, policy, storage, seed, unpack)
        if not beta >= 0:
            raise ValueError(f"`beta` must be 0 or more, got {beta}.")
        if num_draws not in (1, 2):
            raise ValueError(f"`num_draws` must be 1 or 2, got {num_draws}.")
        self.beta = beta
        self.num_draws = num_draws

    @property
    @override
    def is_off(self) -> bool:
        return self.batch_size == 0 or self.alpha == self.beta == 0

    @override
    def replay_loss(self, pl_module: LightningModule, replayed: Sequence[Replayed], outputs: Any) -> Tensor:
        labelled = replayed[-1]
        return super().replay_loss(pl_module, replayed, outputs) + self.beta * F.cross_entropy(
            labelled.scores, labelled.y
        )
