"""Kill a run at random moments until it is through, and compare what is left with an undisturbed run.

The processes are real and so are the signals; they are forked from one process that has imported everything, so that a
trial costs what the run costs.

    python -m tests.helpers.kills <folder> <scenario> <trials> <seed> [<signal>]

With ``every`` in place of the number of trials, the run is resumed once from each checkpoint that it ever wrote.
"""

import hashlib
import importlib
import os
import random
import shutil
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_cl import RunLogger, Storage, fit_stream
from lightning_cl.callbacks import (
    CUBER,
    ERACE,
    EWC,
    FPF,
    GSS,
    KFPF,
    MAS,
    MIR,
    UER,
    DERpp,
    FeatureDistillation,
    FisherMerge,
    GDumb,
    LwF,
    RefreshLearning,
    Replay,
    SynapticIntelligence,
    TaskFreeMAS,
)
from lightning_cl.checkpoint import find_last
from lightning_cl.datamodules import SplitDigits
from lightning_cl.methods import Classifier, ICaRL

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
    "epochs": {"callbacks": [lambda: Replay(capacity=60), lambda: EWC(strength=5.0, estimator="sampled")]},
    "steps": {
        "callbacks": [lambda: Replay(capacity=60, insert_epochs="all"), lambda: EWC(mode="separate")],
        "checkpoint": {"every_n_train_steps": 3, "save_top_k": -1},
    },
    "last_batch": {
        "callbacks": [lambda: Replay(capacity=60, insert_epochs="end", retrieval="passes")],
        "checkpoint": {"every_n_train_steps": 4, "save_top_k": -1},
        "val": 0.2,
    },
    "monitored": {
        "model": Monitored,
        "callbacks": [lambda: Replay(capacity=60)],
        "checkpoint": {"every_n_train_steps": 3, "save_top_k": -1},
        "val": 0.2,
    },
    "max_steps": {
        "callbacks": [lambda: GDumb(capacity=60)],
        "checkpoint": {"every_n_train_steps": 5, "save_top_k": -1},
        "trainer": {"max_epochs": -1, "max_steps": 13},
    },
    "no_samples": {
        "callbacks": [
            lambda: SynapticIntelligence(strength=0.05),
            lambda: LwF(strength=0.5),
            lambda: FeatureDistillation(strength=0.001),
            lambda: MAS(strength=0.0003),
            lambda: FisherMerge(strength=0.1, estimator="sampled", samples=50),
        ],
        "checkpoint": {"every_n_train_steps": 3, "save_top_k": -1},
    },
    "projection": {
        "callbacks": [
            lambda: TaskFreeMAS(strength=0.001, max_mean=1.0, window=2, updates_per_batch=2),
            lambda: CUBER(threshold=0.8, eps1=0.2),
        ],
        "checkpoint": {"every_n_train_steps": 4, "save_top_k": -1},
        "stream": {"task_labels": True},
        "model": lambda *args, **kwargs: Classifier(*args, loss_classes="current", **kwargs),
        "optimizer": torch.optim.Adam,
    },
    "replay_losses": {
        "callbacks": [
            lambda: DERpp(60, forward="joint"),
            lambda: ERACE(60, task_free=True, policy="ring"),
            lambda: MIR(60, batch_size=8, candidates=24),
            lambda: RefreshLearning(delta=1e-3),
        ],
        "checkpoint": {"every_n_train_steps": 3, "save_top_k": -1},
    },
    "replay_file": {
        "callbacks": [
            lambda: UER(60, storage=Storage(file="memory.rows"), policy="class_quota"),
            lambda: KFPF(40, every_n_steps=4, steps=3, modules=["head"], kd=0.5, policy="fifo"),
            lambda: GSS(40, batch_size=8, references=2),
            lambda: FPF(modules=["head"], steps=3),
        ],
        "checkpoint": {"every_n_train_steps": 5, "save_top_k": -1},
    },
    "icarl": {
        "model": ICaRL,
        "callbacks": [],
        "checkpoint": {"every_n_train_steps": 3, "save_top_k": -1},
    },
}


def run(folder: Path, scenario: str) -> None:
    """Run a scenario in ``folder``, going on with what is there."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)  # where a memory has its file
    L.seed_everything(3, verbose=False)
    spec = SCENARIOS[scenario]
    stream = SplitDigits(batch_size=64, val_fraction=spec.get("val", 0.0), augment=jitter, **spec.get("stream", {}))
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
    model = spec.get("model", Classifier)(10, "mlp", (1, 8, 8), DROPOUT, optimizer=spec.get("optimizer", sgd))
    evaluate = "all" if scenario == "epochs" else "seen"
    fit_stream(trainer, model, stream, ckpt_path="last", evaluate=evaluate, keep_checkpoints="all")  # type: ignore[arg-type]


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
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what is in the background deaf to it
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


def undisturbed(folder: Path, scenario: str) -> dict[str, str]:
    """Run the scenario once, with all that it imports on its way imported before the others are forked."""
    for module in ("matplotlib.backends.backend_agg", "rich.console", "rich.table", "sklearn.datasets", "timm"):
        importlib.import_module(module)
    assert finish(start(folder / "undisturbed", scenario)) == 0, (folder / "undisturbed.txt").read_text()
    return digest(folder / "undisturbed")


def compare(target: Path, scenario: str, expected: dict[str, str]) -> list[str]:
    """Go on with a run to its end; what differs from the undisturbed one."""
    if finish(start(target, scenario)):
        return [target.with_suffix(".txt").read_text()]
    found = digest(target)
    return [name for name in expected if found.get(name) != expected[name]]


def kill_at_random(folder: Path, scenario: str, trials: int, seed: int, number: signal.Signals) -> int:
    """Print a line per trial; return the number of trials that ended differently."""
    rng, bad = random.Random(seed), 0
    expected = undisturbed(folder, scenario)
    began = time.monotonic()
    finish(start(folder / "again", scenario))
    duration = time.monotonic() - began
    for trial in range(trials):
        target, kills = folder / f"trial_{trial}", []
        for _ in range(rng.choice((1, 1, 2, 4))):
            pid = start(target, scenario)
            delay = rng.uniform(0.0, duration)
            time.sleep(delay)
            os.kill(pid, number)
            newest = find_last([target / "checkpoints"]) if finish(pid) else "was through"
            kills.append(f"{delay:.2f} s ({newest.name if isinstance(newest, Path) else newest})")
        different = compare(target, scenario, expected)
        bad += bool(different)
        print(f"{scenario} {trial}: {number.name} at {', '.join(kills)}: {' '.join(different) or 'equal'}", flush=True)
    return bad


def resume_from_each(folder: Path, scenario: str) -> int:
    """Print a line per checkpoint; return the number of those from which the run ended differently."""
    bad, expected = 0, undisturbed(folder, scenario)
    for i, checkpoint in enumerate(sorted((folder / "undisturbed" / "checkpoints").glob("*.ckpt"))):
        target = folder / f"trial_{i}"
        (target / "checkpoints").mkdir(parents=True)
        for file in ("metrics.csv", *(path.name for path in (folder / "undisturbed").glob("*.rows"))):
            shutil.copy(folder / "undisturbed" / file, target)
        shutil.copy(checkpoint, target / "checkpoints")
        different = compare(target, scenario, expected)
        bad += bool(different)
        print(f"{scenario} {checkpoint.name}: {' '.join(different) or 'equal'}", flush=True)
    return bad


if __name__ == "__main__":
    place, name, trials, *rest = sys.argv[1:]
    if trials == "every":
        sys.exit(resume_from_each(Path(place), name))
    which = signal.Signals[rest[1]] if len(rest) > 1 else signal.SIGKILL
    sys.exit(kill_at_random(Path(place), name, int(trials), int(rest[0]), which))
