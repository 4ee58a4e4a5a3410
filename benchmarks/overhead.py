"""What a method adds to a training step, and what its pass over the data costs: CPU seconds, ratios.

Run ``python benchmarks/overhead.py --root FOLDER`` (see benchmarks/README.md for what is measured, and how).
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from runs import quiet
from speed import (
    BATCH,
    EVAL_BATCH,
    EVERY,
    LR,
    PARTS,
    RESULTS,
    ROOT,
    Clock,
    Figure,
    HeldStream,
    images_and_labels,
    lean_trainer,
    machine,
    network,
    normalised,
)
from torch import Tensor
from torch.nn import functional as F

from lightning_cl import callbacks, importance
from lightning_cl.methods import Classifier
from lightning_cl.report import write_atomic

NONE, AGAIN = "none", "none again"
STEPS = {"mlp": 150, "resnet": 15}
SAMPLES, ONE_BY_ONE = 12_000, 500  # of a pass, as many as an experience has; and of the loop over single samples
WEAK = {"strength": 0.01}  # more may diverge, and NaN is slow to compute with


@dataclass(frozen=True)
class Method:
    """How a method is made, and how much it may cost.

    Args:
        arguments: Of its class.
        bars: By part, the step with the method over the step without.
        teacher: Whether what it adds is told in forward passes, of which it may take one.
    """

    arguments: dict[str, Any] = field(default_factory=dict)
    bars: dict[str, float] = field(default_factory=dict)
    teacher: bool = False


ANCHOR = {"mlp": 1.3, "resnet": 1.1}
METHODS = {  # by the name of the class
    "EWC": Method(WEAK, ANCHOR),
    "L2Anchor": Method(WEAK, ANCHOR),
    "MAS": Method(WEAK, ANCHOR),
    "SynapticIntelligence": Method(WEAK, ANCHOR),
    "LwF": Method(teacher=True),
    "FeatureDistillation": Method(WEAK, teacher=True),
    "GPM": Method(bars={"resnet": 1.35}),
    "TRGP": Method(bars={"resnet": 1.35}),
    "CUBER": Method(bars={"resnet": 1.35}),
}


# -- a training step in the second experience -------------------------------------------------------------------------


class TaskStream(HeldStream):
    """Split-Fashion-MNIST in memory, task-incremental: some methods need the task label."""

    def __init__(self, root: str, every: int) -> None:
        super().__init__(root, every)
        self.task_labels = True


class Bench:
    """A module that has learned the first experience with one method after another, to begin the second any time.

    All use the same module: the same weights elsewhere in memory are faster or slower by some percent.

    Args:
        part: A key of :data:`PARTS`.
        stream: The stream.
        module: A module for it.
        make: Gives the callbacks of a method.
    """

    def __init__(
        self, part: str, stream: HeldStream, module: L.LightningModule, make: Callable[[str], list[Callback]]
    ) -> None:
        self.part = part
        self.stream = stream
        self.module = module
        self.make = make
        self.initial = self.saved()

    def saved(self) -> dict[str, Any]:
        """What a checkpoint has of the module."""
        checkpoint = {"state_dict": self.module.state_dict()}
        self.module.on_save_checkpoint(checkpoint)
        return deepcopy(checkpoint)

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Go back to what was saved."""
        self.module.on_load_checkpoint(deepcopy(checkpoint))
        self.module.load_state_dict(checkpoint["state_dict"])

    def side(self, name: str) -> Callable[[], float]:
        """Learn the first experience; what measures a step of the second is returned."""
        self.restore(self.initial)
        method = self.make(name)
        self.fit(0, *method)
        return partial(self.seconds, name, self.saved(), *(deepcopy(callback.state_dict()) for callback in method))

    def seconds(self, name: str, checkpoint: dict[str, Any], *states: dict[str, Any]) -> float:
        """CPU seconds of a training step at the beginning of the second experience."""
        self.restore(checkpoint)
        method, clock = self.make(name), Clock()
        for callback, state in zip(method, states, strict=True):
            callback.load_state_dict(deepcopy(state))
            callback.consolidate = lambda *_: None  # type: ignore[attr-defined]  (only steps are measured)
        self.fit(1, *method, clock, limit_train_batches=STEPS[self.part])
        return clock.seconds.train[0] / STEPS[self.part]

    def fit(self, experience: int, *callbacks: Callback, **options: Any) -> None:
        """Train on one experience."""
        self.stream.current = experience
        lean_trainer(*callbacks, **options).fit(self.module, datamodule=self.stream)


def made(name: str) -> list[Callback]:
    """The callback of a method; none without one."""
    return [getattr(callbacks, name)(**METHODS[name].arguments)] if name in METHODS else []


def classifier(part: str, loss_classes: Literal["all", "current"]) -> Classifier:
    L.seed_everything(0, verbose=False)
    optimizer = partial(torch.optim.SGD, lr=LR)
    return Classifier(10, PARTS[part], (1, 28, 28), loss_classes=loss_classes, optimizer=optimizer)


@torch.no_grad()
def forward_seconds(part: str, root: str) -> float:
    """CPU seconds of a forward pass in eval mode over a batch of the size of training."""
    images, _ = images_and_labels(root, True, EVERY[part])
    model, batches = network(PARTS[part]).eval(), normalised(images[: BATCH * STEPS[part]]).split(BATCH)
    start = time.process_time()
    for x in batches:
        model(x)
    return (time.process_time() - start) / len(batches)


def step_rounds(part: str, methods: Sequence[str], count: int, root: str) -> list[dict[str, float]]:
    """Measure all in turn, every other round backwards; the first round warms up and is thrown away."""
    bench = Bench(part, TaskStream(root, EVERY[part]), classifier(part, "current"), made)
    sides = {name: bench.side(name) for name in (NONE, *methods, AGAIN)}
    sides["forward"] = partial(forward_seconds, part, root)
    return rounds_of(part, sides, count)


def rounds_of(part: str, sides: dict[str, Callable[[], float]], count: int) -> list[dict[str, float]]:
    rounds = []
    for i in range(count + 1):
        names = list(sides) if i % 2 else list(sides)[::-1]
        measured = {name: sides[name]() for name in names}
        print(f"{part} {i}: " + ", ".join(f"{name} {1000 * measured[name]:.3f}" for name in sides) + " ms", flush=True)
        rounds.append(measured)
    return rounds[1:]


# -- passes over the data ---------------------------------------------------------------------------------------------


class Pass:
    """The importance of the MLP's weights by a function of the library, and by a loop over single samples."""

    def __init__(self, root: str, function: str) -> None:
        images, self.y = images_and_labels(root, True, 60_000 // SAMPLES)
        self.x = normalised(images)
        self.model = network("mlp").eval()
        self.function = function
        torch.testing.assert_close(self.library(50), self.loop(50))

    def library(self, count: int) -> dict[str, Tensor]:
        """Sums over the first ``count`` samples."""
        batches = zip(self.x[:count].split(EVAL_BATCH), self.y[:count].split(EVAL_BATCH), strict=True)
        sums: dict[str, Tensor] = getattr(importance, self.function)(self.model, batches)[0]
        return sums

    def loop(self, count: int) -> dict[str, Tensor]:
        """The same, as one writes it who takes the formula at its word."""
        parameters = dict(self.model.named_parameters())
        sums = {name: torch.zeros_like(p, requires_grad=False) for name, p in parameters.items()}
        for n in range(count):
            scores = self.model(self.x[n : n + 1])[0]
            fisher = self.function == "squared_scores"
            objective = F.log_softmax(scores, 0)[self.y[n]] if fisher else scores.square().sum()
            gradients = torch.autograd.grad(objective, list(parameters.values()))
            for total, g in zip(sums.values(), gradients, strict=True):
                total += g.square() if fisher else g.abs()
        return sums

    def seconds(self, side: Callable[[int], Any], count: int) -> float:
        """CPU seconds for one sample."""
        start = time.process_time()
        side(count)
        return (time.process_time() - start) / count


PASSES = {"empirical Fisher": "squared_scores", "MAS": "output_sensitivity"}


def pass_rounds(count: int, root: str) -> list[dict[str, float]]:
    sides: dict[str, Callable[[], float]] = {}
    for name, function in PASSES.items():
        measured = Pass(root, function)
        sides[f"{name}, library"] = partial(measured.seconds, measured.library, SAMPLES)
        sides[f"{name}, loop"] = partial(measured.seconds, measured.loop, ONE_BY_ONE)
    return rounds_of("passes", sides, count)


# -- figures ----------------------------------------------------------------------------------------------------------


def figure(part: str, what: str, values: Iterable[float], bar: float | None = None) -> Figure:
    ordered = sorted(values)
    return Figure(part, what, statistics.median(ordered), ordered[0], ordered[-1], bar)


def step_figures(part: str, rounds: list[dict[str, float]]) -> list[Figure]:
    """Ratios within a round; the bar of a teacher is one forward pass and the median deviation of nothing at all."""
    figures = [figure(part, f"step, {AGAIN} / {NONE}", (r[AGAIN] / r[NONE] for r in rounds))]
    noise = statistics.median(abs(r[AGAIN] - r[NONE]) / r["forward"] for r in rounds)
    for name, method in METHODS.items():
        if name not in rounds[0]:
            continue
        bar = method.bars.get(part)
        figures.append(figure(part, f"step, {name} / {NONE}", (r[name] / r[NONE] for r in rounds), bar))
        if method.teacher:
            extra = ((r[name] - r[NONE]) / r["forward"] for r in rounds)
            figures.append(figure(part, f"(step, {name} - {NONE}) / forward", extra, 1 + noise))
    return figures


def pass_figures(rounds: list[dict[str, float]]) -> list[Figure]:
    names = [name for name in PASSES if f"{name}, loop" in rounds[0]]
    return [
        figure("passes", f"{name}: library / loop", (r[f"{name}, library"] / r[f"{name}, loop"] for r in rounds), 0.1)
        for name in names
    ]


def markdown(figures: list[Figure], raw: dict[str, list[dict[str, float]]]) -> str:
    lines = [
        "# Overhead",
        "",
        f"Written by `python benchmarks/overhead.py`; rounds: {', '.join(f'{p} {len(r)}' for p, r in raw.items())}. "
        + "; ".join(f"{k}: {v}" for k, v in machine().items()),
        "",
        "| part | figure | bar | reached (median) | least to most | |",
        "|---|---|---|---|---|---|",
    ]
    for f in figures:
        bar = "" if f.bar is None else f"{f.bar:.3g}x"
        lines.append(f"| {f.part} | {f.what} | {bar} | {f.value:.3g}x | {f.low:.3g} to {f.high:.3g} | {f.verdict} |")
    lines += ["", "| part | | CPU ms, median |", "|---|---|---|"]
    for part, rounds in raw.items():
        per = "sample" if part == "passes" else "step"
        for name in rounds[0]:
            median = 1000 * statistics.median(r[name] for r in rounds)
            lines.append(f"| {part} | {name}, one {per} | {median:.3f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print the tables, and write them to benchmarks/results/."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", default=ROOT, help="folder of the four IDX files (default: %(default)s)")
    parser.add_argument("--parts", nargs="+", choices=[*PARTS, "passes"], default=[*PARTS, "passes"])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--rounds", type=int, default=9, help="rounds that count, after one that does not")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results (default: %(default)s)")
    args = parser.parse_args()
    quiet()
    path = args.out / "overhead.json"
    raw = json.loads(path.read_text())["rounds"] if path.exists() else {}  # parts that are not measured now stay
    for part in args.parts:
        measure = partial(step_rounds, part, args.methods) if part in PARTS else pass_rounds
        raw[part] = measure(args.rounds, args.root)
    figures = [f for part in raw for f in (step_figures(part, raw[part]) if part in PARTS else pass_figures(raw[part]))]
    text = markdown(figures, raw)
    print("\n" + text)
    record = {"machine": machine(), "figures": [{**vars(f), "verdict": f.verdict} for f in figures], "rounds": raw}
    args.out.mkdir(parents=True, exist_ok=True)
    write_atomic(args.out / "overhead.md", text)
    write_atomic(path, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
