"""A run that is killed at any instant, or told to stop, goes on exactly: weights, matrix, metrics and summary."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
SCENARIOS = ["epochs", "steps", "last_batch", "monitored", "max_steps", "no_samples", "projection"]
SCENARIOS += ["replay_losses", "replay_file", "icarl"]


def disturb(*arguments: object) -> str:
    """Run the helper that forks and kills; its exit status is the number of runs that ended differently."""
    command = [sys.executable, "-m", "tests.helpers.kills", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "equal" in done.stdout
    return done.stdout


def test_sigkill_at_random_moments(tmp_path: Path) -> None:
    disturb(tmp_path, "steps", 2, 0)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_sigkill_at_many_moments(tmp_path: Path, scenario: str) -> None:
    disturb(tmp_path, scenario, 8, 1)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_resume_from_every_checkpoint(tmp_path: Path, scenario: str) -> None:
    assert disturb(tmp_path, scenario, "every").count("experience_") == 5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_stopped_run_is_resumable_and_says_how(tmp_path: Path, name: str) -> None:
    disturb(tmp_path, "steps", 8, 2, name)
    logs = [path.read_text() for path in tmp_path.glob("trial_*.txt")]
    assert any("ckpt_path='last'" in log for log in logs)


@pytest.mark.slow
def test_two_processes_killed_together(tmp_path: Path) -> None:
    def start(folder: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "lightning_cl", "fit", "--config", "quickstart", "--run.dir", str(folder)]
        command += ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--ckpt_path", "last"]
        command += ["--trainer.max_epochs", "12", "--trainer.callbacks+=EWC", "--trainer.callbacks.strength=2.0"]
        command += ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.every_n_train_steps=7"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with (tmp_path / f"{folder.name}.txt").open("ab") as log:
            return subprocess.Popen(
                command, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True, env=environment
            )

    began = time.monotonic()
    assert start(tmp_path / "undisturbed").wait(300) == 0, (tmp_path / "undisturbed.txt").read_text()[-3000:]
    duration = time.monotonic() - began
    rng = random.Random(0)
    for _ in range(3):
        process = start(tmp_path / "killed")
        time.sleep(rng.uniform(0.4, 0.95) * duration)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert start(tmp_path / "killed").wait(300) == 0, (tmp_path / "killed.txt").read_text()[-3000:]
    for name in ("accuracy_matrix.csv", "metrics.csv", "summary.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes(), name
    weights = [
        torch.load(tmp_path / run / "last.ckpt", weights_only=True)["state_dict"] for run in ("killed", "undisturbed")
    ]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[1])
