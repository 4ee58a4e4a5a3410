"""L2 to the previous model: which weights are anchored, when, and where."""

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor

from lightning_cl.callbacks import L2Anchor
from tests.helpers.contracts import (
    LIGHTNINGS_OWN_WARNINGS,
    TinyStream,
    learn,
    resnet,
    same,
    seeded,
    transformer,
)

pytestmark = LIGHTNINGS_OWN_WARNINGS
DOUBLE: dict[str, Any] = {"precision": "64-true"}


class Grads(Callback):
    """Keeps gradients and weights at each step, and the weights at each end of training."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, dict[str, Tensor], dict[str, Tensor]]] = []
        self.ends: list[dict[str, Tensor]] = []

    @property
    def state_key(self) -> str:
        return f"Grads{id(self)}"

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        grads = {name: p.grad.clone() for name, p in pl_module.named_parameters()}
        weights = {name: p.detach().clone() for name, p in pl_module.named_parameters()}
        self.steps.append((trainer.datamodule.current, grads, weights))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.ends.append({name: p.detach().clone() for name, p in pl_module.named_parameters()})


def added(before: Grads, after: Grads) -> list[tuple[int, dict[str, Tensor], dict[str, Tensor]]]:
    steps = zip(before.steps, after.steps, strict=True)
    return [(e, {k: after[k] - g for k, g in grads.items()}, w) for (e, grads, w), (_, after, _) in steps]


@pytest.mark.parametrize("parameters", [None, ["^net.1", "4.bias"]])
def test_gradient_is_twice_the_distance_on_the_chosen_weights(parameters: Any) -> None:
    before, after = Grads(), Grads()
    learn([before, L2Anchor(0.7, parameters), after], seeded(drop=0.0), **DOUBLE)
    chosen = {"net.1.weight", "net.1.bias", "net.4.bias"} if parameters else before.ends[0].keys()
    for experience, gradient, weights in added(before, after):
        for name, value in gradient.items():
            if experience == 0 or name not in chosen:
                assert not value.any()
            else:
                expected = 2 * 0.7 * (weights[name] - before.ends[0][name])
                torch.testing.assert_close(value, expected, rtol=0, atol=1e-12)


def test_first_experience_is_fine_tuning_unless_it_starts_from_pretrained_weights() -> None:
    plain = learn(stream=TinyStream(1)).weights
    assert same(learn([L2Anchor(5.0)], stream=TinyStream(1)).weights, plain)
    assert not same(learn([L2Anchor(5.0, pretrained=True)], stream=TinyStream(1)).weights, plain)


def test_the_classifier_of_a_pretrained_model_is_new() -> None:
    before, after, module = Grads(), Grads(), seeded(resnet)
    pretrained = {name: p.detach().clone() for name, p in module.named_parameters()}
    learn([before, L2Anchor(0.5, pretrained=True), after], module, TinyStream(1))
    for _, gradient, weights in added(before, after):
        for name, value in gradient.items():
            expected = 0.0 * value if "fc" in name else weights[name] - pretrained[name]
            torch.testing.assert_close(value, expected, rtol=0, atol=1e-6)


def test_from_the_second_experience_on_the_classifier_is_anchored_too() -> None:
    before, after = Grads(), Grads()
    learn([before, L2Anchor(0.5, pretrained=True), after], seeded(resnet), max_epochs=1)
    for experience, gradient, weights in added(before, after):
        if experience == 1:
            for name, value in gradient.items():
                torch.testing.assert_close(value, weights[name] - before.ends[0][name], rtol=0, atol=1e-6)


def test_attention_of_a_transformer() -> None:
    anchor = L2Anchor(0.5, [r"attn\.qkv\."])
    learn([anchor], seeded(transformer), max_epochs=1)
    names = {f"net.blocks.{i}.attn.qkv.{kind}" for i in (0, 1) for kind in ("weight", "bias")}
    assert anchor.anchor.anchor.keys() == names
    assert not anchor.anchor.importance, "an importance of 1 takes no memory"


def test_a_pattern_that_matches_nothing_is_named() -> None:
    with pytest.raises(ValueError, match=r"`parameters`: 'qvk' matches no trainable parameter; there are net.1.weight"):
        learn([L2Anchor(0.5, ["qvk"])])
