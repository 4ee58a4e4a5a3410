"""Inserting in a memory and drawing from it, against a loop over samples and a training step; bytes of an image.

Run ``python benchmarks/memory.py`` (see benchmarks/README.md for what is measured, and how).
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from copy import deepcopy
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from overhead import rounds_of
from runs import quiet
from speed import BATCH, LR, RESULTS, machine
from torch import Generator, Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

import lightning_cl.backbones  # noqa: F401  (registers the network)
from lightning_cl import Memory
from lightning_cl.memory import POLICIES
from lightning_cl.report import write_atomic

SHAPE, CLASSES, CAPACITY = (3, 32, 32), 10, 5000
COUNT = 30  # batches that are inserted, and drawn, for one figure
STEPS = 3
PHASES = {"half full": CAPACITY // 2, "just full": CAPACITY, "late": 20 * CAPACITY}  # samples offered before
THROUGHPUT, SHARE = 5.0, 0.05  # the bars
MAPPED = "reservoir, in a file"


# -- the loop ---------------------------------------------------------------------------------------------------------


class PerSample:
    """A memory as it is mostly written: all images in one tensor, and a Python loop over the samples of a batch.

    Args:
        place: Which slot of a full memory a sample of this class gets, if any.
    """

    def __init__(self, place: Callable[["PerSample", int], int | None]) -> None:
        self.place = place
        self.images = torch.empty(CAPACITY, *SHAPE, dtype=torch.uint8)
        self.labels = torch.empty(CAPACITY, dtype=torch.int64)
        self.seen = 0
        self.offered: Counter[int] = Counter()  # of each class, and its slots, for those that count
        self.slots: defaultdict[int, list[int]] = defaultdict(list)

    def insert(self, images: Tensor, labels: Tensor) -> None:
        """Offer a batch."""
        for i in range(len(labels)):
            slot = self.slot(int(labels[i]) if self.place in BY_CLASS else 0)
            self.seen += 1
            if slot is not None:
                self.images[slot] = images[i]
                self.labels[slot] = labels[i]

    def slot(self, label: int) -> int | None:
        """The slot of the next sample, if it gets one."""
        slot = self.seen if self.seen < CAPACITY else self.place(self, label)
        if self.place in BY_CLASS:
            self.offered[label] += 1
            if self.seen < CAPACITY:
                self.slots[label].append(self.seen)
        return slot

    def copy(self) -> "PerSample":
        """A copy in new tensors, of which only what is filled was written to."""
        other, filled = PerSample(self.place), min(self.seen, CAPACITY)
        other.images[:filled], other.labels[:filled] = self.images[:filled], self.labels[:filled]
        other.seen, other.offered, other.slots = self.seen, self.offered.copy(), deepcopy(self.slots)
        return other

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Take ``count`` different samples."""
        chosen = np.random.choice(min(self.seen, CAPACITY), count, replace=False)
        return torch.stack([self.images[i] for i in chosen]), torch.stack([self.labels[i] for i in chosen])


def anywhere(memory: PerSample, label: int) -> int | None:
    slot = np.random.randint(memory.seen + 1)
    return slot if slot < CAPACITY else None


def in_largest_class(memory: PerSample, label: int) -> int | None:
    if np.random.randint(memory.seen + 1) >= CAPACITY:
        return None
    largest = max(memory.slots.values(), key=len)
    memory.slots[label].append(largest.pop(np.random.randint(len(largest))))
    return memory.slots[label][-1]


def in_its_class(memory: PerSample, label: int) -> int | None:
    number = np.random.randint(memory.offered[label] + 1)
    return memory.slots[label][number] if number < len(memory.slots[label]) else None


def oldest_of_its_class(memory: PerSample, label: int) -> int:
    return memory.slots[label][memory.offered[label] % len(memory.slots[label])]


def oldest(memory: PerSample, label: int) -> int:
    return memory.seen % CAPACITY


BY_CLASS = (in_largest_class, in_its_class, oldest_of_its_class)

LOOPS: dict[str, Callable[[PerSample, int], int | None]] = {
    "reservoir": anywhere,
    "keyed_reservoir": anywhere,
    "balanced_reservoir": in_largest_class,
    "class_quota": in_its_class,
    "ring": oldest_of_its_class,
    "fifo": oldest,
    MAPPED: anywhere,
}


# -- what is timed ----------------------------------------------------------------------------------------------------


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    """Noise, uint8, and labels."""
    generator = Generator().manual_seed(0)
    sizes = ((count, BATCH, *SHAPE), (count, BATCH))
    images = torch.randint(256, sizes[0], generator=generator, dtype=torch.uint8)
    return list(zip(images, torch.randint(CLASSES, sizes[1], generator=generator), strict=True))


def seconds(act: Callable[[Any], Any], items: Sequence[Any]) -> float:
    """CPU seconds for one of the items."""
    start = time.process_time()
    for item in items:
        act(item)
    return (time.process_time() - start) / len(items)


class Sides:
    """A memory of the library and a loop that were offered the same, and what measures them.

    Args:
        name: Name of the policy, or :data:`MAPPED`.
        seen: Number of samples that both were offered.
        folder: For the file.
    """

    def __init__(self, name: str, seen: int, folder: Path) -> None:
        self.batches = batches(COUNT)
        self.generator = Generator().manual_seed(0)
        self.policy = "reservoir" if name == MAPPED else name
        options = {"file": str(folder / f"{seen}.rows")} if name == MAPPED else {}
        self.memory, self.loop = Memory(CAPACITY, self.policy, **options), PerSample(LOOPS[name])
        for i in range(seen // BATCH):
            self.insert(self.batches[i % COUNT])
            self.loop.insert(*self.batches[i % COUNT])
        self.state = self.memory.state_dict()

    def insert(self, batch: tuple[Tensor, Tensor]) -> None:
        """Offer a batch to the memory, with its labels if the policy asks for them."""
        groups = {"groups": batch[1]} if "groups" in POLICIES[self.policy].needs else {}
        self.memory.insert({"0": batch[0], "1": batch[1]}, **groups)

    def insert_seconds(self) -> float:
        """CPU seconds to insert a batch, from the state after ``seen`` samples."""
        self.memory.load_state_dict(self.state)
        return seconds(self.insert, self.batches)

    def draw_seconds(self) -> float:
        """CPU seconds to draw a batch."""
        return seconds(lambda _: self.memory.draw(BATCH, self.generator), range(COUNT))

    def loop_insert_seconds(self) -> float:
        """The same of the loop."""
        loop = self.loop.copy()
        return seconds(lambda batch: loop.insert(*batch), self.batches)

    def loop_draw_seconds(self) -> float:
        """The same of the loop."""
        return seconds(lambda _: self.loop.draw(BATCH), range(COUNT))


class Step:
    """A training step of the slim ResNet-18."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = timm.create_model("resnet18_slim", num_classes=CLASSES)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=LR)
        self.batches = [((x.float() - 128) / 64, y) for x, y in batches(STEPS)]

    def learn(self, batch: tuple[Tensor, Tensor]) -> None:
        """Take a step."""
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(batch[0]), batch[1]).backward()
        self.optimizer.step()

    def seconds(self) -> float:
        """CPU seconds of a step."""
        return seconds(self.learn, self.batches)


def measured(name: str, phase: str, count: int) -> list[dict[str, float]]:
    """CPU seconds for a batch of each side, round by round."""
    with tempfile.TemporaryDirectory() as folder:
        sides = Sides(name, PHASES[phase], Path(folder))
        measures = {
            "insert": sides.insert_seconds,
            "draw": sides.draw_seconds,
            "loop, insert": sides.loop_insert_seconds,
            "loop, draw": sides.loop_draw_seconds,
            "step": Step().seconds,
        }
        return rounds_of(f"{name}, {phase}", measures, count)


# -- bytes ------------------------------------------------------------------------------------------------------------


def anonymous() -> int:
    """Bytes of the process that are in RAM and belong to no file."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("RssAnon:")[2].split()[0])


def bytes_per_image(dtype: torch.dtype, file: Path | None) -> dict[str, float]:
    """What a full memory takes for an image and its label: in RAM, on disk, and in a state."""
    labels = torch.zeros(CAPACITY, dtype=torch.int64)
    images = torch.zeros(CAPACITY, *SHAPE, dtype=dtype).fill_(1)
    before = anonymous()
    memory = Memory(CAPACITY, **({"file": str(file)} if file else {}))
    for batch in zip(images.split(BATCH), labels.split(BATCH), strict=True):
        memory.insert(list(batch))
    grown = anonymous() - before
    saved = sum(leaf.nbytes for leaf in tree_leaves(memory.state_dict()) if isinstance(leaf, Tensor))
    on_disk = 512 * os.stat(file).st_blocks if file else 0
    return {name: n / CAPACITY for name, n in (("RAM", grown), ("disk", on_disk), ("state", saved))}


def all_bytes() -> dict[str, dict[str, float]]:
    """Each in a process of its own: what was freed before would be used again, and not seen to grow."""
    with tempfile.TemporaryDirectory() as folder, get_context("spawn").Pool(1, quiet, maxtasksperchild=1) as pool:
        kinds = {
            "uint8, in RAM": (torch.uint8, None),
            "float32, in RAM": (torch.float32, None),
            "uint8, in a file": (torch.uint8, Path(folder, "memory.rows")),
        }
        return {name: pool.apply(bytes_per_image, kind) for name, kind in kinds.items()}


# -- figures ----------------------------------------------------------------------------------------------------------


def times(rounds: list[dict[str, float]]) -> list[float]:
    """How many times the throughput of the loop that of the library is, round by round."""
    return [(r["loop, insert"] + r["loop, draw"]) / (r["insert"] + r["draw"]) for r in rounds]


def shares(rounds: list[dict[str, float]]) -> list[float]:
    """Inserting and drawing as a part of a training step, round by round."""
    return [(r["insert"] + r["draw"]) / r["step"] for r in rounds]


def row(key: str, rounds: list[dict[str, float]]) -> str:
    name, _, phase = key.rpartition(", ")
    micro = " | ".join(f"{1e6 * statistics.median(r[side] for r in rounds):.0f}" for side in list(rounds[0])[:4])
    ratios, parts = times(rounds), shares(rounds)
    ratio, part = statistics.median(ratios), statistics.median(parts)
    reached = f"{ratio:.1f}x | {min(ratios):.1f} to {max(ratios):.1f} | {'ok' if ratio >= THROUGHPUT else 'missed'}"
    return f"| {name} | {phase} | {micro} | {reached} | {part:.2%} | {'ok' if part <= SHARE else 'missed'} |"


def markdown(raw: dict[str, list[dict[str, float]]], sizes: dict[str, dict[str, float]], command: str) -> str:
    steps = [r["step"] for rounds in raw.values() for r in rounds]
    lines = [
        "# Memory",
        "",
        f"Written by `{command}`. " + "; ".join(f"{k}: {v}" for k, v in machine().items()),
        "",
        f"Microseconds for {BATCH} images of 3x32x32 bytes with labels, capacity {CAPACITY:,}. Bars: {THROUGHPUT:g}x",
        f"the throughput of the loop over samples, inserting and drawing; {SHARE:.0%} of a step of `resnet18_slim` at",
        f"batch {BATCH}, which takes {1000 * statistics.median(steps):.0f} ms.",
        "",
        "| policy | | insert | draw | loop: insert | draw | throughput | least to most | | of a step | |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *(row(key, rounds) for key, rounds in raw.items()),
        "",
        "| bytes of an image and its label | RAM | disk | state in a checkpoint |",
        "|---|---|---|---|",
    ]
    for name, size in sizes.items():
        lines.append(f"| {name} | " + " | ".join(f"{size[where]:,.0f}" for where in ("RAM", "disk", "state")) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print the tables, and write them to benchmarks/results/."""
    names = [name for name in LOOPS if name in POLICIES or name == MAPPED]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--policies", nargs="+", choices=names, default=names)
    parser.add_argument("--rounds", type=int, default=9, help="rounds that count, after one that does not")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results (default: %(default)s)")
    args = parser.parse_args()
    quiet()
    raw = {f"{name}, {phase}": measured(name, phase, args.rounds) for name in args.policies for phase in PHASES}
    sizes = all_bytes()
    text = markdown(raw, sizes, f"python benchmarks/memory.py --rounds {args.rounds}")
    print("\n" + text)
    args.out.mkdir(parents=True, exist_ok=True)
    record = {"machine": machine(), "rounds": raw, "bytes": sizes}
    write_atomic(args.out / "memory.md", text)
    write_atomic(args.out / "memory.json", json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
