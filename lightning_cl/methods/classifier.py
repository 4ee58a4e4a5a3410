"""A classifier over all classes of a stream: the module under fine-tuning, joint training and most callbacks."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from torch import Tensor, nn
from typing_extensions import override

from lightning_cl.callback import is_logged, unpack_batch
from lightning_cl.heads import GrowingHead
from lightning_cl.stream import StreamDataModule


class Classifier(LightningModule):
    """Cross-entropy, or binary cross-entropies, over a backbone with one head for all classes.

    Without a callback this is fine-tuning, the lower reference line of every comparison; with a stream of
    ``cumulative: true`` it is joint training, the upper one.

    Args:
        num_classes: Classes of the whole stream.
        backbone: Name of a timm model (``lightning_cl.backbones`` adds ``mlp``, ``resnet18_cifar``, ``resnet18_slim``,
            ``resnet32_cifar``), or a module from inputs ``(B, *)`` to scores ``(B, num_classes)``.
        input_shape: ``(C, H, W)`` of a sample; told to timm models as ``in_chans`` and, to those that ask for it,
            ``img_size``.
        backbone_args: Further arguments of the timm model, e.g. ``{pretrained: true}``.
        loss: ``"cross_entropy"``: of a softmax over the classes that compete. ``"binary"``: the binary cross-entropy of
            each of them, whose target is 1 for the label and 0 for the others, summed over them and averaged over the
            batch, as in iCaRL and LwF.MC. This loss grows with the number of classes, so the learning rate must fit.
        loss_classes: Classes that compete in the loss: ``"all"``, those ``"seen"`` so far, or those of the
            ``"current"`` experience. A label in the batch always competes (replayed samples bring earlier classes).
        head: ``"fixed"``: the last layer of the backbone has a row for each class of the stream. ``"growing"``: it is a
            :class:`~lightning_cl.heads.GrowingHead`, which has one for each class seen so far. One in a module of your
            own grows as well.
        optimizer: Makes the optimizer of each experience from the parameters.
        lr_scheduler: Makes its scheduler, stepped once per epoch.

    Example:
        >>> model = Classifier(num_classes=10, backbone="mlp", input_shape=(1, 8, 8), backbone_args={"hidden": [32]})
        >>> model(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str | nn.Module = "mlp",
        input_shape: tuple[int, ...] | None = None,
        backbone_args: dict[str, Any] | None = None,
        loss: Literal["cross_entropy", "binary"] = "cross_entropy",
        loss_classes: Literal["all", "seen", "current"] = "all",
        head: Literal["fixed", "growing"] = "fixed",
        optimizer: OptimizerCallable = lambda parameters: torch.optim.SGD(parameters, lr=0.05),
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"`num_classes` must be 1 or more, got {num_classes}.")
        if loss not in ("cross_entropy", "binary"):
            raise ValueError(f"`loss` must be 'cross_entropy' or 'binary', got {loss!r}.")
        if loss_classes not in ("all", "seen", "current"):
            raise ValueError(f"`loss_classes` must be 'all', 'seen' or 'current', got {loss_classes!r}.")
        if head not in ("fixed", "growing"):
            raise ValueError(f"`head` must be 'fixed' or 'growing', got {head!r}.")
        if backbone_args and not isinstance(backbone, str):
            raise ValueError("`backbone_args` are those of a timm model: make `backbone` with them, or give its name.")
        if head == "growing" and not isinstance(backbone, str):
            raise ValueError(
                "`head='growing'` is for a timm model: give its name, or put a GrowingHead into `backbone`."
            )
        if isinstance(backbone, str):
            backbone = _timm_model(backbone, num_classes, input_shape, backbone_args or {})
            if head == "growing":
                _make_growing(backbone, num_classes)
        self.backbone = backbone
        self.num_classes = num_classes
        self.loss_of_scores = loss
        self.loss_classes = loss_classes
        self.make_optimizer = optimizer
        self.make_lr_scheduler = lr_scheduler

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Scores ``(B, num_classes)`` of inputs ``(B, *input_shape)``."""
        scores: Tensor = self.backbone(x)
        return scores

    def loss(self, scores: Tensor, y: Tensor) -> Tensor:
        """The loss among the classes that ``loss_classes`` admits, mean over the batch, in at least float32."""
        if scores.dtype.itemsize < 4:
            scores = scores.float()
        if self.loss_classes != "all":
            competing = torch.zeros(scores.shape[1], dtype=torch.bool, device=scores.device)
            competing[list(self._stream("loss_classes", self.loss_classes, "all").competing(self.loss_classes))] = True
            competing[y] = True
            scores = scores.masked_fill(~competing, -torch.inf)
        return F.cross_entropy(scores, y) if self.loss_of_scores == "cross_entropy" else _binary_loss(scores, y)

    def _stream(self, argument: str, value: str, other: str) -> StreamDataModule:
        """The stream that is trained on, which ``value`` of ``argument`` needs and ``other`` does not."""
        stream = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(stream, StreamDataModule):
            raise ValueError(
                f"`{argument}={value!r}` needs a stream that knows its classes: train with a StreamDataModule, or set "
                f"`{argument}` to {other!r}."
            )
        return stream

    @override
    def setup(self, stage: str) -> None:
        self._grow()

    @override
    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        result = super().load_state_dict(state_dict, strict, assign)
        self._grow()  # a run goes on with the next experience from a checkpoint of the last one
        return result

    def _grow(self) -> None:
        """Before a fit, when neither optimizer nor DDP have seen the parameters, let heads grow."""
        state = None if self._trainer is None else self.trainer.state
        if state is None or state.fn != "fit" or state.status != "running":
            return
        for module in self.modules():
            if isinstance(module, GrowingHead):
                module.grow(self._stream("head", "growing", "fixed").seen_classes)

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = unpack_batch(batch)
        loss = self.loss(self(x), y)
        if self._is_shown(batch_idx):
            self.log("train_loss", loss, prog_bar=True)
        return loss

    def _is_shown(self, batch_idx: int) -> bool:
        """Whether a logger, the progress bar or a monitor looks at this batch: `self.log` costs a quarter of a ms."""
        trainer: Any = self.trainer
        shown = trainer.progress_bar_callback is not None and batch_idx % 10 == 0
        return bool(is_logged(trainer) or shown or trainer.is_last_batch)

    def _evaluate(self, batch: Any, stage: str) -> dict[str, Tensor]:
        x, y = unpack_batch(batch)
        scores = self(x)
        values = {f"{stage}_loss": F.cross_entropy(scores, y), f"{stage}_acc": (scores.argmax(1) == y).float().mean()}
        self.log_dict(values, batch_size=len(y), sync_dist=True)  # weighs samples, also over ranks
        return {"logits": scores}

    @override
    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        return self._evaluate(batch, "val")

    @override
    def test_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        return self._evaluate(batch, "test")

    @override
    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, _ = unpack_batch(batch)
        scores: Tensor = self(x)
        return scores.argmax(1)

    @override
    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer(self.parameters())
        if self.make_lr_scheduler is None:
            return optimizer
        scheduler = self.make_lr_scheduler(optimizer)
        if isinstance(scheduler, ReduceLROnPlateau):
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": scheduler.monitor}}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


def _binary_loss(scores: Tensor, y: Tensor) -> Tensor:
    """Binary cross-entropy with one-hot targets: sum over the finite columns of ``(B, C)``, mean over the batch."""
    out = scores == -torch.inf
    losses = F.binary_cross_entropy_with_logits(
        scores.masked_fill(out, 0.0), F.one_hot(y, scores.shape[1]).to(scores.dtype), reduction="none"
    )
    return losses.masked_fill(out, 0.0).sum(1).mean()


def _timm_model(name: str, num_classes: int, input_shape: tuple[int, ...] | None, extra: dict[str, Any]) -> nn.Module:
    """Make a timm model, of ours or timm's own, that fits the samples."""
    import timm

    import lightning_cl.backbones  # noqa: F401  (registers ours)
    from lightning_cl.spelling import nearest

    if not timm.is_model(name):
        raise ValueError(f"`backbone`: timm has no model {name!r}. {nearest(name, timm.list_models())}")
    arguments: dict[str, Any] = {"num_classes": num_classes}
    if input_shape is not None and len(input_shape) == 3:
        arguments["in_chans"] = input_shape[0]
        if (config := timm.get_pretrained_cfg(name)) is not None and config.fixed_input_size:
            arguments["img_size"] = tuple(input_shape[1:])
    model: nn.Module = timm.create_model(name, **{**arguments, **extra})
    return model


def _make_growing(model: nn.Module, num_classes: int) -> None:
    """Exchange the last layer of a timm model for one that grows, where timm's convention looks for it."""
    name: Any = model.default_cfg.get("classifier")  # type: ignore[operator, union-attr]
    last = model.get_submodule(name) if isinstance(name, str) else None
    if not isinstance(last, nn.Linear):
        found = type(last).__name__ if last is not None else name
        raise ValueError(f"`head='growing'` needs a `backbone` whose last layer is one nn.Linear, got {found}.")
    owner, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(owner), attribute, GrowingHead(last.in_features, num_classes))
