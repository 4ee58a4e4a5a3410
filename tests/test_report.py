import ast
import io
import json
import math
import os
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock, call

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from torch import Tensor

from lightning_cl import metrics, report

NAN = math.nan
R = torch.tensor([[0.90, NAN, NAN], [0.95, 0.72, NAN], [0.50, 0.75, 1 / 3]], dtype=torch.float64)
SUMMARY = metrics.summary(R)


def staircase(size: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.rand(size, size, generator=generator, dtype=torch.float64)
    return matrix.masked_fill(torch.ones(size, size).triu(1).bool(), NAN)


def printed(matrix: Tensor, **summary: float) -> str:
    console = Console(width=100, file=io.StringIO())
    report.print_report(matrix, summary, "runs/a", console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("data", [b"\x00\r\n", "größer\n"])
def test_file_appears_whole(tmp_path: Path, data: bytes | str) -> None:
    path = tmp_path / "file"
    path.write_text("old and longer than the new content")
    report.write_atomic(path, data)
    assert path.read_bytes() == (data if isinstance(data, bytes) else data.encode())
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    monkeypatch.setattr(os, function, Mock(side_effect=OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        report.write_atomic(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_name_is_taken_only_by_complete_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen = tmp_path / "file", []

    def replace(source: Path, target: Path) -> None:
        seen.append((source.parent, source.read_text(), target.exists()))
        source.rename(target)

    monkeypatch.setattr(os, "replace", replace)
    report.write_atomic(path, "all of it")
    assert seen == [(tmp_path, "all of it", False)]


@pytest.mark.parametrize("matrix", [R, R[:1, :1], staircase(50), torch.full((2, 2), NAN)])
def test_csv_reads_back_to_the_same_bits(matrix: Tensor) -> None:
    again = report.read_matrix_csv(report.matrix_csv(matrix))
    torch.testing.assert_close(again, matrix.double(), rtol=0, atol=0, equal_nan=True)


def test_csv_has_full_precision_and_empty_entries() -> None:
    assert report.matrix_csv(R).splitlines() == [
        "learned,experience_0,experience_1,experience_2",
        "0,0.9,,",
        "1,0.95,0.72,",
        "2,0.5,0.75,0.3333333333333333",
    ]


@pytest.mark.parametrize("text", ["", "a,b\n0,1\n", "learned,experience_0\n", "learned,experience_0\n0,0.5,0.5\n"])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="`text` must be a square accuracy matrix as `matrix_csv` writes it, got"):
        report.read_matrix_csv(text)


def test_matrix_must_be_square() -> None:
    for function in (report.matrix_csv, report.matrix_figure):
        with pytest.raises(ValueError, match=r"`R` must be a square matrix, got shape \(2, 3\)\."):
            function(R[:2])


def test_figure_has_a_number_in_each_evaluated_cell() -> None:
    figure = report.matrix_figure(R, title="EWC")
    axes = figure.axes[0]
    cells = {(round(t.get_position()[1]), round(t.get_position()[0])): t.get_text() for t in axes.texts}
    assert cells == {(0, 0): "90.0", (1, 0): "95.0", (1, 1): "72.0", (2, 0): "50.0", (2, 1): "75.0", (2, 2): "33.3"}
    assert (axes.get_title(), axes.images[0].get_clim()) == ("EWC", (0, 100))
    assert figure.get_supxlabel() == (
        "average accuracy 52.8 %\nforgetting (Chaudhry et al.) 21.0 %   backward transfer -18.5 %"
    )


@pytest.mark.parametrize(("size", "numbers"), [(1, 1), (2, 3), (12, 78), (13, 0), (50, 0)])
def test_numbers_and_summary_fit_the_picture(size: int, numbers: int) -> None:
    figure = report.matrix_figure(staircase(size))
    pixels = report._pixels(figure)
    assert len(figure.axes[0].texts) == numbers
    box = figure.findobj(
        lambda artist: artist.get_visible() and getattr(artist, "get_text", str)().startswith("average")
    )
    left, _, right, _ = box[0].get_window_extent().extents
    assert 0 < left < right < pixels.shape[1]


def test_zeros_of_a_head_over_seen_classes_are_blank() -> None:
    zeros, transfer = R.nan_to_num(0.0), R.nan_to_num(0.25)
    assert len(report.matrix_figure(zeros).axes[0].texts) == 6
    assert len(report.matrix_figure(transfer).axes[0].texts) == 9
    assert "25.0" in printed(transfer)
    assert "0.0" not in printed(zeros).replace("90.0", "").replace("50.0", "")


@pytest.mark.parametrize(
    ("color", "ink"), [((1, 1, 0), "#000000"), ((0.27, 0, 0.33), "#ffffff"), ((1, 1, 1), "#000000")]
)
def test_ink_contrasts(color: tuple[float, float, float], ink: str) -> None:
    assert report._ink(*color) == ink


def test_figures_do_without_pyplot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it raises
    assert report._pixels(report.matrix_figure(R)).shape[2] == 3


def test_module_imports_nothing_heavy() -> None:
    tree = ast.parse(Path(report.__file__).read_text())
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {(n.module or "") if isinstance(n, ast.ImportFrom) else n.names[0].name for n in imports}
    assert {n.split(".")[0] for n in names} - set(sys.stdlib_module_names) == {"torch", "lightning_cl"}


def test_table_shows_the_numbers_and_their_conventions() -> None:
    lines = [line.rstrip() for line in printed(R, **SUMMARY, seconds=12.5).splitlines()]
    assert lines[1:5] == [
        "after      0      1      2",
        "    0   90.0",
        "    1   95.0   72.0",
        "    2   50.0   75.0   33.3",
    ]
    assert "forgetting (Chaudhry et al., 2018)                    21.00 %" in lines
    assert "backward transfer (Lopez-Paz & Ranzato, 2017)        -18.50 %" in lines
    assert lines[-3].split() == ["seconds", "12.5"]
    assert lines[-1] == "run folder: runs/a"


def test_no_folder_no_line() -> None:
    console = Console(width=100, file=io.StringIO())
    report.print_report(R, SUMMARY, None, console)
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().rstrip().endswith("-18.50 %")


@pytest.mark.parametrize(("size", "ellipses"), [(12, 0), (13, 2), (200, 2)])
def test_table_fits_a_terminal(size: int, ellipses: int) -> None:
    matrix = torch.full((size, size), 1.0)
    text = printed(matrix, **metrics.summary(matrix))
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 100
    assert text.count("…") == ellipses
    assert text.count("100.0 ") == (144 if size == 12 else 121)


def test_table_has_colours() -> None:
    console = Console(width=100, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(report.matrix_table(torch.ones(1, 1), {}))
    assert isinstance(console.file, io.StringIO)
    assert "38;2;0;0;0;48;2;253;231;37m 100.0 \x1b" in console.file.getvalue()  # black on viridis' last colour


def test_report_files(tmp_path: Path) -> None:
    paths = report.write_report(
        tmp_path / "run", R, SUMMARY, {"nested": {"path": tmp_path, "b": (torch.tensor(2), NAN)}}
    )
    assert [path.name for path in paths] == ["accuracy_matrix.csv", "accuracy_matrix.png", "summary.json"]
    assert sorted(os.listdir(tmp_path / "run")) == [path.name for path in paths]
    torch.testing.assert_close(report.read_matrix_csv(paths[0].read_text()), R, equal_nan=True)
    assert paths[1].read_bytes().startswith(b"\x89PNG")
    content = json.loads(paths[2].read_text(), parse_constant=pytest.fail)  # called for NaN and Infinity
    assert content.pop("accuracy_matrix") == [[0.9, None, None], [0.95, 0.72, None], [0.5, 0.75, 1 / 3]]
    assert content.pop("nested") == {"path": str(tmp_path), "b": [2, None]}
    assert content == SUMMARY


def test_report_is_the_same_bytes_again(tmp_path: Path) -> None:
    first = [path.read_bytes() for path in report.write_report(tmp_path, R, SUMMARY, {"b": 1, "a": 2})]
    second = [path.read_bytes() for path in report.write_report(tmp_path, R, SUMMARY, {"a": 2, "b": 1})]
    assert first == second


def test_names_must_not_collide(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`summary` and `extra` must not repeat a name or have 'accuracy_matrix'"):
        report.write_report(tmp_path, R, SUMMARY, {"average_accuracy": 1.0})
    assert os.listdir(tmp_path) == []


def fake_loggers() -> tuple[Any, Any, Any]:
    board = Mock(spec=["log_metrics", "experiment"], experiment=Mock(spec=["add_image"]))
    plain = Mock(spec=["log_metrics", "experiment"], experiment=Mock(spec=["log_metrics"]))
    return Mock(spec=["log_metrics", "log_image"]), board, plain


def test_every_logger_gets_what_it_takes() -> None:
    wandb, board, plain = fake_loggers()
    report.log_report([wandb, board, plain], R, SUMMARY, step=7)
    for logger in (wandb, board, plain):
        assert logger.log_metrics.call_args_list == [call(SUMMARY, step=7)]
    sent = wandb.log_image.call_args.kwargs
    assert (sent["key"], sent["step"], len(sent["images"])) == ("accuracy_matrix", 7, 1)
    tag, picture, step = board.experiment.add_image.call_args.args
    assert (tag, step, picture.ndim, picture.shape[2]) == ("accuracy_matrix", 7, 3, 3)
    assert plain.experiment.mock_calls == []


def test_only_the_first_process_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    loggers = fake_loggers()
    report.log_report(loggers, R, SUMMARY, step=0)
    assert [logger.mock_calls for logger in loggers] == [[], [], []]


def test_failing_logger_is_heard() -> None:
    logger = Mock(spec=["log_metrics"], log_metrics=Mock(side_effect=OSError("no space")))
    with pytest.raises(OSError, match="no space"):
        report.log_report([logger], R, SUMMARY, step=0)


def test_csv_logger_gets_the_scalars(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    report.log_report([logger], R, SUMMARY, step=3)
    logger.save()
    header, values = (Path(logger.log_dir) / "metrics.csv").read_text().split()
    assert dict(zip(header.split(","), map(float, values.split(",")), strict=True)) == SUMMARY | {"step": 3}
