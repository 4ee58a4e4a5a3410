"""Learning without forgetting (LwF): keep the scores that the last model gives to old classes on new data."""

from itertools import chain
from typing import Any, Literal, TypeAlias, get_args

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from lightning_cl.callback import Unpack, gather_rows, unpack_batch
from lightning_cl.forwards import OUTPUT, scores_in
from lightning_cl.stream import StreamDataModule
from lightning_cl.teacher import DistillationCallback, binary_distillation_loss, distillation_loss

Loss: TypeAlias = Literal["softmax", "binary"]
Logits: TypeAlias = Literal["old", "task"]


class LwF(DistillationCallback):
    r"""Add a distillation of the last model's scores for old classes, on the batch at hand, to the loss.

    ``loss="softmax"`` is LwF of Li & Hoiem, "Learning without Forgetting", ECCV 2016 and TPAMI 2018:
    :math:`-\frac{\lambda}{B} \sum_n \sum_c q'_{nc} \log q_{nc}` with :math:`q = \mathrm{softmax}(z / T)` of the
    scores, :math:`q'` of those of the model at the end of the last experience, and ``strength`` :math:`\lambda`. They
    have a head for each task, and sum over the heads of earlier tasks: ``logits="task"``. With one head for all
    classes, ``logits="old"`` is one softmax over all old ones, as in the code bases of GT-RIPL, Mammoth and PyCIL
    (which differ in :math:`\lambda`: 1, 0.5 and 3) and in Smith et al., "A Closer Look at Rehearsal-Free Continual
    Learning", CVPR Workshops 2023. The code of GT-RIPL does not multiply by :math:`T^2`.

    ``loss="binary"`` is LwF.MC, the form without exemplars in Rebuffi et al., "iCaRL", CVPR 2017: the targets of old
    classes in a binary cross-entropy are the last model's probabilities. With ``loss="binary"`` and
    ``loss_classes="current"`` of :class:`~lightning_cl.methods.Classifier` the sum is their one loss over all seen
    classes. A loss of your own must leave the old classes out likewise, or they count twice.

    The module's ``forward`` must return the scores of all classes. Those of the student are not computed again: they
    are ``outputs["logits"]`` if ``training_step`` returns that, else what ``self(x)`` returned in it; only if it calls
    parts of the module and not the module there is one more forward. The teacher is asked with the same arguments. It
    costs a copy of the weights and a forward in eval mode per batch.

    Old classes are those of earlier experiences of a :class:`lightning_cl.StreamDataModule`. With data of your own they
    are the labels that came in training batches of earlier fits.

    Args:
        strength: Factor :math:`\lambda` of the loss, 0 or more; at 0 training is bit-identical to fine-tuning.
        loss: ``"softmax"`` or ``"binary"``.
        temperature: :math:`T` of the softmax, above 0; ``None`` is 2, as in all named above.
        logits: ``"old"``: one softmax over all old classes; ``"task"``: one over those of each earlier experience, and
            the sum of these. ``None`` is ``"task"`` in a stream with task labels, else ``"old"``.
        scale_by_t2: Multiply the softmax loss by :math:`T^2`, as Hinton et al., 2015.
        unpack: Function from a batch to ``(x, y)``, where that is not its form.

    Raises:
        ValueError: If an argument is out of its range, or one of the softmax is given for the binary loss.

    Example:
        >>> import lightning as L
        >>> trainer = L.Trainer(callbacks=[LwF(strength=1.0)], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        strength: float = 1.0,
        loss: Loss = "softmax",
        temperature: float | None = None,
        logits: Logits | None = None,
        scale_by_t2: bool = False,
        unpack: Unpack | None = None,
    ) -> None:
        super().__init__(strength, unpack)
        if loss not in get_args(Loss):
            raise ValueError(f"`loss` must be one of {get_args(Loss)}, got {loss!r}.")
        if temperature is not None and not temperature > 0:
            raise ValueError(f"`temperature` must be above 0, or None for 2, got {temperature}.")
        if logits not in (None, *get_args(Logits)):
            raise ValueError(f"`logits` must be None or one of {get_args(Logits)}, got {logits!r}.")
        of_softmax = {"temperature": temperature is not None, "logits": logits is not None, "scale_by_t2": scale_by_t2}
        if loss == "binary" and (given := [name for name, is_given in of_softmax.items() if is_given]):
            raise ValueError(f"`{given[0]}` belongs to the softmax: leave it out, or set `loss` to 'softmax'.")
        self.loss: Loss = loss
        self.temperature = temperature
        self.logits: Logits | None = logits
        self.scale_by_t2 = scale_by_t2
        self._classes: list[Tensor] = []  # of each fit that is over, where no stream knows them
        self._labels: list[Tensor] = []  # of this fit
        self._collects = False
        self._columns: list[Tensor] = []  # of each softmax

    @override
    def start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().start(trainer, pl_module)
        stream = getattr(trainer, "datamodule", None)
        stream = stream if isinstance(stream, StreamDataModule) else None
        self._collects = bool(self.strength) and stream is None
        self._labels = [labels.to(pl_module.device) for labels in self._labels]
        logits = self.logits or ("task" if stream is not None and stream.task_labels else "old")
        groups = self._old_classes(stream)
        if logits == "old" or self.loss == "binary":
            groups = [list(chain.from_iterable(groups))]
        distinct = dict.fromkeys(tuple(sorted(set(group))) for group in groups if group)
        self._columns = [torch.tensor(columns, device=pl_module.device) for columns in distinct]

    def _old_classes(self, stream: StreamDataModule | None) -> list[list[int]]:
        """The classes of each earlier experience."""
        if stream is None:
            return [classes.tolist() for classes in self._classes]
        return [list(classes) for classes in stream.classes[: stream.current]]

    @override
    def distillation(self, pl_module: LightningModule, x: Tensor, outputs: Any) -> Tensor | None:
        if not self._columns:
            return None
        student, teacher = self.scores(pl_module, x, outputs), scores_in(self.answer(pl_module, x)[OUTPUT])
        pairs = [(student[:, columns], teacher[:, columns]) for columns in self._columns]
        if self.loss == "binary":
            return binary_distillation_loss(*pairs[0])
        temperature = 2.0 if self.temperature is None else self.temperature
        losses = [distillation_loss(*pair, temperature, scale_by_t2=self.scale_by_t2) for pair in pairs]
        return torch.stack(losses).sum()

    # -- labels, where no stream knows the classes -----------------------------------------------------------------

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._collects:
            self._labels.append((self.unpack or unpack_batch)(batch)[1])

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._join_labels(trainer)

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._labels:
            self._join_labels(trainer)  # only one process writes what it has
            checkpoint["callbacks"][self.state_key] = self.state_dict()

    def _join_labels(self, trainer: Trainer) -> None:
        """Keep each label once, of all processes; looking at labels waits for the device, so not at each batch."""
        if self._labels:
            self._labels = [torch.unique(gather_rows(trainer, torch.unique(torch.cat(self._labels))))]

    @override
    def consolidate(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().consolidate(trainer, pl_module)
        self._join_labels(trainer)
        self._classes += self._labels
        self._labels = []

    @override
    def state_dict(self) -> dict[str, Any]:
        labels = [torch.unique(torch.cat(self._labels))] if self._labels else []
        return {**super().state_dict(), "classes": list(self._classes), "labels": labels}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._classes, self._labels = list(state_dict["classes"]), list(state_dict["labels"])
