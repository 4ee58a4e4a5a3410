"""Accuracy and forgetting of methods that keep no samples, on Fashion-MNIST, each at the strength that a sweep chose.

Run ``python benchmarks/regularization.py --root FOLDER`` (see benchmarks/README.md for what is measured, and how).
"""

import argparse
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from runs import (
    SEEDS,
    SWEEP_SEED,
    Case,
    DivergedError,
    HeldFashionMNIST,
    Records,
    Run,
    StopIfDiverged,
    Sweep,
    learn_all,
    mean_and_deviation,
    quiet,
    read,
    save,
    shown,
    sweep_row,
)
from speed import LR, RESULTS, ROOT, lean_trainer, machine
from typing_extensions import override

from lightning_cl import StreamDataModule, callbacks, fit_stream
from lightning_cl.datamodules import PermutedMNIST, SplitFashionMNIST
from lightning_cl.methods import Classifier
from lightning_cl.report import write_atomic
from lightning_cl.shipped import config_path

STREAMS = {
    "split": "Split Fashion-MNIST, 5 experiences of 2 classes, task-incremental",
    "permuted": "Permuted Fashion-MNIST, 5 experiences of 10 classes, domain-incremental (TRGP, CUBER: known task)",
}


# -- what is compared -------------------------------------------------------------------------------------------------


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


@dataclass(frozen=True, kw_only=True)
class StreamRun(Run):
    """A run on one of the streams."""

    stream: str


def make_stream(run: StreamRun, root: str) -> StreamDataModule:
    joint, asks = run.method == "joint", run.method in ASK_FOR_THE_TASK
    stream = (
        SplitFashionMNIST(root, 5, task_labels=True, cumulative=joint)
        if run.stream == "split"
        else PermutedMNIST(root, 5, data_set="fashion_mnist", cumulative=joint, task_labels=asks)
    )
    stream.source = HeldFashionMNIST(root, run.every, run.sweep)
    return stream


def learn(run: StreamRun, root: str) -> dict[str, Any]:
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


# -- which runs -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StreamCase(Case):
    """A method on one of the streams."""

    stream: str

    @property
    @override
    def sweep(self) -> Sweep | None:
        return METHODS[self.method]

    @override
    def run(self, value: float | None, seed: int) -> StreamRun:
        sweep = self.sweep
        arguments = {} if sweep is None else {**shipped_arguments(self.method), **sweep.fixed, sweep.argument: value}
        if self.method in ASK_FOR_THE_TASK and self.stream == "permuted":
            arguments["free"] = []  # there is one head, which is protected as for GPM
        return StreamRun(
            stream=self.stream,
            method=self.method,
            arguments=arguments,
            seed=seed,
            sweep=seed == SWEEP_SEED,
            every=self.every,
        )


def line(record: Mapping[str, Any]) -> str:
    run, sweep = record["run"], METHODS[record["run"]["method"]]
    value = "" if sweep is None else f" {sweep.argument} {run['arguments'][sweep.argument]:g}"
    reached = f"{run['stream']}, {run['method']}{value}, seed {run['seed']}: {shown(record)}"
    return f"{reached}, {record['cpu_seconds']:.1f} s"


# -- the report -------------------------------------------------------------------------------------------------------


def gains(case: StreamCase) -> list[float]:
    """Seed by seed, the accuracy above that of fine-tuning; empty if either is missing."""
    reference = StreamCase("fine-tuning", case.every, case.records, case.stream).reported()
    pairs = zip(case.reported(), reference, strict=False)
    return [mine["average_accuracy"] - theirs["average_accuracy"] for mine, theirs in pairs]


def row(case: StreamCase) -> str:
    results, sweep, above = case.reported(), case.sweep, gains(case)
    accuracy, forgetting, seconds = (
        [r[name] for r in results] for name in ("average_accuracy", "forgetting", "cpu_seconds")
    )
    chosen = "" if sweep is None else f"`{sweep.argument}` {case.chosen():g}"
    gain = f"{statistics.mean(above):+.3f} | {min(above):+.3f} to {max(above):+.3f}" if above and chosen else "|"
    reached = f"{mean_and_deviation(accuracy)} | {mean_and_deviation(forgetting)}"
    return f"| {case.method} | {chosen} | {reached} | {gain} | {statistics.median(seconds):.1f} |"


def verdict(cases: Sequence[StreamCase]) -> str:
    """Which methods do not beat fine-tuning."""
    all_gains = {case.method: gains(case) for case in cases if METHODS[case.method] is not None}
    losers = [method for method, above in all_gains.items() if above and statistics.mean(above) <= 0]
    mixed = [m for m, above in all_gains.items() if above and m not in losers and min(above) <= 0]
    sentences = [f"Not better than fine-tuning in the mean: {', '.join(losers) or 'none'}."]
    if mixed:
        sentences.append(f"Better in the mean, but not with every seed: {', '.join(mixed)}.")
    return " ".join(sentences)


def section(stream: str, cases: Sequence[StreamCase]) -> str:
    """The tables of a stream, of the cases that are complete."""
    reported = [case for case in cases if case.reported()]
    swept = [case for case in cases if METHODS[case.method] is not None and case.score(case.chosen()) is not None]
    reference = StreamCase("fine-tuning", cases[0].every, cases[0].records, stream).result(None, SWEEP_SEED)
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
        cases = [StreamCase(method, every, records, stream) for method in METHODS]
        if any(case.score(value) is not None for case in cases for value in case.grid()):
            text += section(stream, cases)
    return text


def draw(path: Path, records: Records, every: int) -> None:
    """Draw the average accuracy on the experiences so far after each of them, mean over the seeds."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(STREAMS), figsize=(11, 4.2), layout="constrained")
    for axis, (stream, title) in zip(axes, STREAMS.items(), strict=True):
        for method in METHODS:
            results = StreamCase(method, every, records, stream).reported()
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
    records = read(path, StreamRun)
    cases = [StreamCase(method, args.every, records, stream) for stream in args.streams for method in args.methods]
    while runs := [run for case in cases for run in case.runs(args.sweep_only) if run.key not in records]:
        for number, record in enumerate(learn_all(partial(learn, root=args.root), runs, args.jobs), 1):
            records[StreamRun(**record["run"]).key] = record
            save(path, records, StreamRun)
            print(f"{number} of {len(runs)}: {line(record)}", flush=True)
    text = markdown(records, args.every)
    print("\n" + text)
    write_atomic(args.out / "regularization.md", text)
    draw(args.out / "regularization.png", records, args.every)


if __name__ == "__main__":
    main()
