"""UER: the two readings of one weight matrix, and training against a loop with both written out."""

from functools import partial
from typing import Any, get_args

import pytest
import timm
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_cl.callbacks import UER, Replay
from lightning_cl.callbacks.replay.uer import cosine_logits
from lightning_cl.heads import GrowingHead
from lightning_cl.rehearsal import ForwardOf
from tests.helpers.contracts import LIGHTNINGS_OWN_WARNINGS, Net, TinyStream, learn, same, scaled, seeded
from tests.helpers.rehearsal import Rows, process, surprise, written_out

pytestmark = LIGHTNINGS_OWN_WARNINGS


def example(classes: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Features, weights with a graph, and labels, in float64."""
    torch.manual_seed(0)
    h, w = torch.randn(7, 6, dtype=torch.float64), torch.randn(classes, 6, dtype=torch.float64)
    return h.requires_grad_(), w.requires_grad_(), torch.arange(7) % classes


def test_angles_are_learned_without_norms() -> None:
    """Gradients of cosines are orthogonal to weights and features; those of dot products are not."""
    h, w, y = example()
    for orthogonal, logits in ((True, cosine_logits(h, w, 11.1)), (False, h @ w.T)):
        by_h, by_w = torch.autograd.grad(F.cross_entropy(logits, y), [h, w])
        products = torch.cat([(by_h * h).sum(1), (by_w * w).sum(1)]).abs()
        assert (products.max() < 1e-12) if orthogonal else (products.min() > 1e-6)


def test_a_step_by_angle_lengthens_by_its_own_length_only() -> None:
    h, w, y = example()
    (gradient,) = torch.autograd.grad(F.cross_entropy(cosine_logits(h, w, 11.1), y), [w])
    after = (w - 0.3 * gradient).square().sum(1)
    torch.testing.assert_close(after - w.square().sum(1), 0.3**2 * gradient.square().sum(1), rtol=0, atol=1e-12)


def test_dot_products_are_norms_times_cosines() -> None:
    h, w, _ = example()
    cosines = cosine_logits(h, w, 4.0)
    torch.testing.assert_close(h @ w.T, h.norm(dim=1)[:, None] * w.norm(dim=1) * cosines / 4)
    factors = torch.rand(5, 1, dtype=torch.float64) + 0.1
    torch.testing.assert_close(cosine_logits(h, factors * w, 4.0), cosines)


def test_norms_decide_in_dot_products_only() -> None:
    h, w, _ = example()
    h = torch.randn(100, 6, dtype=torch.float64)
    w = F.normalize(w, dim=1)
    assert torch.equal(cosine_logits(h, w, 1.0).argmax(1), (h @ w.T).argmax(1))
    longer = torch.cat([10 * w[:1], w[1:]])
    assert torch.equal(cosine_logits(h, longer, 1.0).argmax(1), cosine_logits(h, w, 1.0).argmax(1))
    assert not torch.equal((h @ longer.T).argmax(1), (h @ w.T).argmax(1))


def read(module: Any, x: Tensor, reading: str) -> Tensor:
    """Scores by hand, without the bias."""
    h, w = module.net[:4](x), module.net[4].weight
    dot = torch.einsum("nd,cd->nc", h, w)
    norms = (h.square().sum(1) + 1e-300).sqrt()[:, None] * w.square().sum(1).sqrt()  # all of h may be 0
    return dot if reading == "dot" else 7.0 * dot / norms


def by_hand(module: Any, x: Tensor, y: Tensor, old: list[Rows], incoming: str, replayed: str) -> tuple[Tensor, Tensor]:
    """The gradients of both losses are added up by two backward passes."""
    nn.init.zeros_(module.net[4].bias)
    scores = read(module, x, incoming)
    loss = surprise(scores, y)
    if old:
        loss.backward()
        loss = surprise(read(module, scaled(old[0]["0"]), replayed), old[0]["1"])
    return loss, scores


@pytest.mark.parametrize("forward", ["joint", "separate"])
@pytest.mark.parametrize(("incoming", "replayed"), [("cosine", "dot"), ("cosine", "cosine"), ("dot", "cosine")])
def test_equals_the_loop_written_out(incoming: Any, replayed: Any, forward: Any) -> None:
    uer = UER(10, 7.0, incoming, replayed, batch_size=5, forward=forward, seed=4)
    found = learn([uer], seeded(drop=0.0), TinyStream(), precision="64-true")
    loss = partial(by_hand, incoming=incoming, replayed=replayed)
    expected = written_out(loss, count=5)
    torch.testing.assert_close(found.weights, dict(expected.named_parameters()), rtol=0, atol=1e-12)


def test_with_dot_products_it_is_replay() -> None:
    uer = UER(10, incoming="dot", replayed="dot", seed=2)
    assert same(learn([uer]).weights, learn([Replay(10, loss="sum", forward="separate", seed=2)]).weights)
    UER(incoming="dot", replayed="dot").check(process(0, 1), nn.Identity())  # type: ignore[arg-type]


def test_without_replay_it_is_a_cosine_classifier() -> None:
    class Cosine(Net):
        def forward(self, x: Tensor) -> Tensor:
            return read(self, x, "cosine") if self.training else super().forward(x)

        def on_train_start(self) -> None:
            nn.init.zeros_(self.net[4].bias)

    uer = learn([UER(10, 7.0, batch_size=0)], seeded(drop=0.0), precision="64-true")
    expected = learn([], seeded(Cosine, drop=0.0), precision="64-true")
    torch.testing.assert_close(uer.weights, expected.weights, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "make_optimizer",
    [
        partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1),
        partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1),
    ],
)
@pytest.mark.parametrize("forward", ["joint", "separate"])
def test_bias_stays_zero(make_optimizer: Any, forward: Any) -> None:
    class Other(Net):
        def configure_optimizers(self) -> Any:
            return make_optimizer(self.parameters())

    module = seeded(Other)
    assert module.net[4].bias.all()
    learn([UER(10, forward=forward)], module)
    assert not module.net[4].bias.any()


class Grown(Net):
    def __init__(self) -> None:
        super().__init__()
        self.head = GrowingHead(4, 4)
        self.head.grow([2, 0])
        self.last = nn.Linear(4, 2)

    def get_classifier(self) -> nn.Module:
        return self.head


@pytest.mark.parametrize(
    ("make_module", "head", "found"),
    [
        (Grown, None, "head.linear"),
        (Grown, "head", "head.linear"),
        (Grown, "net.1", "net.1"),
        (Net, None, "net.4"),
        (lambda: nn.Sequential(timm.create_model("resnet10t"), nn.Linear(2, 2)), None, "0.fc"),
    ],
)
def test_the_last_layer_is_found(make_module: Any, head: str | None, found: str) -> None:
    module = make_module()
    assert UER(head=head)._layer(module) is module.get_submodule(found)


def test_a_growing_head_is_read_alike_in_both_forwards() -> None:
    class Grows(Net):
        def __init__(self) -> None:
            super().__init__(drop=0.0)
            self.net[4] = GrowingHead(12, 4)

        def setup(self, stage: str) -> None:
            self.net[4].grow(range(2 * self.trainer.datamodule.current + 2))

    one, other = (
        learn([UER(10, forward=forward, seed=2)], seeded(Grows), precision="64-true").weights
        for forward in get_args(ForwardOf)
    )
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    assert not one["net.4.linear.bias"].any()


class Outside(Callback):
    """Compares what the module returns between steps with dot products."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        expected = F.linear(pl_module.net[:4].eval()(batch[0]), pl_module.net[4].weight)
        torch.testing.assert_close(pl_module(batch[0]), expected)
        pl_module.train()


def test_outside_of_the_step_the_module_returns_dot_products() -> None:
    module = learn([UER(10, replayed="cosine"), Outside()]).module
    assert not module.get_submodule("net.4")._forward_hooks


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": 0.0}, "`scale` must be above 0, got 0.0"),
        ({"replayed": "angle"}, "`replayed` must be 'cosine' or 'dot', got 'angle'"),
    ],
)
def test_errors(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UER(**arguments)


@pytest.mark.parametrize("head", ["net.0", "none"])
def test_a_wrong_head_is_named(head: str) -> None:
    with pytest.raises(ValueError, match=f"`head` must name the last layer, an nn.Linear, got '{head}'"):
        UER(head=head).check(process(0, 1), Net())
