"""Distillation: a frozen copy of the weights of the last experience, and losses that keep its answers.

The functions are the mathematics; :class:`FrozenTeacher` is what a module was, asked through the module that it became;
:class:`DistillationCallback` is what the methods have in common as callbacks.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.func import functional_call
from typing_extensions import override

from lightning_cl.callback import ContinualCallback, Unpack, is_logged, unpack_batch
from lightning_cl.forwards import OUTPUT, Forward, values_at
from lightning_cl.utilities import at_least_float32, evaluating


def distillation_loss(
    student: Tensor, teacher: Tensor, temperature: float = 2.0, *, scale_by_t2: bool = False
) -> Tensor:
    r"""Return the cross-entropy of the teacher's softmax and the student's, both at a temperature.

    :math:`-\frac{1}{B} \sum_{n, c} q'_{nc} \log q_{nc}` with :math:`q = \mathrm{softmax}(z / T)` of the student's
    scores and :math:`q' = \mathrm{softmax}(z' / T)` of the teacher's: the knowledge distillation loss of Li & Hoiem,
    "Learning without Forgetting", ECCV 2016. At :math:`z = z'` its gradient is 0 and its value the entropy of
    :math:`q'`. A column that is minus infinity in one of the two has no part in either. Computed in float32 at least.

    Args:
        student: Scores :math:`z`, ``(B, C)``.
        teacher: Scores :math:`z'`, ``(B, C)``; they get no gradient.
        temperature: :math:`T`, above 0.
        scale_by_t2: Multiply by :math:`T^2`, as Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, so
            that the size of the gradient depends less on :math:`T`. Li & Hoiem do not.

    Returns:
        A scalar.

    Example:
        >>> scores = torch.tensor([[2.0, 0.0, -torch.inf]])
        >>> round(distillation_loss(scores, scores, temperature=2.0).item(), 4)
        0.5822
    """
    student, teacher, out = _comparable(student, teacher)
    lowest = torch.finfo(student.dtype).min  # minus infinity would make NaN of a row in which no column has a part
    log_q = (student / temperature).masked_fill(out, lowest).log_softmax(1)
    target = (teacher / temperature).masked_fill(out, lowest).softmax(1)
    loss = -(target * log_q).masked_fill(out, 0.0).sum(1).mean()
    return loss * temperature**2 if scale_by_t2 else loss


def binary_distillation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Return the binary cross-entropy of each column with the teacher's probability as target.

    :math:`-\frac{1}{B} \sum_{n, c} \sigma(z'_{nc}) \log \sigma(z_{nc}) + (1 - \sigma(z'_{nc})) \log (1 -
    \sigma(z_{nc}))`, a sum over columns and a mean over samples: the distillation part of Rebuffi et al., "iCaRL:
    Incremental Classifier and Representation Learning", CVPR 2017, whose form without exemplars is called LwF.MC. A
    column that is minus infinity in one of the two has no part. Computed in float32 at least.

    Args:
        student: Scores :math:`z`, ``(B, C)``.
        teacher: Scores :math:`z'`, ``(B, C)``; they get no gradient.

    Returns:
        A scalar.

    Example:
        >>> round(binary_distillation_loss(torch.zeros(3, 2), torch.zeros(3, 2)).item(), 4)  # 2 log 2
        1.3863
    """
    student, teacher, out = _comparable(student, teacher)
    target = teacher.masked_fill(out, 0.0).sigmoid()
    losses = F.binary_cross_entropy_with_logits(student.masked_fill(out, 0.0), target, reduction="none")
    return losses.masked_fill(out, 0.0).sum(1).mean()


def _comparable(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Both scores in one precision, and where one of them is minus infinity."""
    dtype = at_least_float32(torch.promote_types(student.dtype, teacher.dtype))
    student, teacher = student.to(dtype), teacher.detach().to(dtype)
    return student, teacher, (student == -torch.inf) | (teacher == -torch.inf)


class FrozenTeacher:
    """What a module is now, to be asked later through the same module.

    It holds copies of the parameters and buffers, by name, and no second module: for the length of a call they stand in
    for those of the student (``torch.func.functional_call``), which is in eval mode then, without gradients. So there
    is nothing that ``parameters()``, DDP or an optimizer could find, and a head that has grown since answers as it was,
    as shapes come with the tensors.

    Args:
        tensors: Parameters and buffers by name, as :meth:`of` copies them.

    Example:
        >>> net = nn.Linear(2, 1, bias=False)
        >>> before = net(torch.ones(1, 2))
        >>> teacher = FrozenTeacher.of(net)
        >>> net.weight.data += 1.0
        >>> torch.equal(teacher(net, torch.ones(1, 2))[""], before)
        True
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = dict(tensors)

    @classmethod
    def of(cls, module: nn.Module) -> "FrozenTeacher":
        """Copy what a module is; a tensor that has several names is copied once, under the first."""
        named: dict[str, Tensor] = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        return cls({name: value.detach().clone() for name, value in named.items()})

    def to(self, device: torch.device | str) -> "FrozenTeacher":
        """Move the tensors; needed after a checkpoint, whose tensors arrive on the CPU."""
        self.tensors = {name: value.to(device) for name, value in self.tensors.items()}
        return self

    @torch.no_grad()
    def __call__(self, module: nn.Module, *args: Any, places: Iterable[str] = (), **kwargs: Any) -> dict[str, Any]:
        """Return what the module would have computed: at each of ``places``, and under ``""`` what it returned.

        Args:
            module: The student.
            args: What it is called with.
            places: As those of :func:`lightning_cl.forwards.values_at`.
            kwargs: What it is called with.
        """
        with evaluating(module):
            return values_at(module, places, lambda: functional_call(module, self.tensors, args, kwargs))


class DistillationCallback(ContinualCallback):
    """A callback whose method compares a module with what it was at the end of the last experience.

    A method says in :meth:`distillation` what is compared, and in :meth:`places` where it is computed. The teacher is
    what the module is when the next experience starts, and is given up when that is learned: a checkpoint between
    experiences holds no second copy of the weights. Callbacks of this kind in one trainer share the teacher, which the
    first of them holds, and ask it once per batch, with the arguments of the student's own forward. In the first
    experience there is none, and training is bit-identical to fine-tuning.

    The value, with its factor, is logged as ``distillation/<name of the class>`` at steps that the trainer logs.

    Args:
        strength: Factor of the loss, 0 or more; at 0 training is bit-identical to fine-tuning.
        unpack: Function from a batch to ``(x, y)``, where that is not its form.

    Raises:
        ValueError: If ``strength`` is negative.
    """

    needs_whole_parameters = True

    def __init__(self, strength: float, unpack: Unpack | None = None) -> None:
        super().__init__()
        if not strength >= 0:
            raise ValueError(f"`strength` must be 0 or more, got {strength}.")
        self.strength = strength
        self.unpack = unpack
        self.teacher: FrozenTeacher | None = None  # of the callback that holds it
        self._learned = False
        self._places: tuple[str, ...] = ()
        self._sharing: list[DistillationCallback] = []
        self._answer: tuple[Forward, dict[str, Any]] | None = None
        self._name = ""

    def places(self, pl_module: LightningModule) -> tuple[str, ...]:
        """What the method compares, as places of :func:`lightning_cl.forwards.values_at`."""
        return (OUTPUT,)

    def distillation(self, pl_module: LightningModule, x: Tensor, outputs: Any) -> Tensor | None:
        """Return the loss of a batch of inputs ``x``, a scalar without its factor, or ``None`` if there is none."""
        raise NotImplementedError(f"{type(self).__name__} has no `distillation`.")

    def answer(self, pl_module: LightningModule, x: Tensor) -> dict[str, Any]:
        """What the teacher computes where the student's forward of ``x`` computed it, by place."""
        holder, forward = self._sharing[0], self.forward_of(pl_module, x)
        if holder._answer is None or holder._answer[0] is not forward:
            assert holder.teacher is not None
            places = {place for callback in self._sharing for place in callback._places if place != OUTPUT}
            holder._answer = (forward, holder.teacher(pl_module, *forward.args, places=places, **forward.kwargs))
        return holder._answer[1]

    @override
    def check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._name = self.logged_as(trainer)

    @override
    def start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        self._sharing = [c for c in callbacks if isinstance(c, DistillationCallback) and c.strength]
        if not self.strength:
            return
        self._places = self.places(pl_module)
        for place in self._places:  # from the first experience on, or compiled code would not know of it later
            self.watch(trainer, pl_module, place)
        if self is self._sharing[0] and any(c._learned for c in self._sharing):
            self._take_teacher(pl_module)

    def _take_teacher(self, pl_module: LightningModule) -> None:
        kept = [c.teacher for c in self._sharing if c.teacher is not None]  # another may have held it before
        for other in self._sharing:
            other.teacher = None
        self.teacher = kept[0].to(pl_module.device) if kept else FrozenTeacher.of(pl_module)

    @override
    def extra_loss(self, trainer: Trainer, pl_module: LightningModule, batch: Any, outputs: Any) -> Tensor | None:
        if not self.strength or self._sharing[0].teacher is None:
            return None
        loss = self.distillation(pl_module, (self.unpack or unpack_batch)(batch)[0], outputs)
        if loss is None:
            return None
        loss = self.strength * loss
        if is_logged(trainer):
            pl_module.log(f"distillation/{self._name}", loss.detach())
        return loss

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._answer = None

    @override
    def consolidate(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.teacher, self._learned = None, True

    @override
    def _release(self, pl_module: LightningModule) -> None:
        super()._release(pl_module)
        self._sharing, self._answer = [], None

    @override
    def state_dict(self) -> dict[str, Any]:
        tensors = None if self.teacher is None else self.teacher.tensors
        return {**super().state_dict(), "learned": self._learned, "teacher": tensors}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._learned = state_dict["learned"]
        self.teacher = None if state_dict["teacher"] is None else FrozenTeacher(state_dict["teacher"])
