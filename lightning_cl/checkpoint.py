"""Checkpoints: written atomically, found again after a kill, and read only by the run that they belong to."""

import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch.utilities import rank_zero_warn
from typing_extensions import override

RUN_STATE = "lightning_cl.StreamRun"
"""Key of the run's state among the callbacks' states of a checkpoint."""


class CheckpointError(RuntimeError):
    """A checkpoint cannot be used here; the message says why and what to do."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint to a temporary file in the same folder, then rename it: whole, or not there at all.

    Hyper-parameters that ``torch.load(weights_only=True)`` would refuse are left out with a warning, as nobody could
    resume from a checkpoint that holds them.
    """

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        for key in ("hyper_parameters", "datamodule_hyper_parameters"):
            if key in checkpoint and not _reads_back(checkpoint[key]):
                rank_zero_warn(
                    f"The checkpoint is written without `{key}`, which holds more than tensors and plain values: pass "
                    "what is neither to `save_hyperparameters(ignore=[...])`."
                )
                checkpoint = {name: value for name, value in checkpoint.items() if name != key}
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _reads_back(value: Any) -> bool:
    file = io.BytesIO()
    try:
        torch.save(value, file)
        file.seek(0)
        torch.load(file, weights_only=True)
    except Exception:  # pickle raises several kinds
        return False
    return True


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of a process that was killed while it wrote a checkpoint."""
    for leftover in folder.glob(".*.ckpt.tmp"):
        leftover.unlink(missing_ok=True)


def link_atomic(target: Path, link: Path) -> None:
    """Let the symbolic link ``link`` point to ``target``, without a moment in which it is missing."""
    temporary = link.with_name(f".{link.name}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(os.path.relpath(target.resolve(), link.parent.resolve()))
    os.replace(temporary, link)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of a stream run; large tensors stay on disk until they are used.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file is truncated or not a checkpoint of :func:`lightning_cl.fit_stream`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"`ckpt_path`: there is no checkpoint {str(path)!r}.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise CheckpointError(
            f"`ckpt_path`: {str(path)!r} cannot be read ({_first_line(error)}): it is truncated, or no checkpoint. "
            "Give another file, or 'last' for the newest whole one of the run."
        ) from error
    if not isinstance(checkpoint, dict) or RUN_STATE not in (checkpoint.get("callbacks") or {}):
        raise CheckpointError(
            f"`ckpt_path`: {str(path)!r} was not written by `fit_stream` and holds no position in a stream. To start a "
            "stream from its weights, load them into the module: "
            "`module.load_state_dict(torch.load(path, weights_only=True)['state_dict'])`."
        )
    return checkpoint


def find_last(folders: Iterable[Path]) -> Path | None:
    """Return the checkpoint that is furthest in the stream, among all in ``folders`` (not in their subfolders).

    A file that cannot be read is named in a warning and passed over.
    """
    best: tuple[tuple[int, int, int], Path] | None = None
    for path in sorted({file.resolve() for folder in folders for file in folder.glob("*.ckpt")}):
        try:
            checkpoint = read_checkpoint(path)
        except (CheckpointError, FileNotFoundError) as error:  # or a link that leads nowhere
            rank_zero_warn(str(error))
            continue
        state = checkpoint["callbacks"][RUN_STATE]
        progress = (int(state["finished"]), int(checkpoint["global_step"]), int(state["consolidated"]))
        if best is None or progress >= best[0]:
            best = (progress, path)
    return best and best[1]


def check_state(state: dict[str, Any], shape: dict[str, Any], world_size: int, callbacks: list[str]) -> None:
    """Refuse a checkpoint of another stream or other callbacks, or within an experience of more or fewer processes.

    Args:
        state: The run's state in the checkpoint.
        shape: ``stream.shape()`` of this run.
        world_size: Number of processes of this run.
        callbacks: State keys of this run's continual callbacks: each is the name of the class and its arguments.

    Raises:
        CheckpointError: Names the first thing that differs, with both values.
    """
    for name, here in shape.items():
        there = state["shape"].get(name)
        if there != here:
            if isinstance(here, list) and isinstance(there, list) and len(here) == len(there):  # may be very long
                i = next(i for i, value in enumerate(here) if value != there[i])
                name, there, here = f"{name}[{i}]", there[i], here[i]
            raise CheckpointError(
                f"The checkpoint belongs to another stream: `{name}` was {there} and is {here} now. Resume with the "
                "arguments that the run was started with (its config.yaml), or start a new run."
            )
    if state["world_size"] != world_size and state["within"]:
        raise CheckpointError(
            f"The checkpoint was written within an experience by {state['world_size']} process(es) and this run has "
            f"{world_size}, whose batches are others. Set `devices` and `num_nodes` as they were, or go on from an "
            "experience checkpoint (experience_<i>.ckpt)."
        )
    if state["world_size"] != world_size:
        rank_zero_warn(
            f"The run goes on with {world_size} process(es), after {state['world_size']}: batches of all processes "
            "together are of another size. Set `batch_size`, or the learning rate, so that they fit."
        )
    gone = [key for key in state["callbacks"] if key not in callbacks]
    new = [key for key in callbacks if key not in state["callbacks"]]
    if gone or new:
        raise CheckpointError(
            f"The checkpoint was written with {' and '.join(gone) or 'fewer callbacks'}, and this run has "
            f"{' and '.join(new) or 'no such callback'}: resume with the same callbacks and arguments, or start a new "
            "run."
        )


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"
