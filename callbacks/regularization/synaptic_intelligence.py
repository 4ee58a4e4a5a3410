"""Synaptic intelligence (SI): importance from what each weight contributed to the fall of the loss, while training."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lightning_cl.anchor import AnchorCallback, QuadraticAnchor, old_rows


def path_importance(importance: Tensor, path: Tensor, drift: Tensor, damping: float) -> Tensor:
    r"""Return :math:`\mathrm{ReLU}(\Omega + w / (\Delta^2 + \xi))`.

    Args:
        importance: :math:`\Omega` so far.
        path: :math:`w`, the path integral over an experience.
        drift: :math:`\Delta`, how far the weights moved in it.
        damping: :math:`\xi`, above 0.

    Example:
        >>> path_importance(torch.tensor([1.0, 0.0]), torch.tensor([0.2, -3.0]), torch.tensor([0.3, 0.1]), 0.01)
        tensor([3., 0.])
    """
    return (importance + path / (drift.square() + damping)).relu()


class SynapticIntelligence(AnchorCallback):
    r"""Add the gradient of a quadratic penalty whose importances come from the path that training took.

    The penalty is :math:`c \sum_i \Omega_i (\theta_i - \theta^*_i)^2` with ``strength`` :math:`c` and the factor one,
    as in Zenke, Poole & Ganguli, "Continual Learning Through Synaptic Intelligence", ICML 2017. At each optimizer step
    :math:`w \leftarrow w - g \, (\theta_\text{after} - \theta_\text{before})`, where :math:`g` is the gradient of the
    loss without the penalty and before clipping; at the end of an experience
    :math:`\Omega \leftarrow \mathrm{ReLU}(\Omega + w / ((\theta - \theta^*)^2 + \xi))`,
    :math:`\theta^* \leftarrow \theta`, :math:`w \leftarrow 0`, as in the authors' code, where the sum is rectified.
    (Avalanche halves the penalty, clamps :math:`\Omega` at 0.001, and has the penalty in :math:`g`.)

    No pass over the data is needed. The loss must be what the module's ``training_step`` returns: other callbacks that
    change gradients in the same hook belong after this one in the trainer's list.

    With momentum or Adam, and with the noise of batches, :math:`w` overestimates; that is part of the method. A step
    that the scaler of ``16-mixed`` skips adds nothing.

    Args:
        strength: Factor :math:`c` of the penalty, 0 or more; at 0 training is bit-identical to fine-tuning.
        damping: :math:`\xi`, above 0. The authors have 0.1 for permuted MNIST and 0.001 for split CIFAR.
        parameters: Regular expressions that select parameters by name; ``None`` is all that are trainable.

    Raises:
        ValueError: If an argument is out of its range; the message names it.

    Example:
        >>> import lightning as L
        >>> trainer = L.Trainer(callbacks=[SynapticIntelligence()], logger=False, enable_checkpointing=False)
    """

    factor = 2.0

    def __init__(self, strength: float = 0.1, damping: float = 0.1, parameters: list[str] | None = None) -> None:
        super().__init__(strength, QuadraticAnchor("last"), parameters)
        if not damping > 0:
            raise ValueError(f"`damping` must be above 0, got {damping}.")
        self.damping = damping
        self.path: dict[str, Tensor] = {}
        self._experiences = 0
        self._buffers: tuple[dict[str, Tensor], dict[str, Tensor]] = {}, {}  # for what is copied before a step
        self._weights: list[Tensor] = []  # of the parameters that take the step, as the three below
        self._paths: list[Tensor] = []
        self._grads: list[Tensor] = []
        self._before: list[Tensor] = []

    @override
    def start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().start(trainer, pl_module)
        if not self.strength:
            return
        self.anchor.grow(self.selected(pl_module).items())
        for name, anchor in self.anchor.anchor.items():
            path = torch.zeros_like(anchor)
            if name in self.path:
                old_rows(path, self.path[name]).copy_(self.path[name])
            self.path[name] = path
        grads, weights = ({name: torch.empty_like(path) for name, path in self.path.items()} for _ in range(2))
        self._buffers = grads, weights

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        known = [(name, p) for name, p in self.stepped(trainer, pl_module, optimizer) if name in self.path]
        moving = {name: (p.grad, p.detach()) for name, p in known if p.grad is not None}
        self._paths = [self.path[name] for name in moving]
        self._grads, self._before = ([buffer[name] for name in moving] for buffer in self._buffers)
        if moving:
            grads, self._weights = (list(values) for values in zip(*moving.values(), strict=True))
            torch._foreach_copy_(self._grads, grads)
            torch._foreach_copy_(self._before, self._weights)
        if self._experiences:
            super().on_before_optimizer_step(trainer, pl_module, optimizer)

    @override
    def after_optimizer_step(self, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if self._paths:
            moved_back = self._before
            torch._foreach_sub_(moved_back, self._weights)
            torch._foreach_addcmul_(self._paths, self._grads, moved_back)

    @override
    def consolidate(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.strength:
            return
        weights = self.selected(pl_module)
        importance = {
            name: path_importance(
                self.anchor.importance[name], self.path[name], p.detach() - self.anchor.anchor[name], self.damping
            )
            for name, p in weights.items()
        }
        self.anchor.merge(weights.items(), importance)
        torch._foreach_zero_(list(self.path.values()))
        self._experiences += 1

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "path": dict(self.path), "experiences": self._experiences}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.path, self._experiences = dict(state_dict["path"]), state_dict["experiences"]
