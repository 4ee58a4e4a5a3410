"""Task-free MAS: consolidate when the loss has come to rest, and replay the hardest samples."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from lightning_cl.anchor import AnchorCallback, QuadraticAnchor
from lightning_cl.callback import (
    Unpack,
    columns_of,
    gather_rows,
    is_logged,
    prepared,
    replace_columns,
    sum_over_ranks,
    unpack_batch,
)
from lightning_cl.forwards import scores_in
from lightning_cl.importance import output_sensitivity
from lightning_cl.plateau import PlateauDetector
from lightning_cl.stream import StreamBatch
from lightning_cl.utilities import at_least_float32, evaluating


class TaskFreeMAS(AnchorCallback):
    r"""Memory aware synapses for a stream that tells no boundaries: online, on a small buffer of hard samples.

    Aljundi, Kelchtermans & Tuytelaars, "Task-Free Continual Learning", CVPR 2019, as in the authors' code. With each
    batch:

    1. The hard samples join it, and ``updates_per_batch`` optimizer steps are taken on it, with the penalty
       :math:`\frac{\lambda}{2} \sum_i \Omega_i (\theta_i - \theta^*_i)^2`, whose gradient is added after unscaling and
       reduction over processes and before clipping.
    2. The loss of the first of these steps, as the module returned it, goes to a
       :class:`~lightning_cl.plateau.PlateauDetector`. At a plateau, the :math:`k`-th,
       :math:`\Omega \leftarrow \frac{1}{k} \sum_n |\nabla_\theta \lVert f(x_n) \rVert_2| + (1 - \frac{1}{k}) \Omega`
       over the hard samples :math:`x_n` (the norm is not squared), and :math:`\theta^* \leftarrow \theta`.
    3. The samples of highest cross-entropy, of the batch and of the hard ones, are the new hard samples.

    The cross-entropies are those after the steps, in eval mode, so that neither dropout nor the statistics of batch
    normalisation have a part (the authors' network has neither, and they take what the last step saw). Hard samples are
    kept and augmented as by :class:`~lightning_cl.callbacks.Replay`. In several epochs over the same data a sample can
    be among them more than once: the method is for one pass.

    Ends of experiences mean nothing to it. How often it consolidated is logged as ``consolidations/TaskFreeMAS``. At
    strength 0 it does nothing at all, neither replay nor further steps, and training is bit-identical to fine-tuning.

    With several processes all hold the same hard samples, the hardest of all their batches, and each replays its share
    of them; that the loss rests is decided on its mean. Where all shares are equally large, training is that of one
    process with the joined batches.

    The learning rate's schedule counts batches, and the counters of Lightning optimizer steps.

    Args:
        strength: Factor :math:`\lambda` of the penalty, 0 or more. The authors' is 0.5, beside a loss that is summed
            over 20 samples and 5 hard ones; the default is a 25th of it, for a loss that is a mean.
        hard_samples: Number of hard samples, 1 or more.
        updates_per_batch: Optimizer steps on each batch, 1 or more.
        window: Number of losses that are looked at, 2 or more.
        max_mean: The mean of the window below which the loss is low, above 0. The default is for the authors' squared
            error, summed over the batch: set it to what your loss falls to.
        max_variance: The variance of the window below which the loss is flat, above 0; as ``max_mean``.
        parameters: Regular expressions that select parameters by name; ``None`` is all that are trainable.
        unpack: Function from a batch to ``(x, y)``, where that is not its form.

    Raises:
        ValueError: If an argument is out of its range, or before training if the trainer accumulates gradients and
            ``updates_per_batch`` is above 1, or the module optimizes by itself.
        TypeError: While training, if the batch is a tuple, which cannot be changed in place.

    Example:
        >>> import lightning as L
        >>> task_free = TaskFreeMAS(strength=0.01, max_mean=0.3)
        >>> trainer = L.Trainer(callbacks=[task_free], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        strength: float = 0.02,
        hard_samples: int = 5,
        updates_per_batch: int = 5,
        window: int = 5,
        max_mean: float = 0.2,
        max_variance: float = 0.1,
        parameters: list[str] | None = None,
        unpack: Unpack | None = None,
    ) -> None:
        super().__init__(strength, QuadraticAnchor("mixed"), parameters)
        for name, value in {"hard_samples": hard_samples, "updates_per_batch": updates_per_batch}.items():
            if value < 1:
                raise ValueError(f"`{name}` must be 1 or more, got {value}.")
        self.hard_samples = hard_samples
        self.updates_per_batch = updates_per_batch
        self.window = window
        self.max_mean = max_mean
        self.max_variance = max_variance
        self.unpack = unpack
        self.detector = PlateauDetector(window, max_mean, max_variance)
        self.consolidations = 0
        self.hard: dict[str, Tensor] = {}
        self._share: dict[str, Tensor] = {}  # of the hard samples: what this process replays with the current batch
        self._first = 0  # the row of the batch where they begin

    @override
    def check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().check(trainer, pl_module)
        if not pl_module.automatic_optimization:
            raise ValueError(
                "TaskFreeMAS needs the loss of each batch, which `automatic_optimization=False` keeps from it: let "
                "Lightning optimize the module."
            )
        if self.updates_per_batch > 1 and trainer.accumulate_grad_batches > 1:
            raise ValueError(
                f"`updates_per_batch` must be 1 where gradients of {trainer.accumulate_grad_batches} batches make a "
                f"step, got {self.updates_per_batch}: set it to 1, or `accumulate_grad_batches` to 1."
            )

    # -- the batch ------------------------------------------------------------------------------------------------

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if not self.strength:
            return
        columns = columns_of(batch, "TaskFreeMAS")
        self._first = _rows(columns)
        self._share = {name: x[trainer.global_rank :: trainer.world_size] for name, x in self.hard.items()}
        if _rows(self._share):
            ready = prepared(trainer, self._share)
            replace_columns(batch, {name: torch.cat([column, ready[name]]) for name, column in columns.items()})

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self.strength or not isinstance(outputs, Mapping) or outputs.get("loss") is None:
            return
        self._step_again(trainer, batch, batch_idx)
        loss = trainer.accumulate_grad_batches * sum_over_ranks(trainer, outputs["loss"]) / trainer.world_size
        x, y = (self.unpack or unpack_batch)(batch)
        shared = range(self._first, self._first + _rows(self._share))
        if rests := self.detector.push(loss.item()):
            self._consolidate_on(trainer, pl_module, x[list(shared)])
        own = self._own_columns(trainer, batch)
        rows = [*range(_rows(own)), *shared]
        self._keep_hardest(trainer, own, _cross_entropies(trainer, pl_module, x[rows], y[rows]))
        if rests or is_logged(trainer):
            pl_module.log(f"consolidations/{self._name}", float(self.consolidations))

    def _step_again(self, trainer: Trainer, batch: Any, batch_idx: int) -> None:
        """Take the steps after the first, as Lightning takes that."""
        loop = trainer.fit_loop.epoch_loop
        for _ in range(self.updates_per_batch - 1):
            if 0 <= trainer.max_steps <= trainer.global_step:
                return
            arguments = loop._build_kwargs(OrderedDict(), batch, batch_idx)
            loop.automatic_optimization.run(trainer.optimizers[0], batch_idx, arguments)

    def _consolidate_on(self, trainer: Trainer, pl_module: LightningModule, x: Tensor) -> None:
        """Anchor here, with the importance for the hard samples ``x`` of this and of the other processes."""
        chosen = self.selected(pl_module)
        if len(x):
            sums, _ = output_sensitivity(pl_module, [(x,)], "plain", parameters=chosen, logits=scores_in)
        else:  # there are more processes than hard samples
            sums = {name: p.new_zeros(p.shape, dtype=at_least_float32(p.dtype)) for name, p in chosen.items()}
        self.consolidations += 1
        self.anchor.alpha = 1 - 1 / self.consolidations  # the mean over all consolidations
        self.anchor.merge(chosen.items(), {name: sum_over_ranks(trainer, value) for name, value in sums.items()})

    # -- the hard samples -----------------------------------------------------------------------------------------

    def _own_columns(self, trainer: Trainer, batch: Any) -> dict[str, Tensor]:
        """The samples of the data loader, as the data set holds them where that is known."""
        columns = columns_of(batch, "TaskFreeMAS")
        if isinstance(batch, StreamBatch):
            return dict(zip(columns, batch.raw, strict=True))
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        before = callbacks[: callbacks.index(self)]
        count = self._first - sum(_rows(c._share) for c in before if isinstance(c, TaskFreeMAS))
        return {name: column[:count].cpu() for name, column in columns.items()}

    def _keep_hardest(self, trainer: Trainer, own: dict[str, Tensor], losses: Tensor) -> None:
        """Keep those of highest loss, among the own samples and the share of the hard ones, of all processes."""
        order = gather_rows(trainer, losses).argsort(descending=True, stable=True)[: self.hard_samples].cpu()
        joined = {name: torch.cat([x, self._share[name]]) if self._share else x for name, x in own.items()}
        self.hard = {name: gather_rows(trainer, x)[order] for name, x in joined.items()}

    @override
    def state_dict(self) -> dict[str, Any]:
        own = {"hard": self.hard, "detector": self.detector.state_dict(), "consolidations": self.consolidations}
        return {**super().state_dict(), **own}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.hard = dict(state_dict["hard"])
        self.detector.load_state_dict(state_dict["detector"])
        self.consolidations = state_dict["consolidations"]


def _rows(columns: Mapping[str, Tensor]) -> int:
    return len(next(iter(columns.values()), ()))


@torch.no_grad()
def _cross_entropies(trainer: Trainer, pl_module: LightningModule, x: Tensor, y: Tensor) -> Tensor:
    """The loss of each sample ``(B,)``, in eval mode."""
    with evaluating(pl_module), trainer.precision_plugin.forward_context():
        scores = scores_in(pl_module(x))
    return F.cross_entropy(scores.to(at_least_float32(scores.dtype)), y, reduction="none")
