"""What the benchmarks of accuracy share: runs that are cached, in processes side by side, and sweeps that grow.

A benchmark has a subclass of :class:`Run`, what a result depends on, and one of :class:`Case`, the runs of a method.
"""

import json
import logging
import math
import statistics
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from speed import BATCH, images_and_labels, machine
from typing_extensions import override

from lightning_cl.report import write_atomic
from lightning_cl.samples import TensorData
from lightning_cl.sources.mnist import FashionMNIST

SEEDS, SWEEP_SEED = (0, 1, 2), 10
HELD_OUT = 6  # the sweep tests on the last sixth of the training images, and never on the test images
EXTENSIONS = 10  # by how many values a grid grows at most


# -- sweeps -----------------------------------------------------------------------------------------------------------


def beside(value: float, by: int) -> float:
    """The value ``by`` places further in ..., 0.3, 1, 3, 10, ..."""
    k = round(2 * math.log10(value)) + by
    return float(f"{(1, 3)[k % 2]}e{k // 2}")


@dataclass(frozen=True)
class Sweep:
    """Values of one argument, of which the best is chosen.

    Args:
        argument: Its name.
        values: The values, ascending.
        goes_on: Whether the grid, half a decade apart, goes on beyond an edge that is best.
        fixed: Further arguments, where they are other than in the shipped config.
    """

    argument: str
    values: tuple[float, ...]
    goes_on: bool = True
    fixed: dict[str, Any] = field(default_factory=dict)

    def grid(self, score: Callable[[float], float | None]) -> list[float]:
        """The values to try, given the scores so far: with one more beyond each edge that proved best."""
        values = list(self.values)
        for _ in range(EXTENSIONS if self.goes_on else 0):
            scores = [found for found in map(score, values) if found is not None]
            if len(scores) < len(values):
                break
            if scores[0] == max(scores) > scores[1]:
                values.insert(0, beside(values[0], -1))
            elif scores[-1] == max(scores) > scores[-2]:
                values.append(beside(values[-1], 1))
            else:
                break
        return values


# -- one run ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a result depends on.

    Args:
        method: Its name.
        arguments: Of the method.
        seed: Of weights and order.
        sweep: Whether it tests on held-out training images.
        every: Use every so many-th image only.
    """

    method: str
    arguments: dict[str, Any]
    seed: int
    sweep: bool
    every: int

    @property
    def key(self) -> str:
        """The run as text: what results are found by."""
        return json.dumps(vars(self), sort_keys=True)


class HeldFashionMNIST(FashionMNIST):
    """Fashion-MNIST in memory; in the sweep the end of the training images stands in for the test images."""

    def __init__(self, root: str, every: int, sweep: bool) -> None:
        super().__init__(root, download=False)
        self.every = every
        self.sweep = sweep

    @override
    def load(self, train: bool) -> TensorData:
        x, y = images_and_labels(str(self.root), train or self.sweep, self.every)
        if self.sweep:
            cut = len(y) - len(y) // HELD_OUT // BATCH * BATCH  # whole batches: the last one is as large as it was
            x, y = (x[:cut], y[:cut]) if train else (x[cut:], y[cut:])
        return TensorData(x, y)


class DivergedError(Exception):
    """Weights are no longer finite."""


class StopIfDiverged(Callback):
    """End the run: what would follow is slow, as most of it is computed with NaN, and no better than chance."""

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not all(p.isfinite().all() for p in pl_module.parameters()):
            raise DivergedError


def quiet() -> None:
    """Set up a process."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "Total length of `list` across ranks is zero")  # there is no validation part
    warnings.filterwarnings("ignore", "The .* does not have many workers")
    warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated")  # between Lightning and torch
    for package in ("fabric", "pytorch"):
        logging.getLogger(f"lightning.{package}").setLevel(logging.ERROR)


R = TypeVar("R", bound=Run)


def learn_all(learn: Callable[[R], dict[str, Any]], runs: Sequence[R], jobs: int) -> Iterator[dict[str, Any]]:
    """Learn in this process, or in ``jobs`` others; results come as they are ready."""
    if jobs == 1:
        yield from map(learn, runs)
        return
    with get_context("spawn").Pool(jobs, quiet) as pool:
        yield from pool.imap_unordered(learn, runs)


# -- which runs -------------------------------------------------------------------------------------------------------


Records = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Case(ABC):
    """A method in a setting: which runs it needs, given the results there are.

    Args:
        method: Its name.
        every: Use every so many-th image only.
        records: The results.
    """

    method: str
    every: int
    records: Records

    @property
    @abstractmethod
    def sweep(self) -> Sweep | None:
        """What is chosen, if there is anything to choose."""

    @abstractmethod
    def run(self, value: float | None, seed: int) -> Run:
        """The run with one value of the sweep, ``None`` where there is nothing to choose."""

    def result(self, value: float | None, seed: int) -> dict[str, Any] | None:
        """Its result, if it is there."""
        return self.records.get(self.run(value, seed).key)

    def score(self, value: float | None) -> float | None:
        """The accuracy of a value in the sweep, if it was tried."""
        record = self.result(value, SWEEP_SEED)
        return None if record is None else record["average_accuracy"]

    def grid(self) -> list[float | None]:
        """The values to sweep over."""
        return [None] if self.sweep is None else [*self.sweep.grid(self.score)]

    def chosen(self) -> float | None:
        """The best value so far; of equal ones the least."""
        return max(self.grid(), key=lambda value: self.score(value) or 0.0)

    def sweep_runs(self) -> list[Run]:
        """The runs of the sweep."""
        return [self.run(value, SWEEP_SEED) for value in self.grid()]

    def runs(self, sweep_only: bool = False, seeds: Sequence[int] = SEEDS) -> list[Run]:
        """The runs of the sweep, and once these are done, those that are reported."""
        runs = self.sweep_runs()
        if sweep_only or any(run.key not in self.records for run in runs):
            return runs
        return runs + [self.run(self.chosen(), seed) for seed in seeds]

    def reported(self) -> list[dict[str, Any]]:
        """The results of all seeds; empty if one is missing."""
        runs = self.runs()
        done = [self.records[run.key] for run in runs if not run.sweep and run.key in self.records]
        return done if len(done) == len(SEEDS) else []


def read(path: Path, kind: type[Run]) -> Records:
    """The results in a file, by the key of their run."""
    records = json.loads(path.read_text())["runs"] if path.exists() else []
    return {kind(**record["run"]).key: record for record in records}


def save(path: Path, records: Records, kind: type[Run], **tables: dict[str, Any]) -> None:
    """Write the results, with what another process may have written meanwhile; ``tables`` gain the given entries."""
    content = json.loads(path.read_text()) if path.exists() else {}
    content |= {name: content.get(name, {}) | entries for name, entries in tables.items()}
    content |= {"machine": machine(), "runs": list((read(path, kind) | records).values())}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


# -- the report -------------------------------------------------------------------------------------------------------


def shown(record: dict[str, Any] | None) -> str:
    if record is None:
        return "missing"
    return "diverged" if record["forgetting"] is None else f"{record['average_accuracy']:.4f}"


def mean_and_deviation(values: Sequence[float | None]) -> str:
    numbers = [value for value in values if value is not None]
    if len(numbers) < len(values):
        return "diverged"
    return f"{statistics.mean(numbers):.3f} ± {statistics.stdev(numbers):.3f}"


def sweep_row(case: Case) -> str:
    sweep, chosen = case.sweep, case.chosen()
    assert sweep is not None
    texts = {value: f"{value:g}: {shown(case.result(value, SWEEP_SEED))}" for value in case.grid()}
    cells = ", ".join(f"**{text}**" if value == chosen else text for value, text in texts.items())
    edge = " (best at the edge)" if chosen in (case.grid()[0], case.grid()[-1]) else ""
    return f"| {case.method} | `{sweep.argument}` | {cells}{edge} |"
