"""Images per second: our loader against torchvision's per-sample pipeline, on generated CIFAR-10.

Run ``python benchmarks/loader.py`` (see benchmarks/README.md for what is measured, and how).
"""

import argparse
import json
import pickle
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from speed import RESULTS, machine
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import CIFAR10
from typing_extensions import override

from lightning_cl import ClassStream
from lightning_cl.augment import CropFlip

BATCH = 128
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2615)
PARTS = {"normalised": (False, 10.0), "cropped, flipped, normalised": (True, 5.0)}  # whether augmented, bar

Epoch = Callable[[], Iterable[Any]]


# -- the data: noise, in the layout in which CIFAR-10 is published ----------------------------------------------------


def write_cifar10(root: Path, images: int) -> None:
    """Write the five training files and the one of the names."""
    folder, rng = root / CIFAR10.base_folder, np.random.RandomState(0)
    folder.mkdir()
    for name, _ in CIFAR10.train_list:
        pixels = rng.randint(256, size=(images // 5, 3 * 32 * 32), dtype=np.uint8)
        entry = {"data": pixels, "labels": rng.randint(10, size=images // 5).tolist()}
        folder.joinpath(name).write_bytes(pickle.dumps(entry))
    names = {CIFAR10.meta["key"]: [f"class {c}" for c in range(10)]}
    folder.joinpath(CIFAR10.meta["filename"]).write_bytes(pickle.dumps(names))


class GeneratedCIFAR10(CIFAR10):
    """CIFAR-10 as it is, without checksums and without test files."""

    train_list: ClassVar[list[Any]] = [[name, None] for name, _ in CIFAR10.train_list]
    test_list: ClassVar[list[Any]] = []
    meta: ClassVar[dict[str, Any]] = {**CIFAR10.meta, "md5": None}


# -- the two sides: each gives the batches of an epoch as the model gets them -----------------------------------------


def torchvision_epoch(root: Path, augmented: bool, workers: int) -> Epoch:
    """What mammoth, PyCIL and most published code do."""
    drawn = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()] if augmented else []
    transform = transforms.Compose([*drawn, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    data = GeneratedCIFAR10(str(root), transform=transform)
    return partial(iter, DataLoader(data, BATCH, shuffle=True, num_workers=workers))


class HeldStream(ClassStream):
    """The same images, all in one experience."""

    def __init__(self, root: Path, augmented: bool) -> None:
        augment = CropFlip() if augmented else None
        super().__init__(10, (3, 32, 32), 1, batch_size=BATCH, mean=MEAN, std=STD, augment=augment)
        self.root = root

    @override
    def load(self, train: bool) -> tuple[Tensor, Tensor]:
        data = GeneratedCIFAR10(str(self.root))
        return torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(data.targets)


def stream_epoch(root: Path, augmented: bool) -> Epoch:
    stream = HeldStream(root, augmented)
    return partial(map, partial(stream.transform_batch, augment=True), stream.train_dataloader())


SIDES: dict[str, Callable[[Path, bool], Epoch]] = {
    "lightning-cl": stream_epoch,
    "torchvision, no worker": partial(torchvision_epoch, workers=0),
    "torchvision, 1 worker": partial(torchvision_epoch, workers=1),
}


# -- figures ----------------------------------------------------------------------------------------------------------


def images_per_second(epoch: Epoch) -> float:
    start = time.perf_counter()
    count = sum(len(batch[0]) for batch in epoch())
    return count / (time.perf_counter() - start)


def run_rounds(part: str, root: Path, count: int) -> list[dict[str, float]]:
    """Run all sides in turn, every other round backwards; the first round warms up and is thrown away."""
    epochs = {name: side(root, PARTS[part][0]) for name, side in SIDES.items()}
    rounds = []
    for i in range(count + 1):
        names = list(epochs) if i % 2 else list(epochs)[::-1]
        rates = {name: images_per_second(epochs[name]) for name in names}
        print(f"{part} {i}: " + ", ".join(f"{name} {rates[name]:,.0f}" for name in epochs), flush=True)
        rounds.append(rates)
    return rounds[1:]


def figure(part: str, rounds: list[dict[str, float]]) -> dict[str, Any]:
    """Median and extremes, over the rounds, of ours against the better of theirs."""
    ratios = sorted(
        rates["lightning-cl"] / max(rate for name, rate in rates.items() if name != "lightning-cl") for rates in rounds
    )
    value, bar = statistics.median(ratios), PARTS[part][1]
    verdict = "ok" if value >= bar else "missed"
    return {"part": part, "value": value, "low": ratios[0], "high": ratios[-1], "bar": bar, "verdict": verdict}


def markdown(
    figures: list[dict[str, Any]], raw: dict[str, list[dict[str, float]]], info: dict[str, str], command: str
) -> str:
    sides = list(SIDES)
    lines = [
        "# Loader",
        "",
        f"Written by `{command}`. " + "; ".join(f"{k}: {v}" for k, v in info.items()),
        "",
        "| images | ours / the better of torchvision's | least to most | bar | | "
        + " | ".join(f"{name}, images/s" for name in sides)
        + " |",
        "|---" * (5 + len(sides)) + "|",
    ]
    for f in figures:
        rates = " | ".join(f"{statistics.median(r[name] for r in raw[f['part']]):,.0f}" for name in sides)
        reached = f"{f['value']:.3g}x | {f['low']:.3g} to {f['high']:.3g} | {f['bar']:g}x | {f['verdict']}"
        lines.append(f"| {f['part']} | {reached} | {rates} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print the table, and write it to benchmarks/results/."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=50_000, help="a multiple of 5 (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="epochs of each side, after one that does not count")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        write_cifar10(Path(folder), args.images)
        raw = {part: run_rounds(part, Path(folder), args.rounds) for part in PARTS}
    figures = [figure(part, rounds) for part, rounds in raw.items()]
    info = machine() | {name: version(name) for name in ("torchvision", "pillow")}
    command = f"python benchmarks/loader.py --images {args.images} --rounds {args.rounds}"
    text = markdown(figures, raw, info, command)
    print("\n" + text)
    args.out.mkdir(parents=True, exist_ok=True)
    args.out.joinpath("loader.md").write_text(text)
    record = {"machine": info, "figures": figures, "rounds": raw}
    args.out.joinpath("loader.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
