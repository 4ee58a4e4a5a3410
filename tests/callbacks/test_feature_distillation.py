"""Feature distillation: the term by hand, and where features are found."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_cl.callbacks.regularization.feature_distillation import FeatureDistillation, feature_loss
from lightning_cl.callbacks.regularization.lwf import LwF
from lightning_cl.methods import Classifier
from tests.helpers.contracts import (
    LIGHTNINGS_OWN_WARNINGS,
    SMALL,
    Net,
    PlainData,
    TinyStream,
    learn,
    learn_plain,
    same,
    seeded,
    trainer,
)

pytestmark = LIGHTNINGS_OWN_WARNINGS
DOUBLE: dict[str, Any] = {"precision": "64-true"}
EXACT = {"rtol": 0.0, "atol": 1e-12}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_feature_loss_is_a_sum_over_entries_and_a_mean_over_samples(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    h, h0 = (torch.randn(3, 2, 4, generator=generator).to(dtype) for _ in range(2))
    expected = sum((h[n].double() - h0[n].double()).norm() ** 2 for n in range(3)) / 3
    loss = feature_loss(h, h0)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_first_experience_is_fine_tuning() -> None:
    first = TinyStream(1)
    added = learn([FeatureDistillation(5.0, ["net.1"])], stream=first)
    assert same(added.weights, learn(stream=first).weights)


class ByHand(Net):
    """Has the term in its own ``training_step``, with a copy of itself as teacher."""

    def __init__(self) -> None:
        super().__init__(drop=0.0)
        self.teacher: list[nn.Sequential] = []  # not a submodule
        self.calls = 0

    def on_train_end(self) -> None:
        self.teacher = [copy.deepcopy(self.net)]

    def features(self, net: nn.Sequential, x: Tensor) -> list[Tensor]:
        first = net[1](x.flatten(1))
        return [first, net[4](net[2](first))]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        mine = self.features(self.net, batch[0])
        loss = F.cross_entropy(mine[-1], batch[1])
        if self.teacher:
            before = self.features(self.teacher[0], batch[0])
            loss = loss + 0.1 * sum((h - h0.detach()).square().sum() for h, h0 in zip(mine, before, strict=True)) / 8
        return loss


@pytest.mark.parametrize("how", [learn, learn_plain])
def test_loss_equals_the_term_by_hand(how: Any) -> None:
    added = how([FeatureDistillation(0.1, ["net.1", "net.4"])], seeded(drop=0.0), **DOUBLE)
    torch.testing.assert_close(added.weights, how([], seeded(ByHand), **DOUBLE).weights, **EXACT)
    assert not same(added.weights, how([], seeded(drop=0.0), **DOUBLE).weights)


def test_default_is_the_input_of_the_classifier() -> None:
    """Of ``mlp`` the layer before it is an activation, whose output it is."""
    by_default, named = (
        learn([FeatureDistillation(0.5, features)], seeded(Classifier, **SMALL)).weights
        for features in (None, ["backbone.layers"])
    )
    assert same(by_default, named)
    assert not same(by_default, learn([], seeded(Classifier, **SMALL)).weights)


def test_one_forward_of_each_per_batch_also_with_lwf() -> None:
    module, calls = seeded(), []
    module.net[1].register_forward_hook(lambda layer, *_: calls.append(layer.training))
    learn_plain([LwF(1.0), FeatureDistillation(0.1, ["net.1"])], module)
    assert calls == [True] * 6 + [True, False] * 6


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (None, "^`features` must name the submodules to compare, as Net has no classifier by timm's convention"),
        (
            ["net.1", "layer4"],
            r"^`features` must be names of submodules, got \['layer4'\]; there are net, net.0, net",
        ),
    ],
)
def test_features_that_are_not_there_are_refused_before_training(features: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trainer([FeatureDistillation(1.0, features)]).fit(seeded(), PlainData())


def test_a_layer_that_returns_no_tensor_is_refused() -> None:
    class Recurrent(Net):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(8, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.lstm(x.squeeze(1))[0][:, -1]

    with pytest.raises(TypeError, match=r"^`features` must name layers that return a tensor, got 'lstm' that does not"):
        learn_plain([FeatureDistillation(1.0, ["lstm"])], seeded(Recurrent))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strength": float("nan")}, "`strength` must be 0 or more, got nan"),
        ({"features": []}, "`features` must name at least one submodule, or be None"),
    ],
)
def test_errors(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeatureDistillation(**arguments)
