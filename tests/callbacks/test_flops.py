"""FLOPs: numbers by hand, and that nothing else changes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.flop_counter import FlopCounterMode

from lightning_cl import RunLogger
from lightning_cl.callbacks import EWC, Replay
from lightning_cl.callbacks.monitors.flops import FlopsMeter, _shapes
from lightning_cl.importance import squared_scores
from lightning_cl.methods import Classifier
from lightning_cl.utilities import get_rng_state
from tests.helpers.contracts import LIGHTNINGS_OWN_WARNINGS, Net, TinyStream, learn, learn_plain, same, samples, seeded

pytestmark = LIGHTNINGS_OWN_WARNINGS
FORWARD = 2 * (64 * 12 + 12 * 4)
"""Of one sample in ``Net``: a multiplication and an addition for each weight."""
UPDATE = FORWARD + 2 * (64 * 12 + 2 * 12 * 4)
"""And backward: the gradient of each weight, and that of the second layer's input."""
TRAINED = 2 * 2 * 24
"""Presentations of samples: experiences, epochs, samples."""


class NetWithValidation(Net):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0])


@pytest.mark.parametrize("how", [learn, learn_plain])
@pytest.mark.parametrize("setting", [{}, {"accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}])
def test_updates_are_counted(how: Any, setting: dict[str, Any]) -> None:
    meter = FlopsMeter()
    how([meter], **setting)
    assert meter.flops == {"train": TRAINED * UPDATE, "eval": 0}


@pytest.mark.parametrize("count_eval", [False, True])
@pytest.mark.parametrize("how", [learn, learn_plain])
def test_training_is_bit_identical(how: Any, count_eval: bool) -> None:
    plain, rng = how().weights, get_rng_state()
    assert same(how([FlopsMeter(count_eval)]).weights, plain)
    assert same(get_rng_state(), rng)


@pytest.mark.parametrize("meter_first", [True, False])
def test_batches_are_counted_as_training_step_gets_them(meter_first: bool) -> None:
    """From the second batch on Replay, with a memory of any size, doubles each."""
    meter = FlopsMeter()
    learn([meter, Replay(capacity=10)] if meter_first else [Replay(capacity=10), meter])
    assert meter.flops["train"] == (2 * TRAINED - 8) * UPDATE


def test_only_the_first_step_of_each_shape_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[int] = []
    enter = FlopCounterMode.__enter__
    monkeypatch.setattr(FlopCounterMode, "__enter__", lambda self: (entered.append(1), enter(self))[1])
    meter = FlopsMeter()
    learn([meter], stream=TinyStream(batch_size=10))  # batches of 10, 10 and 4
    assert len(entered) == 2 * 2
    assert meter.flops["train"] == TRAINED * UPDATE


class Projection(Callback):
    """Multiplies two matrices before each optimizer step."""

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        torch.eye(10) @ torch.eye(10)


def test_work_on_the_gradient_is_counted_with_the_steps_that_have_it() -> None:
    """Of the three batches of an epoch two are accumulated."""
    meter = FlopsMeter()
    run = learn([meter, Projection()], accumulate_grad_batches=2)
    assert run.trainer.global_step == 8
    assert meter.flops["train"] == TRAINED * UPDATE + 8 * 2 * 10**3


def test_convolutions_are_counted_as_by_hand() -> None:
    """The meter's own measure against the formula for a convolution of 3x3 without padding on 8x8 pixels."""
    meter = FlopsMeter()
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 5, 3), torch.nn.Flatten(), torch.nn.Linear(5 * 36, 4))
    learn([meter], Classifier(4, net))
    assert meter.flops["train"] == TRAINED * 2 * (2 * 36 * 9 * 5 + 3 * 180 * 4)


def test_evaluation_is_counted_apart() -> None:
    """Two epochs of validation on 6 samples, then a test on 8 and 16; the sanity check is none of it."""
    meter = FlopsMeter(count_eval=True)
    learn([meter], seeded(NetWithValidation), TinyStream(val_fraction=0.25), num_sanity_val_steps=2)
    assert meter.flops["train"] == 2 * 2 * 18 * UPDATE
    assert meter.flops["eval"] == (2 * 2 * 6 + 8 + 16) * FORWARD


def test_consolidation_is_evaluation() -> None:
    x, y = samples(train=True)
    with FlopCounterMode(display=False) as counter:
        for half in (0, 1):
            squared_scores(seeded(), [(x[y // 2 == half] / 255, y[y // 2 == half])])
    meter, without = FlopsMeter(count_eval=True), FlopsMeter(count_eval=True)
    learn([without])
    learn([meter, EWC(1.0)])
    assert meter.flops["train"] == without.flops["train"] == TRAINED * UPDATE
    assert meter.flops["eval"] - without.flops["eval"] == counter.get_total_flops() > 0


def test_count_does_not_depend_on_validation() -> None:
    often, never = FlopsMeter(), FlopsMeter()
    learn(
        [often], seeded(NetWithValidation), TinyStream(val_fraction=0.25), val_check_interval=1, num_sanity_val_steps=2
    )
    learn([never], stream=TinyStream(val_fraction=0.25), limit_val_batches=0)
    assert often.flops == never.flops


@pytest.mark.parametrize("checkpoint", ["*step=3.ckpt", "*step=6.ckpt", "experience_0.ckpt", "*step=11.ckpt"])
def test_count_survives_a_resume(checkpoint: str, tmp_path: Path) -> None:
    def run(folder: Path, ckpt_path: Path | None) -> FlopsMeter:
        meter, saver = FlopsMeter(count_eval=True), ModelCheckpoint(every_n_train_steps=1, save_top_k=-1)
        stream = TinyStream(val_fraction=0.25)
        options: dict[str, Any] = {"logger": RunLogger(folder), "enable_checkpointing": True, "log_every_n_steps": 1}
        learn([meter, EWC(1.0), saver], seeded(NetWithValidation), stream, ckpt_path=ckpt_path, **options)
        return meter

    whole = run(tmp_path / "whole", None)
    path = next((tmp_path / "whole").rglob(checkpoint))
    saved = torch.load(path, weights_only=True)["callbacks"][whole.state_key]["flops"]
    assert 0 < saved["train"] < whole.flops["train"]
    assert run(tmp_path / "again", path).flops == whole.flops


def test_totals_are_logged(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path)
    meter = FlopsMeter(count_eval=True)
    learn([meter], logger=logger, enable_checkpointing=True, log_every_n_steps=1)
    rows = [row for row in logger._read() if row.get("flops/train")]
    assert [int(row["flops/train"]) for row in rows] == [k * 24 * UPDATE for k in (1, 2, 3, 4)]
    assert [int(row["step"]) for row in rows] == [3, 6, 9, 12]
    assert [int(row["flops/eval"]) for row in logger._read() if row.get("flops/eval")] == [8 * FORWARD, 24 * FORWARD]


@pytest.mark.parametrize("fails", ["training_step", "test_step"])
def test_nothing_is_left_behind_after_an_error(fails: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Any, batch: Any, batch_idx: int) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(Net, fails, fail, raising=False)
    meters = [FlopsMeter(count_eval=True), FlopsMeter()]
    strategies: list[Any] = []
    monkeypatch.setattr(meters[1], "check", lambda trainer, module: strategies.append(trainer))
    with pytest.raises(RuntimeError, match="broken"):
        learn(meters)
    run = strategies[0]
    loop = run.fit_loop.epoch_loop
    for owner, name in ((loop.automatic_optimization, "run"), (run.strategy, "test_step"), (meters[1], "consolidate")):
        assert name not in vars(owner)


def test_shapes_of_nested_batches() -> None:
    x = torch.zeros(2, 3)
    assert _shapes({"a": [x, (x[0], "text")], "b": None}) == ((2, 3), (3,))
    assert _shapes(((), 7)) == ()
