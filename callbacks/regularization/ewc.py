"""Elastic weight consolidation (EWC): pull each weight back in proportion to its importance for the past."""

from functools import partial

from lightning.pytorch import LightningModule, Trainer
from typing_extensions import override

from lightning_cl.anchor import AnchorCallback, MergeMode, QuadraticAnchor
from lightning_cl.callback import Unpack, check_pass, mean_importance
from lightning_cl.importance import Estimator, squared_scores
from lightning_cl.stream import Competing


class EWC(AnchorCallback):
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
            ``"mixed"``: :math:`F \leftarrow \alpha F + (1 - \alpha) F_t` (FACIL, PyCIL); ``"last"``: :math:`F_t` alone
            (Smith et al.).
        gamma: Decay of ``"online"``, in [0, 1].
        alpha: Weight of the past in ``"mixed"``, in [0, 1].
        classes: Classes that compete in the model's distribution over labels: ``"all"``, those ``"seen"`` so far, or
            those of the ``"current"`` experience, so that the rows of other classes in the head have no importance.
            ``None`` is ``"current"`` in a stream with task labels, else ``"all"``.
        parameters: Regular expressions that select parameters by name; ``None`` is all that are trainable.
        samples: Number of samples in the Fisher pass, chosen by the seed of the stream; ``None`` is all.
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
        mode: MergeMode = "online",
        gamma: float = 1.0,
        alpha: float = 0.5,
        classes: Competing | None = None,
        parameters: list[str] | None = None,
        samples: int | None = None,
        unpack: Unpack | None = None,
    ) -> None:
        super().__init__(strength, QuadraticAnchor(mode, gamma=gamma, alpha=alpha), parameters)
        check_pass(samples, classes, estimator)
        self.estimator: Estimator = estimator
        self.mode = mode
        self.gamma = gamma
        self.alpha = alpha
        self.classes: Competing | None = classes
        self.samples = samples
        self.unpack = unpack

    @override
    def consolidate(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.strength:
            return
        measure = partial(squared_scores, estimator=self.estimator)
        weights = self.selected(pl_module)
        importance = mean_importance(
            trainer, measure, weights, samples=self.samples, classes=self.classes, unpack=self.unpack
        )
        self.anchor.merge(weights.items(), importance)
