"""``fit_stream``: what it adds to a trainer, measures, writes, resumes and refuses."""

import json
import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from torch import Tensor, nn

from lightning_cl import CheckpointError, RunLogger, StreamDataModule, TensorData, evaluate_stream, fit_stream
from lightning_cl.callbacks import EWC, Replay
from lightning_cl.report import read_matrix_csv
from tests.helpers import contracts

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


class Stream(StreamDataModule):
    """Three experiences of two classes; a sample of class ``c`` is the ``c``-th unit vector."""

    def __init__(self, count: int = 12, **kwargs: Any) -> None:
        super().__init__([(0, 1), (2, 3), (4, 5)], 6, (6,), **{"batch_size": 4, "seed": 0, **kwargs})
        self.count = count

    def dataset(self, experience: int, train: bool) -> TensorData:
        y = torch.tensor(self.classes[experience]).repeat(self.count // 2)
        return TensorData(torch.eye(6)[y], y)


class Plain(L.LightningModule):
    """Nothing in it knows of streams, not even a test step."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y, *_ = batch
        loss = nn.functional.cross_entropy(self(x), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.5)


class Fixed(Plain):
    """Scores that do not change: class 5, then 0, then 3 for every sample."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor([2.0, 0, 0, 1.0, 0, 3.0]).expand(len(x), 6) + 0 * self.net(x)


def trainer(folder: Path | None = None, *callbacks: Callback, **kwargs: Any) -> L.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "log_every_n_steps": 1}
    if folder is None:
        quiet |= {"logger": False, "enable_checkpointing": False}
    else:
        quiet |= {"logger": RunLogger(folder)}
    return L.Trainer(callbacks=list(callbacks), **{**quiet, "max_epochs": 2, **kwargs})


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_three_lines_around_a_plain_module(tmp_path: Path) -> None:
    result = fit_stream(trainer(tmp_path / "run", max_epochs=8), Plain(), Stream())
    assert result.accuracy_matrix.diagonal().tolist() == [1.0, 1.0, 1.0]
    assert result.accuracy_matrix.isnan().sum() == 3  # of the upper triangle
    assert result.forgetting == -result.backward_transfer
    assert result.counts.tolist() == [12, 12, 12]
    files = {path.relative_to(tmp_path / "run").as_posix() for path in (tmp_path / "run").rglob("*")}
    assert {"accuracy_matrix.csv", "accuracy_matrix.png", "summary.json", "metrics.csv", "last.ckpt"} <= files
    assert "checkpoints/experience_2.ckpt" in files
    assert "checkpoints/experience_1.ckpt" not in files
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["forgetting_chaudhry"] == result.forgetting
    written = read_matrix_csv((tmp_path / "run" / "accuracy_matrix.csv").read_text())
    torch.testing.assert_close(written, result.accuracy_matrix, rtol=0, atol=0, equal_nan=True)


def test_nothing_is_written_without_a_logger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert fit_stream(trainer(), Plain(), Stream()).run_dir is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("scoring", "expected"),
    [
        ("all", [[0, math.nan, math.nan], [0, 0, math.nan], [0, 0, 0.5]]),  # always 5
        ("seen", [[0.5, math.nan, math.nan], [0.5, 0, math.nan], [0, 0, 0.5]]),  # 0 until 5 is seen
        ("task", [[0.5, math.nan, math.nan], [0.5, 0.5, math.nan], [0.5, 0.5, 0.5]]),  # 0, 3, 5
    ],
)
def test_scoring(scoring: Any, expected: list[list[float]]) -> None:
    result = fit_stream(trainer(), Fixed(), Stream(), scoring=scoring)
    assert result.accuracy_matrix.nan_to_num(-1).tolist() == torch.tensor(expected).nan_to_num(-1).tolist()


def test_task_labels_reach_the_module_and_choose_the_scoring() -> None:
    tasks = set()

    class Seeing(Fixed):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            tasks.add((self.trainer.datamodule.current, *batch[2].unique().tolist()))
            return super().training_step(batch, batch_idx)

    result = fit_stream(trainer(), Seeing(), Stream(task_labels=True))
    assert tasks == {(0, 0), (1, 1), (2, 2)}
    assert result.average_accuracy == 0.5


def test_evaluation_changes_nothing_in_training() -> None:
    seen, everything = Plain(), Plain()
    torch.manual_seed(1)
    result = fit_stream(trainer(), seen, Stream())
    torch.manual_seed(1)
    more = fit_stream(trainer(), everything, Stream(), evaluate="all")
    assert torch.equal(weights(seen), weights(everything))
    assert result.initial is None
    assert more.initial is not None
    assert not more.accuracy_matrix.isnan().any()
    assert torch.equal(result.accuracy_matrix[2], more.accuracy_matrix[2])


def test_limits_and_counters_are_per_experience_and_run_on() -> None:
    class Watch(Callback):
        def __init__(self) -> None:
            self.epochs: list[int] = []

        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            self.epochs.append(trainer.current_epoch)

    class Scheduled(Plain):
        estimates: list[float]

        def configure_optimizers(self) -> Any:
            self.estimates.append(self.trainer.estimated_stepping_batches)
            return super().configure_optimizers()

    watch, model = Watch(), Scheduled()
    model.estimates = []
    used = trainer(None, watch)
    fit_stream(used, model, Stream())
    assert watch.epochs == [0, 1, 2, 3, 4, 5]
    assert model.estimates == [6, 6, 6]  # 2 epochs of 3 batches
    assert used.max_epochs == 2
    assert [type(callback) for callback in used.callbacks] == [Watch]
    assert used.global_step == 18


def test_early_stopping_starts_anew_in_each_experience() -> None:
    class Watched(Plain):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val", 1.0)

    stopping = EarlyStopping("val", patience=1)
    used = trainer(None, stopping, max_epochs=10)
    fit_stream(used, Watched(), Stream(val_fraction=0.25))
    assert used.current_epoch == 3 * 2  # one epoch to set the mark, one without improvement, in each


def test_best_checkpoint_is_kept_per_experience(tmp_path: Path) -> None:
    class Watched(Plain):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val", float(self.trainer.current_epoch))  # the first epoch is the best, ever

    best = ModelCheckpoint(monitor="val", filename="{epoch}")
    fit_stream(trainer(tmp_path / "run", best), Watched(), Stream(val_fraction=0.25))
    kept = {path.name for path in (tmp_path / "run" / "checkpoints").glob("epoch*")}
    assert kept == {"epoch=0.ckpt", "epoch=2.ckpt", "epoch=4.ckpt"}


def test_experience_checkpoint_is_plain_and_without_optimizer(tmp_path: Path) -> None:
    fit_stream(trainer(tmp_path / "run", Replay(4)), Plain(), Stream(), keep_checkpoints="all")
    checkpoints = sorted((tmp_path / "run" / "checkpoints").glob("experience_*.ckpt"))
    assert len(checkpoints) == 3
    content = torch.load(checkpoints[1], weights_only=True)
    assert content["optimizer_states"] == []
    assert content["Stream"] == {"current": 1}


@pytest.mark.parametrize("name", ["experience_0.ckpt", "experience_1.ckpt", "step=7.ckpt", "step=9.ckpt"])
def test_resume_is_exact(tmp_path: Path, name: str) -> None:
    def run(folder: Path, ckpt_path: Path | None = None) -> tuple[Tensor, bytes]:
        model = Plain()
        steps = ModelCheckpoint(filename="{step}", every_n_train_steps=1, save_top_k=-1)
        torch.manual_seed(5)
        fit_stream(
            trainer(folder, Replay(4), EWC(3.0), steps), model, Stream(), ckpt_path=ckpt_path, keep_checkpoints="all"
        )
        return weights(model), (folder / "accuracy_matrix.csv").read_bytes()

    through = run(tmp_path / "through")
    resumed = run(tmp_path / "resumed", tmp_path / "through" / "checkpoints" / name)
    assert torch.equal(through[0], resumed[0])
    assert through[1] == resumed[1]


def test_resume_of_a_complete_run_gives_its_result(tmp_path: Path) -> None:
    model, again = Plain(), Plain()
    result = fit_stream(trainer(tmp_path / "run"), model, Stream())
    before = (tmp_path / "run" / "metrics.csv").read_text()
    (tmp_path / "run" / "summary.json").unlink()
    resumed = fit_stream(trainer(tmp_path / "run"), again, Stream(), ckpt_path="last")
    assert torch.equal(weights(model), weights(again))
    assert result.summary == resumed.summary
    assert (tmp_path / "run" / "metrics.csv").read_text() == before
    assert (tmp_path / "run" / "summary.json").exists()


def test_last_passes_over_a_truncated_checkpoint(tmp_path: Path) -> None:
    model, again = Plain(), Plain()
    fit_stream(trainer(tmp_path / "run"), model, Stream(), keep_checkpoints="all")
    last = tmp_path / "run" / "checkpoints" / "experience_2.ckpt"
    last.write_bytes(last.read_bytes()[:2000])
    for path in (tmp_path / "run" / "checkpoints").glob("epoch*.ckpt"):
        path.unlink()
    fit_stream(trainer(tmp_path / "run"), again, Stream(), ckpt_path="last")
    assert torch.equal(weights(model), weights(again))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    fit_stream(trainer(folder, EWC(1.0)), Plain(), Stream(), keep_checkpoints="all")
    return folder


@pytest.mark.parametrize(
    ("stream", "callbacks", "message"),
    [
        (Stream(batch_size=6), [EWC(1.0)], "`batch_size` was 4 and is 6 now"),
        (Stream(count=20), [EWC(1.0)], r"`sizes\[0\]` was \[12, 0, 12\]"),
        (Stream(seed=1), [EWC(1.0)], "`seed` was 0 and is 1 now"),
        (Stream(), [EWC(2.0)], r"EWC\{.*'strength': '1.0'.*and this run has EWC\{.*'strength': '2.0'"),
        (Stream(), [], r"written with EWC\{.*, and this run has no such callback"),
        (Stream(), [EWC(1.0), Replay(4)], "written with fewer callbacks, and this run has Replay"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(
    finished: Path, tmp_path: Path, stream: Stream, callbacks: list[Callback], message: str
) -> None:
    checkpoint = finished / "checkpoints" / "experience_1.ckpt"
    with pytest.raises(CheckpointError, match=message):
        fit_stream(trainer(tmp_path / "new", *callbacks), Plain(), stream, ckpt_path=checkpoint)
    assert not (tmp_path / "new").exists()


def test_an_earlier_run_is_never_overwritten(finished: Path) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    with pytest.raises(FileExistsError, match="holds an earlier run"):
        fit_stream(trainer(finished, EWC(1.0)), Plain(), Stream())
    with pytest.raises(FileExistsError, match="is further than"):
        fit_stream(
            trainer(finished, EWC(1.0)), Plain(), Stream(), ckpt_path=finished / "checkpoints" / "experience_0.ckpt"
        )
    assert before == {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}


def test_foreign_and_truncated_checkpoints_are_refused(finished: Path, tmp_path: Path) -> None:
    plain = trainer(max_epochs=1)
    plain.fit(Plain(), datamodule=Stream())
    plain.save_checkpoint(tmp_path / "foreign.ckpt")
    whole = (finished / "checkpoints" / "experience_1.ckpt").read_bytes()
    (tmp_path / "short.ckpt").write_bytes(whole[: len(whole) // 2])
    for name, message in (
        ("foreign", "not written by `fit_stream`"),
        ("short", "truncated"),
        ("none", "no checkpoint"),
    ):
        with pytest.raises((CheckpointError, FileNotFoundError), match=message):
            fit_stream(trainer(), Plain(), Stream(), ckpt_path=tmp_path / f"{name}.ckpt")


def test_arguments_that_cannot_work_are_named() -> None:
    class Narrow(Plain):
        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)[:, :4]

    with pytest.raises(TypeError, match="`stream` must be a StreamDataModule, got LightningDataModule"):
        fit_stream(trainer(), Plain(), L.LightningDataModule())  # type: ignore[arg-type]
    for name in ("evaluate", "scoring", "keep_checkpoints"):
        with pytest.raises(ValueError, match=f"`{name}` must be one of .*, got 'most'"):
            fit_stream(trainer(), Plain(), Stream(), **{name: "most"})
    with pytest.raises(ValueError, match="`limit_test_batches` must not be 0"):
        fit_stream(trainer(limit_test_batches=0), Plain(), Stream())
    with pytest.raises(ValueError, match="use 'ddp' instead of 'ddp_spawn'"):
        fit_stream(trainer(strategy="ddp_spawn", devices=2), Plain(), Stream())
    with pytest.raises(ValueError, match="gives 4 scores and the stream has 6 classes"):
        fit_stream(trainer(), Narrow(), Stream())


def test_a_test_step_that_returns_logits_is_taken_at_its_word() -> None:
    class Own(Plain):
        def test_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
            x, y = batch
            self.log("err", (self(x).argmax(1) != y).float().mean())
            return {"logits": torch.eye(6)[y]}  # always right

    result = fit_stream(trainer(), Own(), Stream())
    assert result.average_accuracy == 1.0


def test_evaluate_stream_measures_a_checkpoint(finished: Path) -> None:
    row = read_matrix_csv((finished / "accuracy_matrix.csv").read_text())[1]
    accuracies = evaluate_stream(trainer(), Plain(), Stream(), finished / "checkpoints" / "experience_1.ckpt")
    assert accuracies[:2].tolist() == row[:2].tolist()
    assert accuracies[2] == 0.0  # its classes were not seen


def test_max_steps_without_epochs() -> None:
    used = trainer(max_epochs=-1, max_steps=5)
    result = fit_stream(used, Plain(), Stream())
    assert used.global_step == 15
    assert used.max_steps == 5
    assert not result.accuracy_matrix[2].isnan().any()


def test_compiled_module_runs_as_it_is() -> None:
    compiled = torch.compile(Plain(), backend="eager")
    result = fit_stream(trainer(max_epochs=8), compiled, Stream())  # type: ignore[arg-type]
    assert result.accuracy_matrix[2, 2] == 1.0


def test_training_that_diverges_is_said() -> None:
    class Diverging(contracts.Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx) * torch.inf

    with pytest.warns(UserWarning, match="no longer finite: training has diverged"):
        contracts.learn([], contracts.seeded(Diverging))
