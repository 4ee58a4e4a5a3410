"""One run over a stream: each experience is one ``trainer.fit``, and a kill at any instant loses nothing."""

import logging
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import Any, Literal

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, ModelSummary
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from typing_extensions import override

from lightning_cl import metrics
from lightning_cl.callback import ContinualCallback, gather_objects, sum_over_ranks, unpack_batch
from lightning_cl.checkpoint import (
    RUN_STATE,
    AtomicCheckpointIO,
    check_state,
    find_last,
    link_atomic,
    read_checkpoint,
    remove_leftovers,
)
from lightning_cl.forwards import find_scores, scores_in
from lightning_cl.loader import ChainLoader
from lightning_cl.logger import RunLogger
from lightning_cl.report import log_report, print_report, write_report
from lightning_cl.resume import (
    as_tensors,
    end_of_training,
    epoch_has_metrics,
    finish_last_batch,
    restore_results,
    running_results,
    settle,
    unlogged,
)
from lightning_cl.stream import StreamDataModule
from lightning_cl.utilities import derive_seed, evaluating, get_rng_state, isolated_rng, seed_generators, set_rng_state

Evaluate = Literal["seen", "all"]
Scoring = Literal["seen", "task", "all"]
Keep = Literal["last", "all"]

INTERRUPTED = "interrupted.ckpt"
PICTURE_EVERY = 10.0
"""Seconds between two pictures of the accuracy matrix."""


@dataclass(frozen=True)
class StreamResult:
    """What a run over a stream measured.

    Attributes:
        accuracy_matrix: ``R[i, j]``, accuracy in ``[0, 1]`` on experience ``j`` after learning experience ``i``,
            float64 ``(T, T)``; NaN where it was not measured.
        initial: Accuracy on each experience before any training ``(T,)``, or ``None`` if it was not measured.
        counts: Number of test samples of each experience ``(T,)``.
        run_dir: Folder with the checkpoints and reports, or ``None`` if the trainer keeps none.
    """

    accuracy_matrix: Tensor
    initial: Tensor | None
    counts: Tensor
    run_dir: Path | None

    @property
    def average_accuracy(self) -> float:
        """Mean accuracy over the experiences learned, after the last of them."""
        return metrics.average_accuracy(self.accuracy_matrix)

    @property
    def forgetting(self) -> float:
        """Mean drop from the best earlier accuracy (Chaudhry et al., ECCV 2018); NaN with one experience."""
        return metrics.forgetting(self.accuracy_matrix)

    @property
    def backward_transfer(self) -> float:
        """Mean change since an experience was learned (Lopez-Paz & Ranzato, NeurIPS 2017); NaN with one experience."""
        return metrics.backward_transfer(self.accuracy_matrix)

    @property
    def summary(self) -> dict[str, float]:
        """All scalars that are defined, with the convention in the name."""
        return metrics.summary(self.accuracy_matrix, self.initial, self.counts)


def fit_stream(
    trainer: Trainer,
    model: LightningModule,
    stream: StreamDataModule,
    ckpt_path: str | Path | None = None,
    *,
    evaluate: Evaluate = "seen",
    scoring: Scoring | None = None,
    keep_checkpoints: Keep = "last",
) -> StreamResult:
    """Learn a stream, one experience after another, and measure the accuracy matrix.

    Each experience is one public ``trainer.fit`` and one ``trainer.test``: ``max_epochs`` (and ``min_epochs``,
    ``max_steps``, early stopping, schedulers, ``estimated_stepping_batches``) mean per experience what they always
    mean, while the epoch and step counters run on. Optimizers and schedulers are new in each experience. The random
    generators are seeded anew at the start of each experience, from one number drawn at the start of the run.

    After each experience an *experience checkpoint* is written to ``checkpoints/experience_<i>.ckpt`` in the run folder
    (``trainer.log_dir``), with ``last.ckpt`` pointing to it; a ``ModelCheckpoint`` in the trainer adds points within an
    experience. From either the run goes on exactly. With ``Trainer(logger=False)`` or ``enable_checkpointing=False``
    there is no run folder and nothing is written.

    Args:
        trainer: A Trainer as the user made it.
        model: Any LightningModule whose ``forward`` (or ``test_step``) gives scores ``(B, C)`` of all classes. A
            ``test_step`` is not needed.
        stream: The stream.
        ckpt_path: Checkpoint of a run to go on with, or ``"last"``: the newest of this run folder, the start if none.
        evaluate: After each experience test on those ``"seen"`` so far, or on ``"all"``; ``"all"`` also tests before
            training, so that forward transfer is defined.
        scoring: Predict the best class among those ``"seen"`` so far, those of the sample's ``"task"``, or ``"all"``;
            ``None`` is ``"task"`` for a stream with task labels, else ``"seen"``.
        keep_checkpoints: Keep the ``"last"`` experience checkpoint or ``"all"`` of them.

    Returns:
        The accuracy matrix and what follows from it.

    Raises:
        TypeError: If ``stream`` is not a :class:`StreamDataModule`.
        ValueError: If an argument or the setting of the trainer cannot work.
        CheckpointError: If the checkpoint is truncated, foreign, of another stream or set of callbacks, or within an
            experience and of another number of processes.
        FileExistsError: If the run folder holds an earlier run and ``ckpt_path`` is not given.

    Example:
        >>> from lightning_cl.datamodules import SplitDigits
        >>> from lightning_cl.methods import Classifier
        >>> quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        >>> trainer = Trainer(max_epochs=1, accelerator="cpu", enable_checkpointing=False, **quiet)
        >>> result = fit_stream(trainer, Classifier(10, "mlp", (1, 8, 8)), SplitDigits(num_experiences=2))
        >>> result.accuracy_matrix.shape, result.run_dir
        (torch.Size([2, 2]), None)
    """
    _check_arguments(trainer, stream, evaluate, scoring, keep_checkpoints)
    module = getattr(model, "_orig_mod", model)  # of a compiled model; Lightning takes that as it is
    run = StreamRun(stream, evaluate, scoring or ("task" if stream.task_labels else "seen"))
    if ckpt_path is not None and trainer.is_global_zero:
        stream.prepare_data()  # a checkpoint is compared with the data, before Lightning has them prepared
    resume, run.folder = _resolve(trainer, stream, run, ckpt_path)
    with _attached(trainer, module, run):
        if resume is None:
            run.first_epoch, run.first_step = trainer.current_epoch, trainer.global_step
            if evaluate == "all":
                run.measure(trainer, model, initial=True)
        elif not run.within:  # a kill may have come between the checkpoint and what follows it
            _publish(trainer, run, Path(resume), keep_checkpoints)
            run.report(trainer)
        if run.finished == len(stream):
            module.load_state_dict(read_checkpoint(resume or "")["state_dict"])
            rank_zero_info(f"The run in {str(run.folder)!r} is complete: nothing is left to train.")
        for i in range(run.finished, len(stream)):
            stream.current = i
            run.announce(trainer)
            if not run.within:
                run.begin()
            with _consolidated_at_the_end(trainer, run):
                trainer.fit(model, datamodule=stream, ckpt_path=resume, weights_only=True if resume else None)
            resume = None
            _stop_on_sigterm(trainer)
            run.measure(trainer, model)
            _stop_on_sigterm(trainer)
            run.finish(trainer)
            if run.folder is not None:
                path = run.folder / "checkpoints" / f"experience_{i}.ckpt"
                trainer.save_checkpoint(path, weights_only=False)
                _publish(trainer, run, path, keep_checkpoints)
            run.report(trainer)
    result = run.result()
    if trainer.is_global_zero and trainer.progress_bar_callback is not None:
        print_report(result.accuracy_matrix, result.summary, run.folder)
    return result


def evaluate_stream(
    trainer: Trainer,
    model: LightningModule,
    stream: StreamDataModule,
    ckpt_path: str | Path | None = None,
    *,
    scoring: Scoring | None = None,
) -> Tensor:
    """Measure the accuracy on each experience, without training.

    Args:
        trainer: Any Trainer.
        model: The module; its weights as they are, or those of ``ckpt_path``.
        stream: The stream. The checkpoint says how far it had come; without one all of it counts as seen.
        ckpt_path: A checkpoint of this module.
        scoring: As in :func:`fit_stream`.

    Returns:
        Accuracies in ``[0, 1]``, float64 ``(T,)``.
    """
    stream.current = len(stream) - 1
    run = StreamRun(stream, "all", scoring or ("task" if stream.task_labels else "seen"))
    with _attached(trainer, getattr(model, "_orig_mod", model), run):
        return run.test(trainer, model, ckpt_path)


class StreamRun(Callback):
    """What :func:`fit_stream` adds to the trainer: position, measurements and random states, in every checkpoint.

    Args:
        stream: The stream.
        evaluate: As in :func:`fit_stream`.
        scoring: As in :func:`fit_stream`.
    """

    def __init__(self, stream: StreamDataModule, evaluate: Evaluate = "seen", scoring: Scoring = "seen") -> None:
        self.stream = stream
        self.evaluate = evaluate
        self.scoring = scoring
        self.matrix = metrics.AccuracyMatrix(len(stream), sync_on_compute=False)  # sums over ranks are ours
        self.initial: Tensor | None = None
        self.finished = 0  # experiences trained, consolidated and measured
        self.within = False  # an experience has begun that is not yet measured
        self.consolidated = False  # the callbacks have had their `on_train_end` in the current experience
        self.ended = False  # and so has the module
        self.first_epoch = 0  # of the current experience, or of the next one
        self.first_step = 0
        self.seed = int(torch.randint(2**62, (1,)))
        self.pristine: dict[Callback, dict[str, Any]] = {}
        self._drawn = time.monotonic()
        self._fresh = False  # the current fit starts at the beginning of the experience
        self._before_training = False
        self.folder: Path | None = None
        self._row = metrics.AccuracyMatrix(len(stream), sync_on_compute=False)  # of one evaluation, on this rank
        self._measured_as: dict[int, int] = {}  # experience to the first one with the same test samples
        self._scores: Tensor | None = None
        self._hook: Any = None
        self._pending_rng: dict[str, Any] | None = None
        self._unlogged: dict[str, Any] | None = None
        self._results: dict[str, Any] | None = None

    # -- the life of an experience ----------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start an experience; what it draws at random depends on nothing before."""
        self.within, self.consolidated, self.ended, self._fresh = True, False, False, True
        seed_generators(derive_seed(self.seed, self.stream.current, 0))

    def finish(self, trainer: Trainer) -> None:
        """End an experience that is trained, consolidated and measured."""
        self.finished += 1
        self.within = self.consolidated = self.ended = False
        self.first_epoch, self.first_step = trainer.current_epoch, trainer.global_step

    def announce(self, trainer: Trainer) -> None:
        """Say which experience of how many begins."""
        if trainer.is_global_zero and trainer.progress_bar_callback is not None:
            e = self.stream.current
            print(f"Experience {e + 1} of {len(self.stream)}: {self.stream.name_of(e)}", flush=True)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # From here on the limits count from the start of the run; `configure_optimizers` has seen them per experience.
        loop = trainer.fit_loop
        if loop.max_epochs is not None and loop.max_epochs != -1:
            loop.max_epochs += self.first_epoch
        if loop.min_epochs:
            loop.min_epochs += self.first_epoch
        if loop.epoch_loop.max_steps != -1:
            loop.epoch_loop.max_steps += self.first_step
        if loop.epoch_loop.min_steps:
            loop.epoch_loop.min_steps += self.first_step
        if self._fresh:
            for callback, state in self.pristine.items():  # what they saw of an earlier experience is no yardstick
                here = {"dirpath": callback.dirpath} if isinstance(callback, ModelCheckpoint) else {}
                callback.load_state_dict({**deepcopy(state), **here})
            self._check_scores(trainer, pl_module)

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if not trainer.training:
            return
        self.stream.current = self.finished  # a checkpoint between two experiences holds the one before
        if self.within and not self._fresh:
            limit = trainer.max_steps if trainer.max_steps == -1 else trainer.max_steps + self.first_step
            finish_last_batch(trainer, checkpoint["loops"]["fit_loop"], limit)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._fresh:
            # Each rank augments and drops out by draws of its own; what is drawn before, for the weights, is common.
            seed_generators(derive_seed(self.seed, self.stream.current, 1, trainer.global_rank))
            settle(trainer.fit_loop)
            self._fresh = False
        self._put_back_rng(last=False)
        if self._unlogged is not None:
            for logger in trainer.loggers:
                logger.log_metrics(self._unlogged["values"], self._unlogged["step"])
            self._unlogged = None
        if self._results is not None:
            restore_results(trainer, pl_module, self._results)
            self._results = None

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._put_back_rng()

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._put_back_rng()
        epoch_has_metrics(trainer)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._put_back_rng()
        self.consolidated = True  # seen only by checkpoints that are written after the other callbacks' turn
        if not all(p.isfinite().all() for p in pl_module.parameters()):
            rank_zero_warn(
                "Weights are no longer finite: training has diverged. Lower the learning rate, or the strength of a "
                "method."
            )

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._hook is not None:
            self._hook.remove()
        # A SIGTERM arrives between two batches: nothing need be lost. (Several processes may be at different ones.)
        if isinstance(exception, SIGTERMException) and trainer.training and self.folder and trainer.world_size == 1:
            trainer.save_checkpoint(self.folder / "checkpoints" / INTERRUPTED, weights_only=False)

    def _put_back_rng(self, last: bool = True) -> None:
        """Restore the random state of a checkpoint: as late as possible, before anything that was after it draws."""
        if self._pending_rng is not None:
            set_rng_state(self._pending_rng)
            if last:
                self._pending_rng = None

    # -- measuring --------------------------------------------------------------------------------------------------

    def measure(self, trainer: Trainer, model: LightningModule, initial: bool = False) -> None:
        """Run ``trainer.test`` and add the accuracies to the matrix (or take them as the initial ones)."""
        stream = self.stream
        self._before_training = initial
        accuracies = self.test(trainer, model)
        self._before_training = False
        if initial:
            self.initial = accuracies
        else:
            i = stream.current
            self.matrix.correct[i], self.matrix.total[i] = self._row.correct[i], self._row.total[i]

    def test(self, trainer: Trainer, model: LightningModule, ckpt_path: str | Path | None = None) -> Tensor:
        """Run ``trainer.test`` and return the accuracy on each experience ``(T,)``."""
        stream = self.stream
        wanted = range(len(stream)) if self.evaluate == "all" else range(stream.current + 1)
        self._measured_as = {j: stream.test_of(j) for j in wanted}
        stream.evaluated = sorted(set(self._measured_as.values()))
        weights_only = None if ckpt_path is None else True
        trainer.test(model, datamodule=stream, ckpt_path=ckpt_path, weights_only=weights_only, verbose=False)
        return self._row.compute()[stream.current]

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._row = metrics.AccuracyMatrix(len(self.stream), sync_on_compute=False)
        self._hook = pl_module.register_forward_hook(self._keep_scores)

    def _keep_scores(self, module: Any, args: Any, output: Any) -> None:
        self._scores = find_scores(output)

    @override
    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        _stop_on_sigterm(trainer)
        x, y = unpack_batch(batch)
        scores = outputs.get("logits") if isinstance(outputs, dict) else None
        if scores is None:
            scores = self._scores if self._scores is not None else scores_in(pl_module(x))
        self._scores = None
        loader = trainer.test_dataloaders
        assert isinstance(loader, ChainLoader)
        j = loader.experience_of_batch[batch_idx]
        self._row.update(self.stream.current, j, self._predict(scores, j), y)

    def _predict(self, scores: Tensor, experience: int) -> Tensor:
        if self.scoring == "all" or (self._before_training and self.scoring == "seen"):
            return scores.argmax(1)
        classes = self.stream.classes[experience] if self.scoring == "task" else self.stream.seen_classes
        allowed = torch.tensor(sorted(classes), device=scores.device)
        return allowed[scores[:, allowed].argmax(1)]

    @override
    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        counts = torch.stack([self._row.correct, self._row.total]).to(trainer.strategy.root_device)
        counts = sum_over_ranks(trainer, counts).cpu()
        counts[..., list(self._measured_as)] = counts[..., list(self._measured_as.values())]
        self._row.correct, self._row.total = counts

    @override
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._hook.remove()

    def result(self) -> StreamResult:
        """The measurements so far."""
        sizes = torch.tensor([experience.num_test for experience in self.stream.experiences])
        return StreamResult(self.matrix.compute(), self.initial, sizes, self.folder)

    def report(self, trainer: Trainer) -> None:
        """Log the scalars and the matrix, and write them to the run folder."""
        result = self.result()
        row = result.accuracy_matrix[self.finished - 1]
        each = {f"accuracy/experience_{j}": value for j, value in enumerate(row.tolist()) if value == value}
        if trainer.is_global_zero:
            # Drawing takes longer than a small experience: at the end, and now and then on the way.
            picture = self.finished == len(self.stream) or time.monotonic() - self._drawn > PICTURE_EVERY
            self._drawn = time.monotonic() if picture else self._drawn
            log_report(trainer.loggers, result.accuracy_matrix, {**result.summary, **each}, self.first_step, picture)
            if self.folder is not None:
                extra = {"experiences": self.finished, "scoring": self.scoring, "epochs": self.first_epoch}
                write_report(self.folder, result.accuracy_matrix, result.summary, extra, picture)

    def _check_scores(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the scores of two samples before any training."""
        part = self.stream.part(0, "train")
        samples = torch.utils.data.default_collate([part[k] for k in range(min(2, len(part)))])
        batch = trainer.strategy.batch_to_device(samples, dataloader_idx=0)
        with isolated_rng(), evaluating(pl_module), torch.no_grad(), trainer.precision_plugin.forward_context():
            scores = find_scores(pl_module(unpack_batch(batch)[0]))
        if scores is None:
            return  # `test_step` may return the scores
        if scores.shape[1] < self.stream.num_classes:
            raise ValueError(
                f"The model gives {scores.shape[1]} scores and the stream has {self.stream.num_classes} classes: set "
                f"the model's number of classes (`num_classes`) to {self.stream.num_classes}."
            )

    # -- state ------------------------------------------------------------------------------------------------------

    @property
    @override
    def state_key(self) -> str:
        return RUN_STATE

    @override
    def state_dict(self) -> dict[str, Any]:
        trainer = self.stream.trainer
        assert trainer is not None
        own = {"seed": self.seed, "rng": get_rng_state(), "results": None}
        if self.within:
            own["results"] = as_tensors(running_results(trainer))
        return {
            "shape": self.stream.shape(),
            "callbacks": _continual(trainer),
            "world_size": trainer.world_size,
            "finished": self.finished,
            "within": self.within,
            "consolidated": self.consolidated,
            "ended": self.ended,
            "first_epoch": self.first_epoch,
            "first_step": self.first_step,
            "correct": self.matrix.correct.clone(),
            "total": self.matrix.total.clone(),
            "initial": self.initial,
            "ranks": gather_objects(trainer, own),
            "unlogged": unlogged(trainer) if self.within else None,
            "rows": next((logger.rows for logger in trainer.loggers if isinstance(logger, RunLogger)), 0),
            "wandb": [logger.version for logger in trainer.loggers if isinstance(logger, WandbLogger)],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` was saved."""
        for name in ("finished", "within", "consolidated", "ended", "first_epoch", "first_step", "initial"):
            setattr(self, name, state[name])
        self.matrix.correct, self.matrix.total = state["correct"].clone(), state["total"].clone()
        self._unlogged = state["unlogged"]
        own = state["ranks"][getattr(rank_zero_only, "rank", 0) % len(state["ranks"])]  # between experiences others too
        self.seed = own["seed"]
        if self.within:
            self._pending_rng, self._results = own["rng"], own["results"]

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if not self.within:  # the next experience starts with a new optimizer, at the first batch of an epoch
            checkpoint["optimizer_states"], checkpoint["lr_schedulers"] = [], []
            checkpoint["loops"]["fit_loop"]["state_dict"].pop("combined_loader", None)


# -- around the trainer -----------------------------------------------------------------------------------------------


@contextmanager
def _attached(trainer: Trainer, model: LightningModule, run: StreamRun) -> Iterator[None]:
    """Add what a run needs to the trainer and the module; afterwards both are as they were."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    before = list(callbacks)
    run.pristine = {
        callback: deepcopy(callback.state_dict())
        for callback in callbacks
        if isinstance(callback, EarlyStopping) or (isinstance(callback, ModelCheckpoint) and callback.monitor)
    }
    callbacks.insert(0, run)
    with ExitStack() as stack:
        stack.callback(callbacks.__setitem__, slice(None), before)
        run.stream.before_first_batch = run._put_back_rng
        stack.callback(setattr, run.stream, "before_first_batch", None)
        stack.enter_context(_quiet(run.stream))
        stack.enter_context(_labelled_progress(trainer, run.stream))
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            stack.callback(setattr, trainer.strategy, "checkpoint_io", trainer.strategy.checkpoint_io)
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        if not is_overridden("test_step", model):
            model.test_step = MethodType(_test_step, model)  # type: ignore[method-assign]
            stack.callback(delattr, model, "test_step")
        if run.folder is not None and trainer.is_global_zero:
            remove_leftovers(run.folder / "checkpoints")
        try:
            yield
        except (KeyboardInterrupt, SystemExit, SIGTERMException):
            if run.folder is not None and trainer.is_global_zero:
                print(
                    f"\nInterrupted. The run in {str(run.folder)!r} can go on: start it again as before, with "
                    "`--ckpt_path last` on the command line or `ckpt_path='last'` in Python.",
                    file=sys.stderr,
                )
            raise


def _test_step(module: LightningModule, batch: Any, batch_idx: int) -> dict[str, Tensor]:
    return {"logits": scores_in(module(unpack_batch(batch)[0]))}


@contextmanager
def _consolidated_at_the_end(trainer: Trainer, run: StreamRun) -> Iterator[None]:
    """Let a fit that has no epoch left still call ``on_train_end``.

    A checkpoint of the last epoch is written before consolidation. Lightning skips the hook when it resumes from there.
    """
    loop = trainer.fit_loop
    limits = loop.min_epochs, loop.max_epochs, loop.epoch_loop.min_steps, loop.epoch_loop.max_steps
    fit = loop.run

    def fit_then_consolidate() -> None:
        module, before = trainer.lightning_module, run.consolidated
        fit()
        if not run.consolidated:
            end_of_training(trainer)
        elif before and not run.ended:  # a checkpoint that a callback wrote in its own `on_train_end`
            module.on_train_start()
            module.on_train_end()
        run.ended = True

    loop.run = fit_then_consolidate  # type: ignore[method-assign]
    try:
        yield
    finally:
        del loop.run
        loop.min_epochs, loop.max_epochs, loop.epoch_loop.min_steps, loop.epoch_loop.max_steps = limits
    # once is enough
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    callbacks[:] = [callback for callback in callbacks if not isinstance(callback, ModelSummary)]


@contextmanager
def _labelled_progress(trainer: Trainer, stream: StreamDataModule) -> Iterator[None]:
    """Show which experience of how many in the progress bar, whichever it is."""
    bar = trainer.progress_bar_callback
    if bar is None:
        yield
        return
    get_metrics = bar.get_metrics

    def with_experience(trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        metrics = {k: v for k, v in get_metrics(trainer, pl_module).items() if k != "v_num"}
        return {"experience": f"{stream.current + 1}/{len(stream)}", **metrics}

    bar.get_metrics = with_experience  # type: ignore[method-assign]
    try:
        yield
    finally:
        del bar.get_metrics


@contextmanager
def _quiet(stream: StreamDataModule) -> Iterator[None]:
    """Keep back what Lightning says at every fit and test, which here comes once per experience."""
    repeated = ("`Trainer.fit` stopped:", "LOCAL_RANK:", "Restor", "Loaded model")
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")

    def news(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(repeated)

    logger.addFilter(news)
    with warnings.catch_warnings():
        if not stream.val_fraction:
            warnings.filterwarnings("ignore", "Total length of `list` across ranks is zero")
            warnings.filterwarnings("ignore", "You passed in a `val_dataloader` but have no `validation_step`")
        warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")  # of this very run
        warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated")  # between Lightning 2.6 and torch 2.9
        try:
            yield
        finally:
            logger.removeFilter(news)


def _stop_on_sigterm(trainer: Trainer) -> None:
    """Lightning looks for a SIGTERM between batches of training only."""
    if trainer.received_sigterm:
        raise SIGTERMException


# -- before anything starts -------------------------------------------------------------------------------------------


def _check_arguments(
    trainer: Trainer, stream: StreamDataModule, evaluate: str, scoring: str | None, keep_checkpoints: str
) -> None:
    if not isinstance(stream, StreamDataModule):
        raise TypeError(
            f"`stream` must be a StreamDataModule, got {type(stream).__name__}: see lightning_cl.datamodules, or "
            "derive from lightning_cl.StreamDataModule."
        )
    for name, value, allowed in (
        ("evaluate", evaluate, ("seen", "all")),
        ("scoring", scoring, (None, "seen", "task", "all")),
        ("keep_checkpoints", keep_checkpoints, ("last", "all")),
    ):
        if value not in allowed:
            raise ValueError(f"`{name}` must be one of {allowed}, got {value!r}.")
    if scoring == "task" and any(stream.classes[stream.test_of(i)] != stream.classes[i] for i in range(len(stream))):
        raise ValueError("`scoring` must not be 'task': experiences share test samples, which are of no one's task.")
    if trainer.limit_test_batches == 0:
        raise ValueError("`limit_test_batches` must not be 0: the accuracy matrix is measured with `trainer.test`.")
    if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        raise ValueError(
            "`strategy` must start its processes once for the whole run: use 'ddp' instead of 'ddp_spawn', 'ddp_fork' "
            "or 'ddp_notebook', whose processes end with each fit."
        )


def _run_dir(trainer: Trainer) -> Path | None:
    """The folder that Lightning's own logger or ModelCheckpoint would use; ``None`` if the trainer keeps no files."""
    if not trainer.loggers or getattr(trainer, "fast_dev_run", False) or trainer.checkpoint_callback is None:
        return None
    logger = trainer.loggers[0]
    if isinstance(logger, TensorBoardLogger | CSVLogger):
        return Path(logger.log_dir)
    getattr(logger, "experiment", None)  # starts the run, which then has a version
    return Path(logger.save_dir or trainer.default_root_dir, str(logger.name), str(logger.version))


def _resolve(
    trainer: Trainer, stream: StreamDataModule, run: StreamRun, ckpt_path: str | Path | None
) -> tuple[str | None, Path | None]:
    """Find the checkpoint to go on from and the run folder; refuse what does not belong together."""
    path: Path | None = None
    if ckpt_path is None or ckpt_path == "last":
        folder = _run_dir(trainer)
        if ckpt_path == "last":
            own = [callback.dirpath for callback in trainer.checkpoint_callbacks if hasattr(callback, "dirpath")]
            folders = [] if folder is None else [folder, folder / "checkpoints"]
            path = find_last([*folders, *(Path(dirpath) for dirpath in own if dirpath)])
            if path is None:
                rank_zero_warn(
                    f"`ckpt_path='last'`: no checkpoint yet in {str(folder)!r}, the run starts from the beginning."
                )
        elif folder is not None and trainer.is_global_zero and holds_a_run(folder):
            raise FileExistsError(
                f"{str(folder)!r} holds an earlier run: go on with it (`ckpt_path='last'`), choose another folder, or "
                "delete it."
            )
        state = None if path is None else _read_state(path, trainer, stream, run)
    else:
        path = Path(ckpt_path)
        state = _read_state(path, trainer, stream, run)
        folder = _run_dir(trainer)
        newest = find_last([folder / "checkpoints"]) if folder is not None and trainer.is_global_zero else None
        if newest is not None and newest != path.resolve():
            raise FileExistsError(
                f"{str(folder)!r} holds a run that is further than {str(path)!r} ({newest.name}): go on from there "
                "(`ckpt_path='last'`), or start from your checkpoint in another folder."
            )
    for logger in trainer.loggers:
        if isinstance(logger, RunLogger) and trainer.is_global_zero and state is not None:
            logger.rewind(state["rows"])
    return None if path is None else str(path), folder


def _read_state(path: Path, trainer: Trainer, stream: StreamDataModule, run: StreamRun) -> dict[str, Any]:
    checkpoint = read_checkpoint(path)
    state: dict[str, Any] = checkpoint["callbacks"][RUN_STATE]
    check_state(state, stream.shape(), trainer.world_size, _continual(trainer))
    run.restore(state)
    wandb = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
    for logger, run_id in zip(wandb, state["wandb"], strict=False):
        if logger._experiment is None and run_id is not None:  # else the user has chosen the run
            logger._id = run_id
            logger._wandb_init.update(id=run_id, resume="allow")
    return state


def _continual(trainer: Trainer) -> list[str]:
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback.state_key for callback in callbacks if isinstance(callback, ContinualCallback)]


def holds_a_run(folder: Path) -> bool:
    """Whether a folder has results or checkpoints in it."""
    return (folder / "summary.json").exists() or any((folder / "checkpoints").glob("*.ckpt"))


def _publish(trainer: Trainer, run: StreamRun, path: Path, keep: Keep) -> None:
    """Let ``last.ckpt`` point to the newest experience checkpoint, and drop what it supersedes."""
    folder = run.folder
    if folder is None or not trainer.is_global_zero or path.parent.resolve() != (folder / "checkpoints").resolve():
        return
    link_atomic(path, folder / "last.ckpt")
    path.with_name(INTERRUPTED).unlink(missing_ok=True)
    if keep == "last":
        path.with_name(f"experience_{run.finished - 2}.ckpt").unlink(missing_ok=True)
