"""Kill a run with SIGKILL at random moments until it is through, and compare what is left with an undisturbed run.

The processes are real and the kills are real; they are forked from one process that has imported everything, so that a
trial costs what the run costs.

    python -m tests.helpers.kills <folder> <scenario> <trials> <seed>
"""

import hashlib
import importlib
import os
import random
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_cl import RunLogger, fit_stream
from lightning_cl.checkpoint import find_last
from lightning_cl.callbacks import Replay
from lightning_cl.datamodules import SplitDigits
from lightning_cl.methods import Classifier

DROPOUT = {"hidden": (32,), "drop_rate": 0.2}


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def jitter(x: torch.Tensor) -> torch.Tensor:
    """An augmentation that draws from the global generator."""
    return x.roll(int(torch.randint(-1, 2, (1,))), -1)


class Monitored(Classifier):
    """A classifier that logs over the epoch and steps a plateau scheduler."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log("mean_loss", loss, on_step=False, on_epoch=True, batch_size=len(batch[1]))
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = sgd(self.parameters())
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"}}


SCENARIOS: dict[str, dict[str, Any]] = {
    "epochs": {"callbacks": [lambda: Replay(capacity=60)]},
    "steps": {
        "callbacks": [lambda: Replay(capacity=60, insert_epochs="all")],
        "checkpoint": {"every_n_train_steps": 3, "save_top_k": -1},
    },
    "last_batch": {"callbacks": [lambda: Replay(capacity=60)], "checkpoint": {"every_n_train_steps": 4}, "val": 0.2},
    "monitored": {
        "model": Monitored,
        "callbacks": [lambda: Replay(capacity=60)],
        "checkpoint": {"every_n_train_steps": 3, "save_top_k": -1},
        "val": 0.2,
    },
    "max_steps": {
        "callbacks": [lambda: Replay(capacity=60)],
        "checkpoint": {"every_n_train_steps": 5, "save_top_k": -1},
        "trainer": {"max_epochs": -1, "max_steps": 13},
    },
}


def run(folder: Path, scenario: str) -> None:
    """Run a scenario in ``folder``, going on with what is there."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    L.seed_everything(3, verbose=False)
    spec = SCENARIOS[scenario]
    stream = SplitDigits(batch_size=64, val_fraction=spec.get("val", 0.0), augment=jitter)
    callbacks = [make() for make in spec["callbacks"]]
    if "checkpoint" in spec:
        callbacks.append(ModelCheckpoint(**spec["checkpoint"]))
    trainer = L.Trainer(
        accelerator="cpu",
        callbacks=callbacks,
        logger=RunLogger(folder),
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=2,
        **{"max_epochs": 3, **spec.get("trainer", {})},
    )
    model = spec.get("model", Classifier)(10, "mlp", (1, 8, 8), DROPOUT, optimizer=sgd)
    fit_stream(trainer, model, stream, ckpt_path="last", evaluate="all" if scenario == "epochs" else "seen")


def digest(folder: Path) -> dict[str, str]:
    """Hash what a run leaves: weights, matrix, metrics, summary."""
    weights = torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]
    content = {name: value.numpy().tobytes() for name, value in weights.items()}
    for name in ("accuracy_matrix.csv", "metrics.csv", "summary.json"):
        content[name] = (folder / name).read_bytes()
    return {name: hashlib.sha256(value).hexdigest()[:12] for name, value in content.items()}


def start(folder: Path, scenario: str) -> int:
    """Fork a process that runs the scenario; its output goes to ``log.txt`` beside the folder."""
    pid = os.fork()
    if pid == 0:
        log = os.open(folder.with_suffix(".txt"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        status = 1
        try:
            run(folder, scenario)
            status = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)
    return pid


def finish(pid: int) -> int:
    """Wait for a process; its exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(folder: Path, scenario: str, trials: int, seed: int) -> int:
    """Print a line per trial; the exit status is the number of trials that ended differently."""
    rng = random.Random(seed)
    for module in ("matplotlib.backends.backend_agg", "rich.console", "rich.table", "sklearn.datasets", "timm"):
        importlib.import_module(module)
    began = time.monotonic()
    assert finish(start(folder / "undisturbed", scenario)) == 0, (folder / "undisturbed.txt").read_text()
    duration = time.monotonic() - began
    expected = digest(folder / "undisturbed")
    bad = 0
    for trial in range(trials):
        target = folder / f"trial_{trial}"
        kills = []
        for _ in range(rng.choice((1, 1, 2, 4))):
            pid = start(target, scenario)
            delay = rng.uniform(0.0, duration)
            time.sleep(delay)
            os.kill(pid, signal.SIGKILL)
            newest = find_last([target / "checkpoints"]) if finish(pid) < 0 else "was through"
            kills.append(f"{delay:.2f} ({newest.name if isinstance(newest, Path) else newest})")
        status = finish(start(target, scenario))
        found = digest(target) if status == 0 else {}
        different = [name for name in expected if found.get(name) != expected[name]]
        bad += bool(different)
        print(f"{scenario} {trial}: killed at {', '.join(kills)} of {duration:.2f} s: {different or 'equal'}", flush=True)
        if status:
            print((target.with_suffix(".txt")).read_text(), flush=True)
    return bad


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
