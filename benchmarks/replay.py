"""Accuracy, forgetting and cost of the methods that keep samples, on Split-Fashion-MNIST, class-incremental.

Run ``python benchmarks/replay.py --root FOLDER`` (see benchmarks/README.md for what is measured, and how).
"""

import argparse
import inspect
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from overhead import AGAIN, NONE, Bench, classifier, rounds_of
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
from speed import CAPACITY, EVERY, LR, PARTS, RESULTS, ROOT, HeldStream, images_and_labels, lean_trainer, machine
from typing_extensions import override

from lightning_cl import callbacks, fit_stream, methods
from lightning_cl.datamodules import SplitFashionMNIST
from lightning_cl.memory import POLICIES
from lightning_cl.report import write_atomic
from lightning_cl.shipped import config_names, config_path

NETWORKS = {"mlp": "MLP 784-400-400-10", "resnet": "Slim ResNet-18"}
EPOCHS = (1, 5)
SWEEP_EPOCHS = 1


# -- what is compared -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """A method as its configs have it, with a memory of 500.

    Args:
        configs: The shipped configs, in the order of the command line.
        arguments: Where other than in them: of the last callback, or of the LightningModule that is the method.
            ``learning_rate`` is that of the optimizer.
        sweep: An argument that is chosen.
        cost: The sheet's formula for a step as a multiple of fine-tuning; the memory batch is as large as the batch.
    """

    configs: tuple[str, ...]
    arguments: dict[str, Any] = field(default_factory=dict)
    sweep: Sweep | None = None
    cost: str = ""


def replay_with(policy: str) -> Method:
    return Method(("replay",), {"policy": policy}, cost="(b + b_m) / b = 2")


METHODS = {
    "fine_tuning": Method(("fine_tuning",), cost="1"),
    "replay": Method(("replay",), cost="(b + b_m) / b = 2"),
    "replay_balanced_reservoir": replay_with("balanced_reservoir"),
    "replay_class_quota": replay_with("class_quota"),
    "replay_ring": replay_with("ring"),
    "replay_end_passes": Method(
        ("replay",), {"insert_epochs": "end", "retrieval": "passes"}, cost="(b + b_m) / b = 2"
    ),  # as Avalanche
    "er_ace": Method(("er_ace",), cost="(b + b_m) / b = 2"),
    "der": Method(("der",), sweep=Sweep("alpha", (0.03, 0.1, 0.3, 1.0)), cost="2"),
    "derpp": Method(("derpp",), sweep=Sweep("alpha", (0.03, 0.1, 0.3, 1.0)), cost="3"),
    "gdumb": Method(("gdumb",)),
    "mir": Method(("mir",), cost="(b + b_m) / b + 2 C / 3 b = 4.1"),
    "gss": Method(("gss",), cost="2, and n + 1 + b backward passes"),
    "uer": Method(("uer",), sweep=Sweep("scale", (3.0, 10.0, 30.0)), cost="(b + b_m) / b = 2"),
    "fpf": Method(("fpf",), cost="2"),
    "kfpf": Method(("kfpf",), cost="1 + s b_s / tau b = 1.2"),
    "refresh_learning": Method(("replay", "refresh_learning"), cost="2 + 1 = 3"),
    "icarl": Method(("icarl",), sweep=Sweep("learning_rate", (0.1, 0.3, 1.0, 3.0)), cost="(N + B) / N + 1 / 3 = 1.37"),
    "joint": Method(("joint",)),
}
REFERENCES = {"fine_tuning": "--", "joint": ":"}  # and their lines


def shipped(method: str) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]:
    """What the configs of a method say: its callbacks, the arguments of the stream, and the model."""
    entries: list[dict[str, Any]] = []
    stream: dict[str, Any] = {}
    model: dict[str, Any] = {"class_path": "Classifier"}
    for name in METHODS[method].configs:
        config = yaml.safe_load(config_path(f"methods/{name}").read_text())
        entries += (config.get("trainer") or {}).get("callbacks+", [])
        stream |= (config.get("data") or {}).get("init_args", {})
        model |= config.get("model") or {}
    return entries, stream, model


def exists(method: str) -> bool:
    """Whether all that a method is made of is there."""
    if not {f"methods/{name}" for name in METHODS[method].configs} <= set(config_names()):
        return False
    entries, _, model = shipped(method)
    policy = METHODS[method].arguments.get("policy", "reservoir")
    known = all(hasattr(callbacks, entry["class_path"]) for entry in entries)
    return known and hasattr(methods, model["class_path"]) and policy in POLICIES


def with_capacity(kind: type, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for a class, with the capacity of the comparison if it has one."""
    own = {"capacity": CAPACITY} if "capacity" in inspect.signature(kind).parameters else {}
    return {**arguments, **own}


def make_callbacks(method: str, arguments: Mapping[str, Any]) -> list[Callback]:
    """The callbacks of a method; the last one gets the arguments."""
    made = []
    entries, _, _ = shipped(method)
    for i, entry in enumerate(entries):
        kind = getattr(callbacks, entry["class_path"])
        given = {**(entry.get("init_args") or {}), **(arguments if i == len(entries) - 1 else {})}
        given.pop("learning_rate", None)
        made.append(kind(**with_capacity(kind, given)))
    return made


def make_module(method: str, network: str, arguments: Mapping[str, Any]) -> L.LightningModule:
    """The module under a method, or that is one and gets the arguments."""
    entries, _, model = shipped(method)
    given = {**model.get("init_args", {}), **({} if entries else arguments)}
    optimizer = partial(torch.optim.SGD, lr=given.pop("learning_rate", arguments.get("learning_rate", LR)))
    given |= {"num_classes": 10, "backbone": PARTS[network], "input_shape": (1, 28, 28), "optimizer": optimizer}
    kind = getattr(methods, model["class_path"])
    module: L.LightningModule = kind(**with_capacity(kind, given))
    return module


# -- one run ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ReplayRun(Run):
    """A run with a network, so many epochs for each experience."""

    network: str
    epochs: int


def learn(run: ReplayRun, root: str) -> dict[str, Any]:
    """Learn the stream; a run that diverges has the accuracy of chance, and no forgetting."""
    L.seed_everything(run.seed, verbose=False)
    stream = SplitFashionMNIST(root, 5, **shipped(run.method)[1])
    stream.source = HeldFashionMNIST(root, run.every, run.sweep)
    images_and_labels(root, True, run.every), images_and_labels(root, run.sweep, run.every)  # read before time starts
    model = make_module(run.method, run.network, run.arguments)
    trainer = lean_trainer(*make_callbacks(run.method, run.arguments), StopIfDiverged(), max_epochs=run.epochs)
    start = time.process_time()
    try:
        result = fit_stream(trainer, model, stream)
        accuracy, forgetting, matrix = result.average_accuracy, result.forgetting, result.accuracy_matrix.tolist()
    except DivergedError:
        accuracy, forgetting, matrix = 0.1, None, []
    return {
        "run": vars(run),
        "average_accuracy": accuracy,
        "forgetting": forgetting,
        "accuracies": [row[: i + 1] for i, row in enumerate(matrix)],
        "cpu_seconds": time.process_time() - start,
    }


# -- which runs -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReplayCase(Case):
    """A method with a network, so many epochs for each experience."""

    network: str
    epochs: int

    @property
    @override
    def sweep(self) -> Sweep | None:
        return METHODS[self.method].sweep

    @override
    def run(self, value: float | None, seed: int) -> ReplayRun:
        chosen = {} if self.sweep is None else {**self.sweep.fixed, self.sweep.argument: value}
        return ReplayRun(
            network=self.network,
            epochs=SWEEP_EPOCHS if seed == SWEEP_SEED else self.epochs,
            method=self.method,
            arguments={**METHODS[self.method].arguments, **chosen},
            seed=seed,
            sweep=seed == SWEEP_SEED,
            every=self.every,
        )

    @override
    def sweep_runs(self) -> list[Run]:
        return super().sweep_runs() if self.sweep else []


def line(record: Mapping[str, Any]) -> str:
    run = record["run"]
    arguments = "".join(f" {name} {value}" for name, value in run["arguments"].items())
    reached = (
        f"{run['network']}, {run['epochs']} epochs, {run['method']}{arguments}, seed {run['seed']}: {shown(record)}"
    )
    return f"{reached}, {record['cpu_seconds']:.1f} s"


def do(cases: Sequence[ReplayCase], path: Path, args: argparse.Namespace) -> None:
    """Do the runs of some cases that are missing."""
    records = cases[0].records
    while runs := [run for case in cases for run in case.runs(args.sweep_only, args.seeds) if run.key not in records]:
        for number, record in enumerate(learn_all(partial(learn, root=args.root), runs, args.jobs), 1):
            records[ReplayRun(**record["run"]).key] = record
            save(path, records, ReplayRun)
            print(f"{number} of {len(runs)}: {line(record)}", flush=True)


# -- the cost of a step -----------------------------------------------------------------------------------------------


def step_rounds(network: str, names: Sequence[str], count: int, root: str, records: Records) -> list[dict[str, float]]:
    """CPU seconds of a step in the second experience, measured as in overhead.py, at the arguments that were chosen."""
    chosen = {name: ReplayCase(name, 1, records, network, 1) for name in names}
    arguments = {name: dict(case.run(case.chosen(), SEEDS[0]).arguments) for name, case in chosen.items()}

    def make(name: str) -> list[Callback]:
        return make_callbacks(name, arguments[name]) if name in arguments else []

    stream, sides = HeldStream(root, EVERY[network]), {}
    bench = Bench(network, stream, classifier(network, "all"), make)
    for name in (NONE, *names, AGAIN):
        own = name in names and shipped(name)[2]["class_path"] != "Classifier"
        module = make_module(name, network, arguments[name]) if own else None
        sides[name] = (Bench(network, stream, module, make) if module else bench).side(name)
    return rounds_of(network, sides, count)


# -- the report -------------------------------------------------------------------------------------------------------


def column(case: ReplayCase) -> str:
    """Accuracy, forgetting and seconds of a case."""
    results = case.reported()
    if not results:
        return "| |"
    accuracy, forgetting = ([r[name] for r in results] for name in ("average_accuracy", "forgetting"))
    seconds = statistics.median(r["cpu_seconds"] for r in results)
    return f"{mean_and_deviation(accuracy)} | {mean_and_deviation(forgetting)} | {seconds:.1f}"


def step_cell(method: str, rounds: Sequence[Mapping[str, float]]) -> str:
    """A step with a method as a multiple of one without."""
    if not rounds or method not in rounds[0]:
        return ""
    return f"{statistics.median(r[method] / r[NONE] for r in rounds):.2f}x"


def row(cases: Sequence[ReplayCase], rounds: Sequence[Mapping[str, float]]) -> str:
    case, method = cases[0], METHODS[cases[0].method]
    swept = case.sweep and case.score(case.chosen()) is not None
    chosen = f"`{case.sweep.argument}` {case.chosen():g}" if swept else ""
    cells = " | ".join(map(column, cases))
    return f"| `{case.method}` | {chosen} | {cells} | {step_cell(case.method, rounds)} | {method.cost} |"


def section(network: str, records: Records, every: int, rounds: Sequence[Mapping[str, float]]) -> str:
    """The tables of a network."""
    cases = {name: [ReplayCase(name, every, records, network, epochs) for epochs in EPOCHS] for name in METHODS}
    rows = {n: found for n, found in cases.items() if step_cell(n, rounds) or any(case.reported() for case in found)}
    swept = [case for case, *_ in cases.values() if case.sweep and case.score(case.chosen()) is not None]
    epochs = " | ".join(f"{'one epoch' if n == 1 else f'{n} epochs'}: accuracy | forgetting | CPU s" for n in EPOCHS)
    noise = sorted(r[AGAIN] / r[NONE] for r in rounds)
    lines = [
        f"\n## {NETWORKS[network]}\n",
        f"Mean and standard deviation over the seeds {', '.join(map(str, SEEDS))}.\n",
        f"| | chosen | {epochs} | step | by the sheet |",
        "|---" * (4 + 3 * len(EPOCHS)) + "|",
        *(row(found, rounds) for found in rows.values()),
    ]
    if noise:
        plain = 1000 * statistics.median(r[NONE] for r in rounds)
        again = f"{statistics.median(noise):.2f}x ({noise[0]:.2f} to {noise[-1]:.2f})"
        lines.append(f"\nA step without a method takes {plain:.1f} ms; measured a second time {again}.")
    if swept:
        lines += [f"\nSweep, seed {SWEEP_SEED}, {SWEEP_EPOCHS} epoch: accuracy on held-out training images.\n"]
        lines += ["| | argument | value: accuracy |", "|---|---|---|", *map(sweep_row, swept)]
    return "\n".join(lines) + "\n"


def markdown(records: Records, every: int, steps: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    command = "python benchmarks/replay.py" + (f" --every {every}" if every > 1 else "")
    text = f"# Replay\n\nWritten by `{command}`. " + "; ".join(f"{k}: {v}" for k, v in machine().items()) + "\n"
    for network in NETWORKS:
        if network in steps or any(record["run"]["network"] == network for record in records.values()):
            text += section(network, records, every, steps.get(network, []))
    return text


def draw(path: Path, records: Records, every: int) -> None:
    """Draw the average accuracy on the experiences so far after each of them, mean over the seeds: MLP, one epoch."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(8, 4.6), layout="constrained")
    axis.set_prop_cycle(color=plt.get_cmap("tab20").colors)
    for method in METHODS:
        results = ReplayCase(method, every, records, "mlp", 1).reported()
        curves = [[statistics.mean(row) for row in result["accuracies"]] for result in results]
        if curves and all(curves):
            style = {"color": "black", "linestyle": REFERENCES[method]} if method in REFERENCES else {}
            means = [statistics.mean(c) for c in zip(*curves, strict=True)]
            axis.plot(range(1, 6), means, label=method, **style)
    axis.set(xlabel="experiences learned", ylabel="average accuracy on these", xticks=range(1, 6))
    axis.set_title(f"Split Fashion-MNIST, {CAPACITY} samples in memory, one epoch, MLP")
    if axis.lines:
        figure.legend(loc="outside right center")
        figure.savefig(path, dpi=90)
    plt.close(figure)


def main() -> None:
    """Do the runs that are missing, print the tables, and write them to benchmarks/results/."""
    available = [name for name in METHODS if exists(name)]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", default=ROOT, help="folder of the four IDX files (default: %(default)s)")
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--epochs", nargs="+", type=int, choices=EPOCHS, default=EPOCHS, help="of each experience")
    parser.add_argument("--methods", nargs="+", choices=available, default=available)
    parser.add_argument("--seeds", nargs="+", type=int, choices=SEEDS, default=SEEDS, help="of those that are reported")
    parser.add_argument("--sweep-only", action="store_true", help="leave out the runs that are reported")
    parser.add_argument(
        "--steps", type=int, metavar="ROUNDS", help="measure the cost of a step instead, in so many rounds"
    )
    parser.add_argument("--every", type=int, default=1, help="use every N-th image only, for a try")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, one thread each")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results (default: %(default)s)")
    args = parser.parse_args()
    quiet()
    path = args.out / "replay.json"
    records = read(path, ReplayRun)
    if args.steps:
        names = [name for name in args.methods if name not in REFERENCES]
        measured = {n: step_rounds(n, names, args.steps, args.root, records) for n in args.networks}
        save(path, records, ReplayRun, steps=measured)
    else:
        for network, epochs in product(args.networks, args.epochs):  # the cheap ones first
            do([ReplayCase(name, args.every, records, network, epochs) for name in args.methods], path, args)
    text = markdown(records, args.every, json.loads(path.read_text()).get("steps", {}))
    print("\n" + text)
    write_atomic(args.out / "replay.md", text)
    draw(args.out / "replay.png", records, args.every)


if __name__ == "__main__":
    main()
