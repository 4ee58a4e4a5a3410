"""Experience replay of Avalanche with the stream, network, optimizer and memory size of replay.py.

Needs ``pip install avalanche-lib==0.6.0``, which nothing else here does. Run ``python benchmarks/peers.py --root
FOLDER`` (see benchmarks/README.md for what is measured, and how).
"""

import argparse
import json
import statistics
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from runs import SEEDS, mean_and_deviation, quiet
from speed import BATCH, CAPACITY, LR, RESULTS, ROOT, images_and_labels, machine, network, normalised, test
from torch.utils.data import TensorDataset

from lightning_cl import metrics
from lightning_cl.report import write_atomic

try:
    from avalanche.benchmarks import CLScenario, class_incremental_benchmark
    from avalanche.benchmarks.utils import as_classification_dataset
    from avalanche.training import Naive
    from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin
except ImportError as error:
    raise SystemExit(f"{error}. Avalanche is what this compares with: `pip install avalanche-lib==0.6.0`.") from None


def experiences(root: str, every: int) -> CLScenario:
    """Five experiences of two classes, the images as normalised floats in memory."""
    images, labels = images_and_labels(root, True, every)
    data = TensorDataset(normalised(images), labels)
    data.targets = labels.tolist()  # type: ignore[attr-defined]  (where Avalanche looks for them)
    scenario = {"train": as_classification_dataset(data)}
    return class_incremental_benchmark(scenario, class_order=list(range(10)), num_experiences=5)


def learn(seed: int, epochs: int, root: str, every: int) -> dict[str, Any]:
    """Learn the stream; the tests are those of the loop in speed.py."""
    scenario, (images, labels) = experiences(root, every), images_and_labels(root, False, every)
    model = network("mlp", seed)
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=LR),
        train_mb_size=BATCH,
        train_epochs=epochs,
        plugins=[ReplayPlugin(mem_size=CAPACITY, batch_size_mem=BATCH)],
        evaluator=EvaluationPlugin(),
    )
    matrix, start = torch.full((5, 5), torch.nan, dtype=torch.float64), time.process_time()
    for e, experience in enumerate(scenario.train_stream):
        strategy.train(experience)
        matrix[e, : e + 1] = torch.tensor(test(model, images, labels, e))
    return {
        "seed": seed,
        "epochs": epochs,
        "average_accuracy": metrics.average_accuracy(matrix),
        "forgetting": metrics.forgetting(matrix),
        "accuracies": [row[: i + 1] for i, row in enumerate(matrix.tolist())],
        "cpu_seconds": time.process_time() - start,
    }


def markdown(records: list[dict[str, Any]]) -> str:
    info, counts = machine() | {"avalanche-lib": version("avalanche-lib")}, sorted({r["epochs"] for r in records})
    lines = [
        "# Peers",
        "",
        f"Written by `python benchmarks/peers.py --epochs {' '.join(map(str, counts))}`. "
        + "; ".join(f"{k}: {v}" for k, v in info.items()),
        "",
        "| MLP 784-400-400-10 | epochs | average accuracy | forgetting | CPU s per run |",
        "|---|---|---|---|---|",
    ]
    for epochs in counts:
        accuracy, forgetting, seconds = (
            [record[name] for record in records if record["epochs"] == epochs]
            for name in ("average_accuracy", "forgetting", "cpu_seconds")
        )
        reached = f"{mean_and_deviation(accuracy)} | {mean_and_deviation(forgetting)}"
        lines.append(
            f"| Avalanche, `Naive` and `ReplayPlugin` | {epochs} | {reached} | {statistics.median(seconds):.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Learn with each seed, print the table, and write it to benchmarks/results/."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", default=ROOT, help="folder of the four IDX files (default: %(default)s)")
    parser.add_argument("--epochs", nargs="+", type=int, default=[1], help="of each experience (default: %(default)s)")
    parser.add_argument("--every", type=int, default=1, help="use every N-th image only, for a try")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results (default: %(default)s)")
    args = parser.parse_args()
    quiet()
    records = []
    for epochs in args.epochs:
        for seed in SEEDS:
            records.append(learn(seed, epochs, args.root, args.every))
            shown = {name: value for name, value in records[-1].items() if name != "accuracies"}
            print(json.dumps(shown), flush=True)
    text = markdown(records)
    print("\n" + text)
    args.out.mkdir(parents=True, exist_ok=True)
    write_atomic(args.out / "peers.md", text)
    write_atomic(args.out / "peers.json", json.dumps({"machine": machine(), "runs": records}, indent=1) + "\n")


if __name__ == "__main__":
    main()
