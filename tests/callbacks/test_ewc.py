"""Elastic weight consolidation: the penalty by autograd, and what the Fisher pass must leave alone."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn

from lightning_cl import RunLogger, fit_stream
from lightning_cl.anchor import QuadraticAnchor
from lightning_cl.callbacks import EWC
from lightning_cl.callbacks.regularization import ewc as ewc_module
from lightning_cl.checkpoint import CheckpointError
from lightning_cl.importance import squared_scores
from lightning_cl.utilities import get_rng_state
from tests.helpers.contracts import (
    LIGHTNINGS_OWN_WARNINGS,
    Net,
    PlainData,
    TinyStream,
    learn,
    learn_plain,
    same,
    samples,
    scaled,
    seeded,
    trainer,
)

pytestmark = LIGHTNINGS_OWN_WARNINGS
DOUBLE: dict[str, Any] = {"precision": "64-true"}


def test_first_experience_is_fine_tuning() -> None:
    first = TinyStream(1)
    assert same(learn([EWC(50.0)], stream=first).weights, learn(stream=first).weights)


# -- the penalty -------------------------------------------------------------------------------------------------------


class Before(Callback):
    """Keeps the gradients before EWC's turn, and weights and Fisher of each experience by an own pass."""

    def __init__(self) -> None:
        self.terms: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
        self.grads: dict[str, Tensor] = {}

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.grads = {name: p.grad.clone() for name, p in pl_module.named_parameters()}

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        x, y = samples(train=True)
        here = torch.isin(y, torch.tensor(trainer.datamodule.classes[trainer.datamodule.current]))
        sums, count = squared_scores(pl_module, [(scaled(x[here]), y[here])])
        weights = {name: p.detach().clone() for name, p in pl_module.named_parameters()}
        self.terms.append((weights, {name: value / count for name, value in sums.items()}))


class After(Callback):
    """Compares what EWC added with the gradient of the penalty, written as a sum over experiences."""

    def __init__(self, before: Before, factors: Any, strength: float, anchors: str) -> None:
        self.before, self.factors, self.strength, self.anchors = before, factors, strength, anchors
        self.steps, self.largest = 0, 0.0

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        terms = self.before.terms
        leaves = {name: p.detach().clone().requires_grad_() for name, p in pl_module.named_parameters()}
        penalty = torch.zeros((), dtype=torch.float64)
        for factor, (weights, fisher) in zip(self.factors(len(terms)), terms, strict=True):
            anchor = weights if self.anchors == "own" else terms[-1][0]
            for name, w in leaves.items():
                penalty = penalty + factor * self.strength / 2 * (fisher[name] * (w - anchor[name]) ** 2).sum()
        if terms:
            penalty.backward()
            for name, p in pl_module.named_parameters():
                added = p.grad - self.before.grads[name]
                torch.testing.assert_close(added, leaves[name].grad, rtol=0, atol=1e-12)
                self.largest = max(self.largest, added.abs().max().item())
            self.steps += 1


MODES = {
    "online": ({"gamma": 0.5}, lambda n: [0.5 ** (n - 1 - t) for t in range(n)], "last"),
    "separate": ({}, lambda n: [1.0] * n, "own"),
    "mixed": ({"alpha": 0.3}, lambda n: [0.3 ** (n - 1 - t) * (1.0 if t == 0 else 0.7) for t in range(n)], "last"),
}


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("mode", MODES)
def test_gradient_is_that_of_the_penalty(mode: Any, accumulate: int) -> None:
    arguments, factors, anchors = MODES[mode]
    before = Before()
    after = After(before, factors, 3.0, anchors)
    callbacks = [before, EWC(3.0, mode=mode, **arguments), after]
    learn(callbacks, seeded(drop=0.0), TinyStream(4, batch_size=4), accumulate_grad_batches=accumulate, **DOUBLE)
    assert after.steps == 3 * 2 * (3 if accumulate == 1 else 2)
    assert after.largest > 1e-3


def test_each_optimizer_adds_to_its_own_weights_only() -> None:
    class Two(Net):
        """Steps twice by hand; the second half keeps its gradient from the first step on."""

        def __init__(self) -> None:
            super().__init__(drop=0.0)
            self.automatic_optimization = False

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(self.net[i].parameters(), lr=0.1) for i in (1, 4)]

        def training_step(self, batch: Any, batch_idx: int) -> None:
            self.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            first, second = self.optimizers()
            kept = self.net[4].weight.grad.clone()
            first.step()
            assert torch.equal(self.net[4].weight.grad, kept)
            second.step()
            changed.append(not torch.equal(self.net[4].weight.grad, kept))

    changed: list[bool] = []
    learn_plain([EWC(3.0)], seeded(Two))
    assert changed == [False] * 6 + [False] + [True] * 5  # the anchor is the first weights of the second task


# -- the Fisher pass ---------------------------------------------------------------------------------------------------


class Normed(Net):
    """Has batch norm and dropout, and a part that stays in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.net.insert(1, nn.BatchNorm1d(64))
        self.register_buffer("extra", torch.zeros(3))

    def on_train_epoch_start(self) -> None:
        self.net[4].eval()


class Snapshot(Callback):
    """Notes all that a pass might change, at the end of training."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    @property
    def state_key(self) -> str:
        return f"Snapshot{id(self)}"

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        weights = {name: value.clone() for name, value in pl_module.state_dict().items()}
        grads = {name: None if p.grad is None else p.grad.clone() for name, p in pl_module.named_parameters()}
        requires = [p.requires_grad for p in pl_module.parameters()]
        modes = [child.training for child in pl_module.modules()]
        optimizer = trainer.optimizers[0].state_dict()["state"]
        momentum = {k: {n: v.clone() for n, v in state.items()} for k, state in optimizer.items()}
        self.seen.append((weights, grads, requires, modes, momentum, get_rng_state(), torch.is_grad_enabled()))


@pytest.mark.filterwarnings("ignore:Found 1 module.s. in eval mode at the start of training")
@pytest.mark.parametrize("how", [learn, learn_plain])
@pytest.mark.parametrize("estimator", ["empirical", "sampled", "batch_mean"])
def test_the_pass_leaves_everything_as_it_was(how: Any, estimator: Any) -> None:
    before, ewc, after = Snapshot(), EWC(1.0, estimator), Snapshot()
    how([before, ewc, after], seeded(Normed))
    assert len(before.seen) == 2
    assert [modes.count(False) for _, _, _, modes, *_ in before.seen] == [1, 1]
    assert same(after.seen, before.seen)
    assert len(ewc.anchor.importance) == 6


@pytest.mark.parametrize("size", [5, 24])
def test_importance_is_a_mean_over_samples(size: int) -> None:
    ewc, module = EWC(1.0), seeded(drop=0.0)
    stream = TinyStream(1, eval_batch_size=size)
    learn([ewc], module, stream, **DOUBLE)
    x, y = samples(train=True)
    expected = {name: torch.zeros_like(p) for name, p in module.named_parameters()}
    for n in range(48):
        module.zero_grad()
        nn.functional.cross_entropy(module(scaled(x[n : n + 1])), y[n : n + 1]).backward()
        for name, p in module.named_parameters():
            expected[name] += p.grad**2 / 48
    torch.testing.assert_close(ewc.anchor.importance, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("estimator", ["exact", "predicted", "batch_mean", "batch_scaled"])
def test_importance_is_by_the_estimator(estimator: Any) -> None:
    ewc, module = EWC(1.0, estimator), seeded(drop=0.0)
    learn([ewc], module, TinyStream(1, eval_batch_size=12), **DOUBLE)
    x, y = samples(train=True)
    sums, count = squared_scores(module, zip(scaled(x).split(12), y.split(12), strict=True), estimator)
    expected = {name: value / count for name, value in sums.items()}
    torch.testing.assert_close(ewc.anchor.importance, expected, rtol=1e-9, atol=1e-12)


def expected_importance(module: Any, stream: Any, x: Tensor, y: Tensor, **kwargs: Any) -> dict[str, Tensor]:
    sums, count = squared_scores(module, [(scaled(x), y)], **kwargs)
    return {name: value / count for name, value in sums.items()}


def test_with_task_labels_the_rows_of_other_tasks_have_no_importance() -> None:
    ewc, module, (x, y) = EWC(1.0, "exact", gamma=0.0), seeded(drop=0.0), samples(train=True)
    learn([ewc], module, TinyStream(task_labels=True), **DOUBLE)
    here, importance = y >= 2, ewc.anchor.importance
    expected = expected_importance(module, None, x[here], y[here] - 2, estimator="exact", logits=lambda z: z[:, 2:])
    torch.testing.assert_close(importance["net.1.weight"], expected["net.1.weight"], rtol=1e-9, atol=1e-15)
    assert not importance["net.4.weight"][:2].any()
    assert importance["net.4.weight"][2:].any()


@pytest.mark.parametrize("classes", ["all", "seen", "current"])
def test_classes_that_compete(classes: Any) -> None:
    ewc, module, (x, y) = EWC(1.0, gamma=0.0, classes=classes), seeded(drop=0.0, lr=0.02), samples(train=True)
    stream = TinyStream(4)
    learn([ewc], module, stream, max_steps=3, **DOUBLE)
    ends = {"all": slice(0, 4), "seen": slice(0, 4), "current": slice(3, 4)}[classes]
    here = y == 3
    expected = expected_importance(module, stream, x[here], y[here] - (ends.start or 0), logits=lambda z: z[:, ends])
    torch.testing.assert_close(ewc.anchor.importance, expected, rtol=1e-9, atol=1e-15)
    assert bool(expected["net.1.weight"].any()) == (classes != "current"), "one class alone is certain"


def test_only_some_parameters_and_samples() -> None:
    ewc, module, stream = EWC(1.0, parameters=["net.4"], samples=10), seeded(drop=0.0), TinyStream(1)
    learn([ewc], module, stream, **DOUBLE)
    x, y = (torch.cat(column) for column in zip(*stream.statistics_dataloader(10), strict=True))
    assert len(x) == 10
    expected = expected_importance(module, stream, x, y, parameters=["net.4.weight", "net.4.bias"])
    torch.testing.assert_close(ewc.anchor.importance, expected, rtol=1e-9, atol=1e-15)
    assert ewc.anchor.anchor.keys() == expected.keys()


def test_the_penalty_is_computed_and_logged_at_the_steps_that_are_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed, penalty = [], QuadraticAnchor.penalty
    monkeypatch.setattr(QuadraticAnchor, "penalty", lambda *args: (computed.append(args), penalty(*args))[1])
    first, second = EWC(2.0), EWC(3.0)
    learn([first, second], max_epochs=1, logger=RunLogger(tmp_path), enable_checkpointing=True, log_every_n_steps=2)
    rows = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    logged = {int(row["step"]): row for row in rows if row.get("penalty/EWC")}
    assert sorted(logged) == [3, 5], "3 steps per experience, and no penalty in the first"
    assert len(computed) == 2 * 2
    values = {name: float(logged[5][name]) for name in ("penalty/EWC", "penalty/EWC_2")}
    assert values["penalty/EWC_2"] == pytest.approx(1.5 * values["penalty/EWC"], rel=1e-5)
    assert values["penalty/EWC"] > float(logged[3]["penalty/EWC"]) >= 0


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_no_pass_at_strength_0(strength: float, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[Any] = []
    monkeypatch.setattr(
        ewc_module, "squared_scores", lambda *args, **kw: (passes.append(args), squared_scores(*args, **kw))[1]
    )
    learn([EWC(strength)])
    assert len(passes) == (2 if strength else 0)


def test_batches_of_another_form_are_unpacked() -> None:
    class Odd(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch["pair"], batch_idx)

    loader = PlainData().train_dataloader()
    default = loader.collate_fn
    loader.collate_fn = lambda items: {"pair": default(items)}
    ewc = EWC(unpack=lambda batch: batch["pair"])
    trainer([ewc], max_epochs=1).fit(seeded(Odd), loader)
    assert ewc.anchor.importance
    with pytest.raises(TypeError, match="`unpack`"):
        trainer([EWC()], max_epochs=1).fit(seeded(Odd), loader)


# -- arguments and state -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "other",
    [{"strength": 3.0}, {"strength": 2.0, "estimator": "batch_mean"}, {"strength": 2.0, "mode": "separate"}],
)
def test_a_state_is_of_its_arguments(other: dict[str, Any], tmp_path: Path) -> None:
    """A strength means nothing without its estimator: a run does not go on under other ones."""
    files = {"logger": RunLogger(tmp_path), "enable_checkpointing": True}
    learn([EWC(2.0)], max_epochs=1, **files)
    with pytest.raises(CheckpointError, match=r"EWC.*'strength': '2.0'.* and this run has EWC"):
        fit_stream(trainer([EWC(**other)], max_epochs=1), seeded(), TinyStream(), tmp_path / "last.ckpt")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strength": -0.5}, "`strength` must be 0 or more, got -0.5"),
        ({"strength": float("nan")}, "`strength` must be 0 or more, got nan"),
        ({"estimator": "fisher"}, "`estimator` must be one of .*empirical.*, got 'fisher'"),
        ({"samples": 0}, "`samples` must be 1 or more, or None for all, got 0"),
        ({"classes": "old"}, "`classes` must be None or one of .*'seen'.*, got 'old'"),
        ({"mode": "offline"}, "`mode` must be one of .*online.*, got 'offline'"),
        ({"gamma": 1.5}, r"`gamma` must be in \[0, 1\], got 1.5"),
        ({"alpha": -1.0}, r"`alpha` must be in \[0, 1\], got -1.0"),
    ],
)
def test_errors(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EWC(**arguments)
