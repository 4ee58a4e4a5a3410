"""Forgetting prioritized fine-tuning (FPF): fine-tune on the memory only the layers that forget."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from lightning_cl.callback import ContinualCallback
from lightning_cl.finetuning import (
    FineTuning,
    Statistics,
    measured_tensors,
    parameter_change,
    select_layers,
    task_sensitivity,
)
from lightning_cl.rehearsal import RehearsalCallback
from lightning_cl.stream import StreamDataModule
from lightning_cl.utilities import default_seed, derive_seed

When = Literal["experience", "stream"]
UNMEASURED = ("norm", "head")
"""What the paper names as the layers that forget, until they are measured."""


class FPF(ContinualCallback):
    r"""Fine-tune a few layers on the memory of a replay callback, at the end of each experience or of the stream.

    Zhao, Zhou, Long, Jiang & Zhang, "Does Continual Learning Equally Forget All Parameters?", ICML 2023: only a few
    layers, as batch normalisations and the last one, move much more when the task changes than within a task, and
    fine-tuning these alone, after any training with replay, recovers most of what was forgotten. We have read the
    abstract, and there is no public code: that much is confirmed. What is minimised, the cross-entropy of samples of
    the memory over the classes seen so far (with task labels over those of a sample's own task; without a stream over
    all), that the statistics of batch normalisation are fine-tuned too, and that the measure is the change per entry

    .. math:: d_l(e) = \frac{1}{n_l} \lVert \theta_l(e) - \theta_l(e - 1) \rVert_1

    of layer :math:`l` in epoch :math:`e`, are what is told of the paper, unchecked. All defaults are ours, and so is
    the optimizer (see :class:`lightning_cl.finetuning.FineTuning`).

    The samples are those of the first :class:`~lightning_cl.rehearsal.RehearsalCallback` in the trainer; where it
    stands does not matter. What stands after this callback and does something at the end of an experience, as EWC,
    sees the fine-tuned weights. The optimizer, gradients, counters, modes, the random state and the draws of the replay
    are left as they were. With 0 steps training is bit-identical to that without it.

    Args:
        modules: The layers: ``"norm"``, ``"head"``, ``"first_conv"`` or regular expressions (see
            :func:`lightning_cl.finetuning.select_layers`). Where inputs change and classes do not, add
            ``"first_conv"``. ``None`` measures them: those whose change is largest in the first epoch of an experience
            over that in its later ones, on average since the second experience; before that ``"norm"`` and ``"head"``.
            Needs two epochs per experience, and a copy of the weights.
        top: How many layers are taken where they are measured, 1 or more.
        steps: Number of steps each time, 0 or more.
        batch_size: Samples per step and process, 0 or more; 0 is as 0 steps.
        lr: Learning rate of the first step, which falls to 0 along a cosine, 0 or more: a tenth of that of the
            training is a start.
        bn_stats: ``"update"``: the running statistics of chosen batch normalisations follow the samples of the memory;
            or ``"freeze"``. Those of other layers stay in any case.
        when: Fine-tune at the end of each ``"experience"``, or of the ``"stream"``.
        seed: Fixes what is drawn; ``None`` is the seed of ``seed_everything``, else 0.

    Raises:
        ValueError: If an argument is out of its range; or before training if there is no memory, ``modules`` selects no
            layer, or there are too few epochs to measure.

    Example:
        >>> import lightning as L
        >>> from lightning_cl.callbacks import Replay
        >>> trainer = L.Trainer(callbacks=[Replay(capacity=500), FPF()], logger=False, enable_checkpointing=False)
    """

    needs_whole_parameters = True

    def __init__(
        self,
        modules: Sequence[str] | None = UNMEASURED,
        top: int = 5,
        steps: int = 100,
        batch_size: int = 32,
        lr: float = 0.01,
        bn_stats: Statistics = "update",
        when: When = "experience",
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if top < 1:
            raise ValueError(f"`top` must be 1 or more, got {top}.")
        if when not in get_args(When):
            raise ValueError(f"`when` must be one of {get_args(When)}, got {when!r}.")
        self.modules = None if modules is None else list(modules)
        self.top = top
        self.steps = steps
        self.batch_size = batch_size
        self.lr = lr
        self.bn_stats: Statistics = bn_stats
        self.when: When = when
        self.seed = default_seed(seed)
        self.finetuning = FineTuning(steps, batch_size, lr, bn_stats)
        self.sensitivity: dict[str, float] = {}
        """By layer the change after a switch of tasks over that within one, the largest first; empty until measured."""
        self._experiences = 0
        self._snapshot: dict[str, Tensor] = {}
        self._changes: dict[str, dict[str, list[float]]] = {"switch": {}, "within": {}}  # sum and number by layer

    @override
    def check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._rehearsal(trainer)
        select_layers(pl_module, UNMEASURED if self.modules is None else self.modules)
        if self.when == "stream" and not isinstance(getattr(trainer, "datamodule", None), StreamDataModule):
            raise ValueError("`when='stream'` needs a StreamDataModule, which knows its end: set it to 'experience'.")

    def _rehearsal(self, trainer: Trainer) -> RehearsalCallback:
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        for callback in callbacks:
            if isinstance(callback, RehearsalCallback):
                return callback
        raise ValueError("FPF needs the memory of a replay callback: add one, as Replay, to the trainer's `callbacks`.")

    @override
    def start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.modules is not None:
            return
        assert self._first_epoch is not None
        epochs = -1 if trainer.max_epochs is None else trainer.max_epochs
        if 0 <= epochs < self._first_epoch + 2:
            raise ValueError(
                f"`modules=None` measures in 2 epochs per experience or more, got {epochs - self._first_epoch}: raise "
                "`max_epochs`, or name the `modules`."
            )
        if self._snapshot:  # goes on within an experience
            self._snapshot = {name: value.to(pl_module.device) for name, value in self._snapshot.items()}
        else:
            self._snapshot = measured_tensors(trainer, pl_module)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Not `on_train_epoch_end`, which a run that goes on from the last batch of an epoch does not see.
        if self.modules is None and trainer.is_last_batch:
            after = measured_tensors(trainer, pl_module)
            if self._experiences:
                kind = "within" if self.epoch_of_experience(trainer) else "switch"
                _add(self._changes[kind], parameter_change(self._snapshot, after))
            self._snapshot = after

    @override
    def consolidate(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._experiences, self._snapshot = self._experiences + 1, {}
        self._measure(trainer)
        stream = getattr(trainer, "datamodule", None)
        if self.when == "experience" or (stream is not None and stream.current == len(stream) - 1):
            seed = derive_seed(self.seed, self._experiences)
            self.finetuning.run(trainer, pl_module, self._rehearsal(trainer), self._chosen(), seed)

    def _measure(self, trainer: Trainer) -> None:
        """Rank the layers, once there are epochs of both kinds, and log those that lead."""
        if not all(self._changes.values()):
            return
        means = [{name: total / n for name, (total, n) in changes.items()} for changes in self._changes.values()]
        self.sensitivity = task_sensitivity(*means)
        for logger in trainer.loggers:
            leading = {f"sensitivity/{name}": self.sensitivity[name] for name in list(self.sensitivity)[: self.top]}
            logger.log_metrics(leading, step=trainer.global_step)

    def _chosen(self) -> Sequence[str]:
        """What to fine-tune, for :func:`select_layers`."""
        if self.modules is not None:
            return self.modules
        layers = dict.fromkeys(re.sub(r"\.running_(mean|var)$", "", name) for name in self.sensitivity)
        return [f"^{re.escape(name)}$" for name in list(layers)[: self.top]] or UNMEASURED

    @override
    def state_dict(self) -> dict[str, Any]:
        own = {
            "experiences": self._experiences,
            "snapshot": dict(self._snapshot),
            "sensitivity": dict(self.sensitivity),
        }
        changes = {kind: {name: list(pair) for name, pair in each.items()} for kind, each in self._changes.items()}
        return {**super().state_dict(), **own, "changes": changes}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._experiences, self._snapshot = state_dict["experiences"], dict(state_dict["snapshot"])
        self.sensitivity, self._changes = state_dict["sensitivity"], state_dict["changes"]


def _add(totals: dict[str, list[float]], values: Mapping[str, float]) -> None:
    """Add values to sums that have their number beside them."""
    for name, value in values.items():
        total, number = totals.get(name, (0.0, 0))
        totals[name] = [total + value, number + 1]
