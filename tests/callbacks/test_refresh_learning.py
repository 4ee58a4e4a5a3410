"""Refresh learning: the length and direction of a move, and what it must leave alone."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from torch import Tensor, nn

from lightning_cl.callbacks import RefreshLearning, Replay
from lightning_cl.callbacks.replay.refresh_learning import refresh
from lightning_cl.importance import squared_scores
from lightning_cl.utilities import derive_seed, get_rng_state
from tests.helpers.contracts import (
    LIGHTNINGS_OWN_WARNINGS,
    Net,
    TinyStream,
    learn,
    learn_plain,
    resnet,
    same,
    samples,
    scaled,
    seeded,
    trainer,
)

pytestmark = LIGHTNINGS_OWN_WARNINGS
DOUBLE: dict[str, Any] = {"precision": "64-true"}


def tensors(*shapes: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


# -- the move ----------------------------------------------------------------------------------------------------------


def test_each_tensor_moves_uphill_by_its_own_length_times_delta() -> None:
    before, gradients = tensors((3, 4), (5,), ()), tensors((3, 4), (5,), (), seed=1)
    after = [w.clone() for w in before]
    refresh(after, gradients, delta=1e-3)
    for old, new, g in zip(before, after, gradients, strict=True):
        move = new - old
        assert move.norm().item() == pytest.approx(1e-3 * old.norm().item(), rel=1e-9)
        assert (move * g).sum().item() == pytest.approx((move.norm() * g.norm()).item(), rel=1e-9)


@pytest.mark.parametrize("rate", [0.01, 1.0, 1e20])
def test_the_scale_of_the_gradient_does_not_matter(rate: float) -> None:
    plain, scaled_ = tensors((3, 4), (5,)), tensors((3, 4), (5,))
    gradients = tensors((3, 4), (5,), seed=1)
    refresh(plain, gradients, delta=0.1)
    refresh(scaled_, [rate * g for g in gradients], delta=0.1)
    torch.testing.assert_close(scaled_, plain, rtol=1e-9, atol=0)


def test_a_tensor_without_a_gradient_stays_and_one_of_zeros_gets_noise() -> None:
    weights, (g, noise) = [torch.ones(3), torch.zeros(3)], tensors((3,), (3,))
    refresh(weights, [torch.zeros(3), g.float()], noises=[noise.float()] * 2, delta=0.5)
    assert torch.equal(weights[0], torch.ones(3))
    torch.testing.assert_close(weights[1], 0.5 * noise.float())


def test_entries_of_larger_fisher_move_less() -> None:
    w, fisher = torch.ones(2, dtype=torch.float64), torch.tensor([10.0, 4000.0], dtype=torch.float64)
    refresh([w], [torch.full((2,), 3.0, dtype=torch.float64)], [fisher], delta=1e-2, fisher_weight=1e-3)
    a, b = (w - 1).tolist()
    assert a / b == pytest.approx((1 + 4.0) / (1 + 0.01), rel=1e-9)


# -- in training -------------------------------------------------------------------------------------------------------


def written_out(delta: float, noise: float, weight: float, decay: float) -> dict[str, Tensor]:
    """The authors' loop by hand: a plain ascent step of size 0.01, its difference rescaled, then the ordinary step."""
    module, stream, step, fisher = seeded(drop=0.0, lr=0.02).double(), TinyStream(4), 0, {}
    named = dict(module.named_parameters())
    for stream.current in range(4):
        optimizer, loader = module.configure_optimizers(), stream.train_dataloader()
        for epoch in range(2):
            for index in loader.batches(2 * stream.current + epoch):
                x, y = loader.dataset.batch(index)
                ascent = torch.autograd.grad(F.cross_entropy(module(scaled(x)), y), named.values())
                generator = torch.Generator().manual_seed(derive_seed(4, step))
                for (name, w), g in zip(named.items(), ascent, strict=True):
                    u = (w.detach() + 0.01 * g) - w.detach()
                    xi = torch.empty_like(w).normal_(0, noise, generator=generator) if noise else 0.0
                    w.data += delta * (u * w.norm() / u.norm() + xi) / (1 + weight * fisher.get(name, 0.0))
                optimizer.zero_grad()
                F.cross_entropy(module(scaled(x)), y).backward()
                optimizer.step()
                step += 1
        x, y = samples(train=True)
        here = y == stream.current
        sums, count = squared_scores(module, [(scaled(x[here]), y[here])])
        fisher = {name: decay * fisher.get(name, 0.0) + value / count for name, value in sums.items()}
    return {name: p.detach() for name, p in named.items()}


@pytest.mark.parametrize(("noise", "weight", "decay"), [(0.0, 0.0, 0.0), (0.1, 50.0, 0.5)])
def test_equals_the_loop_written_out(noise: float, weight: float, decay: float) -> None:
    callback = RefreshLearning(0.02, noise, weight, decay, seed=4)
    found = learn([callback], seeded(drop=0.0, lr=0.02), TinyStream(4), **DOUBLE)
    torch.testing.assert_close(found.weights, written_out(0.02, noise, weight, decay), rtol=0, atol=1e-10)


class Before(Callback):
    """Notes all that a move might change, in each batch."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    @property
    def state_key(self) -> str:
        return f"Before{id(self)}"

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        buffers = {name: value.clone() for name, value in pl_module.named_buffers()}
        grads = [None if p.grad is None else p.grad.clone() for p in pl_module.parameters()]
        state = [v["momentum_buffer"].clone() for v in trainer.optimizers[0].state_dict()["state"].values()]
        modes = [child.training for child in pl_module.modules()]
        self.seen.append((buffers, grads, state, modes, get_rng_state(), [column.clone() for column in batch]))


@pytest.mark.parametrize("how", [learn, learn_plain])
def test_a_move_leaves_all_but_the_weights_as_it_was(how: Any) -> None:
    before, after = Before(), Before()
    how([before, RefreshLearning(0.01), after], seeded(resnet), max_epochs=1)
    assert len(before.seen) == 6 or how is learn_plain
    assert same(after.seen, before.seen)
    assert any(name.endswith("running_mean") for name in before.seen[0][0])


class Losses(Callback):
    """The loss of the first rows of each batch, and the weights then."""

    def __init__(self, rows: int) -> None:
        self.rows, self.values, self.weights = rows, [], []

    @property
    def state_key(self) -> str:
        return f"Losses{id(self)}"

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        with torch.no_grad():
            self.values.append(F.cross_entropy(pl_module(batch[0][: self.rows]), batch[1][: self.rows]).item())
            self.weights.append(torch.cat([p.flatten() for p in pl_module.parameters()]))


def test_the_loss_of_the_current_batch_rises() -> None:
    before, after = Losses(8), Losses(8)
    learn([before, RefreshLearning(1e-3, noise=0.0), after], seeded(drop=0.0), **DOUBLE)
    assert len(before.values) == 12
    assert all(b < a for b, a in zip(before.values, after.values, strict=True))


@pytest.mark.parametrize("how", [learn, learn_plain])
def test_replayed_rows_have_no_part(how: Any) -> None:
    class Alone(RefreshLearning):
        def _loss(self, trainer: Any, pl_module: Any, batch: Any) -> Tensor:
            loss = super()._loss(trainer, pl_module, batch)
            torch.testing.assert_close(loss, F.cross_entropy(pl_module(batch[0][:8]), batch[1][:8]))
            rows.append(len(batch[1]))
            return loss

    rows: list[int] = []
    how([Replay(20, batch_size=5), Alone(0.01)], seeded(drop=0.0))
    assert rows[0] == 8
    assert rows[1:] == [13] * 11


@pytest.mark.parametrize(("accumulate", "moves"), [(1, 12), (2, 8), (4, 4)])
def test_one_move_a_step(accumulate: int, moves: int) -> None:
    before, callback, after = Losses(8), RefreshLearning(0.01), Losses(8)
    learn([before, callback, after], accumulate_grad_batches=accumulate)
    assert callback._moves == moves
    moved = [not torch.equal(b, a) for b, a in zip(before.weights, after.weights, strict=True)]
    assert moved == [batch % accumulate == 0 for batch in range(3)] * 4


def test_dropout_is_that_of_the_step() -> None:
    class Draws(Net):
        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                drawn.append(torch.rand(1).item())
            return super().forward(x)

    drawn: list[float] = []
    learn([RefreshLearning()], seeded(Draws), TinyStream(1), max_epochs=1)
    assert drawn[0::2] == drawn[1::2]
    assert len(set(drawn)) == 6


def test_only_some_parameters() -> None:
    module = seeded()
    module.register_parameter("unused", nn.Parameter(torch.ones(2)))
    callback = RefreshLearning(0.01, parameters=["net.4", "unused"])
    learn([callback], module, max_steps=1)
    assert callback.fisher.keys() == {"net.4.weight", "net.4.bias", "unused"}
    assert torch.equal(module.unused, torch.ones(2))


@pytest.mark.parametrize("off", [{"delta": 0.0}, {"fisher_weight": 0.0}])
def test_no_pass_where_its_result_has_no_part(off: dict[str, float]) -> None:
    callback = RefreshLearning(**off)
    learn([callback])
    assert not callback.fisher


def test_a_head_that_has_gained_rows_keeps_the_old_fisher() -> None:
    callback = RefreshLearning(fisher_decay=1.0)
    callback.fisher = {"weight": torch.ones(2, 3)}
    callback.start(SimpleNamespace(), nn.Linear(3, 4, bias=False))
    assert torch.equal(callback.fisher["weight"], torch.tensor([[1.0] * 3] * 2 + [[0.0] * 3] * 2))


def test_narrow_weights_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"RefreshLearning needs weights of float32 .* got torch.bfloat16 .*`precision`"
    ):
        trainer([RefreshLearning()], precision="bf16-true").fit(seeded(), datamodule=TinyStream())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"delta": float("nan")}, "`delta` must be 0 or more, got nan"),
        ({"noise": -1.0}, "`noise` must be 0 or more, got -1.0"),
        ({"fisher_decay": 1.5}, r"`fisher_decay` must be in \[0, 1\], got 1.5"),
        ({"estimator": "fisher"}, "`estimator` must be one of .*, got 'fisher'"),
        ({"samples": 0}, "`samples` must be 1 or more"),
    ],
)
def test_errors(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RefreshLearning(**arguments)
