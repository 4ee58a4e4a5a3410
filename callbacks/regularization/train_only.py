"""Train some of the parameters, and leave the others as they are."""

from lightning.pytorch import LightningModule, Trainer
from typing_extensions import override

from lightning_cl.callback import ContinualCallback
from lightning_cl.utilities import select_parameters


class TrainOnly(ContinualCallback):
    r"""Freeze all parameters but those whose name matches, for the length of each fit.

    Frozen are weights, not modes: dropout stays on, and the running statistics of batch normalisation move on.

    With ``parameters=[r"attn\.qkv\.", r"head\."]`` it is the choice for vision transformers of Smith et al., "A Closer
    Look at Rehearsal-Free Continual Learning", CVPR Workshops 2023: the projections to queries, keys and values of each
    block (in timm's models one layer, without the projection of the output) and the head.

    Args:
        parameters: Regular expressions that are looked for anywhere in the names of parameters.

    Raises:
        ValueError: Before training, if a pattern matches no trainable parameter.

    Example:
        >>> import lightning as L
        >>> only = TrainOnly(parameters=[r"attn\.qkv\.", r"head\."])
        >>> trainer = L.Trainer(callbacks=[only], logger=False, enable_checkpointing=False)
    """

    def __init__(self, parameters: list[str]) -> None:
        super().__init__()
        self.parameters = parameters
        self._frozen: list[str] = []

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":  # before the optimizer is made, and before DDP asks which parameters need a gradient
            kept = select_parameters(pl_module, self.parameters)
            self._frozen = [name for name in select_parameters(pl_module) if name not in kept]
            for name in self._frozen:
                pl_module.get_parameter(name).requires_grad_(False)

    @override
    def _release(self, pl_module: LightningModule) -> None:
        super()._release(pl_module)
        while self._frozen:
            pl_module.get_parameter(self._frozen.pop()).requires_grad_(True)
