"""Anytime accuracy: how good the model is while the stream is still being learned."""

import io
import math
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from typing_extensions import override

from lightning_cl.callback import ContinualCallback, gather_objects, sum_over_ranks
from lightning_cl.forwards import find_scores
from lightning_cl.loader import StreamLoader, sharded_batches
from lightning_cl.metrics import AnytimeMetrics
from lightning_cl.report import write_atomic
from lightning_cl.run import StreamRun
from lightning_cl.stream import StreamDataModule
from lightning_cl.utilities import derive_seed, evaluating, isolated_rng, permutation

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class AnytimeAccuracy(ContinualCallback):
    r"""Measure the accuracy every few training samples, which shows what a value after each experience hides.

    An evaluation comes with the first batch that reaches the next multiple of ``every_n_samples`` training samples,
    counted over all processes and epochs; samples that a memory adds to a batch do not count. It tests on those test
    samples of the experiences so far whose class has come in a training batch, and predicts among these classes (of a
    stream with task labels, among those in the sample's experience). After evaluation ``t`` of ``n``:

    - ``accuracy`` :math:`a_t` is that over all these test samples, and ``experience_<j>`` that over those of one
      experience; 0 where there are none. Experiences that are tested on the same samples count once in the former.
    - ``a_auc`` is :math:`\frac{1}{n} \sum_{t=1}^n a_t`, the area under the curve of accuracy against samples (Koh et
      al., "Online Continual Learning on Class Incremental Blurry Task Configuration with Anytime Inference", ICLR
      2022), as in their code, which evaluates every 100 samples on all test samples (``max_test_samples=None``).
    - ``aaa``, ``wc_acc``, ``min_acc``, ``wf_<window>`` and ``wp_<window>`` are those of
      :class:`lightning_cl.metrics.AnytimeMetrics`, of the accuracies by experience. A stream without boundaries is one
      experience.

    The first are logged at each evaluation as ``anytime/<name>`` together with ``anytime/samples``, the others at the
    end of each experience; in Python they are in ``curve`` and ``summary``. Then :func:`lightning_cl.fit_stream` also
    has ``anytime_accuracy.csv`` in the run folder, and at the end of the stream a picture, ``anytime_accuracy.png``. Of
    two instances in one trainer the files of the later one remain.

    Training is bit-identical with and without.

    Args:
        every_n_samples: Training samples between two evaluations. A longer period misses dips of the accuracy.
        max_test_samples: Test samples of each experience that are used, the same in each evaluation: chosen by the
            stream's seed, each class in proportion where labels are known without reading the samples. 1000 as in De
            Lange et al., ICLR 2023; ``None`` is all.
        windows: Lengths of the windows of ``wf`` and ``wp``, in evaluations; 10 and 100 as in De Lange et al.

    Raises:
        ValueError: If an argument is out of its range, the trainer has no stream, or, at the first evaluation, the
            model's ``forward`` does not give scores of all classes; the message names it.

    Example:
        >>> import lightning as L
        >>> monitor = AnytimeAccuracy(every_n_samples=100)
        >>> trainer = L.Trainer(callbacks=[monitor], logger=False, enable_checkpointing=False)
        >>> monitor.curve, monitor.summary
        ([], {})
    """

    def __init__(
        self,
        every_n_samples: int = 1000,
        max_test_samples: int | None = 1000,
        windows: Sequence[int] = (10, 100),
    ) -> None:
        super().__init__()
        if every_n_samples < 1:
            raise ValueError(f"`every_n_samples` must be 1 or more, got {every_n_samples}.")
        if max_test_samples is not None and max_test_samples < 1:
            raise ValueError(f"`max_test_samples` must be 1 or more, or None for all, got {max_test_samples}.")
        self.every_n_samples = every_n_samples
        self.max_test_samples = max_test_samples
        self.windows = tuple(windows)
        self.samples = 0
        """Training samples so far."""
        self.classes: set[int] = set()
        """Classes that came in training batches so far."""
        self.curve: list[list[float]] = []
        """For each evaluation the samples, the accuracy, and the accuracies by experience."""
        self.metrics = AnytimeMetrics(self.windows)

    @property
    def summary(self) -> dict[str, float]:
        """The values over all evaluations so far, by name; empty before the first."""
        if not self.curve:
            return {}
        return {"a_auc": math.fsum(row[1] for row in self.curve) / len(self.curve), **self.metrics.compute()}

    @override
    def check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(getattr(trainer, "datamodule", None), StreamDataModule):
            raise ValueError(
                "AnytimeAccuracy needs the test samples of a stream: give `trainer.fit` a StreamDataModule as "
                "`datamodule` (`fit_stream` does), or leave the callback out."
            )

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        labels, before = batch.raw[1], self.samples  # as they were loaded: on the CPU, and without replayed ones
        self.classes.update(labels.tolist())
        # only the last batch of an epoch may differ in size between processes
        shares = gather_objects(trainer, len(labels)) if trainer.is_last_batch else [len(labels)] * trainer.world_size
        self.samples += sum(shares)
        if self.samples // self.every_n_samples > before // self.every_n_samples:
            self._evaluate(trainer, pl_module)

    @override
    def consolidate(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._join_classes(trainer)
        stream = trainer.datamodule  # type: ignore[attr-defined]
        at_the_end = stream.current == len(stream) - 1
        if self.curve:
            self._log(trainer, self.summary)
            self._write(trainer, at_the_end)
        elif at_the_end:
            rank_zero_warn(
                f"AnytimeAccuracy has measured nothing: `every_n_samples` must be {self.samples} or less, the training "
                f"samples that there were, got {self.every_n_samples}."
            )

    # -- an evaluation ----------------------------------------------------------------------------------------------

    def _evaluate(self, trainer: Trainer, pl_module: LightningModule) -> None:
        stream: StreamDataModule = trainer.datamodule  # type: ignore[attr-defined]
        self._join_classes(trainer)
        tested_as = [stream.test_of(j) for j in range(stream.current + 1)]
        measured = sorted(set(tested_as))
        with isolated_rng(), evaluating(pl_module), torch.no_grad(), trainer.precision_plugin.forward_context():
            own = torch.stack([self._count(trainer, pl_module, stream, j) for j in measured])
        correct, total = sum_over_ranks(trainer, own).cpu().double().unbind(1)
        each = (correct / total.clamp(min=1))[[measured.index(j) for j in tested_as]]
        self.metrics.update(each)
        self.curve.append([self.samples, float(correct.sum() / total.sum().clamp(min=1)), *each.tolist()])
        self._log(trainer, dict(zip(_names(self.curve[-1]), self.curve[-1], strict=True)))

    def _count(self, trainer: Trainer, pl_module: LightningModule, stream: StreamDataModule, experience: int) -> Tensor:
        """The correct predictions and the samples of one experience on this process ``(2,)``."""
        device = trainer.strategy.root_device
        classes = self.classes.intersection(stream.classes[experience]) if stream.task_labels else self.classes
        allowed = torch.zeros(stream.num_classes, dtype=torch.bool)
        allowed[sorted(classes)] = True
        allowed, counts = allowed.to(device), torch.zeros(2, dtype=torch.long, device=device)
        for batch in self._batches(trainer, stream, experience):
            x, y, *_ = stream.transform_batch([column.to(device, non_blocking=True) for column in batch])
            scores = _check_scores(pl_module(x), stream.num_classes)[:, : stream.num_classes]
            right = scores.masked_fill(~allowed, -math.inf).argmax(1) == y
            counts += torch.stack([(right & allowed[y]).sum(), allowed[y].sum()])
        return counts

    def _batches(self, trainer: Trainer, stream: StreamDataModule, experience: int) -> StreamLoader:
        """The test samples of one experience that are for this process."""
        data = stream.part(experience, "test")
        chosen = _choose(data, self.max_test_samples, derive_seed(stream.seed, experience))
        shards = sharded_batches(len(chosen), stream.eval_batch_size, trainer.global_rank, trainer.world_size)
        batches = [chosen[index] for index in shards]
        return StreamLoader(data, lambda _: batches, len(batches), num_workers=stream.num_workers)

    def _join_classes(self, trainer: Trainer) -> None:
        self.classes = set().union(*gather_objects(trainer, self.classes))

    # -- what is left of it -----------------------------------------------------------------------------------------

    def _log(self, trainer: Trainer, values: dict[str, float]) -> None:
        for logger in trainer.loggers:
            logger.log_metrics({f"anytime/{name}": value for name, value in values.items()}, step=trainer.global_step)

    def _write(self, trainer: Trainer, picture: bool) -> None:
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        folder = next((callback.folder for callback in callbacks if isinstance(callback, StreamRun)), None)
        if folder is None or not trainer.is_global_zero:
            return
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "anytime_accuracy.csv", _csv(self.curve))
        if picture:
            image = io.BytesIO()
            _figure(self.curve, self.summary["a_auc"]).savefig(image, format="png", dpi=150)
            write_atomic(folder / "anytime_accuracy.png", image.getvalue())

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._join_classes(trainer)  # only one process writes what it has
        checkpoint["callbacks"][self.state_key] = self.state_dict()

    @override
    def state_dict(self) -> dict[str, Any]:
        own = {"samples": self.samples, "classes": sorted(self.classes), "curve": [list(row) for row in self.curve]}
        return {**super().state_dict(), **own, "metrics": self.metrics.state_dict()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.samples, self.classes = state_dict["samples"], set(state_dict["classes"])
        self.curve = [list(row) for row in state_dict["curve"]]
        self.metrics.load_state_dict(state_dict["metrics"])


def _choose(data: Any, limit: int | None, seed: int) -> Tensor:
    """Positions of ``limit`` samples or all, ascending; each class has its share, rounded, if labels are known."""
    count = len(data) if limit is None else min(limit, len(data))
    order = permutation(len(data), seed)
    with suppress(AttributeError, ValueError):  # of labels that only the samples themselves tell
        order = order[data.labels[order].argsort(stable=True)]
    return order[torch.arange(count) * len(data) // count].sort().values


def _check_scores(output: Any, num_classes: int) -> Tensor:
    scores = find_scores(output)
    if scores is None or scores.shape[1] < num_classes:
        got = tuple(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise ValueError(
            f"AnytimeAccuracy needs a `forward` that gives scores (B, {num_classes}) of all classes, got {got}: change "
            "it, or leave the callback out."
        )
    return scores


def _names(row: Sequence[float]) -> list[str]:
    return ["samples", "accuracy", *(f"experience_{j}" for j in range(len(row) - 2))]


def _csv(curve: Sequence[Sequence[float]]) -> str:
    """A row for each evaluation, which reads back to the same bits; empty where an experience had not begun."""
    names = _names(max(curve, key=len))
    rows = [[*map(repr, row), *[""] * (len(names) - len(row))] for row in curve]
    return "".join(",".join(cells) + "\n" for cells in [names, *rows])


def _figure(curve: Sequence[Sequence[float]], a_auc: float) -> "Figure":
    """Draw the accuracy against the samples, and behind it that on each experience from when it began."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(7.0, 4.2), layout="constrained")
    axes = figure.subplots()
    length = max(map(len, curve)) - 2
    colors = matplotlib.colormaps["viridis"]
    for j in range(length if length > 1 else 0):
        rows = [row for row in curve if len(row) > j + 2]
        x, y = [row[0] for row in rows], [row[j + 2] for row in rows]
        axes.plot(x, y, color=colors(j / length), linewidth=0.8, label=f"experience {j}" if length <= 10 else None)
    marker = "." if len(curve) <= 50 else None  # a single point is no line
    axes.plot(*zip(*(row[:2] for row in curve), strict=True), color="black", marker=marker, label="all so far")
    axes.set_xlim(left=0)
    axes.set_ylim(0, 1.01)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("training samples")
    axes.set_ylabel("accuracy")
    axes.set_title(f"Accuracy while learning: area under the curve {100 * a_auc:.1f} %")
    axes.spines[["top", "right"]].set_visible(False)
    if length > 1:
        figure.legend(loc="outside right center", frameon=False, fontsize=9)
    return figure
