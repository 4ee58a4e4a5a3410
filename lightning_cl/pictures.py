"""Pictures of a stream: its first images, and which classes come when.

As in :mod:`lightning_cl.report`, matplotlib is imported by the functions that need it and pyplot is never touched.
"""

import math
from collections.abc import Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset

from lightning_cl.blurry import density
from lightning_cl.stream import StreamDataModule

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_AT_MOST = 20  # rows of images, and ticks of an axis


def images_figure(stream: StreamDataModule, per_experience: int = 8) -> "Figure":
    """Draw a row of images for each experience, as they are stored or read for testing: without augmentation.

    They are training images, or test images where there is nothing to train on: the first of each class, then the
    second of each, and so on. Where the experiences show the same images in other domains, a column is one image. Of
    more than twenty experiences every second, third ... is shown.

    Args:
        stream: A stream of images, grey or RGB, uint8 or in ``[0, 1]``. Its data is in place (``prepare_data``).
        per_experience: Images in a row; fewer where an experience has fewer.

    Returns:
        A figure outside of pyplot, to be saved with ``figure.savefig``.

    Raises:
        ValueError: If the samples are no such images, or ``per_experience`` is below 1.

    Example:
        >>> from lightning_cl.datamodules import SplitDigits
        >>> figure = images_figure(SplitDigits(), per_experience=4)
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()][:2]
        ['0: classes 0, 1', '1: classes 2, 3']
    """
    from matplotlib.figure import Figure

    if per_experience < 1:
        raise ValueError(f"`per_experience` must be 1 or more, got {per_experience}.")
    if len(stream.input_shape) != 3 or stream.input_shape[0] not in (1, 3):
        raise ValueError(f"`stream` must be one of images (1 or 3, H, W), got samples of shape {stream.input_shape}.")
    shown, part = _some(len(stream)), "test" if stream.test_only else "train"
    paper, centres = _on_paper([_first_images(stream.part(i, part), per_experience) for i in shown])
    height, width = (0.75 / stream.input_shape[1] * pixels for pixels in paper.shape[:2])  # inches
    whole = (max(1.9 + width + 0.1, 6.0), 0.1 + height + 0.4)  # with names on the left and the title above
    figure = Figure(figsize=whole)
    axes = figure.add_axes((1.9 / whole[0], 0.1 / whole[1], width / whole[0], height / whole[1]))
    axes.imshow(paper.numpy())
    axes.set_yticks(centres, [fill(f"{i}: {stream.name_of(i)}", 20) for i in shown], fontsize=9)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    which = "each experience" if len(shown) == len(stream) else f"{len(shown)} of {len(stream)} experiences"
    title = f"{type(stream).__name__}: {_kind(stream)} images of {which}"
    figure.suptitle(title, y=1 - 0.12 / whole[1], fontsize=11)
    return figure


def density_figure(stream: StreamDataModule, bins: int = 100) -> "Figure":
    """Draw how often each class comes along the stream, as a heat map of classes and time.

    Time is the samples that training is shown in the first epoch of each experience, one experience after another,
    in the order of the training loader; where there is nothing to train on, the test samples in their order. It is
    cut into ``bins`` over the borders of experiences, which are drawn as lines. A row is a class that occurs; classes
    that mainly come early stand above those that come late, equal ones by their number. Blank is a class that
    does not come. No image is read.

    Args:
        stream: Any stream whose labels are known. Its data is in place (``prepare_data``).
        bins: Columns of the heat map, at most one per sample.

    Returns:
        A figure outside of pyplot, to be saved with ``figure.savefig``.

    Raises:
        ValueError: If ``bins`` is below 1, or labels are not known without reading every sample.

    Example:
        >>> from lightning_cl.datamodules import SplitDigits
        >>> figure = density_figure(SplitDigits(), bins=50)
        >>> figure.axes[0].images[0].get_array().shape
        (10, 50)
    """
    import matplotlib
    import numpy as np
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    pieces = [_labels_in_order(stream, i) for i in range(len(stream))]
    sizes = [len(piece) for piece in pieces]
    labels = torch.cat(pieces)
    classes = _by_arrival(pieces if stream.boundaries else labels.tensor_split(len(stream.groups)), stream.num_classes)
    counts = density(labels, [torch.arange(len(labels))], stream.num_classes, min(bins, len(labels)))[classes]
    figure = Figure(figsize=(8.0, 4.8), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(
        np.ma.masked_equal((counts / counts.sum(0)).numpy(), 0),
        cmap=matplotlib.colormaps["viridis"].with_extremes(bad="#f2f2f2"),
        aspect="auto",
        vmin=0,
        extent=(0, sum(sizes), len(classes) - 0.5, -0.5),
    )
    ticks = _some(len(classes))
    axes.set_yticks(ticks, [str(int(classes[row])) for row in ticks], fontsize=9)
    axes.set_xlabel(f"{_kind(stream)} samples seen")
    axes.set_ylabel("class")
    axes.spines[:].set_visible(False)
    _draw_borders(axes, sizes)
    bar = figure.colorbar(image, ax=axes, format=PercentFormatter(1.0, decimals=0), label="share of the samples")
    bar.outline.set_visible(False)
    figure.suptitle(f"{type(stream).__name__}: classes along the stream", fontsize=11)
    return figure


def _kind(stream: StreamDataModule) -> str:
    return "test" if stream.test_only else "training"


def _some(count: int) -> range:
    """All of ``range(count)``, or every second, third ... if they are many."""
    return range(0, count, math.ceil(count / _AT_MOST))


# -- images ---------------------------------------------------------------------------------------------------------


def _first_images(part: Any, count: int) -> list[Tensor]:
    """Up to ``count`` images ``(C, H, W)`` as uint8."""
    images = [part[i][0] for i in _first_of_each_class(part, count)]
    return [x if x.dtype == torch.uint8 else (x.clamp(0, 1) * 255).round().to(torch.uint8) for x in images]


def _first_of_each_class(part: Any, count: int) -> list[int]:
    try:
        labels = _labels(part)
    except ValueError:  # known only by reading every sample: the first ones, then
        return list(range(min(count, len(part))))
    order = labels.argsort(stable=True)
    how_manieth = torch.cat([torch.arange(n) for n in labels.bincount().tolist()])
    return order[how_manieth.argsort(stable=True)[:count]].tolist()


def _on_paper(rows: list[list[Tensor]]) -> tuple[Tensor, list[float]]:
    """Put images on light grey paper ``(H, W, 3)``; also return the vertical centre of each row."""
    _, height, width = rows[0][0].shape
    gap = max(1, height // 12)
    down, right = height + gap, width + gap
    paper = torch.full((3, gap + len(rows) * down, gap + max(map(len, rows)) * right), 225, dtype=torch.uint8)
    tops = range(gap, paper.shape[1], down)
    for top, row in zip(tops, rows, strict=True):
        for left, image in zip(range(gap, paper.shape[2], right), row, strict=False):
            paper[:, top : top + height, left : left + width] = image
    return paper.permute(1, 2, 0), [top + (height - 1) / 2 for top in tops]


# -- classes along the stream ---------------------------------------------------------------------------------------


def _labels_in_order(stream: StreamDataModule, experience: int) -> Tensor:
    """The labels of an experience ``(n,)`` in the order in which they are shown."""
    if stream.test_only:
        return _labels(stream.part(experience, "test"))
    before, stream.current = stream.current, experience
    try:
        loader = stream.train_dataloader()
        return _labels(loader.dataset)[torch.cat([*loader.batches(0)])]
    finally:
        stream.current = before


def _labels(data: Any) -> Tensor:
    """The labels of samples, or of several one after another."""
    return torch.cat([*map(_labels, data.datasets)]) if isinstance(data, ConcatDataset) else data.labels


def _by_arrival(pieces: Sequence[Tensor], num_classes: int) -> Tensor:
    """The classes that occur, by the first piece of the stream that has many of them, then by number."""
    counts = torch.stack([piece.bincount(minlength=num_classes) for piece in pieces])
    most = counts.max(0).values
    first = (2 * counts >= most).int().argmax(0)  # half: pieces of a stream of domains may differ a little
    classes = first.argsort(stable=True)
    return classes[most[classes] > 0]


def _draw_borders(axes: "Axes", sizes: list[int]) -> None:
    """Draw lines between experiences, and number these above."""
    ends = torch.tensor(sizes).cumsum(0).tolist()
    for x in ends[:-1]:
        axes.axvline(x, color="#444444", linewidth=0.8 if len(sizes) <= _AT_MOST else 0.3)
    if len(sizes) > 1:
        shown = _some(len(sizes))
        above = axes.secondary_xaxis("top")
        above.set_xticks([ends[i] - sizes[i] / 2 for i in shown], [str(i) for i in shown], fontsize=9)
        above.set_xlabel("experience")
        above.tick_params(length=0)
        above.spines[:].set_visible(False)
