"""L2 to the previous model: pull every weight, or some of them, back to where the last experience left it."""

from lightning.pytorch import LightningModule, Trainer
from typing_extensions import override

from lightning_cl.anchor import AnchorCallback, QuadraticAnchor
from lightning_cl.heads import classifier_of


class L2Anchor(AnchorCallback):
    r"""Add the gradient of the squared distance to the weights at the end of the last experience.

    The penalty is :math:`\lambda \sum_i (\theta_i - \theta^*_i)^2`, with the factor one, as in Smith et al., "A Closer
    Look at Rehearsal-Free Continual Learning", CVPR Workshops 2023: the gradient is
    :math:`2 \lambda (\theta - \theta^*)`. It is EWC with an importance of 1 everywhere. A head that has grown since is
    anchored in its old rows.

    Their choice for vision transformers is to train only the projections to queries, keys and values and the head
    (:class:`~lightning_cl.callbacks.TrainOnly`), and to anchor these projections: ``parameters=[r"attn\.qkv\."]`` for
    timm's models, whose three projections are one layer, and ``pretrained=True``.

    Weight decay pulls to zero while this pulls to the anchor: set it to 0 for the weights that are anchored.

    Args:
        strength: Factor :math:`\lambda` of the penalty, 0 or more; at 0 training is bit-identical to fine-tuning.
        parameters: Regular expressions that select parameters by name; ``None`` is all that are trainable.
        pretrained: Anchor the first experience as well, at the weights that training starts from. The classifier,
            where it is found by timm's convention, is left out of this first anchor, as it is new.

    Raises:
        ValueError: If ``strength`` is negative, or before training if a pattern matches no parameter.

    Example:
        >>> import lightning as L
        >>> attention = L2Anchor(strength=1.0, parameters=[r"attn\.qkv\."], pretrained=True)
        >>> trainer = L.Trainer(callbacks=[attention], logger=False, enable_checkpointing=False)
    """

    factor = 2.0

    def __init__(self, strength: float = 0.01, parameters: list[str] | None = None, pretrained: bool = False) -> None:
        super().__init__(strength, QuadraticAnchor("last"), parameters)
        self.pretrained = pretrained

    @override
    def start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().start(trainer, pl_module)
        if self.strength and self.pretrained and not self.anchor.anchor:  # later it is there, also after a resume
            head = classifier_of(pl_module)
            body = {k: p for k, p in self.selected(pl_module).items() if head is None or not k.startswith(f"{head}.")}
            self.anchor.merge(body.items())

    @override
    def consolidate(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.strength:
            self.anchor.merge(self.selected(pl_module).items())
