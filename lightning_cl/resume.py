"""What Lightning leaves out of a checkpoint, or of the epoch that it resumes, so that a resume is exact.

What is here changes the state of Lightning 2.6's loops, which is not public; nothing else in the package does. The kill
tests run every branch.
"""

from operator import attrgetter
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loops.loop import _Loop
from lightning.pytorch.trainer.connectors.logger_connector.result import _Metadata, _ResultMetric, _Sync
from torch import Tensor
from torchmetrics import Metric

PLAIN = ("fx", "name", "prog_bar", "logger", "on_step", "on_epoch", "enable_graph", "add_dataloader_idx")
"""Fields of a logged value's description that are plain values."""


def unlogged(trainer: Trainer) -> dict[str, Any] | None:
    """What Lightning will hand to the loggers after the hook in which the checkpoint is being written.

    A checkpoint is written before the values of its batch, or of its epoch, are logged, and a resume begins after that.
    """
    loop, connector = trainer.fit_loop, trainer._logger_connector
    batches: Any = loop.epoch_loop.batch_progress
    epochs: Any = loop.epoch_progress
    if not trainer.training or trainer._results is None:
        return None
    step = loop.epoch_loop._batches_that_stepped
    if batches.total.completed < batches.total.processed:  # in `on_train_batch_end`
        if loop._should_accumulate() or not connector.should_update_logs:
            return None
        values = trainer._results.metrics(on_step=True)["log"]
    elif epochs.current.completed < epochs.current.processed:  # in `on_train_epoch_end`
        values = trainer._results.metrics(on_step=False)["log"]
        step -= 1
    else:
        return None
    scalars = {name: float(value) for name, value in values.items()}
    return {"step": step, "values": {**scalars, "epoch": trainer.current_epoch}} if scalars else None


def running_results(trainer: Trainer) -> dict[str, Any]:
    """The sums of what ``self.log(on_epoch=True)`` collected in an unfinished epoch, and of metrics in the module."""
    epochs: Any = trainer.fit_loop.epoch_progress.current
    if epochs.processed == epochs.started:
        return {"logged": {}, "metrics": {}}
    logged = {
        key: {
            "meta": {name: getattr(result.meta, name) for name in (*PLAIN, "metric_attribute")},
            "reduce": result.meta.reduce_fx.__name__,
            "sync": [result.meta.sync.should, result.meta.sync.rank_zero_only],
            "state": {name: getattr(result, name) for name in result._defaults} if result.is_tensor else {},
        }
        for key, result in trainer.fit_loop.epoch_loop._results.items()
        if result.meta.on_epoch and not result.has_reset
    }
    metrics = {
        name: {"count": module._update_count, "state": dict(module.metric_state)}
        for name, module in trainer.lightning_module.named_modules()
        if isinstance(module, Metric)
    }
    return {"logged": logged, "metrics": metrics}


def restore_results(trainer: Trainer, pl_module: LightningModule, saved: dict[str, Any]) -> None:
    """Put back what :func:`running_results` returned, before the first batch of the resumed epoch."""
    modules = dict(pl_module.named_modules())
    for name, metric in saved["metrics"].items():
        module = modules[name]
        for state, value in metric["state"].items():
            setattr(module, state, _moved(value, pl_module.device))
        module._update_count, module._computed = metric["count"], None
    for key, entry in saved["logged"].items():
        meta = _Metadata(**entry["meta"], reduce_fx=getattr(torch, entry["reduce"]))
        should, rank_zero = entry["sync"]
        meta.sync = _Sync(_should=should, fn=trainer.strategy.reduce, rank_zero_only=rank_zero)
        result = _ResultMetric(meta, is_tensor=bool(entry["state"]))
        for name, value in entry["state"].items():
            setattr(result, name, value.to(pl_module.device))
        if not entry["state"]:
            result.value = attrgetter(meta.metric_attribute)(pl_module) if meta.metric_attribute else None
        result._update_count = 1
        trainer.fit_loop.epoch_loop._results[key] = result
    if saved["logged"]:
        trainer._logger_connector._first_loop_iter = True  # the next batch is not the epoch's first, which resets sums


def _moved(value: Any, device: torch.device) -> Any:
    return [item.to(device) for item in value] if isinstance(value, list) else value.to(device)


def finish_last_batch(trainer: Trainer, loops: dict[str, Any], max_steps: int) -> None:
    """Change the loops' state of a checkpoint that was written in ``on_train_batch_end`` of an epoch's last batch.

    Lightning would take the epoch for finished and leave out its validation and ``on_train_epoch_end``. As one whose
    batches are all done and whose validation has just begun, it goes on with both.

    Args:
        trainer: The trainer that resumes.
        loops: State of its fit loop in the checkpoint, changed in place.
        max_steps: Number of optimizer steps after which the fit ends, or -1.
    """
    batches, epochs = loops["epoch_loop.batch_progress"], loops["epoch_progress"]
    unfinished = epochs["current"]["processed"] < epochs["current"]["started"]
    if batches["total"]["completed"] == batches["total"]["processed"] or not unfinished:
        return
    steps = loops["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]["total"]["completed"]
    out_of_steps = max_steps != -1 and steps >= max_steps
    if not (batches["is_last_batch"] or out_of_steps):
        return
    for count in (batches["total"], batches["current"]):
        count["completed"] += 1
    if out_of_steps:
        return  # the fit ends where it starts: `end_of_training` does the rest
    every = trainer.check_val_every_n_epoch
    if trainer.enable_validation and (every is None or (epochs["current"]["completed"] + 1) % every == 0):
        validation = loops["epoch_loop.val_loop.batch_progress"]
        validation["total"] = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
        validation["current"] = dict.fromkeys(validation["current"], 0)
        loops["state_dict"].pop("combined_loader", None)  # the next pass over the loader is that of the next epoch
    else:
        loops["epoch_loop.state_dict"]["_batches_that_stepped"] += 1


def end_of_training(trainer: Trainer) -> None:
    """Do what Lightning skips when a resumed fit has no step left: the end of the epoch and ``on_train_end``."""
    loop, module = trainer.fit_loop, trainer.lightning_module

    def call(hook: str) -> None:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            getattr(callback, hook)(trainer, module)
        getattr(module, hook)()

    call("on_train_start")
    progress: Any = loop.epoch_progress
    if progress.current.processed < progress.current.started:  # out of steps
        assert loop._data_fetcher is not None
        loop.epoch_loop.on_advance_end(loop._data_fetcher)
        loop.on_advance_end()
    call("on_train_end")
    progress.total.completed = progress.total.processed
    progress.current.completed = progress.current.processed
    settle(loop)


def settle(loop: _Loop) -> None:
    """Take a loop out of the state of one that was loaded in the middle of something."""
    loop.on_iteration_done()
    for child in vars(loop).values():
        if isinstance(child, _Loop):
            settle(child)


def epoch_has_metrics(trainer: Trainer) -> None:
    """Let plateau schedulers step at the end of an epoch that was resumed.

    Lightning leaves them out, as it has no metrics of the part before; here validation has run, or the sums are back.
    """
    trainer.fit_loop._restarting = False


def as_tensors(value: Any) -> Any:
    """Detach and copy the tensors of a tree, for a checkpoint."""
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, dict):
        return {key: as_tensors(item) for key, item in value.items()}
    return [as_tensors(item) for item in value] if isinstance(value, list) else value
