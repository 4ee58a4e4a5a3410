"""Elastic weight consolidation (EWC): pull each weight back in proportion to its importance for the past."""

from collections.abc import Iterable
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lightning_cl.anchor import QuadraticAnchor
from lightning_cl.callback import ContinualCallback, Unpack, statistics_batches, sum_over_ranks, unpack_batch
from lightning_cl.importance import Estimator, squared_scores


class EWC(ContinualCallback):
    r"""Add the gradient of a quadratic penalty on the change of important weights, once per optimizer step.

    The penalty is :math:`\frac{\lambda}{2} \sum_i F_i (\theta_i - \theta^*_i)^2` with ``strength`` :math:`\lambda` and
    the factor one half of Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", PNAS 2017.
    (Avalanche, Mammoth and Smith et al., CVPR Workshops 2023, have the factor one: their strengths are half of ours.)
    :math:`F` is a diagonal Fisher estimate, made at the end of each experience in one pass over its training data in
    eval mode, in float32. It is a mean over samples, whatever the batch size; for the last two estimators below, over
    batches.

    The closed-form gradient is added after unscaling and reduction over processes and before clipping, so that
    accumulation, mixed precision and DDP do not change it. The loss that the module logs is without the penalty. At
    strength 0, and in the first experience, training is bit-identical to fine-tuning. Plain gradient descent at rate
    :math:`\eta` overshoots where :math:`\eta \lambda F_i > 2`: take a smaller strength if the loss diverges.

    Args:
        strength: Factor :math:`\lambda` of the penalty, 0 or more. It depends on the estimator: sweep it anew when you
            change that.
        estimator: How the Fisher diagonal is estimated (see :func:`lightning_cl.importance.squared_scores`):
            ``"empirical"`` squares each sample's gradient at its true label; ``"exact"`` takes the expectation over the
            model's labels; ``"sampled"`` draws one label of the model's; ``"predicted"`` takes its best;
            ``"batch_mean"`` squares the gradient of a batch's mean loss (Avalanche), ``"batch_scaled"`` multiplies that
            by the batch size (GT-RIPL, FACIL).
        mode: ``"online"``: :math:`F \leftarrow \gamma F + F_t`, anchored at the last weights (Schwarz et al.,
            ICML 2018); ``"separate"``: a term per experience, each with its own anchor (Kirkpatrick et al.);
            ``"mixed"``: :math:`F \leftarrow \alpha F + (1 - \alpha) F_t` (FACIL, PyCIL).
        gamma: Decay of ``"online"``, in [0, 1].
        alpha: Weight of the past in ``"mixed"``, in [0, 1].
        unpack: Function from a batch to ``(x, y)``, where that is not its form.

    Raises:
        ValueError: If an argument is out of its range; the message names it.

    Example:
        >>> import lightning as L
        >>> trainer = L.Trainer(callbacks=[EWC(strength=10.0)], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        strength: float = 1.0,
        estimator: Estimator = "empirical",
        mode: Literal["online", "separate", "mixed"] = "online",
        gamma: float = 1.0,
        alpha: float = 0.5,
        unpack: Unpack | None = None,
    ) -> None:
        super().__init__()
        if not strength >= 0:
            raise ValueError(f"`strength` must be 0 or more, got {strength}.")
        if estimator not in get_args(Estimator):
            raise ValueError(f"`estimator` must be one of {get_args(Estimator)}, got {estimator!r}.")
        self.strength = strength
        self.estimator: Estimator = estimator
        self.mode = mode
        self.gamma = gamma
        self.alpha = alpha
        self.unpack = unpack
        self.anchor = QuadraticAnchor(mode, gamma=gamma, alpha=alpha)

    @override
    def start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.anchor.to(pl_module.device)

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        parameters: Iterable[tuple[str, Tensor]] = pl_module.named_parameters()
        if len(trainer.optimizers) > 1:  # what another optimizer steps with gets its penalty then
            own = {p for group in optimizer.param_groups for p in group["params"]}
            parameters = ((name, p) for name, p in parameters if p in own)
        self.anchor.add_gradient(parameters, self.strength)

    @override
    def consolidate(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.strength:
            return
        unpack = self.unpack or unpack_batch
        sums, count = squared_scores(pl_module, map(unpack, statistics_batches(trainer)), self.estimator)
        total = sum_over_ranks(trainer, torch.tensor(count, device=pl_module.device))
        importance: dict[str, Tensor] = {name: sum_over_ranks(trainer, value) / total for name, value in sums.items()}
        self.anchor.merge(pl_module.named_parameters(), importance)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "anchor": self.anchor.state_dict()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.anchor.load_state_dict(state_dict["anchor"])
