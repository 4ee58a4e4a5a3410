"""What a resumed epoch logs at its end, does at its last batch, and leaves in the loops."""

import shutil
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torchmetrics import MeanMetric

from lightning_cl import RunLogger, StreamDataModule, TensorData, fit_stream
from lightning_cl.resume import finish_last_batch

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


class Stream(StreamDataModule):
    """Two experiences of three batches, the last of two samples."""

    def __init__(self) -> None:
        super().__init__([(0, 1), (2, 3)], 4, (4,), batch_size=4, seed=0, val_fraction=0.2)

    def dataset(self, experience: int, train: bool) -> TensorData:
        y = torch.tensor(self.classes[experience]).repeat(6)
        return TensorData(torch.eye(4)[y] + torch.arange(12)[:, None] / 20, y)


class Logging(L.LightningModule):
    """Logs over the epoch in every way that Lightning has."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(4, 4)
        self.metric = MeanMetric()
        self.epoch_ends: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.metric(loss, weight=len(batch[1]))
        self.log("both", loss, on_step=True, on_epoch=True)
        for reduce in ("mean", "max", "min", "sum"):
            self.log(reduce, loss, on_step=False, on_epoch=True, reduce_fx=reduce)
        self.log("metric", self.metric, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def on_train_epoch_end(self) -> None:
        self.epoch_ends.append(self.current_epoch)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.3)


def run(folder: Path, ckpt_path: Path | None = None, **kwargs: Any) -> Logging:
    model = Logging()
    steps = ModelCheckpoint(filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = L.Trainer(
        accelerator="cpu",
        callbacks=[steps],
        logger=RunLogger(folder),
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        **{"max_epochs": 2, **kwargs},
    )
    fit_stream(trainer, model, Stream(), ckpt_path=ckpt_path)
    return model


@pytest.fixture(scope="module")
def through(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("through") / "run"
    assert run(folder).epoch_ends == [0, 1, 2, 3]
    return folder


@pytest.mark.parametrize(("step", "ends"), [(1, [0, 1, 2, 3]), (3, [0, 1, 2, 3]), (5, [1, 2, 3]), (12, [3])])
def test_epoch_sums_and_hooks_come_back(through: Path, tmp_path: Path, step: int, ends: list[int]) -> None:
    """Step 3 and 12 are last batches, whose epoch Lightning would end without validation and hooks."""
    (tmp_path / "run").mkdir()
    shutil.copy(through / "metrics.csv", tmp_path / "run")
    model = run(tmp_path / "run", through / "checkpoints" / f"step={step}.ckpt")
    assert (tmp_path / "run" / "metrics.csv").read_text() == (through / "metrics.csv").read_text()
    assert model.epoch_ends == ends


def test_every_way_of_logging_is_in_the_file(through: Path) -> None:
    header, *rows = (through / "metrics.csv").read_text().splitlines()
    names = header.split(",")
    assert {"both_step", "both_epoch", "mean", "max", "min", "sum", "metric", "val"} <= set(names)
    epochs = [dict(zip(names, row.split(","), strict=True)) for row in rows]
    epochs = [row for row in epochs if row["mean"]]
    assert len(epochs) == 4
    for row in epochs:
        assert float(row["mean"]) == pytest.approx(float(row["metric"]), rel=1e-6)
        assert float(row["min"]) < float(row["mean"]) < float(row["max"]) < float(row["sum"])


def test_out_of_steps_at_a_checkpoint(tmp_path: Path) -> None:
    """The last step of an experience that ends in the middle of an epoch: the fit that resumes has nothing to do."""
    limits = {"max_epochs": -1, "max_steps": 4}
    whole = run(tmp_path / "through", **limits)
    (tmp_path / "run").mkdir()
    shutil.copy(tmp_path / "through" / "metrics.csv", tmp_path / "run")
    resumed = run(tmp_path / "run", tmp_path / "through" / "checkpoints" / "step=4.ckpt", **limits)
    assert torch.equal(whole.net.weight, resumed.net.weight)
    for name in ("metrics.csv", "summary.json"):
        assert (tmp_path / "run" / name).read_text() == (tmp_path / "through" / name).read_text()


def test_a_batch_in_the_middle_is_left_as_it_is(through: Path) -> None:
    content = torch.load(through / "checkpoints" / "step=2.ckpt", weights_only=True)["loops"]["fit_loop"]
    before = str(content)
    finish_last_batch(L.Trainer(logger=False, accelerator="cpu"), content, max_steps=-1)
    assert str(content) == before


class Halves(Logging):
    """Consolidates by itself, after the callbacks."""

    def on_train_end(self) -> None:
        self.net.weight.data.mul_(0.5)


class SavesAtTheEnd(L.Callback):
    """Writes a checkpoint when the callbacks are done and the module is not."""

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.save_checkpoint(Path(trainer.log_dir or "") / f"end_{pl_module.current_epoch}.ckpt")


def test_a_module_has_its_own_end_of_training_once(tmp_path: Path) -> None:
    def run(folder: Path, ckpt_path: Path | None = None) -> Tensor:
        module, quiet = Halves(), {"enable_progress_bar": False, "enable_model_summary": False}
        trainer = L.Trainer(max_epochs=2, logger=RunLogger(folder), callbacks=[SavesAtTheEnd()], **quiet)
        fit_stream(trainer, module, Stream(), ckpt_path)
        return module.net.weight

    whole = run(tmp_path / "whole")
    for epoch in (2, 4):
        assert torch.equal(run(tmp_path / f"again_{epoch}", tmp_path / f"whole/end_{epoch}.ckpt"), whole)
