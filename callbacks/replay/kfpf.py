"""k-FPF: plain fine-tuning on the present, with short phases on a memory for the layers that forget."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch.optim import Optimizer
from typing_extensions import override

from lightning_cl.callback import Unpack
from lightning_cl.finetuning import FineTuning, Statistics, select_layers
from lightning_cl.rehearsal import Epochs, LossRehearsal, Storage
from lightning_cl.utilities import derive_seed


class KFPF(LossRehearsal):
    r"""Fill a memory, replay nothing of it, and every so many optimizer steps fine-tune a few layers on it.

    k-FPF of Zhao, Zhou, Long, Jiang & Zhang, "Does Continual Learning Equally Forget All Parameters?", ICML 2023. The
    abstract says that :class:`FPF`, applied periodically during training, replaces the replay in each step, in two
    forms: k-FPF-SGD here with ``kd=0``, and k-FPF-KD. No more of the paper was read and there is no public code. That a
    phase comes every :math:`\tau` steps of the optimizer, :math:`\tau` the length of the stream over :math:`k`, that
    the memory is a reservoir, and that the loss of a phase, in k-FPF-KD, is

    .. math:: -\frac{1}{B} \sum_n \log \mathrm{softmax}(f(x_n))_{y_n}
              + \frac{\lambda}{B C} \sum_{n, c} (f_c(x_n) - z_{nc})^2

    with the scores :math:`z` of the forward that the sample was first learned in, are what is told of it, unchecked.
    All defaults are ours, and so are the optimizer of a phase (see :class:`lightning_cl.finetuning.FineTuning`) and the
    classes that compete in it (see :class:`FPF`).

    A phase follows the optimizer step, and steps that a GradScaler skipped do not count. The optimizer, gradients,
    counters, modes and the random state are left as they were. With 0 steps a phase does nothing, and training is
    bit-identical to fine-tuning.

    Args:
        capacity: Number of samples in memory, 1 or more.
        every_n_steps: Optimizer steps :math:`\tau` from one phase to the next, 1 or more.
        end_phase: Add a phase at the end of each experience, unless one has just been.
        modules: The layers, as in :class:`FPF`.
        steps: Number of steps of a phase, 0 or more.
        batch_size: Samples per step of a phase and process, 0 or more; 0 is as 0 steps.
        lr: Learning rate of the first step of a phase, as in :class:`FPF`.
        bn_stats: As in :class:`FPF`.
        kd: Factor :math:`\lambda` of the squared error to the stored scores, 0 or more; at 0 none are stored.
        insert_epochs: As in :class:`Replay`.
        policy: As in :class:`Replay`.
        storage: As in :class:`Replay`.
        seed: Fixes what is kept and drawn; ``None`` is the seed of ``seed_everything``, else 0.
        unpack: Function from a batch to ``(x, y)``, where that is not its form.

    Raises:
        ValueError: If an argument is out of its range, or before training if ``modules`` selects no layer.

    Example:
        >>> import lightning as L
        >>> k_fpf = KFPF(capacity=500, every_n_steps=200, kd=0.1)
        >>> trainer = L.Trainer(callbacks=[k_fpf], logger=False, enable_checkpointing=False)
    """

    needs_whole_parameters = True
    is_off = True  # nothing is replayed beside a batch

    def __init__(
        self,
        capacity: int = 500,
        every_n_steps: int = 250,
        end_phase: bool = True,
        modules: Sequence[str] = ("norm", "head"),
        steps: int = 100,
        batch_size: int = 32,
        lr: float = 0.01,
        bn_stats: Statistics = "update",
        kd: float = 0.0,
        insert_epochs: Epochs = "first",
        policy: str = "reservoir",
        storage: Storage | None = None,
        seed: int | None = None,
        unpack: Unpack | None = None,
    ) -> None:
        super().__init__(capacity, batch_size, insert_epochs, policy, "separate", storage, seed, unpack)
        if every_n_steps < 1:
            raise ValueError(f"`every_n_steps` must be 1 or more, got {every_n_steps}.")
        self.every_n_steps = every_n_steps
        self.end_phase = end_phase
        self.modules = list(modules)
        self.steps = steps
        self.lr = lr
        self.bn_stats: Statistics = bn_stats
        self.kd = kd
        self.keeps_logits = kd > 0
        self.finetuning = FineTuning(steps, batch_size, lr, bn_stats, kd)
        self.phases = 0
        """Phases so far."""
        self._steps = 0  # of the optimizer since the last phase

    @override
    def _has(self, method: str) -> bool:
        return super()._has(method) and (method != "extra_loss" or self.keeps_logits)

    @override
    def check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().check(trainer, pl_module)
        select_layers(pl_module, self.modules)

    @override
    def after_optimizer_step(self, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self._steps += optimizer is pl_module.trainer.optimizers[0]  # of several, the first counts

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._steps >= self.every_n_steps:
            self._run(trainer, pl_module)

    @override
    def consolidate(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().consolidate(trainer, pl_module)
        if self.end_phase and self._steps:
            self._run(trainer, pl_module)

    def _run(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._steps = 0
        self.phases += 1
        seed = derive_seed(self.seed, 2, self.phases)
        self.finetuning.run(trainer, pl_module, self, self.modules, seed)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "phases": self.phases, "steps": self._steps}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.phases, self._steps = state_dict["phases"], state_dict["steps"]
