from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_cl.logger import RunLogger

ROWS: list[tuple[dict[str, Any], int]] = [
    ({"loss": 0.1 + 0.2, "epoch": 0}, 4),
    ({"loss": torch.tensor(0.5), "epoch": 0}, 9),
    ({"val_acc": 1e-9, "epoch": 0}, 9),
    ({"loss": float("nan"), "epoch": 1}, 14),
    ({'accuracy, "weighed"': 0.25}, 19),
    ({"loss": 7.0, "epoch": 1, "val_acc": 1.0}, 19),
]


def log(logger: RunLogger, rows: list[tuple[dict[str, Any], int]]) -> RunLogger:
    for metrics, step in rows:
        logger.log_metrics(metrics, step)
    return logger


def test_rows_come_one_by_one_and_new_columns_at_the_end(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path / "run")
    seen = [log(logger, [row]).path.read_text().splitlines() for row in ROWS]
    assert seen[0] == ["step,loss,epoch", "4,0.30000000000000004,0"]
    assert seen[1] == [*seen[0], "9,0.5,0"]
    assert seen[2] == ["step,loss,epoch,val_acc", "4,0.30000000000000004,0,", "9,0.5,0,", "9,,0,1e-09"]
    assert seen[4][0] == 'step,loss,epoch,val_acc,"accuracy, ""weighed"""'
    assert seen[5][-2:] == ["19,,,,0.25", "19,7.0,1,1.0,"]
    assert logger.rows == len(ROWS)


def test_step_is_counted_where_none_is_given(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path)
    for loss in (0.5, 0.25):
        logger.log_metrics({"loss": loss})
    assert logger.path.read_text() == "step,loss\n0,0.5\n1,0.25\n"


@pytest.mark.parametrize("saved", range(len(ROWS) + 1))
@pytest.mark.parametrize("more", [0, 1, 2])
def test_rewound_log_equals_the_uninterrupted_one(saved: int, more: int, tmp_path: Path) -> None:
    """A process saves a checkpoint after ``saved`` rows, writes some more and is killed in the middle of another."""
    whole = log(RunLogger(tmp_path / "whole"), ROWS).path.read_bytes()
    killed = log(RunLogger(tmp_path / "run"), ROWS[: saved + more])
    if killed.path.exists():
        with killed.path.open("a") as file:
            file.write("24,0.1")
    resumed = RunLogger(tmp_path / "run")
    resumed.rewind(saved)
    assert resumed.rows == saved
    if saved:
        assert resumed.path.read_bytes() == log(RunLogger(tmp_path / "saved"), ROWS[:saved]).path.read_bytes()
    else:
        assert not resumed.path.exists()
    assert log(resumed, ROWS[saved:]).path.read_bytes() == whole


def test_a_run_from_the_beginning_starts_the_file_anew(tmp_path: Path) -> None:
    """As after a kill before the first checkpoint."""
    log(RunLogger(tmp_path / "run"), ROWS[:4])
    whole = log(RunLogger(tmp_path / "whole"), ROWS).path.read_bytes()
    assert log(RunLogger(tmp_path / "run"), ROWS).path.read_bytes() == whole


def test_a_row_that_was_cut_off_is_none(tmp_path: Path) -> None:
    """Even if it has a value in every column: the last one may have lost digits."""
    logger = log(RunLogger(tmp_path), ROWS[:2])
    logger.path.write_text(logger.path.read_text() + "14,0.25,1")
    other = RunLogger(tmp_path)
    other.rewind(3)
    assert other.rows == 2
    assert other.path.read_text().splitlines()[-1] == "9,0.5,0"


def test_a_kill_while_a_column_is_added_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = log(RunLogger(tmp_path), ROWS[:2])
    before = logger.path.read_bytes()

    def killed(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        log(logger, ROWS[2:3])
    assert logger.path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".csv"] == ["metrics.csv"]


def test_is_a_logger_in_the_folder_of_the_run(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path / "runs" / "one")
    assert (Path(logger.log_dir), logger.path) == (tmp_path / "runs" / "one", tmp_path / "runs" / "one" / "metrics.csv")
    logger.log_hyperparams({"lr": 0.1})
    logger.save()
    logger.finalize("success")
    assert not logger.path.exists()
    assert logger.experiment is logger


def test_only_the_first_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch.utilities import rank_zero_only

    monkeypatch.setattr(rank_zero_only, "rank", 1)
    assert not log(RunLogger(tmp_path), ROWS).path.exists()
