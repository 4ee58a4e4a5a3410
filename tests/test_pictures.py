import runpy
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import TensorDataset

from lightning_cl.datamodules import CorruptedImages, SequenceStream, SplitDigits, TensorStream
from lightning_cl.pictures import density_figure, images_figure
from lightning_cl.stream import StreamDataModule


class OnlyTested(TensorStream):
    test_only = "nothing to train on"


def stream_of(labels: list[int], cls: type[TensorStream] = TensorStream, **kwargs: Any) -> TensorStream:
    """A stream of images of one pixel, whose brightness is their position in the data set; in testing 100 more."""
    y = torch.tensor(labels)
    x = torch.arange(len(y), dtype=torch.uint8).view(-1, 1, 1, 1)
    return cls(x, y, x + 100, y, **kwargs)


def pixels(figure: Figure) -> Any:
    """The images of one pixel, with the paper left out: a row per experience."""
    paper = figure.axes[0].images[0].get_array()
    assert paper is not None
    assert np.all(paper[::2] == 225)
    assert np.all(paper[:, ::2] == 225)
    return paper[1::2, 1::2, 0].tolist()


def names(figure: Figure) -> list[str]:
    return [label.get_text() for label in figure.axes[0].get_yticklabels()]


def shown_labels(stream: StreamDataModule) -> list[int]:
    """Class by class what the training loaders hand out."""
    labels: list[int] = []
    for i in range(len(stream)):
        stream.current = i
        labels += torch.cat([y for _, y in stream.train_dataloader()]).tolist()
    return labels


def by_hand(labels: list[int], rows: list[int], bins: int) -> Tensor:
    """The share of each class in each bin, counted sample by sample; zero is blank."""
    counts = torch.zeros(len(rows), bins)
    for k, label in enumerate(labels):
        counts[rows.index(label), k * bins // len(labels)] += 1
    return counts / counts.sum(0)


def shares(figure: Figure) -> Tensor:
    array = figure.axes[0].images[0].get_array()
    assert isinstance(array, np.ma.MaskedArray)
    assert np.array_equal(np.ma.getmaskarray(array), array.data == 0)
    return torch.from_numpy(array.data)


def borders(figure: Figure) -> list[float]:
    return [float(np.asarray(line.get_xdata())[0]) for line in figure.axes[0].lines]


# -- images -----------------------------------------------------------------------------------------------------------


def test_first_images_of_each_class_in_turn() -> None:
    figure = images_figure(stream_of([0, 0, 0, 1, 2, 3, 3, 2], num_experiences=2), per_experience=3)
    assert pixels(figure) == [[0, 3, 1], [4, 5, 7]]
    assert names(figure) == ["0: classes 0, 1", "1: classes 2, 3"]
    assert figure.get_suptitle() == "TensorStream: training images of each experience"
    assert figure.axes[0].get_yticks().tolist() == [1, 3]  # the rows of paper on which the images lie


def test_a_short_experience_leaves_paper() -> None:
    figure = images_figure(stream_of([0, 1, 1, 1], num_experiences=2), per_experience=3)
    assert pixels(figure) == [[0, 225, 225], [1, 2, 3]]


def test_test_images_where_there_is_nothing_to_train_on() -> None:
    figure = images_figure(stream_of([0, 1], OnlyTested, num_experiences=1))
    assert pixels(figure) == [[100, 101]]
    assert figure.get_suptitle() == "OnlyTested: test images of each experience"


def test_a_column_is_one_image_in_all_domains() -> None:
    stream = CorruptedImages("digits", corruptions=["contrast", "fog"])
    paper = images_figure(stream, per_experience=2).axes[0].images[0].get_array()
    assert paper is not None
    clean = SplitDigits(1).part(0, "train")
    digits = [int((clean.labels == c).nonzero()[0]) for c in (0, 1)]
    for row, part in enumerate((stream.part(0, "train"), stream.part(1, "train"))):
        for column, i in enumerate(digits):
            shown = paper[9 * row + 1 : 9 * row + 9, 9 * column + 1 : 9 * column + 9]
            assert np.array_equal(shown, part[i][0].permute(1, 2, 0).expand(8, 8, 3))


def test_colours_and_floats() -> None:
    x = torch.tensor([0.0, 0.5, 2.0]).view(1, 3, 1, 1)
    paper = (
        images_figure(
            TensorStream(x, torch.zeros(1, dtype=torch.long), x, torch.zeros(1, dtype=torch.long), num_experiences=1)
        )
        .axes[0]
        .images[0]
    )
    assert np.asarray(paper.get_array())[1, 1].tolist() == [0, 128, 255]


def test_without_labels_the_first_images_are_shown() -> None:
    data = TensorDataset(torch.arange(3, dtype=torch.uint8).view(-1, 1, 1, 1), torch.tensor([0, 0, 1]))
    assert pixels(images_figure(SequenceStream([data], [data], [[0, 1]]), per_experience=2)) == [[0, 1]]


def test_parts_of_several_storages_are_one_experience() -> None:
    stream = CorruptedImages("digits", corruptions=["contrast", "fog"], boundaries=False)
    assert names(images_figure(stream, per_experience=2)) == ["0: classes 0, 1, 2,\n3, 4, 5, 6, 7, 8, 9"]


def test_of_a_long_stream_some_rows_are_shown() -> None:
    figure = images_figure(stream_of(list(range(45)), num_experiences=45))
    assert [row[0] for row in pixels(figure)] == list(range(0, 45, 3))
    assert figure.get_suptitle() == "TensorStream: training images of 15 of 45 experiences"


@pytest.mark.parametrize(("count", "per_experience"), [(1, 1), (2, 1), (15, 8), (100, 9)])
def test_nothing_leaves_the_picture_or_overlaps(count: int, per_experience: int) -> None:
    stream = CorruptedImages("digits", corruptions=["elastic_transform", "jpeg_compression"] * count)
    figure = images_figure(stream, per_experience)
    figure.draw_without_rendering()
    width, height = figure.get_size_inches()
    box = figure.get_tightbbox()
    assert min(box.x0, box.y0, width - box.x1, height - box.y1) > 0
    title = next(text for text in figure.texts if text.get_text() == figure.get_suptitle())
    boxes = [text.get_window_extent() for text in (title, *figure.axes[0].get_yticklabels())]
    assert all(below.y1 < above.y0 for above, below in pairwise(boxes))
    assert title.get_window_extent().y0 > figure.axes[0].get_window_extent().y1


def test_images_of_other_samples_are_refused() -> None:
    x, y = torch.zeros(4, 2), torch.arange(4)
    with pytest.raises(
        ValueError, match=r"`stream` must be one of images \(1 or 3, H, W\), got samples of shape \(2,\)"
    ):
        images_figure(TensorStream(x, y, x, y, num_experiences=2))
    with pytest.raises(ValueError, match="`per_experience` must be 1 or more, got 0"):
        images_figure(SplitDigits(), per_experience=0)


# -- classes along the stream -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"blurry": "fixed"}, {"drop_last": True}, {"cumulative": True}, {}], ids=str)
def test_density_is_counted_in_the_order_of_training(options: dict[str, Any]) -> None:
    stream = SplitDigits(**options)
    stream.current = 3
    figure = density_figure(stream, bins=30)
    assert stream.current == 3
    rows = [int(name) for name in names(figure)]
    assert sorted(rows) == list(range(10))
    torch.testing.assert_close(shares(figure), by_hand(shown_labels(stream), rows, 30))


def test_borders_are_where_experiences_end() -> None:
    figure = density_figure(stream_of([0, 0, 0, 1, 2, 2], num_experiences=3))
    assert borders(figure) == [3, 4]
    above = figure.axes[0].child_axes[0]
    assert above.get_xticks().tolist() == [1.5, 3.5, 5]
    assert [label.get_text() for label in above.get_xticklabels()] == ["0", "1", "2"]
    assert figure.axes[0].get_xlim() == (0, 6)
    assert figure.axes[0].get_xlabel() == "training samples seen"
    assert shares(figure).tolist() == [[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 1, 1]]


def test_without_boundaries_there_are_no_lines_and_the_same_rows() -> None:
    one, many = (density_figure(SplitDigits(class_order=1993, boundaries=on)) for on in (False, True))
    assert borders(one) == []
    assert one.axes[0].child_axes == []
    assert names(one) == names(many) == ["2", "4", "6", "7", "0", "3", "5", "8", "1", "9"]  # experience by experience


def test_classes_are_in_order_of_their_main_arrival() -> None:
    lists = [[0, 1, 2, 3], [4, 5, 6]]
    labels = [2, 2, 2, 0, 0, 0, 0, 1]  # one 0 comes early; class 1 is in no list
    figure = density_figure(stream_of(labels, lists=lists, test_lists=lists))
    assert names(figure) == ["2", "0"]


def test_domains_keep_the_order_of_labels() -> None:
    labels = [0, 1, 1, 0, 0, 1]  # now one and now the other class is a little more frequent
    domains = torch.tensor([0, 0, 0, 1, 1, 1])
    figure = density_figure(stream_of(labels, domains=domains, test_domains=domains))
    assert names(figure) == ["0", "1"]


def test_density_of_a_test_stream_is_that_of_its_test_samples() -> None:
    figure = density_figure(stream_of([1, 0, 1], OnlyTested, num_experiences=1))
    assert shares(figure).tolist() == [[0, 1, 0], [1, 0, 1]]
    assert figure.axes[0].get_xlabel() == "test samples seen"


def test_many_classes_have_few_names() -> None:
    figure = density_figure(stream_of(list(range(100)), num_experiences=50))
    assert names(figure) == [str(c) for c in range(0, 100, 5)]
    assert len(borders(figure)) == 49
    assert len(figure.axes[0].child_axes[0].get_xticks()) == 17


def test_density_reads_no_image(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = CorruptedImages("digits", corruptions=["fog", "snow"], boundaries=False)
    monkeypatch.setattr("lightning_cl.datamodules.corrupted_images.corrupt", pytest.fail)
    assert shares(density_figure(stream, bins=7)).shape == (10, 7)


def test_density_errors() -> None:
    with pytest.raises(ValueError, match="`bins` must be 1 or more, got 0"):
        density_figure(SplitDigits(), bins=0)
    data = TensorDataset(torch.zeros(3, 1), torch.tensor([0, 0, 1]))
    stream = SequenceStream([data] * 2, [data], [[0, 1]] * 2)
    stream.current = 1
    with pytest.raises(ValueError, match="The labels of this MapData are not known: make it with `targets`"):
        density_figure(stream)
    assert stream.current == 1


# -- both -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draw", [images_figure, density_figure])
def test_pictures_neither_use_pyplot_nor_draw_random_numbers(draw: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it raises
    stream, before = SplitDigits(blurry="stochastic"), torch.get_rng_state()
    assert isinstance(draw(stream), Figure)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [("--config streams/split_digits --data.blurry fixed", "split_digits"), ("--data SplitDigits", "SplitDigits")],
)
def test_script_writes_both_pictures(
    arguments: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = Path(__file__).parent.parent / "examples" / "draw_stream.py"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["draw_stream.py", *arguments.split(), "--trainer.accelerator", "cpu"])
    runpy.run_path(str(script), run_name="__main__")
    files = [f"{name}_images.png", f"{name}_density.png"]
    assert capsys.readouterr().out.splitlines() == files
    assert all((tmp_path / file).read_bytes().startswith(b"\x89PNG") for file in files)
