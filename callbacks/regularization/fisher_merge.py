"""Fisher merging: average the models of all experiences, each entry in proportion to its Fisher information."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import override

from lightning_cl.anchor import old_rows
from lightning_cl.callback import ContinualCallback, Unpack, check_pass, mean_importance, sum_over_ranks
from lightning_cl.importance import Estimator, squared_scores
from lightning_cl.stream import Competing
from lightning_cl.utilities import select_parameters


def fisher_merge(
    models: Sequence[Mapping[str, Tensor]],
    fishers: Sequence[Mapping[str, Tensor]] | None = None,
    weights: Sequence[float] | None = None,
    *,
    normalize: bool = True,
    floor: float = 1e-6,
    favor_first: bool = True,
) -> dict[str, Tensor]:
    r"""Average models of one architecture entry by entry, each in proportion to its Fisher information.

    :math:`\theta = \sum_j \lambda_j F_j \theta_j / \sum_j \lambda_j F_j` of Matena & Raffel, "Merging Models with
    Fisher-Weighted Averaging", NeurIPS 2022, with the details of their code: each :math:`F_j` is divided by its
    Euclidean norm over all entries, and that of the first model, the target, is raised to a floor before, so that an
    entry that no other model cares for is the target's. Where all weights are zero, so is the result (their code gives
    NaN). The mean is taken of differences to the first model: what all models agree on stays as it is, bit for bit.

    Args:
        models: Parameters by name, of each model; the same names and shapes in all.
        fishers: Fisher diagonals, as ``models``; ``None`` is 1 everywhere (isotropic merging).
        weights: The :math:`\lambda_j`, 0 or more; ``None`` is the same for all.
        normalize: Divide each Fisher by its norm.
        floor: Least Fisher information of an entry, 0 or more, before normalisation.
        favor_first: Raise only the first model's Fisher to the floor, instead of all.

    Raises:
        ValueError: If there is no model, the numbers of models, Fishers and weights differ, or a weight is negative.

    Example:
        >>> one, other = {"w": torch.tensor([0.0, 0.0])}, {"w": torch.tensor([4.0, 4.0])}
        >>> fishers = [{"w": torch.tensor([3.0, 1.0])}, {"w": torch.tensor([1.0, 0.0])}]
        >>> fisher_merge([one, other], fishers, normalize=False)["w"]
        tensor([1., 0.])
    """
    weights = [1.0] * len(models) if weights is None else weights
    if not models or len(weights) != len(models) or (fishers is not None and len(fishers) != len(models)):
        raise ValueError(f"`weights` and `fishers` must be as many as `models`, 1 or more, got {len(models)} models.")
    if min(weights) < 0:
        raise ValueError(f"`weights` must be 0 or more, got {list(weights)}.")
    scales = [w / norm_of(f) for w, f in zip(weights, fishers, strict=True)] if fishers and normalize else weights
    merged = {}
    for name, first in models[0].items():
        shares = []
        for j, scale in enumerate(scales):
            fisher = torch.ones_like(first) if fishers is None else fishers[j][name]
            shares.append(scale * (fisher.clamp(min=floor) if j == 0 or not favor_first else fisher))
        total = torch.stack(shares).sum(0)
        others = zip(shares[1:], models[1:], strict=True)
        moved = sum((share * (model[name] - first) for share, model in others), torch.zeros_like(total))
        merged[name] = torch.where(total > 0, first + moved / total.where(total > 0, 1.0), first).to(first.dtype)
    return merged


def norm_of(fisher: Mapping[str, Tensor]) -> float:
    """The Euclidean norm over all entries; 1 if they are all 0."""
    return torch.stack([value.double().square().sum() for value in fisher.values()]).sum().sqrt().item() or 1.0


class FisherMerge(ContinualCallback):
    r"""At the end of each experience, put the Fisher-weighted average of the models of all experiences into the module.

    The merging is :func:`fisher_merge`, after Matena & Raffel, "Merging Models with Fisher-Weighted Averaging",
    NeurIPS 2022, with the model that has just been trained as the target. Over a stream it is sequential (our choice;
    the paper merges finished models): the merged model is what is tested and what the next experience starts from, and
    the Fisher informations add up, :math:`\bar F \leftarrow s \bar F + F_t / \lVert F_t \rVert`, which without a floor
    is the same as merging the models of all experiences at once.

    Only trainable parameters are merged. The rows of other tasks in a head with task labels have no information and do
    not move. The running statistics of batch normalisation are averaged over the experiences with the same :math:`s`.

    Args:
        strength: Weight :math:`s` of the past against the new experience, 0 or more; at 0 the model is that of the new
            experience, as in fine-tuning.
        estimator: How the Fisher diagonal is estimated (see :func:`lightning_cl.importance.squared_scores`). The
            paper's code has ``"exact"``, a backward pass for each class; ``"sampled"`` is unbiased.
        normalize: Divide each experience's Fisher by its norm, so that a well-fitted one (whose Fisher is small) counts
            as much.
        floor: Least Fisher information of an entry in the new model, before normalisation: 1e-6 in the paper's code.
        classes: Classes that compete in the model's distribution over labels: ``"all"``, those ``"seen"`` so far, or
            those of the ``"current"`` experience. ``None`` is ``"current"`` in a stream with task labels, else
            ``"all"``.
        parameters: Regular expressions that select parameters by name; ``None`` is all that are trainable.
        samples: Samples of the Fisher pass, chosen by the seed of the stream; ``None`` is all. The paper's code has
            4096.
        unpack: Function from a batch to ``(x, y)``, where that is not its form.

    Raises:
        ValueError: If an argument is out of its range; the message names it.

    Example:
        >>> import lightning as L
        >>> trainer = L.Trainer(callbacks=[FisherMerge()], logger=False, enable_checkpointing=False)
    """

    needs_whole_parameters = True

    def __init__(
        self,
        strength: float = 1.0,
        estimator: Estimator = "exact",
        normalize: bool = True,
        floor: float = 1e-6,
        classes: Competing | None = None,
        parameters: list[str] | None = None,
        samples: int | None = 4096,
        unpack: Unpack | None = None,
    ) -> None:
        super().__init__()
        for name, value in {"strength": strength, "floor": floor}.items():
            if not value >= 0:
                raise ValueError(f"`{name}` must be 0 or more, got {value}.")
        check_pass(samples, classes, estimator)
        self.strength = strength
        self.estimator: Estimator = estimator
        self.normalize = normalize
        self.floor = floor
        self.classes: Competing | None = classes
        self.parameters = parameters
        self.samples = samples
        self.unpack = unpack
        self.fisher: dict[str, Tensor] = {}  # of the past, in all
        self.merged: dict[str, Tensor] = {}  # the model so far: parameters and running statistics
        self._weight = 0.0  # of the past, in experiences

    @override
    def check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        select_parameters(pl_module, self.parameters)

    @override
    def start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for state in (self.fisher, self.merged):
            state.update({name: value.to(pl_module.device) for name, value in state.items()})

    @override
    @torch.no_grad()
    def consolidate(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.strength:
            return
        weights = select_parameters(pl_module, self.parameters)
        fisher = mean_importance(
            trainer,
            partial(squared_scores, estimator=self.estimator),
            weights,
            samples=self.samples,
            classes=self.classes,
            unpack=self.unpack,
        )
        scale = 1 / norm_of(fisher) if self.normalize else 1.0
        new = {name: scale * value for name, value in fisher.items()}
        past = {name: self.strength * _widened(self.fisher.get(name), value) for name, value in new.items()}
        if self._weight:
            current = {name: p.detach().to(new[name].dtype) for name, p in weights.items()}
            before = {name: _widened(self.merged.get(name), value) for name, value in current.items()}
            merged = fisher_merge([current, before], [new, past], normalize=False, floor=scale * self.floor)
            for name, value in merged.items():
                weights[name].copy_(value)
        statistics = _statistics(pl_module)
        for name, value in statistics.items():
            value.copy_(sum_over_ranks(trainer, value) / trainer.world_size)
            if name in self.merged:
                value.lerp_(self.merged[name], 1 - 1 / (self.strength * self._weight + 1))
        self.fisher |= {name: past[name] + value for name, value in new.items()}
        self._weight = self.strength * self._weight + 1
        self.merged |= {name: value.detach().clone() for name, value in {**weights, **statistics}.items()}

    @override
    def state_dict(self) -> dict[str, Any]:
        own = {"fisher": dict(self.fisher), "merged": dict(self.merged), "weight": self._weight}
        return {**super().state_dict(), **own}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.fisher, self.merged = dict(state_dict["fisher"]), dict(state_dict["merged"])
        self._weight = state_dict["weight"]


def _statistics(module: torch.nn.Module) -> dict[str, Tensor]:
    """Running means and variances of batch normalisation, by name."""
    return {
        f"{name}.{key}": value
        for name, layer in module.named_modules()
        if isinstance(layer, _BatchNorm)
        for key in ("running_mean", "running_var")
        if (value := getattr(layer, key)) is not None
    }


def _widened(value: Tensor | None, like: Tensor) -> Tensor:
    """``value`` with zeros in the rows that it lacks: a head may have grown."""
    wide = torch.zeros_like(like)
    if value is not None:
        old_rows(wide, value).copy_(value)
    return wide
