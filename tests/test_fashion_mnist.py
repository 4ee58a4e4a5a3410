"""The main job on real input: class-incremental Fashion-MNIST from YAML, interrupted, resumed, on two processes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.fashion_mnist

ROOT = os.environ.get("FASHION_MNIST", "/usr/share/datasets/fashion-mnist")


def start(
    folder: Path, *arguments: str, stream: str = "split_fashion_mnist", command: str = "fit"
) -> subprocess.Popen[bytes]:
    program = [sys.executable, "-m", "lightning_cl", command, "--config", f"streams/{stream}", "--data.root", ROOT]
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [*program, *arguments],
            cwd=folder,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )


def accuracy(folder: Path, name: str, *arguments: str, stream: str = "split_fashion_mnist") -> float:
    """Run to the end; the final average accuracy."""
    assert start(folder, *arguments, stream=stream).wait(400) == 0, (folder / "log.txt").read_text()[-3000:]
    return float(json.loads((folder / "runs" / name / "summary.json").read_text())["average_accuracy"])


@pytest.mark.parametrize(("method", "low", "high"), [("replay", 0.74, 0.82), ("fine_tuning", 0.18, 0.22)])
def test_average_accuracy_after_one_epoch(tmp_path: Path, method: str, low: float, high: float) -> None:
    assert low <= accuracy(tmp_path, f"split_fashion_mnist-{method}", "--config", f"methods/{method}") <= high


SHORT = ["--data.samples_per_experience", "10000"]


@pytest.mark.parametrize(
    ("stream", "arguments", "low", "high"),
    [
        ("permuted_fashion_mnist", [*SHORT, "--data.num_experiences", "3"], 0.70, 0.80),
        ("rotated_fashion_mnist", [*SHORT, "--data.num_experiences", "3"], 0.66, 0.79),
        ("blurry_fashion_mnist", [], 0.69, 0.82),
        ("fashion_mnist_c", [*SHORT, "--data.corruptions", "[fog,contrast,jpeg_compression]"], 0.63, 0.74),
    ],
)
def test_replay_on_other_streams(tmp_path: Path, stream: str, arguments: list[str], low: float, high: float) -> None:
    name = f"{stream}-replay"
    assert low <= accuracy(tmp_path, name, "--config", "methods/replay", *arguments, stream=stream) <= high


def test_a_checkpoint_meets_corruptions(tmp_path: Path) -> None:
    """Trained on clean images; each corruption costs accuracy, and the checkpoint stays as it was."""
    clean = accuracy(tmp_path, "split_fashion_mnist", "--data.num_experiences", "1", *SHORT)
    checkpoint = tmp_path / "runs" / "split_fashion_mnist" / "last.ckpt"
    before, some = checkpoint.read_bytes(), ["--data.corruptions", "[gaussian_noise,fog,jpeg_compression]"]
    testing = start(tmp_path, "--ckpt_path", str(checkpoint), *some, stream="fashion_mnist_c", command="test")
    assert testing.wait(200) == 0
    rows = re.findall(
        r"(gaussian_noise|fog|jpeg_compression), severity 5\D+([\d.]+)", (tmp_path / "log.txt").read_text()
    )
    assert [name for name, _ in rows] == ["gaussian_noise", "fog", "jpeg_compression"]
    assert all(0.1 < float(value) / 100 < clean for _, value in rows)
    assert checkpoint.read_bytes() == before


def test_two_processes(tmp_path: Path) -> None:
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.accelerator", "cpu"]
    assert accuracy(tmp_path, "split_fashion_mnist-replay", "--config", "methods/replay", *two) >= 0.72


def test_killed_and_resumed_run_equals_the_undisturbed_one(tmp_path: Path) -> None:
    """Replay and EWC together, killed in the third experience, in the middle of its only epoch."""
    arguments = ["--config", "methods/replay", "--config", "methods/ewc", "--ckpt_path", "last"]
    arguments += ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.every_n_train_steps=50"]
    name, results = "split_fashion_mnist-replay-ewc", []
    for folder in (tmp_path / "through", tmp_path / "killed"):
        folder.mkdir()
        if folder.name == "killed":
            process = start(folder, *arguments)
            checkpoints = folder / "runs" / name / "checkpoints"
            deadline = time.monotonic() + 300
            while not list(checkpoints.glob("epoch=2-step=4*.ckpt")):
                assert process.poll() is None, (folder / "log.txt").read_text()[-3000:]
                assert time.monotonic() < deadline
                time.sleep(0.01)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        accuracy(folder, name, *arguments)
        run = folder / "runs" / name
        weights = torch.load(run / "last.ckpt", weights_only=True)["state_dict"]
        files = ("accuracy_matrix.csv", "metrics.csv", "summary.json")
        results.append((weights, [(run / file).read_bytes() for file in files]))
    assert results[0][1] == results[1][1]
    assert all(torch.equal(results[1][0][key], value) for key, value in results[0][0].items())
