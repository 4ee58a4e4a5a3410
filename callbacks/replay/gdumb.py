"""GDumb: learn each experience from scratch, on nothing but a class-balanced memory."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from lightning_cl.anchor import old_rows
from lightning_cl.callback import Unpack, columns_of, replace_columns
from lightning_cl.rehearsal import Current, Epochs, RehearsalCallback, Storage


class GDumb(RehearsalCallback):
    r"""Exchange each training batch for a class-balanced one from the memory, and begin each experience from scratch.

    In the manner of Prabhu, Torr & Dokania, "GDumb: A Simple Approach that Questions Our Progress in Continual
    Learning", ECCV 2020: the samples of the stream go to a memory with equal quotas of all classes seen, and the model
    is one that knows only the memory. It is a yardstick: a method that replays the same memory should do better.

    There the memory is filled first, and an untrained network then fitted to it for a fixed number of epochs. Here the
    memory fills during the first epoch, and the trainer makes the steps: as many as the data loader has batches, with
    its own optimizer, schedules and precision. In each experience the weights start from those that the first one
    started from. Within a class the memory is a uniform sample; theirs keeps the first ones.

    A memory that is empty leaves the very first batch as it is.

    Args:
        capacity: Number of samples in memory, 1 or more.
        batch_size: Samples per batch and process; ``None`` is as many as the batch has, 0 is fine-tuning, with nothing
            done but to fill the memory.
        reset: Start each experience with the weights, and statistics of batch normalisation, of the beginning.
        insert_epochs: As in :class:`Replay`.
        policy: As in :class:`Replay`, one that knows classes.
        storage: As in :class:`Replay`.
        seed: As in :class:`Replay`.
        unpack: Function from a batch to ``(x, y)``, where that is not its form.

    Raises:
        ValueError: If an argument is out of its range; the message names it.
        TypeError: While training, if the batch is a tuple, which cannot be changed in place.

    Example:
        >>> import lightning as L
        >>> trainer = L.Trainer(callbacks=[GDumb(capacity=500)], logger=False, enable_checkpointing=False)
    """

    needs_whole_parameters = True

    def __init__(
        self,
        capacity: int = 500,
        batch_size: int | None = None,
        reset: bool = True,
        insert_epochs: Epochs = "first",
        policy: str = "class_quota",
        storage: Storage | None = None,
        seed: int | None = None,
        unpack: Unpack | None = None,
    ) -> None:
        super().__init__(capacity, batch_size, insert_epochs, policy, storage, seed, unpack)
        self.reset = reset
        self.initial: dict[str, Tensor] = {}

    @property
    @override
    def needs_groups(self) -> bool:
        return True

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        begins = self._first_epoch is None  # and does not go on from a checkpoint
        super().on_train_start(trainer, pl_module)
        if begins and self.reset and self.batch_size != 0:
            self._restart(pl_module)

    def _restart(self, pl_module: LightningModule) -> None:
        """Put back what each experience begins with."""
        tensors = {**dict(pl_module.named_parameters()), **dict(pl_module.named_buffers())}
        with torch.no_grad():
            for name, value in tensors.items():
                if name in self.initial:
                    old_rows(value, self.initial[name]).copy_(self.initial[name])
                self.initial[name] = value.detach().clone()  # with the rows that the module has gained since

    @override
    def rehearse(self, trainer: Trainer, pl_module: LightningModule, batch: Any, current: Current) -> None:
        if drawn := self.draw(trainer, self.wanted(current), balanced=True):
            replace_columns(batch, {name: drawn[name] for name in columns_of(batch, "GDumb")})

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "initial": dict(self.initial)}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.initial = dict(state_dict["initial"])
