"""What a run leaves behind: the accuracy matrix as a file, a picture and a table, and its summary.

Files are written whole or not at all. matplotlib and rich are imported by the functions that need them; pyplot and its
global state are never touched, so that a figure works without a display and beside a user's own figures.
"""
# ruff: noqa: N803, N806  (the matrix is called R in all papers of the field)

import io
import json
import math
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_cl import metrics

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger
    from matplotlib.figure import Figure
    from rich.console import Console, RenderableType
    from rich.text import Text

_NUMBERS_UP_TO = 12  # experiences; a longer matrix has no numbers in its picture and an ellipsis in its table
_LABELS = {
    "average_accuracy": "average accuracy",
    "average_accuracy_sample_weighted": "average accuracy, weighted by samples",
    "average_incremental_accuracy": "average incremental accuracy (Rebuffi et al., 2017)",
    "average_incremental_accuracy_sample_weighted": "average incremental accuracy, weighted by samples",
    "learning_accuracy": "learning accuracy (mean of the diagonal)",
    "forgetting_chaudhry": "forgetting (Chaudhry et al., 2018)",
    "backward_transfer": "backward transfer (Lopez-Paz & Ranzato, 2017)",
    "forward_transfer": "forward transfer (Lopez-Paz & Ranzato, 2017)",
}
# Nine equal steps through viridis, so that a terminal table does not have to import matplotlib.
_VIRIDIS = ("440154", "472d7b", "3b528b", "2c728e", "21918c", "28ae80", "5ec962", "addc30", "fde725")


def write_atomic(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Write a file so that at every instant the path holds the old content or the new, never a part.

    The data goes to a hidden file in the same folder, is flushed to the disk and then takes the name. If anything
    fails, the hidden file is removed and the old file is as it was.

    Args:
        path: File to write; its folder exists.
        data: Content; text is encoded as UTF-8 with its line ends as they are.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_atomic(Path(folder, "a.txt"), "whole")
        ...     print(Path(folder, "a.txt").read_text(), len(os.listdir(folder)))
        whole 1
    """
    path = Path(path)
    hidden = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(hidden, "xb") as file:  # not `tempfile`: its files are unreadable for the group
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(hidden, path)
    except BaseException:
        hidden.unlink(missing_ok=True)
        raise


def matrix_csv(R: Tensor) -> str:
    """Write the accuracy matrix as comma-separated text that reads back to the same bits.

    Args:
        R: Accuracy matrix ``(T, T)``.

    Returns:
        A header, then a row per learned experience that starts with its index. Entries not evaluated are empty.

    Raises:
        ValueError: If ``R`` is not square.

    Example:
        >>> print(matrix_csv(torch.tensor([[0.9, math.nan], [0.5, 0.8]], dtype=torch.float64)), end="")
        learned,experience_0,experience_1
        0,0.9,
        1,0.5,0.8
    """
    lines = [",".join(["learned", *(f"experience_{j}" for j in range(len(R)))])]
    for i, row in enumerate(_rows(R)):
        lines.append(",".join([str(i), *("" if value is None else repr(value) for value in row)]))
    return "\n".join(lines) + "\n"


def read_matrix_csv(text: str) -> Tensor:
    """Read what :func:`matrix_csv` wrote.

    Args:
        text: The content of the file.

    Returns:
        ``R`` ``(T, T)`` in float64, NaN where an entry is empty.

    Raises:
        ValueError: If the text is not of that form.

    Example:
        >>> read_matrix_csv(matrix_csv(torch.eye(2)))
        tensor([[1., 0.],
                [0., 1.]], dtype=torch.float64)
    """
    header, *lines = [line.split(",") for line in text.splitlines()] or [[]]
    if header[:1] != ["learned"] or any(len(cells) != len(lines) + 1 for cells in [header, *lines]):
        raise ValueError(f"`text` must be a square accuracy matrix as `matrix_csv` writes it, got {text[:80]!r}.")
    values = [[float(cell) if cell else math.nan for cell in cells[1:]] for cells in lines]
    return torch.tensor(values, dtype=torch.float64).view(len(lines), len(lines))


def matrix_figure(R: Tensor, title: str | None = None) -> "Figure":
    """Draw the accuracy matrix as a heat map.

    A row per learned experience, a column per tested experience, percent as colour and, up to twelve experiences, as
    numbers. Entries that were not evaluated are blank. So is an upper triangle of zeros only: a head over the classes
    seen cannot predict the next ones, and the zeros would look like a result.

    Args:
        R: Accuracy matrix ``(T, T)``.
        title: Text above; ``None`` names what is shown.

    Returns:
        A figure outside of pyplot, to be saved with ``figure.savefig``.

    Raises:
        ValueError: If ``R`` is not square.

    Example:
        >>> figure = matrix_figure(torch.tensor([[0.9, 0.0], [0.5, 0.8]]))
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['90.0', '50.0', '80.0']
    """
    import matplotlib
    import numpy as np
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    percent = 100 * _shown(R)
    size = len(R)
    few = size <= _NUMBERS_UP_TO
    side = min(max(0.62 * size, 3.0), 6.4)  # of the heat map, in inches
    figure = Figure(figsize=(side + 2.0, side + 1.7), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    axes = figure.subplots()
    colors = matplotlib.colormaps["viridis"].with_extremes(bad="#ececec")
    image = axes.imshow(np.ma.masked_invalid(percent.numpy()), cmap=colors, vmin=0, vmax=100, interpolation="nearest")
    if few:
        axes.set_xticks(range(size))
        axes.set_yticks(range(size))
        axes.set_xticks([j - 0.5 for j in range(1, size)], minor=True)
        axes.set_yticks([j - 0.5 for j in range(1, size)], minor=True)
        axes.grid(which="minor", color="white", linewidth=1.5)
        for i, j in (~percent.isnan()).nonzero().tolist():
            value = float(percent[i, j])
            ink = _ink(*colors(value / 100)[:3])
            axes.text(j, i, f"{value:.1f}", ha="center", va="center", color=ink, fontsize=9)
    else:
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(nbins=10, steps=[1, 2, 5, 10], integer=True))
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("accuracy on experience")
    axes.set_ylabel("after learning experience")
    axes.set_title("Accuracy matrix" if title is None else title)
    beside = axes.inset_axes((1.03, 0.0, 0.035, 1.0))  # exactly as high as the heat map
    bar = figure.colorbar(image, cax=beside, format=PercentFormatter(), ticks=range(0, 101, 20))
    bar.outline.set_visible(False)
    figure.supxlabel(_figure_line(metrics.summary(R)), fontsize=9, color="#444444")
    return figure


def matrix_table(R: Tensor, summary: Mapping[str, float], width: int = 100) -> "RenderableType":
    """Lay out the accuracy matrix, in percent, and its summary for a terminal.

    Above twelve experiences, or as many as fit, the middle rows and columns are replaced by an ellipsis. Blank is what
    is blank in :func:`matrix_figure`.

    Args:
        R: Accuracy matrix ``(T, T)``.
        summary: Scalars as of :func:`lightning_cl.metrics.summary`; those it does not know are printed as they are.
        width: Columns of the terminal.

    Returns:
        Something that ``rich.console.Console.print`` takes.

    Raises:
        ValueError: If ``R`` is not square.

    Example:
        >>> from rich.console import Console
        >>> R = torch.tensor([[0.9, 0.0], [0.5, 0.8]])
        >>> Console(width=100).print(matrix_table(R, {"average_accuracy": 0.65}))  # doctest: +NORMALIZE_WHITESPACE
        accuracy on experience (%)
        after      0      1
            0   90.0
            1   50.0   80.0
        <BLANKLINE>
        average accuracy  65.00 %
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    rows, shown = _rows(_shown(R)), list(range(len(R)))  # experiences, both of the rows and of the columns
    fitting = min(_NUMBERS_UP_TO, max((width - 7) // 7, 3))
    if len(R) > fitting:
        shown = [*range(fitting // 2), -1, *range(len(R) - (fitting - 1) // 2, len(R))]  # -1: the ellipsis
    names = ["…" if j < 0 else str(j) for j in shown]
    table = Table(box=None, padding=0)
    table.add_column("after ", style="bold", no_wrap=True)
    for name in names:
        table.add_column(f"{name:>6} " if name != "…" else " … ", no_wrap=True)
    for i, name in zip(shown, names, strict=True):
        table.add_row(f"{name:>5} ", *(_cell(None if min(i, j) < 0 else rows[i][j]) for j in shown))
    lines = Table.grid(padding=(0, 2))
    lines.add_column()
    lines.add_column(justify="right")
    for key in [*(key for key in _LABELS if key in summary), *(key for key in summary if key not in _LABELS)]:
        known = key in _LABELS
        lines.add_row(Text(_LABELS.get(key, key)), f"{100 * summary[key]:.2f} %" if known else f"{summary[key]:.6g}")
    return Group(Text("accuracy on experience (%)", style="bold"), table, "", lines)


def print_report(
    R: Tensor, summary: Mapping[str, float], run_dir: str | os.PathLike[str] | None, console: "Console | None" = None
) -> None:
    """Print the accuracy matrix, the summary with its conventions, and where the files of the run are.

    Args:
        R: Accuracy matrix ``(T, T)``.
        summary: Scalars as of :func:`lightning_cl.metrics.summary`.
        run_dir: Folder of the run; ``None`` if it leaves no files.
        console: Where to print; ``None`` is the standard output.

    Raises:
        ValueError: If ``R`` is not square.
    """
    from rich.console import Console
    from rich.text import Text

    console = Console() if console is None else console
    console.print(matrix_table(R, summary, console.width))
    if run_dir is not None:
        console.print(Text(f"\nrun folder: {os.fspath(run_dir)}"), soft_wrap=True)  # in one piece, to be copied


def print_accuracies(accuracies: Tensor, names: Sequence[str], console: "Console | None" = None) -> None:
    """Print the accuracy on each experience and their mean.

    Args:
        accuracies: Fractions ``(T,)``, NaN where nothing was measured.
        names: What each experience is.
        console: Where to print; ``None`` is the terminal.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table("", "experience", "accuracy (%)", title="Accuracy")
    for j, (value, name) in enumerate(zip(accuracies.tolist(), names, strict=True)):
        table.add_row(str(j), name, _cell(None if value != value else value))
    table.add_section()
    table.add_row("", "mean", _cell(float(accuracies.nanmean())))
    (console or Console()).print(table)


def write_report(
    run_dir: str | os.PathLike[str],
    R: Tensor,
    summary: Mapping[str, float],
    extra: Mapping[str, Any] | None = None,
    picture: bool = True,
) -> list[Path]:
    """Write ``accuracy_matrix.csv``, ``accuracy_matrix.png`` and ``summary.json``, each whole or not at all.

    ``summary.json`` is strict JSON with sorted keys: the scalars, the extra entries, and under ``accuracy_matrix`` the
    matrix as a list of rows. What is not a finite number is ``null``. Call it on one process only.

    Args:
        run_dir: Folder of the run; made if missing.
        R: Accuracy matrix ``(T, T)``.
        summary: Scalars as of :func:`lightning_cl.metrics.summary`.
        extra: Further entries of the JSON file: numbers, strings, paths, tensors, and lists and dicts of them.
        picture: Draw the matrix, which takes a quarter of a second; off, there is no new ``accuracy_matrix.png``.

    Returns:
        The files, in the order above.

    Raises:
        ValueError: If ``R`` is not square or two entries of the JSON file have one name.
        TypeError: If ``extra`` holds something else.
    """
    extra = {} if extra is None else extra
    names = [*summary, *extra, "accuracy_matrix"]
    if len(set(names)) < len(names):
        raise ValueError(f"`summary` and `extra` must not repeat a name or have 'accuracy_matrix', got {names[:-1]}.")
    entries = _plain({**extra, **summary, "accuracy_matrix": R})
    contents: dict[str, bytes | str] = {"accuracy_matrix.csv": matrix_csv(R)}
    if picture:
        image = io.BytesIO()
        matrix_figure(R).savefig(image, format="png", dpi=150)
        contents["accuracy_matrix.png"] = image.getvalue()
    contents["summary.json"] = json.dumps(entries, indent=2, sort_keys=True, allow_nan=False) + "\n"
    paths = [Path(run_dir, name) for name in contents]
    Path(run_dir).mkdir(parents=True, exist_ok=True)
    for path, data in zip(paths, contents.values(), strict=True):
        write_atomic(path, data)
    return paths


def log_report(
    loggers: "Iterable[Logger]", R: Tensor, summary: Mapping[str, float], step: int, picture: bool = True
) -> None:
    """Send the scalars to every logger, and the matrix as a picture to those that take one.

    A picture goes through the logger's ``log_image`` (Weights & Biases and others) or else its experiment's
    ``add_image`` (TensorBoard). On other processes than the first nothing happens, and nothing is communicated.

    Args:
        loggers: As in ``trainer.loggers``.
        R: Accuracy matrix ``(T, T)``.
        summary: Scalars as of :func:`lightning_cl.metrics.summary`.
        step: Value of the x axis.
        picture: Draw the matrix; off, only the scalars are sent.
    """
    from lightning.pytorch.utilities import rank_zero_only

    if getattr(rank_zero_only, "rank", 0) != 0:
        return
    pixels = None
    for logger in loggers:
        logger.log_metrics(dict(summary), step=step)
        if not picture:
            continue
        log_image = getattr(logger, "log_image", None)
        add_image = None if log_image else getattr(getattr(logger, "experiment", None), "add_image", None)
        if log_image or add_image:
            pixels = _pixels(matrix_figure(R)) if pixels is None else pixels
        if log_image:
            log_image(key="accuracy_matrix", images=[pixels], step=step)
        elif add_image:
            add_image("accuracy_matrix", pixels, step, dataformats="HWC")


def _square(R: Tensor) -> Tensor:
    if R.ndim != 2 or R.shape[0] != R.shape[1]:
        raise ValueError(f"`R` must be a square matrix, got shape {tuple(R.shape)}.")
    return R.detach().cpu().double()


def _rows(R: Tensor) -> list[list[float | None]]:
    """Entries, ``None`` for NaN."""
    return [[None if math.isnan(value) else value for value in row] for row in _square(R).tolist()]


def _shown(R: Tensor) -> Tensor:
    """Blank an upper triangle of zeros only."""
    R = _square(R)
    above = torch.ones_like(R, dtype=torch.bool).triu(1)
    return R if R[above].nan_to_num().any() else R.masked_fill(above, math.nan)


def _figure_line(summary: Mapping[str, float]) -> str:
    """Two short lines, which fit below the smallest picture."""
    first, *others = [
        f"{name} {100 * summary[key]:.1f} %"
        for key, name in (
            ("average_accuracy", "average accuracy"),
            ("forgetting_chaudhry", "forgetting (Chaudhry et al.)"),
            ("backward_transfer", "backward transfer"),
        )
        if key in summary
    ] or [""]
    return f"{first}\n{'   '.join(others)}".strip()


def _ink(red: float, green: float, blue: float) -> str:
    """Black or white, whichever has the higher contrast (WCAG 2) on a colour with parts in [0, 1]."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000000" if (luminance + 0.05) ** 2 > 1.05 * 0.05 else "#ffffff"


def _cell(value: float | None) -> "Text":
    """One number of the table in percent on its colour."""
    from rich.style import Style
    from rich.text import Text

    if value is None:
        return Text("")
    color = _VIRIDIS[min(max(round(8 * value), 0), 8)]
    ink = _ink(*(int(color[k : k + 2], 16) / 255 for k in (0, 2, 4)))
    return Text(f"{100 * value:6.1f} ", style=Style(color=ink, bgcolor=f"#{color}"))


def _plain(value: Any) -> Any:
    """Turn tensors, paths and tuples into what JSON has, and what is not finite into ``None``."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, Tensor):
        return _plain(value.tolist())
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _pixels(figure: "Figure") -> Any:
    """Render to an array ``(H, W, 3)`` of bytes."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]
