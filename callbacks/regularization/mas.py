"""Memory aware synapses (MAS): pull each weight back in proportion to how strongly the output moves with it."""

from functools import partial
from typing import get_args

from lightning.pytorch import LightningModule, Trainer
from typing_extensions import override

from lightning_cl.anchor import AnchorCallback, MergeMode, QuadraticAnchor
from lightning_cl.callback import Unpack, check_pass, mean_importance
from lightning_cl.importance import OutputNorm, output_sensitivity
from lightning_cl.stream import Competing


class MAS(AnchorCallback):
    r"""Add the gradient of a quadratic penalty on the change of weights that the output depends on.

    The penalty is :math:`\lambda \sum_i \Omega_i (\theta_i - \theta^*_i)^2`, with the factor one, as in Aljundi et al.,
    "Memory Aware Synapses: Learning what (not) to forget", ECCV 2018: its gradient is
    :math:`2 \lambda \Omega (\theta - \theta^*)`. (FACIL has :math:`\lambda / 2`: its strengths are twice ours.)
    :math:`\Omega_t = \frac{1}{N} \sum_n |\nabla_\theta \lVert f(x_n) \rVert_2^2|` is made at the end of each experience
    in one pass over its training data, in eval mode and in float32. It reads no labels, and is a mean over samples,
    whatever the batch size, unless ``by_batch`` is on.

    The gradient is added after unscaling and reduction over processes and before clipping, once per optimizer step. At
    strength 0, and in the first experience, training is bit-identical to fine-tuning. Plain gradient descent at rate
    :math:`\eta` overshoots where :math:`2 \eta \lambda \Omega_i > 2`, and :math:`\Omega` grows with the square of the
    output: take a smaller strength if the loss diverges.

    Args:
        strength: Factor :math:`\lambda` of the penalty, 0 or more; 1 in the authors' code. It depends on ``norm``.
        norm: What is differentiated (see :func:`lightning_cl.importance.output_sensitivity`): ``"squared"``
            :math:`\lVert f \rVert_2^2` (the authors' code, Avalanche), ``"plain"`` :math:`\lVert f \rVert_2` (FACIL),
            or each of the ``"outputs"``, whose absolute gradients are added, at one backward pass for each.
        mode: ``"online"``: :math:`\Omega \leftarrow \gamma \Omega + \Omega_t`, which adds up for :math:`\gamma = 1`
            (the authors' code); ``"mixed"``: :math:`\Omega \leftarrow \alpha \Omega + (1 - \alpha) \Omega_t`
            (Avalanche, FACIL); ``"last"``: :math:`\Omega_t` alone; ``"separate"``: a term per experience, each with
            its own anchor.
        gamma: Decay of ``"online"``, in [0, 1].
        alpha: Weight of the past in ``"mixed"``, in [0, 1].
        by_batch: Add the gradients of a batch before the absolute value is taken, as the authors' code does. It makes
            :math:`\Omega` smaller, the more so the larger the batch.
        classes: Whose outputs :math:`f` is: of ``"all"`` classes, those ``"seen"`` so far, or those of the
            ``"current"`` experience. ``None`` is ``"current"`` in a stream with task labels, else ``"all"``.
        parameters: Regular expressions that select parameters by name; ``None`` is all that are trainable.
        samples: Number of samples in the pass, chosen by the seed of the stream; ``None`` is all.
        unpack: Function from a batch to ``(x, y)``, where that is not its form; ``y`` is not read.

    Raises:
        ValueError: If an argument is out of its range; the message names it.

    Example:
        >>> import lightning as L
        >>> trainer = L.Trainer(callbacks=[MAS(strength=1.0)], logger=False, enable_checkpointing=False)
    """

    factor = 2.0

    def __init__(
        self,
        strength: float = 1.0,
        norm: OutputNorm = "squared",
        mode: MergeMode = "online",
        gamma: float = 1.0,
        alpha: float = 0.5,
        by_batch: bool = False,
        classes: Competing | None = None,
        parameters: list[str] | None = None,
        samples: int | None = None,
        unpack: Unpack | None = None,
    ) -> None:
        super().__init__(strength, QuadraticAnchor(mode, gamma=gamma, alpha=alpha), parameters)
        if norm not in get_args(OutputNorm):
            raise ValueError(f"`norm` must be one of {get_args(OutputNorm)}, got {norm!r}.")
        check_pass(samples, classes)
        self.norm: OutputNorm = norm
        self.mode = mode
        self.gamma = gamma
        self.alpha = alpha
        self.by_batch = by_batch
        self.classes: Competing | None = classes
        self.samples = samples
        self.unpack = unpack

    @override
    def consolidate(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.strength:
            return
        measure = partial(output_sensitivity, norm=self.norm, by_batch=self.by_batch)
        weights = self.selected(pl_module)
        importance = mean_importance(
            trainer, measure, weights, samples=self.samples, classes=self.classes, unpack=self.unpack
        )
        self.anchor.merge(weights.items(), importance)
