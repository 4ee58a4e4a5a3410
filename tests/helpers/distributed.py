"""Run every callback in two gloo processes and save what each rank ends with.

    python -m tests.helpers.distributed <folder>

Both processes are forked from one that has imported everything, as imports cost more than the runs.
"""

import os
import signal
import socket
import sys
import traceback
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_cl import RunLogger, Storage
from lightning_cl.callback import ContinualCallback, gather_objects, gather_rows, statistics_batches, sum_over_ranks
from lightning_cl.callbacks import Replay
from tests.helpers.contracts import CONTINUAL, NETWORKS, TinyStream, case_of, jitter, learn, make, seeded

TWO = {"strategy": "ddp", "devices": 2}


class Core(ContinualCallback):
    """Uses what the base offers to methods that work in several processes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, Any] = {}

    def extra_loss(self, trainer: Trainer, pl_module: LightningModule, batch: Any, outputs: Any) -> Tensor:
        return pl_module(batch[0]).square().mean()  # another forward through shared weights

    def consolidate(self, trainer: Trainer, pl_module: LightningModule) -> None:
        rank = trainer.global_rank
        rows = torch.full((3 * rank, 2), rank, dtype=torch.uint8)  # rank 0 has none
        own = torch.tensor(rank + 1)
        self.found = {
            "sum": sum_over_ranks(trainer, own),
            "own": own,
            "gathered": gather_rows(trainer, rows),
            "objects": gather_objects(trainer, f"rank {rank}"),
            "statistics": torch.cat([batch[0] for batch in statistics_batches(trainer)]),
            "drawn": torch.rand(3),
        }


def rehearse(folder: Path, sharing: Any) -> dict[str, Any]:
    """A memory of two processes: undisturbed, resumed, and resumed from a run of one process in ``folder / "one"``."""
    found = {}
    for name, checkpoint in (("whole", None), ("again", folder / "whole"), ("from_one", folder / "one")):
        replay = Replay(10, storage=Storage(sharing))
        stream = TinyStream(batch_size=4, augment=jitter)
        learned = learn(
            [replay],
            seeded(),
            stream,
            checkpoint and checkpoint / "checkpoints/experience_0.ckpt",
            logger=RunLogger(folder / name),
            enable_checkpointing=True,
            **TWO,
        )
        found[name] = {"weights": learned.weights, "memory": replay.state_dict()["memory"]}
    return found


def run(folder: Path) -> dict[str, Any]:
    """Everything one rank does."""
    callbacks = {}
    for cls in CONTINUAL:
        callback = make(cls)
        stream = TinyStream(batch_size=4, **case_of(cls).stream)
        learned = learn([callback], seeded(drop=0.0), stream, precision="64-true", **TWO)
        callbacks[cls.__name__] = {"weights": learned.weights, "state": callback.state_dict()}
        for network, make_module in NETWORKS.items():
            callback, stream = make(cls), TinyStream(batch_size=4, **case_of(cls).stream)
            learned = learn([callback], seeded(make_module), stream, max_epochs=1, **TWO)
            callbacks[f"{cls.__name__}, {network}"] = {"weights": learned.weights, "state": callback.state_dict()}
    core = Core()
    stream = TinyStream(batch_size=4, eval_batch_size=5)
    learned = learn([core], seeded(drop=0.0), stream, precision="64-true", **TWO)
    return {
        "callbacks": callbacks,
        "core": {**core.found, "extra_loss": learned.weights},
        "rehearsal": {sharing: rehearse(folder / sharing, sharing) for sharing in ("replicated", "sharded")},
    }


def start(folder: Path, rank: int) -> int:
    """Fork the process of a rank."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.environ["LOCAL_RANK"] = str(rank)
            torch.save(run(folder), folder / f"{rank}.pt")
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    return pid


def main(folder: Path) -> int:
    """Start both ranks; the exit status is 0 if both got through."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free.getsockname()[1]))
    pids = [start(folder, rank) for rank in (0, 1)]
    status = 0
    for _ in pids:  # the first that fails ends the other, which would wait for it
        _, code = os.wait()
        if code:
            status = 1
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    return status


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
