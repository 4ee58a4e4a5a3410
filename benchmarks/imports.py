"""What importing lightning-cl costs on top of Lightning, and which packages it brings in.

Run ``python benchmarks/imports.py``; bytecode is compiled in a first round that does not count.
"""

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
HEAVY = ("wandb", "torchvision", "timm", "sklearn", "matplotlib")
OURS = """
import lightning_cl, lightning_cl.run
from lightning_cl import AccuracyMatrix, ContinualCallback, Memory, RunLogger, StreamDataModule, fit_stream
from lightning_cl.callbacks import EWC, Replay
from lightning_cl.datamodules import SplitDigits, SplitFashionMNIST
from lightning_cl.methods import Classifier
"""
PROBE = """
import json, sys, time
import lightning
before, start = set(sys.modules), time.process_time()
{ours}
seconds = time.process_time() - start
print(json.dumps({{"seconds": seconds, "before": sorted(before), "new": sorted(set(sys.modules) - before)}}))
"""


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def output(*command: str) -> str:
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    return done.stdout if "importtime" not in command else done.stderr


def command_seconds(command: list[str], rounds: int) -> dict[str, float]:
    """Median wall and CPU seconds of a command."""
    wall, cpu = [], []
    for _ in range(rounds + 1):
        start, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        output(*command)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        wall.append(time.perf_counter() - start)
        cpu.append(after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime)
    return {"wall": statistics.median(wall[1:]), "cpu": statistics.median(cpu[1:])}


def added(ours: str, rounds: int) -> dict[str, Any]:
    """CPU seconds and packages that ``ours`` adds to ``import lightning``, in a process of its own each time."""
    probes = [json.loads(output(sys.executable, "-c", PROBE.format(ours=ours))) for _ in range(rounds + 1)][1:]
    tops = {key: {name.split(".")[0] for name in probes[0][key]} for key in ("before", "new")}
    return {
        "seconds": statistics.median(probe["seconds"] for probe in probes),
        "packages": sorted(name for name in tops["new"] - tops["before"] if not name.startswith("_")),
        "heavy": sorted(tops["new"] & set(HEAVY) - tops["before"]),
        "already": sorted(tops["before"] & set(HEAVY)),
    }


def importers(statement: str) -> dict[str, list[str]]:
    """Who imports the heavy packages: for each the chain of modules above it, from ``-X importtime``."""
    lines = output(sys.executable, "-X", "importtime", "-c", statement).splitlines()
    entries = [re.match(r"import time:\s+\d+ \|\s+\d+ \|( +)([\w.]+)", line) for line in lines]
    stack: list[tuple[int, str]] = []
    chains: dict[str, list[str]] = {}
    for entry in reversed([match for match in entries if match]):  # a module stands below what it imports
        depth, name = len(entry[1]), entry[2]
        while stack and stack[-1][0] >= depth:
            stack.pop()
        if name in HEAVY:
            chains[name] = [module for _, module in stack]
        stack.append((depth, name))
    return chains


def main() -> None:
    """Measure, print the table, and write it to benchmarks/results/."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="processes of each kind (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results (default: %(default)s)")
    args = parser.parse_args()
    command = [sys.executable, "-m", "lightning_cl"]
    seconds = {
        "help": command_seconds([*command, "--help"], args.rounds),
        "fit_help": command_seconds([*command, "fit", "--help"], args.rounds),
        "import_lightning": command_seconds([sys.executable, "-c", "import lightning"], args.rounds),
    }
    whole, run = added(OURS, args.rounds), added("import lightning_cl.run", args.rounds)
    chains = importers(f"import lightning\n{OURS}")
    blame = {name: [m for m in chain if m.startswith("lightning_cl")] for name, chain in chains.items()}
    rows = [
        ("`lightning-cl --help`, wall seconds", 3.0, seconds["help"]["wall"]),
        ("`lightning-cl fit --help`, wall seconds", None, seconds["fit_help"]["wall"]),
        ("`import lightning`, CPU seconds of the process", None, seconds["import_lightning"]["cpu"]),
        ("the package, its callbacks, streams and methods add, CPU seconds", 0.5, whole["seconds"]),
        ("`import lightning_cl.run` alone adds, CPU seconds", None, run["seconds"]),
        ("of wandb, torchvision, timm, sklearn, matplotlib we import", 0, len(whole["heavy"])),
        ("the same with one of our modules above them in `-X importtime`", 0, sum(map(bool, blame.values()))),
    ]
    versions = {name: version(name) for name in ("lightning", "torch", "torchmetrics")}
    text = "\n".join(
        [
            "# Imports",
            "",
            f"Written by `python benchmarks/imports.py`, medians of {args.rounds} processes, bytecode compiled. Python "
            f"{sys.version.split()[0]}, {', '.join(f'{name} {number}' for name, number in versions.items())}.",
            "",
            "| figure | bar | reached | |",
            "|---|---|---|---|",
            *(
                f"| {what} | {'' if bar is None else f'{bar:g}'} | {value:.3g} |"
                f" {'' if bar is None else 'ok' if value <= bar else 'missed'} |"
                for what, bar, value in rows
            ),
            "",
            f"`import lightning` itself brings {', '.join(whole['already']) or 'none of the five'}:",
            "",
            *(f"- {name}: {' > '.join([*chain[:1], '...', *chain[-2:]])}" for name, chain in chains.items()),
            "",
            f"Packages that ours adds: {', '.join(whole['packages'])}.",
            "",
        ]
    )
    print(text)
    args.out.mkdir(parents=True, exist_ok=True)
    args.out.joinpath("imports.md").write_text(text)
    record = {"seconds": seconds, "added": whole, "added_by_run": run, "importers": chains, "versions": versions}
    args.out.joinpath("imports.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
