"""FPF: which tensors move and which do not, the optimum that it reaches, and the measure over a run."""

import copy
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_cl import RunLogger
from lightning_cl.callbacks import FPF, Replay
from lightning_cl.finetuning import parameter_change
from lightning_cl.utilities import get_rng_state
from tests.helpers.contracts import (
    CALLBACKS,
    LIGHTNINGS_OWN_WARNINGS,
    TinyStream,
    learn,
    learn_plain,
    resnet,
    same,
    scaled,
    seeded,
)

pytestmark = LIGHTNINGS_OWN_WARNINGS


@pytest.fixture(autouse=True)
def _its_memory_is_given_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer of the contracts would add one."""
    monkeypatch.delitem(CALLBACKS, "FPF", raising=False)
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")


class Around(Callback):
    """Notes the state at the end of each experience, and what may not change then."""

    def __init__(self) -> None:
        self.states: list[dict[str, Tensor]] = []
        self.others: list[Any] = []

    @property
    def state_key(self) -> str:
        return f"Around{id(self)}"

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.states.append({name: value.clone() for name, value in pl_module.state_dict().items()})
        grads = [None if p.grad is None else p.grad.clone() for p in pl_module.parameters()]
        requires = [p.requires_grad for p in pl_module.parameters()]
        modes = [child.training for child in pl_module.modules()]
        counters = (trainer.global_step, trainer.current_epoch, trainer.lr_scheduler_configs[0].scheduler.state_dict())
        optimizer = copy.deepcopy(trainer.optimizers[0].state_dict())
        self.others.append((grads, requires, modes, counters, optimizer, get_rng_state(), torch.is_grad_enabled()))


def scheduled() -> Any:
    module = resnet()
    made = module.configure_optimizers

    def configure() -> Any:
        optimizer = made()
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]

    module.configure_optimizers = configure  # type: ignore[method-assign]
    return module


def phase(arguments: dict[str, Any], **kwargs: Any) -> tuple[Around, Around]:
    """What was before and after the phases of a run."""
    before, after = Around(), Around()
    learn([before, FPF(steps=3, **arguments), after, Replay(10)], seeded(scheduled), max_epochs=1, **kwargs)
    return before, after


@pytest.mark.parametrize("bn_stats", ["update", "freeze"])
def test_only_the_chosen_layers_move(bn_stats: Any) -> None:
    before, after = phase({"modules": ["bn1", "head"], "bn_stats": bn_stats})
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    for old, new in zip(before.states, after.states, strict=True):
        for name in old:
            chosen = ".bn1." in name or name.startswith("net.fc.")
            moves = chosen and not (bn_stats == "freeze" and name.endswith(statistics))
            assert torch.equal(new[name], old[name]) != moves, name


def test_all_else_is_left_as_it_was() -> None:
    before, after = phase({})
    assert not same(after.states, before.states)
    assert same(after.others, before.others)
    assert before.others[0][4]["state"], "there is momentum"


@pytest.mark.parametrize("off", [{"steps": 0}, {"batch_size": 0}])
@pytest.mark.parametrize("how", [learn, learn_plain])
def test_off_is_the_training_without_it(off: dict[str, int], how: Any) -> None:
    alone = how([Replay(10)]).weights
    rng = get_rng_state()
    assert same(how([FPF(**off), Replay(10)]).weights, alone)
    assert same(get_rng_state(), rng)


def test_an_empty_memory_changes_nothing() -> None:
    class Keeps(Replay):
        def offer(self, *args: Any) -> None: ...

    assert same(learn([Keeps(10), FPF()]).weights, learn().weights)


# -- when it acts, and on what -----------------------------------------------------------------------------------------


def acted(callback: FPF, **kwargs: Any) -> list[bool]:
    """After which experiences the weights were others than before."""
    before, after = Around(), Around()
    learn([before, callback, after, Replay(10)], seeded(scheduled), **{"max_epochs": 1, **kwargs})
    return [not same(new, old) for old, new in zip(before.states, after.states, strict=True)]


def test_at_the_end_of_each_experience_or_of_the_stream() -> None:
    assert acted(FPF(steps=1)) == [True, True]
    assert acted(FPF(steps=1, when="stream")) == [False, True]


def test_the_draws_of_the_replay_are_its_own() -> None:
    alone, beside = Replay(10), Replay(10)
    learn([alone])
    learn([FPF(steps=3), beside])
    assert same(beside.state_dict(), alone.state_dict())


def test_each_phase_draws_its_own() -> None:
    callback, seeds = FPF(), []
    callback.finetuning = SimpleNamespace(run=lambda *args: seeds.append(args[-1]))  # type: ignore[assignment]
    learn([callback, Replay(10)], max_epochs=1)
    assert len(set(seeds)) == 2


def test_the_loss_on_the_memory_falls() -> None:
    class Losses(Around):
        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            x, y = replay.memory.items["0"], replay.memory.items["1"]
            losses.append(F.cross_entropy(pl_module.eval()(scaled(x)), y).item())
            pl_module.train()

    losses: list[float] = []
    replay = Replay(20)
    learn([replay, Losses(), FPF(steps=50, lr=0.1), Losses()], precision="64-true", max_epochs=1)
    assert losses[1] < losses[0]
    assert losses[3] < losses[2]


# -- the measure -------------------------------------------------------------------------------------------------------


class Epochs(Around):
    """The state at the start of each experience and at the end of each epoch."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_end(trainer, pl_module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None: ...


def test_the_layers_that_move_most_when_the_task_changes_are_chosen() -> None:
    epochs, callback = Epochs(), FPF(None, top=2, steps=1)
    learn([Replay(10), epochs, callback], seeded(scheduled), TinyStream(4), max_epochs=3)
    tensors = [{n: v for n, v in state.items() if v.is_floating_point()} for state in epochs.states]
    changes = [parameter_change(a, b) for a, b in pairwise(tensors)]
    switch, within = [changes[i] for i in (4, 8, 12)], [changes[i] for i in (5, 6, 9, 10, 13, 14)]
    for name, ratio in callback.sensitivity.items():
        expected = sum(c[name] for c in switch) / 3 / (sum(c[name] for c in within) / 6)
        assert ratio == pytest.approx(expected, rel=1e-9)
    assert callback.sensitivity.keys() >= {
        "net.conv1",
        "net.bn1",
        "net.bn1.running_mean",
        "net.bn1.running_var",
        "net.fc",
    }
    assert list(callback.sensitivity.values()) == sorted(callback.sensitivity.values(), reverse=True)
    assert len(callback._chosen()) == 2


def test_before_it_is_measured_norm_and_head_are_taken() -> None:
    callback = FPF(None, steps=1)
    learn([Replay(10), callback], seeded(scheduled), TinyStream(1))
    assert not callback.sensitivity
    assert list(callback._chosen()) == ["norm", "head"]


def test_one_epoch_is_too_few_to_measure() -> None:
    with pytest.raises(ValueError, match=r"`modules=None` measures in 2 epochs .* got 1"):
        learn([Replay(10), FPF(None)], max_epochs=1)


def test_the_measure_is_logged(tmp_path: Path) -> None:
    callback = FPF(None, top=1, steps=1)
    learn([Replay(10), callback], logger=RunLogger(tmp_path))
    name = next(iter(callback.sensitivity))
    assert f"sensitivity/{name}" in (tmp_path / "metrics.csv").read_text().splitlines()[0]


@pytest.mark.parametrize("checkpoint", ["*step=2.ckpt", "*step=3.ckpt", "experience_0.ckpt", "*step=10.ckpt"])
def test_a_measure_that_was_interrupted_goes_on(checkpoint: str, tmp_path: Path) -> None:
    def run(folder: Path, ckpt_path: Any) -> Any:
        made.append(FPF(None, top=1, steps=2))
        callbacks = [Replay(10), made[-1], ModelCheckpoint(every_n_train_steps=1, save_top_k=-1)]
        files = {"logger": RunLogger(folder), "enable_checkpointing": True, "log_every_n_steps": 1}
        return learn(callbacks, seeded(resnet), ckpt_path=ckpt_path, **files)

    made: list[FPF] = []
    whole = run(tmp_path / "whole", None)
    again = run(tmp_path / "again", next((tmp_path / "whole").rglob(checkpoint)))
    assert same(dict(again.module.state_dict()), dict(whole.module.state_dict()))
    assert same(made[1].state_dict(), made[0].state_dict())


# -- arguments ---------------------------------------------------------------------------------------------------------


def test_without_a_memory_it_is_refused() -> None:
    with pytest.raises(ValueError, match=r"FPF needs the memory of a replay callback: .*`callbacks`"):
        learn([FPF()])


def test_the_end_of_a_stream_needs_a_stream() -> None:
    with pytest.raises(ValueError, match="`when='stream'` needs a StreamDataModule"):
        learn_plain([Replay(10), FPF(when="stream")])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"top": 0}, "`top` must be 1 or more, got 0"),
        ({"steps": -1}, "`steps` must be 0 or more, got -1"),
        ({"batch_size": -1}, "`batch_size` must be 0 or more, got -1"),
        ({"lr": float("nan")}, "`lr` must be 0 or more, got nan"),
        ({"bn_stats": "keep"}, "`bn_stats` must be one of .*'freeze'.*, got 'keep'"),
        ({"when": "epoch"}, "`when` must be one of .*'stream'.*, got 'epoch'"),
    ],
)
def test_errors(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FPF(**arguments)


def test_layers_that_are_not_there_are_named() -> None:
    with pytest.raises(ValueError, match=r"`modules`: \['layer9'\] must select at least one layer of net.1, net.4"):
        learn([Replay(10), FPF(modules=["layer9"])])
