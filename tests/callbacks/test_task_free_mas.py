"""Task-free MAS against the published algorithm as a plain loop, and what its further steps must leave right."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from lightning_cl import RunLogger
from lightning_cl.callbacks.regularization.task_free_mas import TaskFreeMAS
from tests.helpers.contracts import (
    LIGHTNINGS_OWN_WARNINGS,
    Net,
    PlainData,
    TinyStream,
    jitter,
    learn,
    same,
    samples,
    scaled,
    seeded,
    trainer,
)

pytestmark = LIGHTNINGS_OWN_WARNINGS
DOUBLE: dict[str, Any] = {"precision": "64-true"}
OFTEN: dict[str, Any] = {"hard_samples": 4, "window": 2, "max_mean": 1.5, "max_variance": 0.1}


def online(**kwargs: Any) -> TinyStream:
    return TinyStream(boundaries=False, **kwargs)


class ByHand:
    """The algorithm as a loop, with the penalty in the loss."""

    def __init__(self, strength: float, updates: int) -> None:
        self.net = seeded(drop=0.0).double()
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.2, momentum=0.5)
        self.strength, self.updates = strength, updates
        self.hard: list[Tensor] = []
        self.window: list[float] = []
        self.omegas: list[list[Tensor]] = []
        self.anchor: list[Tensor] = []
        self.risen, self.last = True, 0.0

    def penalty(self) -> Any:
        terms = zip(self.omega(), self.net.parameters(), self.anchor, strict=True) if self.omegas else ()
        return self.strength / 2 * sum((omega * (w - a) ** 2).sum() for omega, w, a in terms)

    def omega(self) -> list[Tensor]:
        return [torch.stack(parts).mean(0) for parts in zip(*self.omegas, strict=True)]

    def batch(self, x: Tensor, y: Tensor) -> None:
        x, y = (torch.cat(pair) for pair in zip((x, y), self.hard, strict=True)) if self.hard else (x, y)
        for step in range(self.updates):
            loss = F.cross_entropy(self.net(scaled(x)), y)
            self.window = [*self.window, loss.item()][-2:] if step == 0 else self.window
            self.optimizer.zero_grad()
            (loss + self.penalty()).backward()
            self.optimizer.step()
        mean, variance = np.mean(self.window), np.var(self.window)
        if len(self.window) == 2:
            self.risen = self.risen or mean > self.last
            if self.risen and mean < OFTEN["max_mean"] and variance < OFTEN["max_variance"]:
                self.consolidate()
                self.risen, self.last = False, mean + variance**0.5
        hardest = F.cross_entropy(self.net(scaled(x)), y, reduction="none").argsort(descending=True)[:4]
        self.hard = [x[hardest], y[hardest]]

    def consolidate(self) -> None:
        total = [torch.zeros_like(p) for p in self.net.parameters()]
        for x in self.hard[0].split(1):
            grads = torch.autograd.grad(self.net(scaled(x)).norm(), list(self.net.parameters()))
            total = [value + g.abs() for value, g in zip(total, grads, strict=True)]
        self.omegas.append(total)
        self.anchor = [p.detach().clone() for p in self.net.parameters()]


@pytest.mark.parametrize("updates", [1, 3])
def test_weights_are_those_of_the_published_algorithm(updates: int) -> None:
    by_hand = ByHand(0.5, updates)
    for x, y in online(batch_size=4).train_dataloader():
        by_hand.batch(x, y)
    callback, module = TaskFreeMAS(0.5, updates_per_batch=updates, **OFTEN), seeded(drop=0.0)
    learn([callback], module, online(batch_size=4), max_epochs=1, **DOUBLE)
    assert callback.consolidations == len(by_hand.omegas) >= 2
    close = {"rtol": 1e-9, "atol": 1e-12}
    torch.testing.assert_close(list(module.parameters()), list(by_hand.net.parameters()), **close)
    torch.testing.assert_close(list(callback.anchor.importance.values()), by_hand.omega(), **close)
    torch.testing.assert_close(list(callback.anchor.anchor.values()), by_hand.anchor, **close)
    assert same(list(callback.hard.values()), by_hand.hard)
    assert callback.hard["0"].dtype == torch.uint8


# -- steps that Lightning does not take by itself ----------------------------------------------------------------------


class Watch(Callback):
    """What others see: losses that are logged, steps, and batches."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.sizes: list[int] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.steps.append(trainer.global_step)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.sizes.append(len(batch[0]))


class Logging(Net):
    """Logs the loss by hand and by Lightning, and has a learning rate that changes with each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.losses.append(loss.item() * len(batch[0]))
        self.log("loss", loss, on_epoch=True, batch_size=len(batch[0]))
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def test_further_steps_are_steps_to_everybody() -> None:
    watch, module = Watch(), seeded(Logging)
    run = trainer([TaskFreeMAS(0.5, updates_per_batch=3, **OFTEN), watch], max_epochs=1)
    run.fit(module, datamodule=online())
    assert watch.steps == list(range(18))
    assert watch.sizes == [8] + [12] * 5
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.2 * 0.9**6)
    mean = sum(module.losses) / sum(3 * size for size in watch.sizes)
    assert run.callback_metrics["loss_epoch"].item() == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize("limit", [4, 6])
def test_max_steps_is_kept(limit: int) -> None:
    run = trainer([TaskFreeMAS(0.5, updates_per_batch=3)], max_epochs=1, max_steps=limit)
    run.fit(seeded(), datamodule=online())
    assert run.global_step == limit


def test_killed_between_batches_goes_on(tmp_path: Path) -> None:
    made: list[TaskFreeMAS] = []

    def run(folder: Path, ckpt_path: Path | None) -> Any:
        made.append(TaskFreeMAS(0.5, updates_per_batch=3, **OFTEN))
        often = ModelCheckpoint(every_n_train_steps=6, save_top_k=-1)
        files = {"logger": RunLogger(folder), "enable_checkpointing": True, "log_every_n_steps": 1}
        return learn([made[-1], often], seeded(Logging), online(augment=jitter), ckpt_path, **files)

    whole = run(tmp_path / "whole", None)
    for step in (6, 24):
        again = run(tmp_path / f"again{step}", next((tmp_path / "whole").rglob(f"*step={step}.ckpt")))
        assert same(again.weights, whole.weights)
        assert same(made[-1].state_dict(), made[0].state_dict())
        assert again.trainer.global_step == whole.trainer.global_step == 36


# -- the hard samples --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make_data", [TinyStream, PlainData])
def test_hard_samples_are_the_hardest_of_the_loader(make_data: Any) -> None:
    """Also with another instance, whose samples stand in the batch; and none of them twice in one epoch."""
    first, second = (TaskFreeMAS(0.5, hard_samples=n, updates_per_batch=1) for n in (3, 5))
    trainer([first, second], max_epochs=1).fit(seeded(drop=0.0, lr=0.0), datamodule=make_data())
    x, y = samples(train=True)
    x = x[y < 2]
    losses = F.cross_entropy(seeded(drop=0.0)(scaled(x).float()), y[y < 2], reduction="none")
    for callback, count in ((first, 3), (second, 5)):
        expected = x[losses.argsort(descending=True)[:count]]
        assert same(callback.hard["0"], expected if make_data is TinyStream else expected / 255)


def test_cross_entropies_are_of_eval_mode() -> None:
    class Normed(Net):
        def __init__(self) -> None:
            super().__init__(drop=0.9)
            self.net.insert(1, nn.BatchNorm1d(64))

    hard = []
    for seed in (1, 2):
        module = seeded(Normed)
        module.net[1].momentum = 0.0
        module.lr = 0.0
        torch.manual_seed(seed)
        callback = TaskFreeMAS(0.5, updates_per_batch=1)
        trainer([callback], max_epochs=1).fit(module, datamodule=TinyStream())
        hard.append(callback.hard)
        assert module.net[1].training
    assert same(*hard)


# -- at the edges ------------------------------------------------------------------------------------------------------


def test_the_loss_is_that_of_the_module_also_when_gradients_accumulate() -> None:
    found = []
    for accumulate in (1, 2):
        callback = TaskFreeMAS(0.5, updates_per_batch=1, window=3)
        learn([callback], seeded(drop=0.0, lr=0.0), max_epochs=1, accumulate_grad_batches=accumulate)
        found.append(callback.detector.losses)
    assert found[0] == pytest.approx(found[1])
    assert min(found[0]) > 0.5


def test_consolidations_are_logged() -> None:
    callbacks = [TaskFreeMAS(strength, updates_per_batch=1, **OFTEN) for strength in (0.5, 1.0)]
    run = trainer(callbacks, max_epochs=1)
    run.fit(seeded(), datamodule=online())
    for name, callback in zip(("TaskFreeMAS", "TaskFreeMAS_2"), callbacks, strict=True):
        assert run.callback_metrics[f"consolidations/{name}"] == callback.consolidations > 0


def test_only_chosen_weights_are_anchored() -> None:
    callback = TaskFreeMAS(0.5, parameters=["^net.4"], **OFTEN)
    learn([callback], stream=online(), max_epochs=1)
    assert list(callback.anchor.anchor) == ["net.4.weight", "net.4.bias"]


class Manual(Net):
    automatic_optimization = False


@pytest.mark.parametrize(
    ("make_module", "arguments", "message"),
    [
        (Net, {"accumulate_grad_batches": 2}, "`updates_per_batch` must be 1 .* got 5: set it to 1"),
        (Manual, {}, "`automatic_optimization=False`"),
    ],
)
def test_settings_that_cannot_work_are_refused(make_module: Any, arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        learn([TaskFreeMAS()], seeded(make_module), **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hard_samples": 0}, "`hard_samples` must be 1 or more, got 0"),
        ({"updates_per_batch": 0}, "`updates_per_batch` must be 1 or more, got 0"),
        ({"window": 1}, "`window` must be 2 or more, got 1"),
    ],
)
def test_errors(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TaskFreeMAS(**arguments)
