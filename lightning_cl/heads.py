"""Heads that change while a stream is learned."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_cl.utilities import default_seed, derive_seed


def classifier_of(module: nn.Module) -> str | None:
    """Return the dotted name of the last layer, if the module, or one within it, follows timm's convention.

    Example:
        >>> import timm
        >>> classifier_of(nn.Sequential(nn.Identity(), timm.create_model("resnet10t")))
        '1.fc'
    """
    names = {layer: name for name, layer in module.named_modules()}
    for owner in names:
        find = getattr(owner, "get_classifier", None)
        if callable(find) and isinstance(layer := find(), nn.Module):
            return names.get(layer)
    return None


def last_layer_of(module: nn.Module) -> str | None:
    """Return the dotted name of the last layer: by timm's convention, or else the last ``nn.Linear`` there is.

    Example:
        >>> last_layer_of(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2), nn.Identity()))
        '2'
    """
    if (name := classifier_of(module)) is not None:
        return name
    return next((name for name, layer in [*module.named_modules()][::-1] if isinstance(layer, nn.Linear)), None)


class GrowingHead(nn.Module):
    """A linear classifier that gets a row of weights for a class when the class is first seen.

    Scores have the width of all classes from the start; that of a class without a row is minus infinity, so that it has
    no part in a softmax and is never predicted. Losses that weigh every score (a cross-entropy with label smoothing, a
    distillation, a squared error) take the columns ``head.classes`` only. The parameters are those of one ``nn.Linear``
    named ``linear``, whose rows stand in order of appearance: an old class keeps its row, so that what methods keep by
    row stays valid.

    A new row starts as those of ``nn.Linear`` do, uniform in ``±1 / sqrt(in_features)``, as a function of ``seed`` and
    the class alone: neither the order of classes nor what was drawn before changes it. A checkpoint of any number of
    rows loads; the head then has these rows and no others.

    ``grow`` makes new parameters: call it before the optimizer is made and DDP is set up. ``Classifier`` does so at the
    start of each fit.

    Args:
        in_features: Width of the features.
        num_classes: Classes of the whole stream, the width of the scores.
        seed: Fixes the weights of new rows; ``None`` is the seed of ``seed_everything``, else 0.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> head = GrowingHead(in_features=8, num_classes=5)
        >>> head.grow([3, 1])
        >>> head(torch.zeros(2, 8)).isfinite()[0], sum(p.numel() for p in head.parameters())
        (tensor([False,  True, False,  True, False]), 18)
    """

    classes: Tensor
    """The classes of the rows, in order of appearance, ``(n,)``."""

    def __init__(self, in_features: int, num_classes: int, seed: int | None = None) -> None:
        super().__init__()
        for name, value in {"in_features": in_features, "num_classes": num_classes}.items():
            if value < 1:
                raise ValueError(f"`{name}` must be 1 or more, got {value}.")
        self.in_features = in_features
        self.num_classes = num_classes
        self.seed = default_seed(seed)
        self.linear = nn.Linear(in_features, 1, device="meta")  # draws nothing; that of no rows would warn
        self.register_buffer("classes", torch.empty(0, dtype=torch.long))
        self._set(self.classes, torch.empty(0, in_features), torch.empty(0))

    def grow(self, classes: Iterable[int]) -> None:
        """Add a row for each of ``classes`` that has none yet.

        Raises:
            ValueError: If a class is not in ``[0, num_classes)``.
        """
        known = set(self.classes.tolist())
        new = [c for c in dict.fromkeys(classes) if c not in known]
        if out := [c for c in new if not 0 <= c < self.num_classes]:
            raise ValueError(f"`classes` must be in [0, {self.num_classes}) (`num_classes`), got {out}.")
        if new:
            rows = torch.stack([self._initial(c) for c in new]).to(self.linear.weight)
            self._set(
                torch.cat([self.classes, self.classes.new_tensor(new)]),
                torch.cat([self.linear.weight.detach(), rows[:, :-1]]),
                torch.cat([self.linear.bias.detach(), rows[:, -1]]),
            )

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Scores ``(B, num_classes)`` of features ``(B, in_features)``, minus infinity for classes without a row."""
        scores: Tensor = self.linear(x)
        return scores.new_full((len(x), self.num_classes), -torch.inf).index_copy(1, self.classes, scores)

    def _initial(self, label: int) -> Tensor:
        """Weights and bias of a new row ``(in_features + 1,)``."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, label))
        bound = 1 / math.sqrt(self.in_features)
        return torch.empty(self.in_features + 1).uniform_(-bound, bound, generator=generator)

    def _set(self, classes: Tensor, weight: Tensor, bias: Tensor) -> None:
        self.classes = classes
        for name, value in {"weight": weight, "bias": bias}.items():
            trained = getattr(self.linear, name).requires_grad  # what is frozen stays so
            setattr(self.linear, name, nn.Parameter(value, requires_grad=trained))
        self.linear.out_features = len(classes)

    @override
    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        saved = state_dict.get(f"{prefix}classes")
        if saved is not None and saved.tolist() != self.classes.tolist():  # else the optimizer's parameters stay
            weight, count = self.linear.weight, len(saved)
            self._set(saved.to(self.classes), weight.new_empty(count, self.in_features), weight.new_empty(count))
        super()._load_from_state_dict(state_dict, prefix, *args)
