"""Gradient projection memory (GPM): train only in directions that the inputs of earlier tasks do not use."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from typing_extensions import override

from lightning_cl.callback import (
    ContinualCallback,
    Unpack,
    check_pass,
    statistics_batches,
    sum_over_ranks,
    unpack_batch,
)
from lightning_cl.heads import classifier_of
from lightning_cl.stream import StreamDataModule
from lightning_cl.subspace import (
    Projector,
    Rule,
    SubspaceBank,
    exact_products,
    input_grams,
    linear_layers,
    shape_of,
)
from lightning_cl.utilities import at_least_float32

SMALL = 2**22
"""Bytes below which a basis is never too large."""


class GPM(ContinualCallback):
    r"""Take out of each gradient what would change a layer on inputs of earlier experiences.

    Saha, Garg & Roy, "Gradient Projection Memory for Continual Learning", ICLR 2021. At the end of experience
    :math:`t = 0, 1, \dots` the inputs :math:`R` of each layer (rows of ``nn.Linear``, patches of ``nn.Conv2d``) are
    gathered from some training samples in eval mode. Their main directions are added to the layer's orthonormal basis
    :math:`O`: at first the most that hold less than the share :math:`\epsilon_t` of the energy of :math:`R`, later the
    fewest that :math:`O` lacks to hold :math:`\epsilon_t` of it, where :math:`\epsilon_t` is ``threshold`` plus
    :math:`t` times ``threshold_step``, at most 1. From then on :math:`g \leftarrow g - g O O^\top` before each
    optimizer step, after unscaling and reduction over processes and before clipping. Put the callback after others that
    change gradients.

    From the second experience on, every parameter that is neither the weight of such a layer nor in a ``free`` one is
    not updated: biases, weights of normalisation, embeddings, positions, and layers of other types (the one-dimensional
    ones, as in the authors' code; the others, as a step could not be kept from what is old). The first experience, and
    all at ``threshold`` 0, is bit-identical to fine-tuning.

    That old outputs stay holds for plain SGD, with or without momentum. Other optimizers and weight decay leave the
    subspace although the gradient is in it, which ``correction`` mends: after each step the change of a weight since
    the start of the experience loses its part in :math:`O`. Running statistics of batch normalisation change what old
    inputs give although no weight does, hence ``batch_norm``.

    What differs from the authors' code: :math:`R R^\top` is summed in float64 and replaces :math:`R`, so that all
    samples are looked at in each layer (there, fewer in the first convolutions); directions below :math:`10^{-12}` of
    the energy never count.

    Args:
        threshold: Share of the energy that is protected, in [0, 1], or one per layer, in the order of the module's
            layers that are not free. 0.97 is the authors' for Split CIFAR-100; 0 protects nothing.
        threshold_step: What is added to it with each experience, 0 or more. Theirs for Split CIFAR-100 is 0.003.
        samples: Training samples that are looked at, chosen by the seed of the stream; ``None`` is all.
        free: Dotted names of modules, or parameters, that are neither protected nor kept from training, such as the
            heads of tasks; ``None`` is the classifier by timm's convention in a stream with task labels, else nothing.
        correction: Correct weights after each step; ``None``: where the optimizer needs it, which is any other than
            ``torch.optim.SGD``, one with weight decay, or one that brings momentum from an earlier experience.
        batch_norm: ``"freeze"``: layers with running statistics are in eval mode from the second experience on.
            ``"train"``: they stay as they are.
        unpack: Function from a batch to ``(x, y)``, where that is not its form.

    Raises:
        ValueError: If an argument is out of its range or does not fit the module; the message names it.

    Example:
        >>> import lightning as L
        >>> trainer = L.Trainer(callbacks=[GPM(threshold=0.95)], logger=False, enable_checkpointing=False)
    """

    needs_whole_parameters = True
    rule: ClassVar[Rule] = "residual"

    def __init__(
        self,
        threshold: float | list[float] = 0.97,
        threshold_step: float = 0.003,
        samples: int | None = 125,
        free: list[str] | None = None,
        correction: bool | None = None,
        batch_norm: Literal["freeze", "train"] = "freeze",
        unpack: Unpack | None = None,
    ) -> None:
        super().__init__()
        shares = threshold if isinstance(threshold, list | tuple) else [threshold]
        if not shares or not all(0 <= share <= 1 for share in shares):
            raise ValueError(f"`threshold` must be in [0, 1], or a list of such numbers, got {threshold}.")
        if not threshold_step >= 0:
            raise ValueError(f"`threshold_step` must be 0 or more, got {threshold_step}.")
        if batch_norm not in ("freeze", "train"):
            raise ValueError(f"`batch_norm` must be 'freeze' or 'train', got {batch_norm!r}.")
        check_pass(samples)
        self.threshold = threshold
        self.threshold_step = threshold_step
        self.samples = samples
        self.free = free
        self.correction = correction
        self.batch_norm: Literal["freeze", "train"] = batch_norm
        self.unpack = unpack
        self.bank = SubspaceBank(self.rule)
        self.experiences = 0
        self._corrects: bool | None = None  # in the current experience
        self._reference: dict[str, Tensor] = {}  # weights to which steps are corrected
        self._clear()

    def _clear(self) -> None:
        """Forget the module."""
        self._layers: dict[str, list[nn.Module]] = {}
        self._weights: dict[str, nn.Parameter] = {}
        self._kept: list[nn.Parameter] = []  # are not updated
        self._norms: list[nn.Module] = []  # were put in eval mode
        self._projectors: dict[str, Projector] = {}

    # -- before training --------------------------------------------------------------------------------------------

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":  # an earlier fit may have failed in the middle
            self._corrects, self._reference = None, {}
        super().setup(trainer, pl_module, stage)

    @override
    def check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if next(pl_module.parameters(), None) is not None:  # else `configure_model` makes the layers, after this
            self._find_layers(trainer, pl_module)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._find_layers(trainer, pl_module)
        known = {f"{name}.weight" for name in self._layers}
        free = self._free(trainer, pl_module)
        others = [n for n, p in _trainable(pl_module, free) if p.ndim > 1 and n not in known]
        if others and not self.bank and any(self._thresholds().values()):
            rank_zero_info(
                f"{type(self).__name__} keeps {', '.join(others)} as they are after the first experience: they are not "
                "weights of nn.Linear or nn.Conv2d. Name them, or modules that hold them, in `free` to train them."
            )

    def _find_layers(self, trainer: Trainer, pl_module: LightningModule) -> None:
        free = self._free(trainer, pl_module)
        layers = linear_layers(pl_module).items()
        self._layers = {name: same for name, same in layers if not _within(f"{name}.weight", free)}
        if isinstance(self.threshold, list | tuple) and len(self.threshold) != len(self._layers):
            names = ", ".join(self._layers) or "none"
            raise ValueError(f"`threshold` must hold a number for each layer ({names}), got {len(self.threshold)}.")
        model = sum(p.nbytes for p in pl_module.parameters())
        for name, same in self._layers.items():
            self._check_memory(name, same[0], model)

    def _free(self, trainer: Trainer, pl_module: LightningModule) -> list[str]:
        if self.free is not None:
            known = {name for names in (pl_module.named_modules(), pl_module.named_parameters()) for name, _ in names}
            if unknown := [name for name in self.free if name not in known]:
                raise ValueError(f"`free` must name submodules or parameters of the module, got {', '.join(unknown)}.")
            return self.free
        stream = getattr(trainer, "datamodule", None)
        if not isinstance(stream, StreamDataModule) or not stream.task_labels:
            return []
        if (name := classifier_of(pl_module)) is None:
            raise ValueError(
                "`free` must name the head of a stream with task labels, as the module has no `get_classifier`: "
                "give its dotted name, or [] to protect all layers."
            )
        return [name]

    def _check_memory(self, name: str, layer: nn.Module, model: int) -> None:
        groups, d = shape_of(layer)
        size = groups * d * d * 2  # float32, half of the directions
        if size > max(model, SMALL):
            raise ValueError(
                f"`free` must name layer {name!r}, or one around it: with half of its directions protected its basis "
                f"takes {size / 1e6:.1f} MB, more than the whole model with {model / 1e6:.1f} MB."
            )

    def _thresholds(self) -> dict[str, float]:
        """The share of each layer in the current experience; 0 stays 0."""
        shares = self.threshold if isinstance(self.threshold, list | tuple) else [self.threshold] * len(self._layers)
        step = self.threshold_step * self.experiences
        return {
            name: min(1.0, share + step) if share else 0.0 for name, share in zip(self._layers, shares, strict=True)
        }

    @override
    def start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.bank.to(pl_module.device)
        self._weights = {name: same[0].weight for name, same in self._layers.items()}  # type: ignore[misc]
        if not self.bank:
            return
        free, protected = self._free(trainer, pl_module), set(self._weights.values())
        self._kept = [p for _, p in _trainable(pl_module, free) if p not in protected]
        if self.batch_norm == "freeze":
            self._norms = [
                layer
                for name, layer in pl_module.named_modules()
                if isinstance(layer, _BatchNorm) and layer.track_running_stats and layer.training
                if not _within(name, free)
            ]
        self._start_correction(trainer, pl_module)
        self._projectors = {name: self._projector(name) for name in self._weights if name in self.bank.basis}

    def _start_correction(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._corrects is None:  # not resumed in the middle
            self._corrects = self.correction
            if self._corrects is None:
                self._corrects = any(map(leaves_subspace, trainer.optimizers))
            if self._corrects:
                self._reference = {n: w.detach().clone() for n, w in self._weights.items() if n in self.bank.basis}
        self._reference = {name: value.to(pl_module.device) for name, value in self._reference.items()}

    def _projector(self, name: str) -> Projector:
        return Projector(self.bank.space(name))

    # -- while training ---------------------------------------------------------------------------------------------

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        for layer in self._norms:  # each time: the module may have been put in train mode as a whole
            layer.eval()

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if not self._projectors:
            return
        for p in self._kept:
            p.grad = None  # unlike a gradient of 0, this keeps weight decay and momentum away too
        with exact_products(pl_module.device):
            for name, projector in self._projectors.items():
                if (grad := self._weights[name].grad) is not None:
                    projector.apply_(grad)

    @override
    @torch.no_grad()
    def after_optimizer_step(self, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if not self._corrects:
            return
        with exact_products(pl_module.device):
            for name, start in self._reference.items():
                change = self._weights[name] - start
                self._projectors[name].apply_(change)
                torch.add(start, change, out=self._weights[name])

    # -- at the end of an experience --------------------------------------------------------------------------------

    @override
    def consolidate(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._corrects, self._reference = None, {}
        shares = {name: share for name, share in self._thresholds().items() if share}
        self.experiences += 1
        if not shares:
            return
        batches = map(self.unpack or unpack_batch, statistics_batches(trainer, self.samples))
        grams = input_grams(pl_module, batches, {name: self._layers[name] for name in shares})
        for name, gram in grams.items():
            total = sum_over_ranks(trainer, gram)
            if trainer.is_global_zero:
                self.bank.update(name, total, shares[name], at_least_float32(self._weights[name].dtype))
        self._share_bank(trainer, pl_module)
        self._report(trainer)

    def _share_bank(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give all processes the bank of the first: eigenvectors may differ between machines."""
        if trainer.world_size > 1:
            self.bank.load_state_dict(trainer.strategy.broadcast(self.bank.to("cpu").state_dict()))
            self.bank.to(pl_module.device)

    def _report(self, trainer: Trainer) -> None:
        left = {name: self.bank.free_share(name) for name in self.bank.basis}
        for logger in trainer.loggers:
            values = {f"free_rank/{type(self).__name__}/{name}": share for name, share in left.items()}
            logger.log_metrics(values, step=trainer.global_step)
        if full := [name for name, share in left.items() if share == 0]:
            rank_zero_warn(
                f"{type(self).__name__}: all directions of {', '.join(full)} are protected, so that they learn nothing "
                "any more; set `threshold` lower, or name them in `free`."
            )

    @override
    def _release(self, pl_module: LightningModule) -> None:
        super()._release(pl_module)
        for layer in self._norms:
            layer.train()
        self._clear()

    @override
    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "bank": self.bank.state_dict(),
            "experiences": self.experiences,
            "corrects": self._corrects,
            "reference": dict(self._reference),
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.bank.load_state_dict(state_dict["bank"])
        self.experiences = state_dict["experiences"]
        self._corrects = state_dict["corrects"]
        self._reference = dict(state_dict["reference"])


def _within(name: str, modules: Sequence[str]) -> bool:
    """Whether a dotted name is that of one of some modules, or of something in one."""
    return any(name == module or name.startswith(f"{module}.") or not module for module in modules)


def _trainable(module: nn.Module, free: Sequence[str]) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in module.named_parameters() if p.requires_grad and not _within(name, free)]


def leaves_subspace(optimizer: Optimizer) -> bool:
    """Whether an optimizer's steps have a part in a space in which gradients have none."""
    is_plain = type(optimizer) is torch.optim.SGD and not any(group["weight_decay"] for group in optimizer.param_groups)
    return not is_plain or bool(optimizer.state)
