"""Accuracy and forgetting of methods that keep no samples, on Fashion-MNIST, each at the strength that a sweep chose.

Run ``python benchmarks/regularization.py --root FOLDER`` (see benchmarks/README.md for what is measured, and how).
"""

import argparse
import json
import logging
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from speed import BATCH, LR, RESULTS, ROOT, images_and_labels, lean_trainer, machine
from typing_extensions import override

from lightning_cl import StreamDataModule, callbacks, fit_stream
from lightning_cl.datamodules import PermutedMNIST, SplitFashionMNIST
from lightning_cl.methods import Classifier
from lightning_cl.report import write_atomic
from lightning_cl.samples import TensorData
from lightning_cl.shipped import config_path
from lightning_cl.sources.mnist import FashionMNIST

SEEDS, SWEEP_SEED = (0, 1, 2), 10
HELD_OUT = 6  # the sweep tests on the last sixth of the training images, and never on the test images
EXTENSIONS = 10  # by how many values a grid grows at most
STREAMS = {
    "split": "Split Fashion-MNIST, 5 experiences of 2 classes, task-incremental",
    "permuted": "Permuted Fashion-MNIST, 5 experiences of 10 classes, domain-incremental (TRGP, CUBER: known task)",
}


# -- what is compared -------------------------------------------------------------------------------------------------


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


THRESHOLDS = (0.7, 0.8, 0.9, 0.95, 0.97, 0.99, 0.995)
METHODS: dict[str, Sweep | None] = {  # by the name of the class
    "fine-tuning": None,
    "L2Anchor": Sweep("strength", (0.003, 0.01, 0.03, 0.1, 0.3)),
    "EWC": Sweep("strength", (10.0, 30.0, 100.0, 300.0, 1000.0)),
    "MAS": Sweep("strength", (0.1, 0.3, 1.0, 3.0, 10.0)),
    "SynapticIntelligence": Sweep("strength", (0.1, 0.3, 1.0, 3.0, 10.0)),
    "LwF": Sweep("strength", (0.3, 1.0, 3.0, 10.0, 30.0)),
    "FisherMerge": Sweep("strength", (0.1, 0.3, 1.0, 3.0, 10.0)),
    "GPM": Sweep("threshold", THRESHOLDS, goes_on=False, fixed={"threshold_step": 0.0}),
    "TRGP": Sweep("threshold", THRESHOLDS, goes_on=False, fixed={"threshold_step": 0.0}),
    "CUBER": Sweep("threshold", THRESHOLDS, goes_on=False, fixed={"threshold_step": 0.0}),
    "joint": None,
}
ASK_FOR_THE_TASK = ("TRGP", "CUBER")


def shipped_arguments(method: str) -> dict[str, Any]:
    """The arguments in the config that ships with a method, which is named after its module."""
    module = getattr(callbacks, method).__module__.rpartition(".")[2]
    fragment = yaml.safe_load(config_path(f"methods/{module}").read_text())
    entry = next(entry for entry in fragment["trainer"]["callbacks+"] if entry["class_path"] == method)
    return dict(entry.get("init_args") or {})


# -- one run ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """What a result depends on."""

    stream: str
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


def make_stream(run: Run, root: str) -> StreamDataModule:
    joint, asks = run.method == "joint", run.method in ASK_FOR_THE_TASK
    stream = (
        SplitFashionMNIST(root, 5, task_labels=True, cumulative=joint)
        if run.stream == "split"
        else PermutedMNIST(root, 5, data_set="fashion_mnist", cumulative=joint, task_labels=asks)
    )
    stream.source = HeldFashionMNIST(root, run.every, run.sweep)
    return stream


class DivergedError(Exception):
    """Weights are no longer finite."""


class StopIfDiverged(Callback):
    """End the run: what would follow is slow, as most of it is computed with NaN, and no better than chance."""

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not all(p.isfinite().all() for p in pl_module.parameters()):
            raise DivergedError


def learn(run: Run, root: str) -> dict[str, Any]:
    """Learn a stream; a run that diverges has the accuracy of chance, and no forgetting."""
    start = time.process_time()
    L.seed_everything(run.seed, verbose=False)
    stream = make_stream(run, root)
    loss_classes = "current" if stream.task_labels else "all"
    optimizer = partial(torch.optim.SGD, lr=LR)
    model = Classifier(10, "mlp", stream.input_shape, loss_classes=loss_classes, optimizer=optimizer)
    method = [] if METHODS[run.method] is None else [getattr(callbacks, run.method)(**run.arguments)]
    try:
        result = fit_stream(lean_trainer(*method, StopIfDiverged()), model, stream)
        accuracy, forgetting, matrix = result.average_accuracy, result.forgetting, result.accuracy_matrix.tolist()
    except DivergedError:
        accuracy, forgetting, matrix = 1 / len(stream.classes[0]), None, []
    return {
        "run": vars(run),
        "average_accuracy": accuracy,
        "forgetting": forgetting,
        "accuracies": [row[: i + 1] for i, row in enumerate(matrix)],
        "cpu_seconds": time.process_time() - start,
    }


def quiet() -> None:
    """Set up a process."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "Total length of `list` across ranks is zero")  # there is no validation part
    warnings.filterwarnings("ignore", "The .* does not have many workers")
    warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated")  # between Lightning and torch
    for package in ("fabric", "pytorch"):
        logging.getLogger(f"lightning.{package}").setLevel(logging.ERROR)


def learn_all(runs: Sequence[Run], root: str, jobs: int) -> Iterator[dict[str, Any]]:
    """Learn in this process, or in ``jobs`` others; results come as they are ready."""
    if jobs == 1:
        yield from map(partial(learn, root=root), runs)
        return
    with get_context("spawn").Pool(jobs, quiet) as pool:
        yield from pool.imap_unordered(partial(learn, root=root), runs)


# -- which runs -------------------------------------------------------------------------------------------------------


Records = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """A method on a stream: which runs it needs, given the results there are."""

    stream: str
    method: str
    every: int
    records: Records

    def run(self, value: float | None, seed: int) -> Run:
        """The run with one value of the sweep, ``None`` where there is nothing to choose."""
        sweep = METHODS[self.method]
        arguments = {} if sweep is None else {**shipped_arguments(self.method), **sweep.fixed, sweep.argument: value}
        if self.method in ASK_FOR_THE_TASK and self.stream == "permuted":
            arguments["free"] = []  # there is one head, which is protected as for GPM
        return Run(self.stream, self.method, arguments, seed, seed == SWEEP_SEED, self.every)

    def result(self, value: float | None, seed: int) -> dict[str, Any] | None:
        """Its result, if it is there."""
        return self.records.get(self.run(value, seed).key)

    def score(self, value: float | None) -> float | None:
        """The accuracy of a value in the sweep, if it was tried."""
        record = self.result(value, SWEEP_SEED)
        return None if record is None else record["average_accuracy"]

    def grid(self) -> list[float | None]:
        """The values to sweep over."""
        sweep = METHODS[self.method]
        return [None] if sweep is None else [*sweep.grid(self.score)]

    def chosen(self) -> float | None:
        """The best value so far; of equal ones the least."""
        return max(self.grid(), key=lambda value: self.score(value) or 0.0)

    def runs(self, sweep_only: bool = False) -> list[Run]:
        """The runs of the sweep, and once these are done, those that are reported."""
        runs = [self.run(value, SWEEP_SEED) for value in self.grid()]
        if sweep_only or any(run.key not in self.records for run in runs):
            return runs
        return runs + [self.run(self.chosen(), seed) for seed in SEEDS]

    def reported(self) -> list[dict[str, Any]]:
        """The results of all seeds; empty if one is missing."""
        runs = self.runs()
        done = [self.records[run.key] for run in runs if not run.sweep and run.key in self.records]
        return done if len(done) == len(SEEDS) else []


def read(path: Path) -> Records:
    records = json.loads(path.read_text())["runs"] if path.exists() else []
    return {Run(**record["run"]).key: record for record in records}


def save(path: Path, records: Records) -> None:
    """Write the results, with what another process may have written meanwhile."""
    content = {"machine": machine(), "runs": list((read(path) | records).values())}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def line(record: Mapping[str, Any]) -> str:
    run, sweep = record["run"], METHODS[record["run"]["method"]]
    value = "" if sweep is None else f" {sweep.argument} {run['arguments'][sweep.argument]:g}"
    reached = f"{run['stream']}, {run['method']}{value}, seed {run['seed']}: {shown(record)}"
    return f"{reached}, {record['cpu_seconds']:.1f} s"


def shown(record: Mapping[str, Any] | None) -> str:
    if record is None:
        return "missing"
    return "diverged" if record["forgetting"] is None else f"{record['average_accuracy']:.4f}"


# -- the report -------------------------------------------------------------------------------------------------------


def mean_and_deviation(values: Sequence[float | None]) -> str:
    numbers = [value for value in values if value is not None]
    if len(numbers) < len(values):
        return "diverged"
    return f"{statistics.mean(numbers):.3f} ± {statistics.stdev(numbers):.3f}"


def gains(case: Case) -> list[float]:
    """Seed by seed, the accuracy above that of fine-tuning; empty if either is missing."""
    reference = Case(case.stream, "fine-tuning", case.every, case.records).reported()
    pairs = zip(case.reported(), reference, strict=False)
    return [mine["average_accuracy"] - theirs["average_accuracy"] for mine, theirs in pairs]


def row(case: Case) -> str:
    results, sweep, above = case.reported(), METHODS[case.method], gains(case)
    accuracy, forgetting, seconds = (
        [r[name] for r in results] for name in ("average_accuracy", "forgetting", "cpu_seconds")
    )
    chosen = "" if sweep is None else f"`{sweep.argument}` {case.chosen():g}"
    gain = f"{statistics.mean(above):+.3f} | {min(above):+.3f} to {max(above):+.3f}" if above and chosen else "|"
    reached = f"{mean_and_deviation(accuracy)} | {mean_and_deviation(forgetting)}"
    return f"| {case.method} | {chosen} | {reached} | {gain} | {statistics.median(seconds):.1f} |"


def sweep_row(case: Case) -> str:
    sweep, chosen = METHODS[case.method], case.chosen()
    assert sweep is not None
    texts = {value: f"{value:g}: {shown(case.result(value, SWEEP_SEED))}" for value in case.grid()}
    cells = ", ".join(f"**{text}**" if value == chosen else text for value, text in texts.items())
    edge = " (best at the edge)" if chosen in (case.grid()[0], case.grid()[-1]) else ""
    return f"| {case.method} | `{sweep.argument}` | {cells}{edge} |"


def verdict(cases: Sequence[Case]) -> str:
    """Which methods do not beat fine-tuning."""
    all_gains = {case.method: gains(case) for case in cases if METHODS[case.method] is not None}
    losers = [method for method, above in all_gains.items() if above and statistics.mean(above) <= 0]
    mixed = [m for m, above in all_gains.items() if above and m not in losers and min(above) <= 0]
    sentences = [f"Not better than fine-tuning in the mean: {', '.join(losers) or 'none'}."]
    if mixed:
        sentences.append(f"Better in the mean, but not with every seed: {', '.join(mixed)}.")
    return " ".join(sentences)


def section(stream: str, cases: Sequence[Case]) -> str:
    """The tables of a stream, of the cases that are complete."""
    reported = [case for case in cases if case.reported()]
    swept = [case for case in cases if METHODS[case.method] is not None and case.score(case.chosen()) is not None]
    reference = Case(stream, "fine-tuning", cases[0].every, cases[0].records).result(None, SWEEP_SEED)
    seeds = ", ".join(map(str, SEEDS))
    lines = [
        f"\n## {STREAMS[stream]}\n",
        f"Mean and standard deviation over the seeds {seeds}; the gain is over fine-tuning with the same seed.\n",
        "| | chosen | average accuracy | forgetting | mean gain | least to most | CPU s per run |",
        "|---|---|---|---|---|---|---|",
        *map(row, reported),
        f"\n{verdict(reported)}\n",
        f"Sweep, seed {SWEEP_SEED}: accuracy on held-out training images, where fine-tuning has {shown(reference)}.\n",
        "| | argument | value: accuracy |",
        "|---|---|---|",
        *map(sweep_row, swept),
    ]
    return "\n".join(lines) + "\n"


def markdown(records: Records, every: int) -> str:
    command = "python benchmarks/regularization.py" + (f" --every {every}" if every > 1 else "")
    text = f"# Regularisation\n\nWritten by `{command}`. " + "; ".join(f"{k}: {v}" for k, v in machine().items()) + "\n"
    for stream in STREAMS:
        cases = [Case(stream, method, every, records) for method in METHODS]
        if any(case.score(value) is not None for case in cases for value in case.grid()):
            text += section(stream, cases)
    return text


def draw(path: Path, records: Records, every: int) -> None:
    """Draw the average accuracy on the experiences so far after each of them, mean over the seeds."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(STREAMS), figsize=(11, 4.2), layout="constrained")
    for axis, (stream, title) in zip(axes, STREAMS.items(), strict=True):
        for method in METHODS:
            results = Case(stream, method, every, records).reported()
            curves = [[statistics.mean(row) for row in result["accuracies"]] for result in results]
            if curves and all(curves):
                reference = METHODS[method] is None
                style = {"color": "black", "linestyle": ":" if method == "joint" else "--"} if reference else {}
                axis.plot(range(1, 6), [statistics.mean(c) for c in zip(*curves, strict=True)], label=method, **style)
        axis.set(title=title.split(", ")[0], xlabel="experiences learned", xticks=range(1, 6))
    axes[0].set_ylabel("average accuracy on these")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main() -> None:
    """Do the runs that are missing, print the tables, and write them to benchmarks/results/."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", default=ROOT, help="folder of the four IDX files (default: %(default)s)")
    parser.add_argument("--streams", nargs="+", choices=list(STREAMS), default=list(STREAMS))
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--sweep-only", action="store_true", help="leave out the runs that are reported")
    parser.add_argument("--every", type=int, default=1, help="use every N-th image only, for a try")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, one thread each")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results (default: %(default)s)")
    args = parser.parse_args()
    quiet()
    path = args.out / "regularization.json"
    records = read(path)
    cases = [Case(stream, method, args.every, records) for stream in args.streams for method in args.methods]
    while runs := [run for case in cases for run in case.runs(args.sweep_only) if run.key not in records]:
        for number, record in enumerate(learn_all(runs, args.root, args.jobs), 1):
            records[Run(**record["run"]).key] = record
            save(path, records)
            print(f"{number} of {len(runs)}: {line(record)}", flush=True)
    text = markdown(records, args.every)
    print("\n" + text)
    write_atomic(args.out / "regularization.md", text)
    draw(args.out / "regularization.png", records, args.every)


if __name__ == "__main__":
    main()
