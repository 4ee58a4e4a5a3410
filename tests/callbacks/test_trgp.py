"""Trust region gradient projection: scaled weights, chosen by related tasks, kept with the task that learned them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_cl import ClassStream, RunLogger, evaluate_stream
from lightning_cl.callbacks.projection.gpm import GPM
from lightning_cl.callbacks.projection.trgp import TRGP, ScaledForward, task_of, trust_region
from lightning_cl.subspace import project_out, scaled_weight
from tests.helpers.contracts import (
    LIGHTNINGS_OWN_WARNINGS,
    Foreign,
    Learned,
    Net,
    TinyStream,
    learn,
    learn_plain,
    same,
    seeded,
    trainer,
)

pytestmark = LIGHTNINGS_OWN_WARNINGS
DOUBLE: dict[str, Any] = {"precision": "64-true"}
TRUSTING: dict[str, Any] = {"threshold": 0.95, "eps1": 0.1, "free": []}


class Tasks(ClassStream):
    """Four tasks of two classes each, or two of four."""

    def __init__(self, num_experiences: int = 4, **kwargs: Any) -> None:
        super().__init__(8, (1, 8, 8), num_experiences, batch_size=8, seed=0, task_labels=True, **kwargs)

    def load(self, train: bool) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(int(train))
        y = torch.arange(8).repeat(8)
        x = torch.randint(0, 160, (64, 1, 8, 8), generator=generator, dtype=torch.uint8)
        x[torch.arange(64), 0, y] += 95
        return x, y


def convolutions() -> Net:
    """Convolutions, one of them with groups, and no bias."""
    first = nn.Conv2d(1, 6, 3, stride=2, padding=1, bias=False)
    second = nn.Conv2d(6, 9, 3, padding="same", groups=3, bias=False)
    return Foreign(nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), nn.Linear(144, 8, bias=False)))


def run(callback: Any, *others: Callback, stream: Any = None, **kwargs: Any) -> Learned:
    return learn([callback, *others], seeded(convolutions), stream or Tasks(), **kwargs)


class Whole(TRGP):
    """Takes no part of a weight as fixed."""

    def _fixed_parts(self, trainer: Any) -> Any:
        return {}


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_parts_that_no_step_changes_are_taken_as_fixed(optimizer: str) -> None:
    def module() -> Any:
        made = seeded(convolutions)
        if optimizer == "adam":
            made.configure_optimizers = lambda: torch.optim.AdamW(made.parameters(), lr=0.01)
        return made

    class Parts(Callback):
        seen: list[int]

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            self.seen.append(sum(map(len, trainer.callbacks[1]._insides.values())))

    parts = Parts()
    parts.seen = []
    runs = [learn([cls(**TRUSTING), parts], module(), Tasks(), **DOUBLE) for cls in (TRGP, Whole)]
    assert max(parts.seen[1:4]) > 0
    assert parts.seen[4:] == [0] * 4
    torch.testing.assert_close(runs[0].weights, runs[1].weights, rtol=1e-9, atol=1e-12)


# -- the mathematics ---------------------------------------------------------------------------------------------------


def test_two_tasks_at_most_are_trusted() -> None:
    e = torch.eye(4)[None]
    gradient = torch.tensor([[0.6, 0.5, 0.4, 0.48]])
    spaces = [e[..., :1], e[..., 2:3], e[..., 3:], e[..., 1:3], e[..., :0]]
    norms = torch.tensor([0.6, 0.4, 0.48, 0.41**0.5, 0.0]) / gradient.norm()
    for eps1, chosen in ((0.0, [0, 3]), (float(norms[0]) + 0.01, [3]), (1.0, [])):
        assert trust_region(gradient, spaces, eps1) == chosen


def test_a_layer_gets_its_forward_back_from_the_last() -> None:
    layer, x = nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), torch.randn(1, 2, 4, 4)
    plain = layer(x)
    halve, double = (lambda w: w / 2), (lambda w: 2 * w)
    for scaling in (halve, double):
        ScaledForward.install(layer, scaling)
    torch.testing.assert_close(layer(x), plain)
    ScaledForward.remove(layer, halve)
    torch.testing.assert_close(layer(x), 2 * plain - layer.bias[:, None, None])
    ScaledForward.remove(layer, double)
    ScaledForward.remove(layer, double)
    assert "forward" not in vars(layer)


# -- training ----------------------------------------------------------------------------------------------------------


def test_without_trust_it_is_gpm() -> None:
    """In two experiences: the rules by which the bases of later ones are made differ."""
    first = run(GPM(0.95, free=[]), stream=Tasks(2))
    assert same(run(TRGP(0.95, eps1=1.0, free=[]), stream=Tasks(2)).weights, first.weights)
    assert not same(run(TRGP(**TRUSTING), stream=Tasks(2)).weights, first.weights)


class Watch(Callback):
    """Looks at each step at what is trusted, and keeps weights and spaces of each experience."""

    def __init__(self, trgp: TRGP) -> None:
        self.trgp = trgp
        self.weights: list[dict[str, Tensor]] = []
        self.sizes: list[int] = []
        self.groups: list[int] = []

    def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.sizes += [len(tasks) for tasks in (self.trgp._current or {}).values()]
        self.groups.append(len(optimizer.param_groups))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.weights.append({name: p.detach().clone() for name, p in pl_module.named_parameters()})


def test_scaling_is_learned_and_old_spaces_are_kept() -> None:
    trgp = TRGP(**TRUSTING)
    watch = Watch(trgp)
    learned = run(trgp, watch, **DOUBLE)
    assert set(watch.sizes) == {1, 2}
    assert set(watch.groups) == {1}
    assert trgp.tasks == [0, 1, 2, 3]
    assert len(trgp.scales[0]) == 0 < len(trgp.scales[3])
    assert not trgp.bank.used["net.5"][3].all()  # a task has its own space, of old directions and new ones
    assert all(q.abs().max() > 1e-4 for of in trgp.scales[3].values() for q in of.values())
    assert list(learned.weights) == ["net.0.weight", "net.2.weight", "net.5.weight"]
    for task in range(3):
        for name in ("net.0", "net.2", "net.5"):
            change = watch.weights[-1][f"{name}.weight"] - watch.weights[task][f"{name}.weight"]
            space = trgp.bank.space(name, range(task + 1))
            assert (change - project_out(change, space)).abs().max() < 1e-10


def test_gradient_of_the_probe_is_that_of_the_mean_loss() -> None:
    class Probed(TRGP):
        def _choose(self, gradients: Any) -> Any:
            stream, module = self.seen
            x, y = (torch.stack([s[i] for s in stream.part(1, "train")]) for i in (0, 1))
            scores = module.eval()(x.double() * (1 / torch.tensor(255.0)))[:, list(stream.classes[1])]
            loss = nn.functional.cross_entropy(scores, y - stream.classes[1][0])
            expected = torch.autograd.grad(loss, list(module.parameters()))
            torch.testing.assert_close(list(gradients.values()), list(expected), rtol=1e-6, atol=1e-9)
            raise KeyError("reached")

        def start(self, trainer: Any, pl_module: Any) -> None:
            self.seen = trainer.datamodule, pl_module
            super().start(trainer, pl_module)

    with pytest.raises(KeyError, match="reached"):
        run(Probed(**TRUSTING, probe_samples=None), **DOUBLE)


def test_validation_does_not_change_training() -> None:
    """Nor does the sanity check, which comes before it is known what layers trust."""

    class Fixed(TRGP):
        def _choose(self, gradients: Any) -> Any:
            return [{}, {"net.0": [0]}, {"net.2": [0], "net.5": [1]}, {"net.0": [2]}][len(self.tasks)]

    class Validated(Foreign):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self(batch[0])

    def weights(**kwargs: Any) -> Any:
        module = seeded(lambda: Validated(convolutions().net))
        return learn([Fixed(**TRUSTING)], module, Tasks(val_fraction=0.25), **kwargs).weights

    assert same(weights(), weights(limit_val_batches=0))


def test_an_optimizer_that_stays_is_left_as_found() -> None:
    class Keeping(Net):
        def configure_optimizers(self) -> Any:
            self.made = self.made or [torch.optim.Adam(self.parameters())]
            return self.made[0]

    learned = learn([TRGP(**TRUSTING)], module := seeded(Keeping), TinyStream(task_labels=True))
    (optimizer,) = module.made
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in learned.module.parameters()]
    assert len(optimizer.state) == 4


# -- the task of a batch -----------------------------------------------------------------------------------------------


def test_each_task_is_predicted_with_its_own_scaling() -> None:
    trgp = TRGP(**TRUSTING)
    module = run(trgp).module
    x = torch.rand(3, 1, 8, 8)

    class Predicting(Foreign):
        def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self(batch[0])

    predicting = Predicting(module.net)
    for task in (0, 3, 7):
        loader = DataLoader([[x, x, torch.full((3,), task)]], batch_size=None)
        (found,) = trainer([trgp]).predict(predicting, loader)
        weights = module.state_dict()
        for name, of in (trgp.scales[task] if task < 4 else {}).items():
            pairs = [(trgp.bank.space(name, [j]), q, None) for j, q in of.items()]
            weights[f"{name}.weight"] = scaled_weight(weights[f"{name}.weight"], pairs)
        expected = torch.func.functional_call(module, weights, x)
        torch.testing.assert_close(found, expected)
        assert torch.equal(found, module(x)) == (task != 3)


def test_a_saved_run_is_measured_with_its_scaling(tmp_path: Path) -> None:
    files = {"logger": RunLogger(tmp_path), "enable_checkpointing": True}
    learned = run(TRGP(**TRUSTING), **files)
    measured = evaluate_stream(
        trainer([TRGP(**TRUSTING)], enable_checkpointing=True), convolutions(), Tasks(), tmp_path / "last.ckpt"
    )
    assert torch.equal(measured, learned.result.accuracy_matrix[-1])


@pytest.mark.parametrize("batch", [[torch.zeros(2), torch.zeros(2)], {"x": torch.zeros(2)}])
def test_a_batch_without_task_is_refused(batch: Any) -> None:
    with pytest.raises(ValueError, match=r"TRGP needs batches of one task, .* got none: take the loaders of a stream"):
        task_of(batch, "TRGP")


def test_the_task_of_a_batch() -> None:
    assert task_of({"task": torch.tensor([2, 2])}, "TRGP") == task_of((None, None, 2), "TRGP") == 2
    with pytest.raises(ValueError, match=r"got \[1, 2\]"):
        task_of([None, None, torch.tensor([2, 1])], "TRGP")


# -- arguments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [learn, learn_plain])
def test_needs_task_labels(how: Any) -> None:
    with pytest.raises(ValueError, match=r"TRGP must know the task of each sample.*`task_labels=True`"):
        how([TRGP()])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eps1": -0.1}, "`eps1` must be 0 or more, got -0.1"),
        ({"probe_samples": 0}, "`probe_samples` must be 1 or more, or None for all, got 0"),
    ],
)
def test_errors(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TRGP(**arguments)
