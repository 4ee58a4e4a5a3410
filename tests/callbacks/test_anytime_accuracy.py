"""Anytime accuracy: the curve by hand, and that nothing else changes."""

import csv
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from lightning_cl import RunLogger, TensorData
from lightning_cl.callbacks import Replay
from lightning_cl.callbacks.monitors.anytime_accuracy import AnytimeAccuracy, _choose, _csv
from lightning_cl.methods import Classifier
from lightning_cl.metrics import AnytimeMetrics
from lightning_cl.samples import MapData
from lightning_cl.utilities import get_rng_state
from tests.helpers.contracts import (
    LIGHTNINGS_OWN_WARNINGS,
    Net,
    TinyStream,
    jitter,
    learn,
    learn_plain,
    same,
    samples,
    seeded,
)

pytestmark = LIGHTNINGS_OWN_WARNINGS
SHOWN = 2 * 2 * 24
"""Presentations of training samples: experiences, epochs, samples."""


class Snapshots(Callback):
    """Keeps samples, classes and weights after each batch, and the experience that it was of."""

    def __init__(self) -> None:
        self.kept: list[tuple[int, list[int], int, dict[str, Tensor]]] = [(0, [], 0, {})]

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        count, classes, *_ = self.kept[-1]
        weights = {name: value.clone() for name, value in pl_module.state_dict().items()}
        classes = sorted({*classes, *batch[1].tolist()})
        self.kept.append((count + len(batch[1]), classes, trainer.datamodule.current, weights))


def accuracies(weights: dict[str, Tensor], classes: list[int], tests: Sequence[Sequence[int]]) -> list[list[int]]:
    """Correct predictions and samples of each experience, one sample at a time."""
    net, (x, y) = Net(), samples(train=False, per_class=4)
    net.load_state_dict(weights)
    scores = net.eval()(x / 255).detach()
    best = [max(classes, key=lambda c, row=row: float(row[c])) for row in scores]
    right = [[best[i] == c for i, c in enumerate(y.tolist()) if c in group and c in classes] for group in tests]
    return [[sum(of_one), len(of_one)] for of_one in right]


STREAMS: dict[str, dict[str, Any]] = {
    "usual": {},
    "a class at a time": {"batch_size": 1},
    "no boundaries": {"batch_size": 2, "boundaries": False},
    "small test batches": {"eval_batch_size": 3},
}


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("every", [8, 20])
def test_curve_is_that_of_the_snapshots(name: str, every: int) -> None:
    monitor, snapshots, stream = AnytimeAccuracy(every), Snapshots(), TinyStream(augment=jitter, **STREAMS[name])
    learn([monitor, snapshots], stream=stream)
    expected = []
    for (before, *_), (count, classes, current, weights) in zip(snapshots.kept, snapshots.kept[1:], strict=False):
        if any(at % every == 0 for at in range(before + 1, count + 1)):
            counts = accuracies(weights, classes, stream.classes[: current + 1])
            mean = sum(right for right, _ in counts) / sum(total for _, total in counts)
            expected.append([count, mean, *(right / max(total, 1) for right, total in counts)])
    assert len(expected) == SHOWN // every
    assert monitor.curve == expected


def test_task_labels_tell_the_classes_to_choose_from() -> None:
    monitor, snapshots, stream = AnytimeAccuracy(SHOWN), Snapshots(), TinyStream(task_labels=True)
    learn([monitor, snapshots], stream=stream)
    counts = [accuracies(snapshots.kept[-1][-1], list(group), [group])[0] for group in stream.classes]
    assert monitor.curve == [[SHOWN, sum(right for right, _ in counts) / 16, *(right / 8 for right, _ in counts)]]


def test_experiences_with_the_same_test_samples_are_measured_once() -> None:
    class OneTest(TinyStream):
        def test_of(self, experience: int) -> int:
            return 0

    monitor, net = AnytimeAccuracy(48), seeded(Seen)
    learn([monitor], net, OneTest())
    assert net.rows == [2, 8, 2, 8]
    (_, first, *_), (_, second, *each) = monitor.curve
    assert each == [second, second]
    assert first > 0.5


def test_nothing_is_right_before_a_class_has_come() -> None:
    here = SimpleNamespace(global_rank=0, world_size=1, strategy=SimpleNamespace(root_device=torch.device("cpu")))
    with torch.no_grad():
        counts = AnytimeAccuracy()._count(here, seeded(), TinyStream(), 0)  # type: ignore[arg-type]
    assert counts.tolist() == [0, 0]


class Seen(Net):
    """Keeps the sizes of the batches that are tested in a fit; two samples are what `fit_stream` looks at first."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rows: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        if not self.training and self.trainer.training:
            self.rows.append(len(x))
        return super().forward(x)


def test_limit_is_for_each_experience() -> None:
    net = seeded(Seen)
    learn([AnytimeAccuracy(48, max_test_samples=3)], net)
    assert net.rows == [2, 3, 2, 3, 3]


def test_summary_is_of_the_curve() -> None:
    monitor, metrics = AnytimeAccuracy(8, windows=[2, 5]), AnytimeMetrics([2, 5])
    learn([monitor])
    for row in monitor.curve:
        metrics.update(torch.tensor(row[2:], dtype=torch.float64))
    assert monitor.summary.pop("a_auc") == pytest.approx(sum(row[1] for row in monitor.curve) / len(monitor.curve))
    assert monitor.summary.keys() - {"a_auc"} == {"aaa", "wc_acc", "min_acc", "wf_2", "wp_2", "wf_5", "wp_5"}
    assert {**monitor.summary, **metrics.compute()} == monitor.summary


# -- nothing else changes ----------------------------------------------------------------------------------------------


class NetWithNorm(Net):
    """Running statistics, a part that the user has put in eval mode, and a forward that always draws."""

    def __init__(self) -> None:
        super().__init__(drop=0.5)
        self.net.insert(2, nn.BatchNorm1d(12))
        self.net.insert(3, nn.BatchNorm1d(12).eval())

    def forward(self, x: Tensor) -> Tensor:
        torch.rand(1)
        return super().forward(x)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        assert [m.training for m in self.modules() if isinstance(m, nn.BatchNorm1d)] == [True, False]


@pytest.mark.filterwarnings("ignore:Found 1 module")
@pytest.mark.parametrize(
    "setting",
    [{}, {"accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}, {"precision": "64-true"}, {"max_steps": 5}],
    ids=str,
)
def test_training_is_bit_identical(setting: dict[str, Any]) -> None:
    plain, rng = learn([Replay(10, seed=0)], seeded(NetWithNorm), **setting), get_rng_state()
    watched = learn([Replay(10, seed=0), AnytimeAccuracy(8)], seeded(NetWithNorm), **setting)
    assert same(get_rng_state(), rng)
    assert same(dict(watched.module.state_dict()), dict(plain.module.state_dict()))
    assert torch.equal(watched.result.accuracy_matrix.nan_to_num(), plain.result.accuracy_matrix.nan_to_num())


def test_replayed_samples_do_not_count() -> None:
    monitor = AnytimeAccuracy(8)
    learn([monitor, Replay(10)])
    assert monitor.samples == SHOWN
    assert [row[0] for row in monitor.curve] == list(range(8, SHOWN + 1, 8))


@pytest.mark.parametrize("checkpoint", ["*step=2.ckpt", "*step=3.ckpt", "experience_0.ckpt", "*step=11.ckpt"])
def test_resumed_equals_uninterrupted(checkpoint: str, tmp_path: Path) -> None:
    def run(folder: Path, ckpt_path: Path | None) -> AnytimeAccuracy:
        monitor, saver = AnytimeAccuracy(20), ModelCheckpoint(every_n_train_steps=1, save_top_k=-1)
        options: dict[str, Any] = {"enable_checkpointing": True, "log_every_n_steps": 1}
        learn([monitor, saver], seeded(), ckpt_path=ckpt_path, logger=RunLogger(folder), **options)
        return monitor

    whole = run(tmp_path / "whole", None)
    again = run(tmp_path / "again", next((tmp_path / "whole").rglob(checkpoint)))
    assert [row[0] for row in again.curve] == [24, 40, 64, 80]
    assert same(again.state_dict(), whole.state_dict())
    files = [(tmp_path / name / "anytime_accuracy.csv").read_text() for name in ("whole", "again")]
    assert files[0] == files[1] == _csv(whole.curve)


# -- the samples that are tested ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 7, 30, 59])
def test_each_class_has_its_share(limit: int) -> None:
    labels = torch.arange(3).repeat_interleave(torch.tensor([10, 20, 30]))[torch.randperm(60)]
    chosen = _choose(TensorData(torch.zeros(60, 1), labels), limit, seed=3)
    counts = labels[chosen].bincount(minlength=3)
    assert len(chosen.unique()) == limit
    assert torch.equal(chosen, chosen.sort().values)
    assert ((counts - limit * torch.tensor([1, 2, 3]) / 6).abs() < 1).all()


def test_choice_is_a_function_of_the_seed() -> None:
    known, unknown = TensorData(torch.zeros(60, 1), torch.arange(60) % 3), MapData([(torch.zeros(1), 0)] * 60)
    for data in (known, unknown):
        first, _, again, other = (_choose(data, 20, seed) for seed in (5, torch.rand(1) and 6, 5, 7))
        assert torch.equal(first, again)
        assert len(other) == 20
        assert not torch.equal(first, other)
        assert torch.equal(_choose(data, None, 5), _choose(data, 1000, 6))


@pytest.mark.parametrize("limit", [3, None])
def test_processes_share_the_test_samples(limit: int | None) -> None:
    monitor, stream = AnytimeAccuracy(max_test_samples=limit), TinyStream(eval_batch_size=2)
    found = []
    for rank in (0, 1):
        loader = monitor._batches(SimpleNamespace(global_rank=rank, world_size=2), stream, 1)  # type: ignore[arg-type]
        found += [x.numpy().tobytes() for batch in loader for x in batch[0]]
    whole = [x.numpy().tobytes() for x, _ in stream.part(1, "test")]
    assert len(found) == len(set(found)) == (limit or 8)
    assert set(found) <= set(whole)


# -- what it leaves ----------------------------------------------------------------------------------------------------


def test_values_are_logged(tmp_path: Path) -> None:
    logger, monitor = RunLogger(tmp_path), AnytimeAccuracy(48)
    learn([monitor], logger=logger, enable_checkpointing=True, log_every_n_steps=1)
    rows = [row for row in logger._read() if row.get("anytime/accuracy")]
    names = ("step", "anytime/samples", "anytime/accuracy", "anytime/experience_0")
    assert [[float(row[name]) for name in names] for row in rows] == [
        [k * 6, *monitor.curve[k - 1][:3]] for k in (1, 2)
    ]
    ends = [row for row in logger._read() if row.get("anytime/a_auc")]
    assert [row["step"] for row in ends] == ["6", "12"]
    assert {name: float(ends[-1][f"anytime/{name}"]) for name in monitor.summary} == monitor.summary


def test_files_of_a_run(tmp_path: Path) -> None:
    monitor = AnytimeAccuracy(24)
    learn([monitor], logger=RunLogger(tmp_path), enable_checkpointing=True, log_every_n_steps=1)
    header, *rows = csv.reader((tmp_path / "anytime_accuracy.csv").read_text().splitlines())
    assert header == ["samples", "accuracy", "experience_0", "experience_1"]
    assert [[float(cell) for cell in row if cell] for row in rows] == monitor.curve
    assert [len(row) for row in rows] == [4] * 4
    assert (tmp_path / "anytime_accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_without_a_folder_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monitor = AnytimeAccuracy(24)
    learn([monitor], stream=TinyStream(1), max_epochs=1)
    assert len(monitor.curve) == 2
    assert not list(tmp_path.iterdir())


# -- what cannot work --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every_n_samples": 0}, "`every_n_samples` must be 1 or more, got 0"),
        ({"max_test_samples": 0}, "`max_test_samples` must be 1 or more, or None for all, got 0"),
        ({"windows": [10, 0]}, r"`windows` must be 1 or more each, got \[10, 0\]"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AnytimeAccuracy(**arguments)


def test_a_stream_is_needed() -> None:
    with pytest.raises(ValueError, match=r"test samples of a stream: give `trainer.fit` a StreamDataModule"):
        learn_plain([AnytimeAccuracy()])


@pytest.mark.parametrize(("output", "got"), [(lambda x: {"other": x}, "a dict"), (lambda x: x[:, 0], r"\(8,\)")])
def test_scores_are_needed(output: Any, got: str) -> None:
    class Other(Net):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x) if self.training else output(super().forward(x))

    with pytest.raises(ValueError, match=rf"scores \(B, 4\) of all classes, got {got}"):
        learn([AnytimeAccuracy(8)], seeded(Other))


def test_a_stream_shorter_than_the_period_is_told() -> None:
    with pytest.warns(UserWarning, match="`every_n_samples` must be 96 or less, the training samples"):
        learn([AnytimeAccuracy(97)])


def test_scores_beyond_the_classes_are_never_predicted() -> None:
    monitor = AnytimeAccuracy(SHOWN)
    found = learn([monitor], seeded(Classifier, num_classes=9, backbone="mlp", input_shape=(1, 8, 8)))
    assert monitor.curve[0][2:] == found.result.accuracy_matrix[1].tolist()
