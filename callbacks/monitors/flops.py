"""FLOPs: how much computing a stream has taken so far."""

from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from typing_extensions import override

from lightning_cl.callback import ContinualCallback, sum_over_ranks

KINDS = ("train", "eval")


class FlopsMeter(ContinualCallback):
    """Add up the floating-point operations of all updates over the stream, as NEVIS'22 does for its comparison.

    Accuracy against cumulative FLOPs is what Bornschein et al., "NEVIS'22: A stream of 100 tasks sampled from 30 years
    of computer vision research", JMLR 2023, rank methods by. As there, an update is everything from ``training_step``
    to the optimizer's step: forward, backward, the ``extra_loss`` of other callbacks and what they do to the gradient.
    Work that they do before ``training_step`` is not in it.

    The number is that of torch's ``FlopCounterMode``: two for each multiplication and addition in matrix products,
    convolutions and attention, whatever the precision; operations by element (activations, normalisation, the
    optimizers of ``torch.optim``) count nothing. NEVIS'22 asks the compiler instead, which counts these too. With
    several processes all are added: one step on the global batch.

    The first step of each shape of batch in each fit is measured, which takes a few times as long, and counts for all
    that follow: methods whose cost changes within an experience while shapes do not are not seen through. Training is
    bit-identical with and without the meter, except that of a module under ``torch.compile`` the measured steps run
    uncompiled.

    At the end of each epoch the total is logged as ``flops/train``; in Python it is ``meter.flops["train"]``.

    Args:
        count_eval: Also count validation, tests and what callbacks do at the end of an experience (Fisher information,
            herding, ...), apart from the updates, as ``flops/eval``.

    Example:
        >>> import lightning as L
        >>> trainer = L.Trainer(callbacks=[FlopsMeter()], logger=False, enable_checkpointing=False)
    """

    def __init__(self, count_eval: bool = False) -> None:
        super().__init__()
        self.count_eval = count_eval
        self.flops = dict.fromkeys(KINDS, 0)
        self._own = dict.fromkeys(KINDS, 0)  # of this process, since the processes were last added
        self._known: dict[Hashable, int] = {}
        self._metered: list[tuple[Any, str]] = []

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._known = {}
        if stage == "fit":
            loop = trainer.fit_loop.epoch_loop
            self._meter(loop.automatic_optimization, "run", trainer)
            self._meter(loop.manual_optimization, "run", trainer)
        if self.count_eval:
            self._meter(trainer.strategy, "validation_step", trainer)
            self._meter(trainer.strategy, "test_step", trainer)
            callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
            for callback in callbacks:
                if isinstance(callback, ContinualCallback) and callback is not self:
                    self._meter(callback, "consolidate", trainer)

    def _meter(self, owner: Any, name: str, trainer: Trainer) -> None:
        """Let ``owner`` be counted whenever it is asked for ``name``, until the end of the fit or test."""
        call = getattr(owner, name)

        def metered(*args: Any, **kwargs: Any) -> Any:
            if trainer.sanity_checking:
                return call(*args, **kwargs)
            if name == "run":  # not every batch has an optimizer step
                with self._counted("train", (trainer.fit_loop._should_accumulate(), *_shapes(args))):
                    return call(*args, **kwargs)
            with self._counted("eval", None if name == "consolidate" else (name, *_shapes(args))):
                return call(*args, **kwargs)

        setattr(owner, name, metered)
        self._metered.append((owner, name))

    @contextmanager
    def _counted(self, kind: str, key: Hashable | None) -> Iterator[None]:
        """Count a block: as much as an earlier one with this key, if there was one."""
        if key in self._known:
            yield
            flops = self._known[key]
        else:
            with FlopCounterMode(display=False) as counter:
                yield
            flops = counter.get_total_flops()
            if key is not None:
                self._known[key] = flops
        self._own[kind] += flops

    def _add_processes(self, trainer: Trainer) -> None:
        own = torch.tensor([self._own[kind] for kind in KINDS], device=trainer.strategy.root_device)
        for kind, flops in zip(KINDS, sum_over_ranks(trainer, own).tolist(), strict=True):
            self.flops[kind] += flops
            self._own[kind] = 0

    def _log(self, trainer: Trainer, kind: str) -> None:
        self._add_processes(trainer)
        for logger in trainer.loggers:
            logger.log_metrics({f"flops/{kind}": self.flops[kind]}, step=trainer.global_step)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log(trainer, "train")

    @override
    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.count_eval:
            self._log(trainer, "eval")

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._add_processes(trainer)  # only one process writes what it has
        checkpoint["callbacks"][self.state_key] = self.state_dict()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._add_processes(trainer)
        super().teardown(trainer, pl_module, stage)

    @override
    def _release(self, pl_module: LightningModule) -> None:
        super()._release(pl_module)
        while self._metered:
            owner, name = self._metered.pop()
            vars(owner).pop(name, None)  # two meters may stand over each other

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "flops": {kind: self.flops[kind] + self._own[kind] for kind in KINDS}}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.flops, self._own = dict(state_dict["flops"]), dict.fromkeys(KINDS, 0)


def _shapes(value: Any) -> tuple[Hashable, ...]:
    """The shapes of all tensors in a batch, however nested."""
    if isinstance(value, Tensor):
        return (tuple(value.shape),)
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return tuple(shape for item in items for shape in _shapes(item))
