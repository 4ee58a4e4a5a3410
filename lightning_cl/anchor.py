r"""Quadratic anchors: pull weights back to where they were, in proportion to their importance.

The penalty that EWC, L2, MAS and SI share is :math:`\frac{s}{2} \sum_i A_i (w_i - a_i)^2` with importance :math:`A`,
anchor :math:`a` and strength :math:`s`. Its gradient is added in closed form, which is cheaper than a term of the loss
and happens once per optimizer step, whatever the accumulation. The functions are the mathematics;
:class:`QuadraticAnchor` keeps anchors and importances over the experiences of a stream; :class:`AnchorCallback` is what
the methods have in common as callbacks.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeAlias, get_args

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from lightning_cl.callback import ContinualCallback, is_logged
from lightning_cl.utilities import at_least_float32, select_parameters

MergeMode: TypeAlias = Literal["separate", "online", "mixed", "last"]


def add_anchor_gradient(
    parameters: Sequence[Tensor], anchors: Sequence[Tensor], importances: Sequence[Tensor] | None, strength: float
) -> None:
    r"""Add :math:`s A_i (w_i - a_i)` to the gradients in place.

    A parameter without a gradient is skipped: the optimizer leaves it alone in this step. At strength 0 nothing
    changes, bit for bit. A parameter that has more rows (first axis) than its anchor is anchored in its first rows.

    Args:
        parameters: The weights :math:`w`; their ``grad`` is changed.
        anchors: The :math:`a`, in the order and shapes of ``parameters``. May be wider floats than these.
        importances: The :math:`A`, as ``anchors``; ``None`` is 1 everywhere.
        strength: The factor :math:`s`.

    Raises:
        ValueError: If a parameter has another shape than its anchor, more rows apart.

    Example:
        >>> w = torch.tensor([3.0, 3.0], requires_grad=True)
        >>> w.grad = torch.zeros(2)
        >>> add_anchor_gradient([w], [torch.tensor([1.0, 1.0])], [torch.tensor([0.0, 5.0])], strength=0.5)
        >>> w.grad
        tensor([0., 5.])
    """
    held = [
        (old_rows(p.grad, a), old_rows(p.detach(), a), a, i)
        for i, (p, a) in enumerate(zip(parameters, anchors, strict=True))
        if p.grad is not None
    ]
    if not held or strength == 0:
        return
    grads, weights, anchors, which = (list(values) for values in zip(*held, strict=True))
    drift = torch._foreach_sub(weights, anchors)
    if importances is not None:
        importances = [importances[i] for i in which]
        if all(g.dtype == d.dtype for g, d in zip(grads, drift, strict=True)):
            torch._foreach_addcmul_(grads, importances, drift, value=strength)
            return
        torch._foreach_mul_(drift, importances)  # bfloat16 weights: only the sum is rounded to them
    torch._foreach_add_(grads, drift, alpha=strength)


def anchor_penalty(
    parameters: Sequence[Tensor], anchors: Sequence[Tensor], importances: Sequence[Tensor] | None, strength: float
) -> Tensor:
    r"""Return :math:`\frac{s}{2} \sum_i A_i (w_i - a_i)^2`, whose autograd gradient is :func:`add_anchor_gradient`'s.

    Args:
        parameters: The weights :math:`w`, with or without a gradient.
        anchors: The :math:`a`, in the order and shapes of ``parameters``.
        importances: The :math:`A`, as ``anchors``; ``None`` is 1 everywhere.
        strength: The factor :math:`s`.

    Returns:
        A scalar; 0 for no parameters.

    Raises:
        ValueError: If a parameter has another shape than its anchor, more rows apart.

    Example:
        >>> anchor_penalty([torch.tensor([3.0, 3.0])], [torch.ones(2)], [torch.tensor([0.0, 5.0])], strength=0.5)
        tensor(5.)
    """
    squares = [(old_rows(p, a) - a).square() for p, a in zip(parameters, anchors, strict=True)]
    terms = (
        [s.sum() for s in squares]
        if importances is None
        else [(f * s).sum() for f, s in zip(importances, squares, strict=True)]
    )
    return strength / 2 * torch.stack(terms).sum() if terms else torch.zeros(())


class QuadraticAnchor:
    r"""Anchors and importances by parameter name, merged over experiences.

    After experience :math:`t` with weights :math:`\theta_t` and importance :math:`F_t`, by ``mode``:

    - ``"separate"`` keeps the terms of all times, :math:`\frac{s}{2} \sum_t \sum_i F_{t,i} (w_i - \theta_{t,i})^2`
      (Kirkpatrick et al., PNAS 2017), as two tensors and a number, however many experiences: with
      :math:`A = \sum_t F_t`, the weighted mean :math:`a = \sum_t F_t \theta_t / A` and the constant
      :math:`r = \sum_t \sum_i F_{t,i} (\theta_{t,i} - a_i)^2` it is
      :math:`\frac{s}{2} \bigl(\sum_i A_i (w_i - a_i)^2 + r\bigr)`. Its gradient is the well-known
      :math:`s (A w - \sum_t F_t \theta_t)`, in a form in which nothing cancels.
    - ``"online"``: :math:`A \leftarrow \gamma A + F_t,\ a \leftarrow \theta_t` (Schwarz et al., ICML 2018).
    - ``"mixed"``: :math:`A \leftarrow \alpha A + (1 - \alpha) F_t,\ a \leftarrow \theta_t`, the first time
      :math:`A = F_t` (as in the FACIL and PyCIL code bases).
    - ``"last"``: :math:`A \leftarrow F_t,\ a \leftarrow \theta_t`. Without importances, :math:`A = 1`, of which
      nothing is stored: the squared distance to the last weights.

    The state is float32 even for bfloat16 weights, and float64 for float64 weights. A parameter that gained rows since,
    such as a classifier's, is anchored in its old rows; one that was never merged, or is not passed, is not anchored.

    Args:
        mode: How experiences are merged.
        gamma: Weight of the past in ``"online"``, in [0, 1].
        alpha: Weight of the past in ``"mixed"``, in [0, 1].

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> layer = torch.nn.Linear(2, 1, bias=False)
        >>> anchor = QuadraticAnchor("online", gamma=0.9)
        >>> anchor.merge(layer.named_parameters(), {"weight": torch.ones(1, 2)})
        >>> layer.weight.data += 1.0
        >>> round(anchor.penalty(layer.named_parameters(), strength=3.0).item(), 4)
        3.0
    """

    def __init__(self, mode: MergeMode = "online", *, gamma: float = 1.0, alpha: float = 0.5) -> None:
        if mode not in get_args(MergeMode):
            raise ValueError(f"`mode` must be one of {', '.join(get_args(MergeMode))}, got {mode!r}.")
        for name, value in (("gamma", gamma), ("alpha", alpha)):
            if not 0 <= value <= 1:
                raise ValueError(f"`{name}` must be in [0, 1], got {value}.")
        self.mode = mode
        self.gamma = gamma
        self.alpha = alpha
        self.importance: dict[str, Tensor] = {}
        self.anchor: dict[str, Tensor] = {}
        self.residual = 0.0  # r above; stays 0 in the other modes

    @torch.no_grad()
    def merge(
        self, named_parameters: Iterable[tuple[str, Tensor]], importance: Mapping[str, Tensor] | None = None
    ) -> None:
        """Take in the importance of an experience at the present weights.

        Args:
            named_parameters: The weights; copied.
            importance: Of some or all of them, in their shapes; copied. What is stored of others stays as it is.
                ``None``, in mode ``"last"`` only, is 1 for each of them.

        Raises:
            ValueError: If ``importance`` names no parameter or has another shape, or a parameter lost rows.
        """
        weights = dict(named_parameters)
        if importance is None:
            if self.mode != "last":
                raise ValueError(f"`importance` must be given in mode {self.mode!r}: only 'last' goes without.")
            self.anchor = {name: _wide(w) for name, w in weights.items()}
            return
        for name, new in importance.items():
            if name not in weights or new.shape != weights[name].shape:
                there = f"shape {tuple(weights[name].shape)}" if name in weights else "no such parameter"
                raise ValueError(f"`importance` must match the parameters, got {tuple(new.shape)} for {name}: {there}.")
            anchor = _wide(weights[name])
            total = new.detach().to(anchor.device, anchor.dtype, copy=True)
            if name in self.anchor and self.mode != "last":  # rows that are new since then stay as they are
                self._add_past(old_rows(total, self.anchor[name]), old_rows(anchor, self.anchor[name]), name)
            self.importance[name], self.anchor[name] = total, anchor

    @torch.no_grad()
    def grow(self, named_parameters: Iterable[tuple[str, Tensor]]) -> None:
        """Anchor parameters, and rows of parameters, that are new: where they are, with importance 0.

        Raises:
            ValueError: If a parameter has another shape than its anchor, more rows apart.
        """
        for name, w in named_parameters:
            anchor, importance = _wide(w), torch.zeros_like(_wide(w))
            if name in self.anchor:
                old_rows(anchor, self.anchor[name]).copy_(self.anchor[name])
                old_rows(importance, self.anchor[name]).copy_(self.importance[name])
            self.anchor[name], self.importance[name] = anchor, importance

    def _add_past(self, total: Tensor, anchor: Tensor, name: str) -> None:
        past, past_anchor = self.importance[name].to(total), self.anchor[name].to(anchor)
        if self.mode == "online":
            total.add_(past, alpha=self.gamma)
        elif self.mode == "mixed":
            total.mul_(1 - self.alpha).add_(past, alpha=self.alpha)
        else:
            share = torch.where(past + total != 0, total / (past + total), 1.0)
            self.residual += (past * share * (anchor - past_anchor).square()).sum(dtype=torch.float64).item()
            anchor.copy_(torch.lerp(past_anchor, anchor, share))
            total.add_(past)

    def add_gradient(self, named_parameters: Iterable[tuple[str, Tensor]], strength: float) -> None:
        """Add the gradient of :meth:`penalty` to ``grad``, as :func:`add_anchor_gradient` does."""
        add_anchor_gradient(*self._matched(named_parameters), strength)

    def penalty(self, named_parameters: Iterable[tuple[str, Tensor]], strength: float) -> Tensor:
        """Return the value of the penalty, differentiable by the parameters."""
        return anchor_penalty(*self._matched(named_parameters), strength) + strength / 2 * self.residual

    def to(self, device: torch.device | str) -> "QuadraticAnchor":
        """Move the state; needed after :meth:`load_state_dict`, which keeps the device of what it is given."""
        for state in (self.importance, self.anchor):
            state.update({name: value.to(device) for name, value in state.items()})
        return self

    def state_dict(self) -> dict[str, Any]:
        """Return the state in tensors, numbers and strings; ``torch.load`` reads it with ``weights_only=True``."""
        state = {"importance": dict(self.importance), "anchor": dict(self.anchor), "residual": self.residual}
        return {"mode": self.mode, **state}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take a state over.

        Raises:
            ValueError: If it was made in another mode.
        """
        if state_dict["mode"] != self.mode:
            raise ValueError(f"`mode` must be {state_dict['mode']!r}, in which the state was made, got {self.mode!r}.")
        self.importance, self.anchor = dict(state_dict["importance"]), dict(state_dict["anchor"])
        self.residual = float(state_dict["residual"])

    def _matched(
        self, named_parameters: Iterable[tuple[str, Tensor]]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor] | None]:
        known = {name: p for name, p in named_parameters if name in self.anchor}
        importances = [self.importance[name] for name in known] if self.importance else None
        return list(known.values()), [self.anchor[name] for name in known], importances


def _wide(value: Tensor) -> Tensor:
    """Copy weights, to at least float32."""
    return value.detach().to(at_least_float32(value.dtype), copy=True)


def old_rows(value: Tensor, stored: Tensor) -> Tensor:
    """Return the rows of ``value`` that ``stored`` has: a parameter may have gained some since, as a head does.

    Raises:
        ValueError: If it has another shape, more rows apart.
    """
    if value.shape == stored.shape:
        return value
    if value.ndim == 0 or value.shape[1:] != stored.shape[1:] or len(value) < len(stored):
        shapes = f"{tuple(value.shape)} for {tuple(stored.shape)}"
        raise ValueError(
            f"`parameters` must have the shape of their anchor or more rows, got {shapes}; merge them anew."
        )
    return value[: len(stored)]


class AnchorCallback(ContinualCallback):
    """A callback whose method is a quadratic penalty on the change of weights; the base of EWC, L2, MAS and SI.

    A method says in :meth:`consolidate` what is anchored, and how much each weight weighs, by ``self.anchor.merge``.
    The gradient of the penalty is added in closed form, once per optimizer step. Its value is computed only at steps
    that the trainer logs, as ``penalty/<name of the class>``.

    Args:
        strength: Factor of the penalty, 0 or more.
        anchor: The state.
        parameters: Regular expressions that select parameters by name; ``None`` is all that are trainable.

    Raises:
        ValueError: If ``strength`` is negative.
    """

    needs_whole_parameters = True
    factor: ClassVar[float] = 1.0
    """The published penalty, at strength 1, over that of :class:`QuadraticAnchor`, which has the factor one half."""

    def __init__(self, strength: float, anchor: QuadraticAnchor, parameters: Sequence[str] | None = None) -> None:
        super().__init__()
        if not strength >= 0:
            raise ValueError(f"`strength` must be 0 or more, got {strength}.")
        self.strength = strength
        self.anchor = anchor
        self.parameters = parameters
        self._name = ""

    def selected(self, pl_module: LightningModule) -> dict[str, nn.Parameter]:
        """The parameters that the method is about, by name."""
        return select_parameters(pl_module, self.parameters)

    def stepped(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> Iterable[tuple[str, nn.Parameter]]:
        """The parameters that an optimizer steps with, by name: what another one has gets its penalty then."""
        if len(trainer.optimizers) == 1:
            return pl_module.named_parameters()
        own = {p for group in optimizer.param_groups for p in group["params"]}
        return ((name, p) for name, p in pl_module.named_parameters() if p in own)

    @override
    def check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.selected(pl_module)
        self._name = self.logged_as(trainer)

    @override
    def start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.anchor.to(pl_module.device)

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if not self.strength or not self.anchor.anchor:
            return
        self.anchor.add_gradient(self.stepped(trainer, pl_module, optimizer), self.factor * self.strength)
        if is_logged(trainer):
            with torch.no_grad():
                value = self.anchor.penalty(pl_module.named_parameters(), self.factor * self.strength)
            pl_module.log(f"penalty/{self._name}", value)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "anchor": self.anchor.state_dict()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.anchor.load_state_dict(state_dict["anchor"])
