"""Trust region gradient projection (TRGP): reuse the weights of related earlier tasks, scaled within their spaces."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from typing_extensions import override

from lightning_cl.callback import (
    Unpack,
    competing_logits,
    mean_over_ranks,
    statistics_batches,
    unpack_batch,
)
from lightning_cl.callbacks.projection.gpm import GPM, leaves_subspace
from lightning_cl.stream import StreamDataModule
from lightning_cl.subspace import Rule, Scaling, linear_layers, loss_gradients, scaled_weight
from lightning_cl.utilities import isolated_rng

Scales = dict[str, dict[int, Tensor]]
"""By layer and earlier experience: how the weight is scaled in its space, ``(groups, r, r)``."""


def trust_region(gradient: Tensor, bases: Sequence[Tensor], eps1: float) -> list[int]:
    r"""Choose the spaces in which a gradient lies more than elsewhere, at most two.

    Those with :math:`\lVert g B_j B_j^\top \rVert > \epsilon_1 \lVert g \rVert`, of these the two with the largest.

    Args:
        gradient: In the shape of the weight ``(o, ...)``.
        bases: Orthonormal columns :math:`B_j` ``(groups, d, r)``.
        eps1: The threshold, 0 or more.

    Returns:
        Their indices in ascending order.

    Example:
        >>> e = torch.eye(3)[None]
        >>> trust_region(torch.tensor([[3.0, 2.0, 0.1]]), [e[..., 1:2], e[..., 2:], e[..., :1]], 0.5)
        [0, 2]
    """
    norms = [(_flat(gradient, basis) @ basis).norm().item() for basis in bases]
    related = [j for j, norm in enumerate(norms) if norm > eps1 * gradient.norm().item()]
    return sorted(sorted(related, key=lambda j: -norms[j])[:2])


class TRGP(GPM):
    r"""Like GPM, and let each layer scale its weight in the spaces of the two most related earlier tasks.

    Lin, Yang, Fan & Zhang, "TRGP: Trust Region Gradient Projection for Continual Learning", ICLR 2022. Before an
    experience the gradient of its loss (mean cross-entropy over its classes, in eval mode, on a probe of its samples)
    tells which earlier tasks each layer may trust: :func:`trust_region`. There the layer works with

    .. math:: W + \sum_j W B_j (Q_j - I) B_j^\top

    where :math:`B_j` is a basis of the space of task :math:`j`, and :math:`Q_j` starts at :math:`I` and is learned by
    the same optimizer, in its first group of parameters. :math:`W` itself is trained as in GPM. The :math:`Q_j` are
    kept with the task, and used whenever its samples come: a batch in validation, test or prediction must be of one
    task, whose label is its third element or under the key ``"task"``. A label that was never learned has none.

    The space of a task consists of the best directions among the basis so far and what is outside it
    (:func:`lightning_cl.subspace.pooled_vectors`), rather than of all that is protected.

    What differs from the authors' code: the comparison of indices that can drop the first new direction is not copied,
    and what is learned is :math:`Q_j - I`, so that weight decay pulls towards the unscaled weight.

    Args:
        threshold: As in :class:`GPM`, as are ``threshold_step``, ``samples``, ``free``, ``correction``, ``batch_norm``
            and ``unpack``.
        threshold_step: See there.
        eps1: Share of a gradient's norm that must lie in the space of a task to trust it, 0 or more; at 1 none is.
            0.5 is the authors' value; for permuted MNIST they have 0.2.
        samples: See there.
        probe_samples: Training samples of the probe, chosen by the seed of the stream; ``None`` is all.
        free: See there.
        correction: See there.
        batch_norm: See there.
        unpack: See there.

    Raises:
        ValueError: If an argument is out of its range or does not fit the module, or the stream has no task labels.

    Example:
        >>> import lightning as L
        >>> trainer = L.Trainer(callbacks=[TRGP(eps1=0.5)], logger=False, enable_checkpointing=False)
    """

    rule: ClassVar[Rule] = "pool"

    def __init__(
        self,
        threshold: float | list[float] = 0.97,
        threshold_step: float = 0.003,
        eps1: float = 0.5,
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
            samples=samples,
            free=free,
            correction=correction,
            batch_norm=batch_norm,
            unpack=unpack,
        )
        if not eps1 >= 0:
            raise ValueError(f"`eps1` must be 0 or more, got {eps1}.")
        if probe_samples is not None and probe_samples < 1:
            raise ValueError(f"`probe_samples` must be 1 or more, or None for all, got {probe_samples}.")
        self.eps1 = eps1
        self.probe_samples = probe_samples
        self.tasks: list[int] = []  # the label of each finished experience
        self.scales: list[Scales] = []  # and its scaling
        self._task: int | None = None  # the label of the current one
        self._current: Scales | None = None  # and its scaling; `None` before it is chosen
        self._insides: Scales = {}  # the parts of weights in these spaces that training leaves as they are

    @override
    def _clear(self) -> None:
        super()._clear()
        self._patches: list[tuple[nn.Module, Callable[[Tensor], Tensor]]] = []
        self._active: dict[str, list[Scaling]] = {}  # what layers work with now
        self._source: Scales | None = None  # of which it was made
        self._joined: list[tuple[Optimizer, Tensor]] = []

    # -- before training --------------------------------------------------------------------------------------------

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._task, self._current, self._insides = None, None, {}
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            self._layers = linear_layers(pl_module)

    @override
    def check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        stream = getattr(trainer, "datamodule", None)
        if not isinstance(stream, StreamDataModule) or not stream.task_labels:
            raise ValueError(
                f"{type(self).__name__} must know the task of each sample: train on a stream with `task_labels=True`, "
                "or take GPM."
            )
        super().check(trainer, pl_module)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        if self._current is not None:  # resumed: the optimizer gets its state after this
            self._join(trainer, self._current, pl_module.device)

    @override
    def start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().start(trainer, pl_module)
        stream: Any = trainer.datamodule  # type: ignore[attr-defined]
        self._task = stream.task_of(stream.current)
        if self._projectors and self._current is None:
            with isolated_rng():  # iterating any loader draws from the global generator
                chosen = self._choose(self._probe(trainer, pl_module))
            chosen = trainer.strategy.broadcast(chosen)
            start = {name: {j: self._nothing(name, j) for j in tasks} for name, tasks in chosen.items()}
            self._join(trainer, start, pl_module.device)
            self._insides = self._fixed_parts(trainer)
        self._insides = {n: {j: w.to(pl_module.device) for j, w in of.items()} for n, of in self._insides.items()}
        self._patch(pl_module)
        self._activate(self._current)

    def _fixed_parts(self, trainer: Trainer) -> Scales:
        """What weights are in the spaces in which they are scaled, if no step changes that."""
        if not self._corrects and any(map(leaves_subspace, trainer.optimizers)):
            return {}
        layers = {name: of for name, of in (self._current or {}).items() if self._is_protected(name)}
        return {name: {j: self._inside(name, j) for j in of} for name, of in layers.items()}

    def _is_protected(self, name: str) -> bool:
        """Whether a layer is protected in all spaces in which it is scaled."""
        return True

    def _inside(self, name: str, task: int) -> Tensor:
        basis = self.bank.space(name, [task])
        weight = self._weights[name].detach()
        return weight.reshape(len(basis), -1, basis.shape[1]).to(basis.dtype) @ basis

    def _probe(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Tensor]:
        """The gradient of the mean loss at the weights as they stand."""
        batches = map(self.unpack or unpack_batch, statistics_batches(trainer, self.probe_samples))
        weights = {name: self._weights[name] for name in self._layers if self._weights[name].requires_grad}
        sums, count = loss_gradients(pl_module, batches, weights, competing_logits(trainer, None))
        return mean_over_ranks(trainer, sums, count)

    def _choose(self, gradients: Mapping[str, Tensor]) -> dict[str, list[int]]:
        """The earlier experiences that each layer trusts."""
        chosen = {}
        for name in self._projectors.keys() & gradients.keys():
            bases = [self.bank.space(name, [j]) for j in range(len(self.tasks))]
            chosen[name] = trust_region(gradients[name], bases, self.eps1)
        return {name: chosen[name] for name in self._projectors if chosen.get(name)}

    def _nothing(self, name: str, task: int) -> Tensor:
        basis = self.bank.space(name, [task])
        return basis.new_zeros(len(basis), basis.shape[2], basis.shape[2])

    def _join(self, trainer: Trainer, scales: Scales, device: torch.device) -> None:
        """Let the optimizer learn the scaling. In its first group, so that schedulers see no new one."""
        self._current = {
            n: {j: nn.Parameter(q.to(device, copy=True)) for j, q in of.items()} for n, of in scales.items()
        }
        for offset in _each(self._current):
            trainer.optimizers[0].param_groups[0]["params"].append(offset)
            self._joined.append((trainer.optimizers[0], offset))

    # -- what layers work with --------------------------------------------------------------------------------------

    def _patch(self, pl_module: LightningModule) -> None:
        """Let layers work with a scaled weight, as far as any task does. Validation may come before training."""
        self.bank.to(pl_module.device)
        patched = {layer for layer, _ in self._patches}
        names = dict.fromkeys(name for scales in (*self.scales, self._current or {}) for name in scales)
        for name, layer in [(n, layer) for n in names for layer in self._layers[n] if layer not in patched]:
            scaling = partial(self._scaled, name)
            ScaledForward.install(layer, scaling)
            self._patches.append((layer, scaling))

    def _scaled(self, name: str, weight: Tensor) -> Tensor:
        active = self._active.get(name, [])
        if weight is not self._weights.get(name):  # another callback of this kind has scaled it before
            active = [(basis, offset, None) for basis, offset, _ in active]
        return scaled_weight(weight, active)

    def _activate(self, scales: Scales | None) -> None:
        if scales is not self._source:
            self._source = scales
            insides = self._insides if scales is self._current else {}
            self._active = {
                name: [
                    (basis := self.bank.space(name, [j]), offset.to(basis.device), insides.get(name, {}).get(j))
                    for j, offset in of.items()
                ]
                for name, of in (scales or {}).items()
            }

    def _activate_for(self, batch: Any) -> None:
        """Work with the scaling of the task of a batch."""
        if self._patches:
            task = task_of(batch, type(self).__name__)
            known = dict(zip(self.tasks, self.scales, strict=True))
            self._activate(self._current if task == self._task else known.get(task))

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self._activate(self._current)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._patch(pl_module)

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._patch(pl_module)

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._patch(pl_module)

    @override
    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, *_: Any) -> None:
        self._activate_for(batch)

    @override
    def on_test_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, *_: Any) -> None:
        self._activate_for(batch)

    @override
    def on_predict_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, *_: Any) -> None:
        self._activate_for(batch)

    @override
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.world_size > 1:  # DDP does not know them; the mean of what is already a mean stays as it is
            for offset in _each(self._current):
                grad = torch.zeros_like(offset) if offset.grad is None else offset.grad
                offset.grad = trainer.strategy.reduce(grad, reduce_op="mean")

    # -- at the end of an experience --------------------------------------------------------------------------------

    def _end_training(self) -> None:
        """Work with the scaling that was learned, and with whole weights."""
        self._insides, self._source = {}, None
        self._activate(self._current)

    @override
    def consolidate(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end_training()
        super().consolidate(trainer, pl_module)
        assert self._task is not None
        self.tasks.append(self._task)
        self.scales.append(_detached(self._current or {}))
        self._task, self._current = None, None

    @override
    def _release(self, pl_module: LightningModule) -> None:
        for layer, scaling in self._patches:
            ScaledForward.remove(layer, scaling)
        for optimizer, offset in self._joined:
            group = optimizer.param_groups[0]
            group["params"] = [p for p in group["params"] if p is not offset]
            optimizer.state.pop(offset, None)
        super()._release(pl_module)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "tasks": list(self.tasks),
            "scales": list(self.scales),
            "task": self._task,
            "current": None if self._current is None else _detached(self._current, copy=False),
            "insides": _detached(self._insides, copy=False),
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.tasks, self.scales = list(state_dict["tasks"]), list(state_dict["scales"])
        self._task, self._current = state_dict["task"], state_dict["current"]
        self._insides = state_dict["insides"]


class ScaledForward:
    """Stands in for the ``forward`` of a layer, which then works with another weight.

    Several callbacks may change the weight, one after another; when the last has left, the layer is as it was.

    Args:
        layer: An ``nn.Linear`` or ``nn.Conv2d``.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.layer: Any = layer
        self.scalings: list[Callable[[Tensor], Tensor]] = []

    @classmethod
    def install(cls, layer: nn.Module, scaling: Callable[[Tensor], Tensor]) -> None:
        """Let the layer work with ``scaling(weight)``."""
        if not isinstance(vars(layer).get("forward"), cls):
            layer.forward = cls(layer)
        layer.forward.scalings.append(scaling)  # type: ignore[attr-defined]

    @classmethod
    def remove(cls, layer: nn.Module, scaling: Callable[[Tensor], Tensor]) -> None:
        """Take it back."""
        installed = vars(layer).get("forward")
        if isinstance(installed, cls):
            installed.scalings = [other for other in installed.scalings if other is not scaling]
            if not installed.scalings:
                del layer.forward

    def __call__(self, input: Tensor) -> Tensor:
        """Do what the layer does, with the other weight."""
        weight: Tensor = self.layer.weight
        with torch.autocast(weight.device.type, enabled=False):
            for scaling in self.scalings:
                weight = scaling(weight)
        act: Callable[..., Tensor] = self.layer._conv_forward if isinstance(self.layer, nn.Conv2d) else F.linear
        return act(input, weight, self.layer.bias)


def task_of(batch: Any, owner: str) -> int:
    """Return the task label of a batch: the third element, or under the key ``"task"``.

    Args:
        batch: Of one task.
        owner: Who asks, for the error.

    Raises:
        ValueError: If there is none, or there are several.

    Example:
        >>> task_of([torch.zeros(2, 1), torch.zeros(2), torch.tensor([3, 3])], "TRGP")
        3
    """
    found = batch.get("task") if isinstance(batch, Mapping) else batch[2] if len(batch) > 2 else None
    labels = [] if found is None else sorted(set(torch.as_tensor(found).flatten().tolist()))
    if len(labels) != 1:
        raise ValueError(
            f"{owner} needs batches of one task, with its label as third element or under 'task', got "
            f"{labels or 'none'}: take the loaders of a stream with `task_labels=True`, or a batch for each task."
        )
    return int(labels[0])


def _flat(value: Tensor, basis: Tensor) -> Tensor:
    """A weight or gradient ``(groups, o, d)`` in the type of a basis."""
    return value.reshape(len(basis), -1, basis.shape[1]).to(basis.dtype)


def _each(scales: Scales | None) -> list[Tensor]:
    return [offset for of in (scales or {}).values() for offset in of.values()]


def _detached(scales: Scales, copy: bool = True) -> Scales:
    return {n: {j: q.detach().clone() if copy else q.detach() for j, q in of.items()} for n, of in scales.items()}
