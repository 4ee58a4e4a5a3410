"""Refresh learning: unlearn a little of each batch before the step that learns it."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from lightning_cl.anchor import old_rows
from lightning_cl.callback import (
    ContinualCallback,
    Unpack,
    check_pass,
    mean_gradients,
    mean_importance,
    scores_aside,
    unpack_batch,
)
from lightning_cl.importance import Estimator, squared_scores
from lightning_cl.rehearsal import RehearsalCallback
from lightning_cl.stream import StreamBatch
from lightning_cl.utilities import at_least_float32, default_seed, derive_seed, select_parameters


@torch.no_grad()
def refresh(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    fishers: Sequence[Tensor] | None = None,
    noises: Sequence[Tensor] | None = None,
    *,
    delta: float,
    fisher_weight: float = 1e-3,
) -> None:
    r"""Move each tensor uphill in place, by a step as long as ``delta`` times itself.

    :math:`\theta \leftarrow \theta + \delta \, (u + \xi) / (1 + w F)` with
    :math:`u = \lVert \theta \rVert \, g / \lVert g \rVert`, tensor by tensor, so that the scale of the gradient
    :math:`g` does not matter. A tensor whose gradient is 0 stays.

    Args:
        parameters: The :math:`\theta`.
        gradients: The :math:`g`, in the order and shapes of ``parameters``.
        fishers: The :math:`F`, as ``gradients``; ``None`` is 0.
        noises: The :math:`\xi`, as ``gradients``; ``None`` is 0.
        delta: The factor :math:`\delta`.
        fisher_weight: The factor :math:`w`.

    Example:
        >>> w = torch.tensor([3.0, 4.0])
        >>> refresh([w], [torch.tensor([0.0, 7.0])], delta=0.1)
        >>> w
        tensor([3.0000, 4.5000])
    """
    lengths = torch.stack(torch._foreach_norm(list(gradients)))
    there = lengths > 0
    ratios = torch.where(there, torch.stack(torch._foreach_norm(list(parameters))) / lengths, 0.0)
    moves = torch._foreach_mul(list(gradients), list(ratios.unbind()))
    if noises is not None:
        torch._foreach_add_(moves, list(noises))
    if fishers is not None:
        divisors = torch._foreach_mul(list(fishers), fisher_weight)
        torch._foreach_add_(divisors, 1.0)
        torch._foreach_div_(moves, divisors)
    torch._foreach_mul_(moves, list((delta * there.to(lengths.dtype)).unbind()))
    torch._foreach_add_(list(parameters), moves)


class RefreshLearning(ContinualCallback):
    r"""Move the weights a little uphill on the current batch before each optimizer step.

    Wang, Li, Shen & Huang, "A Unified and General Framework for Continual Learning", ICLR 2024, as in the authors'
    code. With :math:`g` the gradient of the cross-entropy of the current batch over all classes, in train mode, each
    tensor of weights becomes

    .. math:: \theta + \delta \, \frac{\lVert \theta \rVert g / \lVert g \rVert + \nu \xi}{1 + w F},
              \quad \xi \sim \mathcal{N}(0, 1),

    and the ordinary step follows from there, of whatever methods stand beside it: a displacement towards higher loss
    that stays, unlike that of sharpness-aware minimization. :math:`F` is a diagonal Fisher estimate, made at the end of
    each experience and merged as :math:`F \leftarrow \tau F + F_t`; it is 0 in the first one. The text of the paper
    differs from its code: there the gradient is of the whole loss, :math:`F^{-1}` stands in place of the quotient, and
    several such moves may precede a step.

    Rows that a replay callback has appended to the batch have no part in :math:`g`: put this callback after it. Batch
    norm statistics, ``grad``, the optimizer and the random state are left as they were; dropout draws what the
    following ``training_step`` draws. With ``accumulate_grad_batches`` it acts before the first batch of each step.
    With several processes gradients are averaged before their norm is taken, and the noise is the same on all.

    It costs one more forward and backward of the batch. Path integrals (SynapticIntelligence) do not see its moves, and
    projections of gradients (GPM) do not project them.

    Ours: a tensor whose gradient is 0 gets no noise; in ``'16-mixed'`` precision a batch whose gradient overflows moves
    nothing; and each :math:`F_t` is a mean over samples. The authors' weighs each squared score by the model's
    probability of the label: it is the part of ``"exact"`` that belongs to the true label, and at most our
    ``"empirical"``.

    Args:
        delta: Relative length :math:`\delta` of a move, 0 or more. At 0 training is bit-identical to fine-tuning.
        noise: Standard deviation :math:`\nu` of the noise, 0 or more.
        fisher_weight: Factor :math:`w` of the Fisher diagonal, 0 or more; at 0 it is not estimated.
        fisher_decay: Factor :math:`\tau` of the past in the Fisher diagonal, in [0, 1]. The authors' forgets it.
        estimator: How the Fisher diagonal is estimated (see :func:`lightning_cl.importance.squared_scores`).
        samples: Number of samples in the Fisher pass, chosen by the seed of the stream; ``None`` is all.
        parameters: Regular expressions that select parameters by name; ``None`` is all that are trainable.
        seed: Fixes the noise; ``None`` is the seed of ``seed_everything``, else 0.
        unpack: Function from a batch to ``(x, y)``, where that is not its form.

    Raises:
        ValueError: If an argument is out of its range; or before training, if weights are narrower than float32.

    Example:
        >>> import lightning as L
        >>> trainer = L.Trainer(callbacks=[RefreshLearning()], logger=False, enable_checkpointing=False)
    """

    needs_whole_parameters = True

    def __init__(
        self,
        delta: float = 1e-5,
        noise: float = 1e-3,
        fisher_weight: float = 1e-3,
        fisher_decay: float = 1e-5,
        estimator: Estimator = "empirical",
        samples: int | None = None,
        parameters: list[str] | None = None,
        seed: int | None = None,
        unpack: Unpack | None = None,
    ) -> None:
        super().__init__()
        for name, value in {"delta": delta, "noise": noise, "fisher_weight": fisher_weight}.items():
            if not value >= 0:
                raise ValueError(f"`{name}` must be 0 or more, got {value}.")
        if not 0 <= fisher_decay <= 1:
            raise ValueError(f"`fisher_decay` must be in [0, 1], got {fisher_decay}.")
        check_pass(samples, estimator=estimator)
        self.delta = delta
        self.noise = noise
        self.fisher_weight = fisher_weight
        self.fisher_decay = fisher_decay
        self.estimator: Estimator = estimator
        self.samples = samples
        self.parameters = parameters
        self.seed = default_seed(seed)
        self.unpack = unpack
        self.fisher: dict[str, Tensor] = {}
        self._moves = 0

    @override
    def check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        select_parameters(pl_module, self.parameters)

    @override
    def start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        weights = select_parameters(pl_module, self.parameters)
        narrow = [name for name, p in weights.items() if p.dtype != at_least_float32(p.dtype)]
        if self.delta and narrow:
            raise ValueError(
                f"RefreshLearning needs weights of float32 or float64, as its small moves vanish in narrower ones, got "
                f"{weights[narrow[0]].dtype} for {narrow[0]}: set the trainer's `precision` to a mixed one."
            )
        if self.fisher:
            self.fisher = {name: self._past(name, p) for name, p in weights.items()}

    def _past(self, name: str, p: Tensor) -> Tensor:
        """The Fisher diagonal of a parameter so far: 0 where it is new, as in rows that its layer has gained."""
        past = torch.zeros_like(p, requires_grad=False)
        if name in self.fisher:
            old_rows(past, self.fisher[name]).copy_(self.fisher[name])
        return past

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if not self.delta or batch_idx % trainer.accumulate_grad_batches:
            return
        weights = select_parameters(pl_module, self.parameters)
        loss = self._loss(trainer, pl_module, batch)
        gradients = mean_gradients(trainer, loss, list(weights.values()))
        noises = self._noises(weights.values()) if self.noise else None
        self._moves += 1
        if gradients is not None:
            options = {"delta": self.delta, "fisher_weight": self.fisher_weight}
            refresh(list(weights.values()), gradients, self._fishers(weights), noises, **options)

    def _fishers(self, weights: Mapping[str, Tensor]) -> list[Tensor] | None:
        if not self.fisher or not self.fisher_weight:
            return None
        return [self.fisher[name] if name in self.fisher else torch.zeros_like(p) for name, p in weights.items()]

    def _loss(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> Tensor:
        """The cross-entropy of the current samples, on copies of the buffers."""
        x, y = (self.unpack or unpack_batch)(batch)
        rows = self._current_rows(trainer, batch, len(y))
        return F.cross_entropy(scores_aside(trainer, pl_module, x[:rows]), y[:rows])

    def _current_rows(self, trainer: Trainer, batch: Any, count: int) -> int:
        """How many rows, at the start of the batch, the data loader gave."""
        if isinstance(batch, StreamBatch):
            return len(batch.raw[0])
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        before = [c._current for c in callbacks[: callbacks.index(self)] if isinstance(c, RehearsalCallback)]
        return count if not before or before[0] is None else len(before[0])

    def _noises(self, weights: Iterable[Tensor]) -> list[Tensor]:
        """Normal noise, a function of the seed and the number of moves so far: the same on all processes."""
        weights, seed = list(weights), derive_seed(self.seed, self._moves)
        made = {device: torch.Generator(device).manual_seed(seed) for device in {w.device for w in weights}}
        like = [torch.empty_like(w, requires_grad=False) for w in weights]
        return [noise.normal_(0.0, self.noise, generator=made[noise.device]) for noise in like]

    @override
    def consolidate(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.delta or not self.fisher_weight:
            return
        weights = select_parameters(pl_module, self.parameters)
        measure = partial(squared_scores, estimator=self.estimator)
        new = mean_importance(trainer, measure, weights, samples=self.samples, classes="all", unpack=self.unpack)
        self.fisher = {
            name: new[name].add_(self._past(name, p), alpha=self.fisher_decay) for name, p in weights.items()
        }

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "fisher": dict(self.fisher), "moves": self._moves}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.fisher, self._moves = dict(state_dict["fisher"]), state_dict["moves"]
