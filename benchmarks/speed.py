"""Training through lightning-cl against a hand-written PyTorch loop: CPU seconds, ratios, memory.

Run ``python benchmarks/speed.py --root FOLDER`` (see benchmarks/README.md for what is measured, and how).
"""

import argparse
import contextlib
import cProfile
import json
import logging
import os
import platform
import pstats
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
import timm
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from typing_extensions import override

import lightning_cl.backbones  # noqa: F401  (registers the networks)
from lightning_cl import Memory, RunLogger, fit_stream
from lightning_cl.callbacks import EWC, Replay
from lightning_cl.datamodules import SplitFashionMNIST
from lightning_cl.methods import Classifier
from lightning_cl.samples import TensorData
from lightning_cl.sources.mnist import FashionMNIST

ROOT = "/usr/share/datasets/fashion-mnist"
RESULTS = Path(__file__).parent / "results"
BATCH, EVAL_BATCH, CAPACITY, LR = 64, 512, 500, 0.05
MEAN, STD = 0.2860, 0.3530


# -- the data: read once, held by both sides in memory ----------------------------------------------------------------


@cache
def images_and_labels(root: str, train: bool, every: int) -> tuple[Tensor, Tensor]:
    """Every ``every``-th image of Fashion-MNIST ``(N, 1, 28, 28)``, uint8, and its label."""
    data = FashionMNIST(root).load(train)
    return data.inputs[::every].contiguous(), data.targets[::every].contiguous()


class HeldStream(SplitFashionMNIST):
    """Split-Fashion-MNIST, or a part of it, that is already in memory: reading files is not what is measured."""

    def __init__(self, root: str, every: int) -> None:
        super().__init__(root, batch_size=BATCH, eval_batch_size=EVAL_BATCH, seed=0)
        self.every = every

    @override
    def load(self, train: bool) -> TensorData:
        return TensorData(*images_and_labels(str(self.source.root), train, self.every))


# -- one side: loops as one would write them by hand ------------------------------------------------------------------


@dataclass
class Seconds:
    """CPU seconds of one run: in all, of the training of each experience, and of its consolidation."""

    total: float = 0.0
    train: list[float] = field(default_factory=list)
    consolidate: list[float] = field(default_factory=list)
    accuracy: float = float("nan")


class TensorReservoir:
    """A reservoir as one writes it into a loop: two tensors and a vectorised insert."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images.new_empty((CAPACITY, *images.shape[1:]))
        self.labels = labels.new_empty(CAPACITY)
        self.seen = 0

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Take ``count`` different samples."""
        at = torch.randperm(min(self.seen, CAPACITY))[:count]
        return self.images[at], self.labels[at]

    def insert(self, images: Tensor, labels: Tensor) -> None:
        """Offer a batch."""
        number = torch.arange(self.seen, self.seen + len(labels))
        slot = torch.where(number < CAPACITY, number, (torch.rand(len(labels)) * (number + 1)).long())
        keep = slot < CAPACITY
        self.images[slot[keep]], self.labels[slot[keep]] = images[keep], labels[keep]
        self.seen += len(labels)


class Batches:
    """The batches of one experience, normalised; with a memory, joined with as many replayed samples."""

    def __init__(self, images: Tensor, labels: Tensor, experience: int, memory: TensorReservoir | None = None) -> None:
        self.images, self.labels, self.memory = images, labels, memory
        self.members = (labels // 2 == experience).nonzero().flatten()

    def __len__(self) -> int:
        return -(-len(self.members) // BATCH)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for at in self.members[torch.randperm(len(self.members))].split(BATCH):
            x, y = self.images.index_select(0, at), self.labels.index_select(0, at)
            if self.memory is None:
                yield normalised(x), y
            elif not self.memory.seen:
                yield normalised(x), y
                self.memory.insert(x, y)
            else:
                old_x, old_y = self.memory.draw(len(y))
                yield normalised(torch.cat([x, old_x])), torch.cat([y, old_y])
                self.memory.insert(x, y)


def normalised(x: Tensor) -> Tensor:
    return x.float().mul_(1 / (255 * STD)).sub_(MEAN / STD) if x.dtype == torch.uint8 else x


def network(backbone: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model(backbone, num_classes=10, in_chans=1)


def loop(backbone: str, root: str, every: int, floats: bool = False, replay: bool = False) -> Seconds:
    """Train on each experience and test on those seen so far; ``floats``: images are normalised once, beforehand."""
    (x, y), (x_test, y_test) = (images_and_labels(root, train, every) for train in (True, False))
    if floats:
        x, x_test = normalised(x), normalised(x_test)
    model, out = network(backbone), Seconds()
    memory = TensorReservoir(x, y) if replay else None
    begin = time.process_time()
    for e in range(5):
        optimizer = torch.optim.SGD(model.parameters(), lr=LR)
        batches = Batches(x, y, e, memory)
        start = time.process_time()
        model.train()
        for inputs, labels in batches:
            loss = F.cross_entropy(model(inputs), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        out.train.append(time.process_time() - start)
        accuracies = test(model, x_test, y_test, e)
    out.total = time.process_time() - begin
    out.accuracy = statistics.mean(accuracies)
    return out


@torch.inference_mode()
def test(model: nn.Module, images: Tensor, labels: Tensor, last: int) -> list[float]:
    """Accuracy on experiences 0 to ``last``, among the classes seen."""
    model.eval()
    accuracies = []
    for j in range(last + 1):
        members, correct = (labels // 2 == j).nonzero().flatten(), 0
        for at in members.split(EVAL_BATCH):
            scores = model(normalised(images.index_select(0, at)))[:, : 2 * last + 2]
            correct += int((scores.argmax(1) == labels.index_select(0, at)).sum())
        accuracies.append(correct / len(members))
    return accuracies


# -- Lightning alone: what any use of it costs, with the batches of the loop ------------------------------------------


class PlainModule(L.LightningModule):
    """The least a LightningModule can be."""

    def __init__(self, backbone: str, log: bool) -> None:
        super().__init__()
        self.network = network(backbone)
        self.logs = log

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self.network(batch[0]), batch[1])
        if self.logs:
            self.log("train_loss", loss, prog_bar=True)
        return loss

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=LR)


def lean_trainer(*callbacks: Callback, max_epochs: int = 1, **options: Any) -> L.Trainer:
    """What somebody who cares for speed asks of a trainer."""
    unwanted = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    off = {} if options.get("barebones") else dict.fromkeys(unwanted, False)
    fixed = {"max_epochs": max_epochs, "accelerator": "cpu", "devices": 1}
    return L.Trainer(**fixed, callbacks=list(callbacks), **off, **options)


def lightning_alone(backbone: str, root: str, every: int, log: bool = False, replay: bool = False) -> Seconds:
    x, y = images_and_labels(root, True, every)
    x_test, y_test = images_and_labels(root, False, every)
    memory = TensorReservoir(x, y) if replay else None
    module, clock = PlainModule(backbone, log), Clock()
    begin = time.process_time()
    for e in range(5):
        module.train()  # the test below leaves it in eval mode, and Lightning trains in the mode it finds
        lean_trainer(clock).fit(module, Batches(x, y, e, memory))
        accuracies = test(module.network, x_test, y_test, e)  # the loop's: only training is Lightning's here
    clock.seconds.total = time.process_time() - begin
    clock.seconds.accuracy = statistics.mean(accuracies)
    return clock.seconds


# -- the other side: fit_stream ---------------------------------------------------------------------------------------


class Clock(Callback):
    """Take the CPU seconds of each experience's training."""

    def __init__(self) -> None:
        self.seconds = Seconds()
        self._start = 0.0

    @override
    def on_train_epoch_start(self, *_: Any) -> None:
        self._start = time.process_time()

    @override
    def on_train_epoch_end(self, *_: Any) -> None:
        self.seconds.train.append(time.process_time() - self._start)


class TimedEWC(EWC):
    """EWC that says how long its consolidation took."""

    clock: Clock

    @override
    def consolidate(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        start = time.process_time()
        super().consolidate(trainer, pl_module)
        self.clock.seconds.consolidate.append(time.process_time() - start)


def fit(
    backbone: str,
    root: str,
    every: int,
    method: Callable[[], Callback] | None = None,
    defaults: bool = False,
    **options: Any,
) -> Seconds:
    """Train through ``fit_stream``; ``defaults``: with a log, checkpoints and the progress bar."""
    callbacks, clock = [method()] if method else [], Clock()
    for callback in callbacks:
        if isinstance(callback, TimedEWC):
            callback.clock = clock
    stream = HeldStream(root, every)
    images_and_labels(root, True, every), images_and_labels(root, False, every)
    torch.manual_seed(0)
    model = Classifier(10, backbone, (1, 28, 28), optimizer=partial(torch.optim.SGD, lr=LR))
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as sink, contextlib.ExitStack() as stack:
        begin = time.process_time()
        if defaults:
            stack.enter_context(contextlib.redirect_stdout(sink))
            stack.enter_context(contextlib.redirect_stderr(sink))
            logger = RunLogger(Path(folder, "run"))
            trainer = L.Trainer(
                max_epochs=1, accelerator="cpu", devices=1, logger=logger, callbacks=[*callbacks, clock]
            )
        else:
            trainer = lean_trainer(*callbacks, clock, **options)
        result = fit_stream(trainer, model, stream)
        clock.seconds.total = time.process_time() - begin
    clock.seconds.accuracy = result.average_accuracy
    return clock.seconds


VARIANTS: dict[str, Callable[..., Seconds]] = {
    "loop": loop,
    "fit_stream": fit,
    "loop, float tensors": partial(loop, floats=True),
    "Lightning alone": lightning_alone,
    "Lightning alone, self.log": partial(lightning_alone, log=True),
    "fit_stream, barebones": partial(fit, barebones=True),
    "fit_stream, defaults": partial(fit, defaults=True),
    "fit_stream, EWC": partial(
        fit, method=lambda: TimedEWC(strength=0.01)
    ),  # more diverges, and NaN is slow to compute with
    "loop, replay": partial(loop, replay=True),
    "fit_stream, Replay": partial(fit, method=lambda: Replay(CAPACITY)),
    "Lightning alone, replay": partial(lightning_alone, replay=True),
}
PARTS = {"mlp": "mlp", "resnet": "resnet18_slim"}
EVERY = {"mlp": 1, "resnet": 10}  # the ResNet learns a tenth of the data
LEFT_OUT = {"mlp": (), "resnet": ("loop, float tensors", "Lightning alone, self.log", "fit_stream, barebones")}


# -- figures ----------------------------------------------------------------------------------------------------------


@dataclass
class Figure:
    """One line of the table."""

    part: str
    what: str
    value: float
    low: float
    high: float
    bar: float | None = None
    unit: str = "x"

    @property
    def verdict(self) -> str:
        """Whether the bar, if there is one, is reached."""
        return "" if self.bar is None else "ok" if self.value <= self.bar else "missed"


def ratio_figures(part: str, rounds: list[dict[str, Seconds]]) -> list[Figure]:
    """Medians, over the rounds, of ratios within a round."""
    mlp = part == "mlp"

    figures: list[Figure] = []

    def figure(what: str, value: Callable[[dict[str, Seconds]], float], bar: float | None = None) -> None:
        with contextlib.suppress(KeyError):  # a variant that is left out
            values = sorted(map(value, rounds))
            figures.append(Figure(part, what, statistics.median(values), values[0], values[-1], bar))

    def total(over: str, under: str) -> Callable[[dict[str, Seconds]], float]:
        return lambda r: r[over].total / r[under].total

    def train(over: str, under: str, first: int = 0) -> Callable[[dict[str, Seconds]], float]:
        return lambda r: sum(r[over].train[first:]) / sum(r[under].train[first:])

    def fisher(under: str) -> Callable[[dict[str, Seconds]], float]:
        return lambda r: sum(r["fit_stream, EWC"].consolidate) / sum(r[under].train)

    figure("fine-tuning and tests: fit_stream / loop", total("fit_stream", "loop"), 1.4 if mlp else 1.05)
    figure("the same, training alone", train("fit_stream", "loop"))
    figure("the same / loop over float tensors", total("fit_stream", "loop, float tensors"))
    figure("fit_stream with Trainer(barebones=True) / loop", total("fit_stream, barebones", "loop"))
    figure("fit_stream with log, checkpoints, bar / loop", total("fit_stream, defaults", "loop"))
    figure("training: Lightning alone / loop", train("Lightning alone", "loop"))
    figure("training: Lightning alone with self.log / loop", train("Lightning alone, self.log", "loop"))
    figure(
        "training step with EWC / without (experiences 2 to 5)",
        train("fit_stream, EWC", "fit_stream", 1),
        1.3 if mlp else 1.1,
    )
    figure("Fisher pass / epoch of fit_stream", fisher("fit_stream"), 1.5)
    figure("Fisher pass / epoch of the loop", fisher("loop"))
    figure("Replay 64 + 64 and tests: fit_stream / loop with replay", total("fit_stream, Replay", "loop, replay"), 1.1)
    figure("the same, training alone", train("fit_stream, Replay", "loop, replay"))
    figure("training: Lightning alone / loop with replay", train("Lightning alone, replay", "loop, replay"))
    return figures


def run_rounds(part: str, count: int, root: str) -> list[dict[str, Seconds]]:
    """Run all variants in turn, every other round backwards; the first round warms up and is thrown away."""
    rounds = []
    variants = [name for name in VARIANTS if name not in LEFT_OUT[part]]
    for i in range(count + 1):
        names = variants if i % 2 else variants[::-1]
        measured = {name: VARIANTS[name](PARTS[part], root, EVERY[part]) for name in names}
        print(f"{part} {i}: " + ", ".join(f"{name} {measured[name].total:.2f}" for name in variants), flush=True)
        if i:
            rounds.append(measured)
    return rounds


# -- memory -----------------------------------------------------------------------------------------------------------


class Allocations(TorchDispatchMode):
    """Note the storages that operations return and that were not there before."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage().data_ptr() not in known:
                self.largest = max(self.largest, leaf.untyped_storage().nbytes())
        return result


class WatchedReplay(Replay):
    """Replay that notes the largest tensor made in a step, from drawing to inserting."""

    largest = 0
    moved = 0
    _watch: Allocations

    @override
    def on_train_batch_start(self, *args: Any) -> None:
        self._pointers = self._addresses()
        self._watch = Allocations().__enter__()
        super().on_train_batch_start(*args)

    @override
    def on_train_batch_end(self, *args: Any) -> None:
        super().on_train_batch_end(*args)
        self._watch.__exit__(None, None, None)
        if self._pointers:
            self.largest = max(self.largest, self._watch.largest)
            self.moved += self._pointers != self._addresses()

    def _addresses(self) -> list[int]:
        return [column.data_ptr() for column in self.memory.items.values()] if len(self.memory) else []


def memory_figures(root: str, count: int = 10_000) -> list[Figure]:
    """Hold ``count`` images: what do they occupy, and is anything as large made in a step?"""
    images, labels = images_and_labels(root, True, 1)
    memory = Memory(len(images))
    before = resident()
    memory.insert({"0": images, "1": labels})
    grown = resident() - before
    stored = memory.items["0"].untyped_storage().nbytes()
    replay = WatchedReplay(count)
    fit("mlp", root, 4, lambda: replay)
    held = replay.memory.items["0"].untyped_storage().nbytes()

    def exact(what: str, value: float, bar: float | None, unit: str) -> Figure:
        return Figure("memory", what, value, value, value, bar, unit)

    return [
        exact("storage of the images / (n * pixels * channels)", stored / images.numel(), 1.0, "x"),
        exact("resident memory grows by / the same (labels included)", grown / images.numel(), None, "x"),
        exact("largest tensor made in a step of the MLP / buffer of 10 000 images", replay.largest / held, 1.0, "x"),
        exact("steps after which the buffer lay elsewhere", replay.moved, 0.0, ""),
    ]


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# -- the report -------------------------------------------------------------------------------------------------------


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    info = Path("/proc/cpuinfo")
    models = [s.split(":")[1].strip() for s in info.read_text().splitlines() if s.startswith("model name")]
    packages = {name: version(name) for name in ("lightning", "torch", "torchmetrics", "timm")}
    cores = f"{os.cpu_count()} cores, one thread used"
    return {
        "cpu": f"{models[0] if models else platform.processor()}, {cores}",
        "python": platform.python_version(),
    } | packages


def markdown(figures: list[Figure], rounds: int) -> str:
    lines = [
        "# Speed",
        "",
        f"Written by `python benchmarks/speed.py --rounds {rounds}`. "
        + "; ".join(f"{k}: {v}" for k, v in machine().items()),
        "",
        "| part | figure | bar | reached (median) | least to most | |",
        "|---|---|---|---|---|---|",
    ]
    for f in figures:
        bar = "" if f.bar is None else f"{f.bar:g}{f.unit}"
        lines.append(
            f"| {f.part} | {f.what} | {bar} | {f.value:.3g}{f.unit} | {f.low:.3g} to {f.high:.3g} | {f.verdict} |"
        )
    return "\n".join(lines) + "\n"


def seconds_table(part: str, rounds: list[dict[str, Seconds]]) -> str:
    lines = [
        f"\n## {part}: CPU seconds, medians\n",
        "| variant | whole run | training | consolidation | average accuracy |",
        "|---|---|---|---|---|",
    ]
    for name in rounds[0]:
        runs = [r[name] for r in rounds]
        columns = [[s.total for s in runs], [sum(s.train) for s in runs], [sum(s.consolidate) for s in runs]]
        cells = " | ".join(f"{statistics.median(column):.3f}" for column in columns)
        lines.append(f"| {name} | {cells} | {runs[-1].accuracy:.3f} |")
    return "\n".join(lines) + "\n"


def profile(name: str, part: str, root: str) -> None:
    """Print where a variant's time goes."""
    VARIANTS[name](PARTS[part], root, EVERY[part])
    profiler = cProfile.Profile()
    profiler.runcall(VARIANTS[name], PARTS[part], root, EVERY[part])
    pstats.Stats(profiler).sort_stats("tottime").print_stats(40)


def main() -> None:
    """Measure, print the table, and write it to benchmarks/results/."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", default=ROOT, help="folder of the four IDX files (default: %(default)s)")
    parser.add_argument("--parts", nargs="+", choices=[*PARTS, "memory"], default=[*PARTS, "memory"])
    parser.add_argument("--rounds", type=int, default=7, help="runs of each variant, after one that does not count")
    parser.add_argument("--profile", choices=list(VARIANTS), help="profile one variant instead")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    if args.profile:
        profile(args.profile, args.parts[0], args.root)
        return
    figures, tables, raw = [], "", {}
    for part in args.parts:
        if part == "memory":
            figures += memory_figures(args.root)
            continue
        rounds = run_rounds(part, args.rounds, args.root)
        figures += ratio_figures(part, rounds)
        tables += seconds_table(part, rounds)
        raw[part] = [{name: vars(seconds) for name, seconds in r.items()} for r in rounds]
    text = markdown(figures, args.rounds) + tables
    print("\n" + text)
    args.out.mkdir(parents=True, exist_ok=True)
    args.out.joinpath("speed.md").write_text(text)
    lines = [{**vars(f), "verdict": f.verdict} for f in figures]
    record = {"machine": machine(), "figures": lines, "rounds": raw}
    args.out.joinpath("speed.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
