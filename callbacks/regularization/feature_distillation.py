"""Feature distillation: keep what chosen layers of the last model compute on new data."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from lightning_cl.callback import Unpack
from lightning_cl.heads import classifier_of
from lightning_cl.teacher import DistillationCallback
from lightning_cl.utilities import at_least_float32


def feature_loss(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Return :math:`\frac{1}{B} \sum_n \lVert h_n - h'_n \rVert_2^2`, in float32 at least.

    Args:
        student: Features :math:`h`, ``(B, *)``; flattened per sample.
        teacher: Features :math:`h'`, ``(B, *)``; they get no gradient.

    Returns:
        A scalar.

    Example:
        >>> feature_loss(torch.ones(5, 2, 3), torch.zeros(5, 2, 3))
        tensor(6.)
    """
    dtype = at_least_float32(student.dtype)
    return (student.to(dtype) - teacher.detach().to(dtype)).square().flatten(1).sum(1).mean()


class FeatureDistillation(DistillationCallback):
    r"""Add the squared distance to the last model's features, on the batch at hand, to the loss.

    The loss is :math:`\frac{\lambda}{B} \sum_n \sum_l \lVert h_l(x_n; \theta) - h_l(x_n; \theta^*) \rVert_2^2` over
    chosen layers, with the weights :math:`\theta^*` at the end of the last experience and ``strength``
    :math:`\lambda`: the feature distillation that Smith et al., "A Closer Look at Rehearsal-Free Continual Learning",
    CVPR Workshops 2023, compare. Which layers and factor they take is not known to us. It sums over the entries of a
    feature, so the factor that fits depends on the width.

    Features are read from the forward that ``training_step`` makes. The last model is asked once per batch, also where
    :class:`~lightning_cl.callbacks.LwF` asks it too.

    Args:
        strength: Factor :math:`\lambda` of the loss, 0 or more; at 0 training is bit-identical to fine-tuning.
        features: Dotted names of submodules whose outputs are compared, e.g. ``["net.layer4"]``; with ``:input`` after
            a name it is its first argument. ``None`` is the input of the classifier, found by timm's convention.
        unpack: Function from a batch to ``(x, y)``, where that is not its form.

    Raises:
        ValueError: If ``strength`` is negative, or before training if ``features`` names no submodule.
        TypeError: While training, if a layer returns something else than a tensor.

    Example:
        >>> import lightning as L
        >>> keep = FeatureDistillation(strength=0.1, features=["net.layer4"])
        >>> trainer = L.Trainer(callbacks=[keep], logger=False, enable_checkpointing=False)
    """

    def __init__(self, strength: float = 1.0, features: list[str] | None = None, unpack: Unpack | None = None) -> None:
        super().__init__(strength, unpack)
        if features is not None and not features:
            raise ValueError("`features` must name at least one submodule, or be None for the input of the classifier.")
        self.features = features

    @override
    def places(self, pl_module: LightningModule) -> tuple[str, ...]:
        if self.features is not None:
            return tuple(self.features)
        return (f"{classifier_of(pl_module)}:input",)

    @override
    def check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().check(trainer, pl_module)
        if self.features is None and not classifier_of(pl_module):
            raise ValueError(
                f"`features` must name the submodules to compare, as {type(pl_module).__name__} has no classifier by "
                "timm's convention."
            )
        names = {name for name, _ in pl_module.named_modules() if name}
        if unknown := [f for f in self.places(pl_module) if f.removesuffix(":input") not in names]:
            few = ", ".join(sorted(names)[:5]) + (", ..." if len(names) > 5 else "")
            raise ValueError(f"`features` must be names of submodules, got {unknown}; there are {few}.")

    @override
    def distillation(self, pl_module: LightningModule, x: Tensor, outputs: Any) -> Tensor:
        forward, answer = self.forward_of(pl_module, x), self.answer(pl_module, x)
        losses = []
        for place in self._places:
            if not isinstance(forward[place], Tensor):
                raise TypeError(f"`features` must name layers that return a tensor, got {place!r} that does not.")
            losses.append(feature_loss(forward[place], answer[place]))
        return torch.stack(losses).sum()
