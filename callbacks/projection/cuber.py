"""CUBER: gradient projection that also improves earlier tasks where their gradients agree with the current one."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lightning_cl.callback import Unpack
from lightning_cl.callbacks.projection.trgp import TRGP
from lightning_cl.subspace import Projector, exact_products


def agreement(old: Tensor, new: Tensor, eps2: float) -> Tensor:
    r"""Return :math:`\langle G, g \rangle - \epsilon_2 \lVert G \rVert \lVert g \rVert`, a scalar.

    Args:
        old: The gradient :math:`G` of an earlier task, in the shape of the weight, or with fewer rows.
        new: The current gradient :math:`g`.
        eps2: The cosine from which gradients agree.

    Example:
        >>> agreement(torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0, 0.0]]), 0.5)
        tensor(1.)
    """
    return (old * new[: len(old)]).sum().sub(old.norm() * new.norm(), alpha=eps2)


def norm_gradient(change: Tensor, basis: Tensor) -> Tensor:
    r"""Return the gradient of :math:`\lVert \Delta B B^\top \rVert_F` by :math:`\Delta`; 0 where that is 0.

    Args:
        change: :math:`\Delta`, in the shape of a weight ``(o, ...)``.
        basis: Orthonormal columns :math:`B` ``(groups, d, r)``.

    Example:
        >>> norm_gradient(torch.tensor([[3.0, 7.0], [4.0, 7.0]]), torch.eye(2)[None, :, :1])
        tensor([[0.6000, 0.0000],
                [0.8000, 0.0000]])
    """
    inside = change.reshape(len(basis), -1, basis.shape[1]).to(basis.dtype) @ basis
    length = torch.linalg.vector_norm(inside).clamp_min(torch.finfo(basis.dtype).tiny)
    return torch.matmul(inside / length, basis.mT).view(change.shape)


class CUBER(TRGP):
    r"""Like TRGP, and let weights change in the space of an earlier task where that task gains from it too.

    Lin, Yang, Fan & Zhang, "Beyond Not-Forgetting: Continual Learning with Backward Knowledge Transfer",
    NeurIPS 2022. With the gradient :math:`g` of the new task on the probe and the gradient :math:`G_j` that task
    :math:`j` had on its own probe when it was learned, each layer is to task :math:`j` in one of three regimes:

    1. :math:`\lVert g B_j B_j^\top \rVert \le \epsilon_1 \lVert g \rVert`: its space is protected, as in GPM.
    2. else :math:`\langle G_j, g \rangle \le \epsilon_2 \lVert G_j \rVert \lVert g \rVert`: protected, and the weight
       is scaled in it, as in TRGP.
    3. else: scaled and not protected. The penalty :math:`\lambda \lVert (W - W_{t-1}) B_j B_j^\top \rVert_F` (the
       norm, not its square) holds it. Before each optimizer step the gradient, as it comes from the loss, is compared
       with :math:`G_j`: where :math:`\langle G_j, g \rangle < \epsilon_2 \lVert G_j \rVert \lVert g \rVert`, the
       layer is in regime 2 to the task for the rest of the experience.

    At most two tasks, those with the largest projections, are in regime 2 or 3. A direction that a task of regime 3
    shares with another stays protected. At ``eps1`` 1 the second experience is that of GPM, at ``eps2`` 1 all are those
    of TRGP. Each experience adds a gradient, as many numbers as the protected layers have weights, to the state.

    The paper does not say whether :math:`G_j` is taken through the scaled weight; here it is the gradient by :math:`W`
    of the loss with the scaled weight, as :math:`g` is in training.

    Args:
        threshold: As in :class:`GPM`, as are ``threshold_step``, ``samples``, ``free``, ``correction``, ``batch_norm``
            and ``unpack``.
        threshold_step: See there.
        eps1: As in :class:`TRGP`, as is ``probe_samples``. 0.5 is the paper's value.
        eps2: Cosine from which gradients agree, in [0, 1]. 0 is that of the paper's main table.
        strength: The factor :math:`\lambda`, 0 or more. The text of the paper does not state it; 2 stands, unused, in
            the code that its authors published for TRGP.
        samples: See there.
        probe_samples: See there.
        free: See there.
        correction: See there.
        batch_norm: See there.
        unpack: See there.

    Raises:
        ValueError: If an argument is out of its range or does not fit the module, or the stream has no task labels.

    Example:
        >>> import lightning as L
        >>> trainer = L.Trainer(callbacks=[CUBER(eps2=0.2)], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        threshold: float | list[float] = 0.97,
        threshold_step: float = 0.003,
        eps1: float = 0.5,
        eps2: float = 0.0,
        strength: float = 2.0,
        samples: int | None = 125,
        probe_samples: int | None = 125,
        free: list[str] | None = None,
        correction: bool | None = None,
        batch_norm: Literal["freeze", "train"] = "freeze",
        unpack: Unpack | None = None,
    ) -> None:
        super().__init__(
            threshold=threshold,
            threshold_step=threshold_step,
            eps1=eps1,
            samples=samples,
            probe_samples=probe_samples,
            free=free,
            correction=correction,
            batch_norm=batch_norm,
            unpack=unpack,
        )
        if not 0 <= eps2 <= 1:
            raise ValueError(f"`eps2` must be in [0, 1], got {eps2}.")
        if not strength >= 0:
            raise ValueError(f"`strength` must be 0 or more, got {strength}.")
        self.eps2 = eps2
        self.strength = strength
        self.gradients: list[dict[str, Tensor]] = []  # of each finished experience, at its end
        self._improved: dict[str, list[int]] = {}  # the experiences to which a layer is in regime 3
        self._origin: dict[str, Tensor] = {}  # the weights of these layers before the current experience

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._improved, self._origin = {}, {}
        super().setup(trainer, pl_module, stage)

    @override
    def start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for state in (*self.gradients, self._origin):  # a restored checkpoint arrives on the CPU
            state.update({name: value.to(pl_module.device) for name, value in state.items()})
        resumed = self._current is not None
        super().start(trainer, pl_module)
        if not resumed:
            self._improved = trainer.strategy.broadcast(self._improved)
            self._origin = {name: self._weights[name].detach().clone() for name in self._improved}
            for name in self._improved:
                self._projectors[name] = self._projector(name)

    @override
    def _choose(self, gradients: Mapping[str, Tensor]) -> dict[str, list[int]]:
        chosen = super()._choose(gradients)
        for name, tasks in chosen.items():
            past = [(j, self.gradients[j][name]) for j in tasks if name in self.gradients[j]]
            if improved := [j for j, old in past if agreement(old, gradients[name], self.eps2) > 0]:
                self._improved[name] = improved
        return chosen

    @override
    def _is_protected(self, name: str) -> bool:
        return name not in self._improved

    @override
    def _projector(self, name: str) -> Projector:
        improved = self._improved.get(name, [])
        protected = [j for j in range(len(self.tasks)) if j not in improved]
        return Projector(self.bank.space(name, protected if improved else None))

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        own = {p for group in optimizer.param_groups for p in group["params"]} if self._improved else set()
        held = {n: w.grad for n in self._improved if (w := self._weights[n]) in own and w.grad is not None}
        if held:
            with exact_products(pl_module.device), torch.no_grad():
                self._demote(held)
                self._hold(held)
        super().on_before_optimizer_step(trainer, pl_module, optimizer)

    def _demote(self, grads: Mapping[str, Tensor]) -> None:
        """Protect the spaces of tasks that would lose from the step."""
        pairs = [(name, j) for name in grads for j in self._improved[name]]
        margins = torch.stack([agreement(self.gradients[j][name], grads[name], self.eps2) for name, j in pairs])
        lost = [pair for pair, agrees in zip(pairs, (margins >= 0).tolist(), strict=True) if not agrees]
        for name, j in lost:
            self._improved[name].remove(j)
        for name in {name: None for name, _ in lost}:
            self._projectors[name] = self._projector(name)
            if name in self._reference:  # what was allowed so far stays
                self._reference[name] = self._weights[name].detach().clone()
            if not self._improved[name]:
                del self._improved[name], self._origin[name]

    def _hold(self, grads: Mapping[str, Tensor]) -> None:
        """Add the gradient of the penalty."""
        for name in grads.keys() & self._improved.keys():
            grad, change = grads[name], self._weights[name] - self._origin[name]
            for j in self._improved[name]:
                grad.add_(norm_gradient(change, self.bank.space(name, [j])), alpha=self.strength)

    @override
    def consolidate(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end_training()
        self.gradients.append(self._probe(trainer, pl_module) if any(self._thresholds().values()) else {})
        super().consolidate(trainer, pl_module)
        self._improved, self._origin = {}, {}

    @override
    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "gradients": list(self.gradients),
            "improved": {name: list(tasks) for name, tasks in self._improved.items()},
            "origin": dict(self._origin),
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.gradients = [dict(gradients) for gradients in state_dict["gradients"]]
        self._improved = {name: list(tasks) for name, tasks in state_dict["improved"].items()}
        self._origin = dict(state_dict["origin"])
