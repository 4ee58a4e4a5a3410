"""Memory aware synapses: the importance by loops over samples, and the penalty by autograd."""

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor

from lightning_cl.callbacks.regularization.mas import MAS
from lightning_cl.heads import GrowingHead
from tests.helpers.contracts import (
    LIGHTNINGS_OWN_WARNINGS,
    Net,
    TinyStream,
    learn,
    same,
    samples,
    scaled,
    seeded,
)

pytestmark = LIGHTNINGS_OWN_WARNINGS
DOUBLE: dict[str, Any] = {"precision": "64-true"}


def scores(module: Any, norm: str, parts: list[Tensor]) -> dict[str, Tensor]:
    """Mean over 48 samples of absolute gradients, each of a part of the data."""
    total = {name: torch.zeros_like(p) for name, p in module.named_parameters()}
    for part in parts:
        f = module(scaled(part))
        for term in {"squared": [(f * f).sum()], "plain": [(f * f).sum(1).sqrt().sum()], "outputs": f.sum(0)}[norm]:
            grads = torch.autograd.grad(term, list(module.parameters()), retain_graph=True)
            for (name, _), g in zip(module.named_parameters(), grads, strict=True):
                total[name] += g.abs() / 48
    return total


@pytest.mark.parametrize("norm", ["squared", "plain", "outputs"])
@pytest.mark.parametrize(("by_batch", "size"), [(False, 1), (True, 12)])
def test_importance_is_that_of_a_loop(norm: Any, by_batch: bool, size: int) -> None:
    mas, module = MAS(1.0, norm, by_batch=by_batch), seeded(drop=0.0)
    learn([mas], module, TinyStream(1, eval_batch_size=12), **DOUBLE)
    expected = scores(module, norm, list(samples(train=True)[0].split(size)))
    torch.testing.assert_close(mas.anchor.importance, expected, rtol=1e-9, atol=1e-12)


def test_labels_are_not_read() -> None:
    """The importance of the last pass, of which the labels are not those of training."""
    found = []
    for shift in (0, 1):
        mas = MAS(unpack=lambda batch, shift=shift: (batch[0], (batch[1] + shift) % 4))
        learn([mas], stream=TinyStream(1))
        found.append(mas.anchor.importance)
    assert same(*found)
    assert all(value.any() for value in found[0].values())


class Between(Callback):
    """Compares what MAS adds with the gradient of ``strength * sum(importance * (w - w_old) ** 2)``."""

    def __init__(self, mas: MAS, total: Any) -> None:
        self.mas, self.total, self.steps = mas, total, 0
        self.pasts: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        before = {name: p.grad.clone() for name, p in pl_module.named_parameters()}
        leaves = {name: p.detach().clone().requires_grad_() for name, p in pl_module.named_parameters()}
        self.mas.on_before_optimizer_step(trainer, pl_module, optimizer)
        if self.pasts:
            omega, anchor = self.total([omega for omega, _ in self.pasts]), self.pasts[-1][1]
            sum((3.0 * omega[name] * (w - anchor[name]) ** 2).sum() for name, w in leaves.items()).backward()
            for name, p in pl_module.named_parameters():
                torch.testing.assert_close(p.grad - before[name], leaves[name].grad, rtol=0, atol=1e-12)
            self.steps += 1

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.mas.on_train_end(trainer, pl_module)
        x, y = samples(train=True)
        here = torch.isin(y, torch.tensor(trainer.datamodule.classes[trainer.datamodule.current]))
        omega = scores(pl_module, "squared", list(x[here].split(1)))
        own = {name: value * 48 / int(here.sum()) for name, value in omega.items()}
        self.pasts.append((own, {name: p.detach().clone() for name, p in pl_module.named_parameters()}))


def folded(alpha: float, beta: float) -> Any:
    def fold(omegas: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        total = omegas[0]
        for omega in omegas[1:]:
            total = {name: alpha * total[name] + beta * value for name, value in omega.items()}
        return total

    return fold


MODES = {
    "online": ({}, folded(1.0, 1.0)),
    "mixed": ({"alpha": 0.5}, folded(0.5, 0.5)),
    "last": ({}, lambda omegas: omegas[-1]),
}


@pytest.mark.parametrize("mode", MODES)
def test_gradient_is_that_of_the_published_penalty(mode: Any) -> None:
    arguments, total = MODES[mode]
    mas = MAS(3.0, mode=mode, **arguments)
    between = Between(mas, total)
    learn([between], seeded(drop=0.0), TinyStream(4), max_epochs=1, **DOUBLE)
    assert between.steps == 3 * 2


def test_first_experience_is_fine_tuning() -> None:
    first = TinyStream(1)
    assert same(learn([MAS(50.0)], stream=first).weights, learn(stream=first).weights)


class Growing(Net):
    """Has a head that gets a row for a class when that comes; of others the score is minus infinity."""

    def __init__(self) -> None:
        super().__init__(drop=0.0)
        self.net[4] = GrowingHead(12, 4, seed=0)

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self.net[4].grow(self.trainer.datamodule.seen_classes)


def test_a_growing_head_is_anchored_in_its_old_rows() -> None:
    mas, module = MAS(1.0), seeded(Growing)
    learn([mas], module)
    importance = mas.anchor.importance["net.4.linear.weight"]
    assert importance.shape == (4, 12)
    assert all(value.isfinite().all() and value.any() for value in mas.anchor.importance.values())


def test_outputs_of_other_tasks_have_no_part() -> None:
    mas = MAS(1.0)
    learn([mas], stream=TinyStream(task_labels=True), max_epochs=1)
    alone = MAS(1.0, mode="last", classes="current")
    learn([alone], stream=TinyStream(), max_epochs=1)
    assert mas.anchor.importance["net.4.weight"].ne(0).any(1).all()
    assert alone.anchor.importance["net.4.weight"].ne(0).any(1).tolist() == [False, False, True, True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strength": float("nan")}, "`strength` must be 0 or more, got nan"),
        ({"norm": "cubed"}, "`norm` must be one of .*squared.*, got 'cubed'"),
        ({"mode": "offline"}, "`mode` must be one of .*online.*, got 'offline'"),
        ({"classes": "none"}, "`classes` must be None or one of .*seen.*, got 'none'"),
        ({"samples": 0}, "`samples` must be 1 or more, or None for all, got 0"),
    ],
)
def test_errors(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MAS(**arguments)
