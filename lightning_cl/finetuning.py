"""Fine-tuning of a few layers on a memory, beside the training, and the measure that says which layers need it.

Nothing of the training is touched but the weights of these layers: neither ``grad`` and ``requires_grad`` nor the
optimizer, schedulers, counters, modes and the random state.
"""

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_cl.anchor import old_rows
from lightning_cl.callback import mean_gradients, prepared, sum_over_ranks, unpack_batch
from lightning_cl.forwards import scores_in
from lightning_cl.heads import last_layer_of
from lightning_cl.memory import Memory
from lightning_cl.rehearsal import LOGITS, RehearsalCallback, as_float32, logit_matching
from lightning_cl.stream import StreamDataModule
from lightning_cl.utilities import derive_seed, isolated_rng, seed_generators

Statistics: TypeAlias = Literal["update", "freeze"]


# -- the loss ----------------------------------------------------------------------------------------------------------


def replay_loss(
    scores: Tensor, labels: Tensor, competing: Tensor | None = None, stored: Tensor | None = None, kd: float = 0.0
) -> Tensor:
    r"""Return the cross-entropy of samples of a memory, plus ``kd`` times the squared error to their stored scores.

    :math:`-\frac{1}{B} \sum_n \log \mathrm{softmax}_{K(y_n)}(f(x_n))_{y_n} + \frac{\lambda}{B C} \sum_{n, c}
    (f_c(x_n) - z_{nc})^2`. The second term is that of Buzzega et al., "Dark Experience for General Continual Learning:
    a Strong, Simple Baseline", NeurIPS 2020. Columns that are minus infinity in one of the two, or that the head has
    gained since, have no part in it. Computed in float32 at least.

    Args:
        scores: :math:`f(x)`, ``(B, C)``.
        labels: :math:`y`, ``(B,)``.
        competing: Which classes compete with each label, :math:`K`, ``(C, C)`` booleans; ``None`` is all.
        stored: The scores :math:`z`, ``(B, C)``; may have fewer columns.
        kd: The factor :math:`\lambda`.

    Returns:
        A scalar.

    Example:
        >>> replay_loss(torch.zeros(3, 2), torch.tensor([0, 1, 1]), stored=torch.ones(3, 2), kd=0.5)
        tensor(1.1931)
    """
    allowed = scores = as_float32(scores)
    if competing is not None:
        allowed = scores[:, : len(competing)]
        allowed = allowed.masked_fill(~competing[labels][:, : allowed.shape[1]], -torch.inf)
    loss = F.cross_entropy(allowed, labels)
    return loss if stored is None or not kd else loss + kd * logit_matching(scores, stored)


def competitors(trainer: Trainer) -> Tensor | None:
    """Return which classes compete with each label, ``(C, C)`` booleans, or ``None`` if there is no stream to say so.

    They are the classes seen so far, or with task labels those of the label's own task.
    """
    stream = getattr(trainer, "datamodule", None)
    if not isinstance(stream, StreamDataModule):
        return None
    table = torch.zeros(stream.num_classes, stream.num_classes, dtype=torch.bool)
    seen = stream.classes[: stream.current + 1]
    for group in seen if stream.task_labels else [stream.seen_classes]:
        index = torch.tensor(group)
        table[index[:, None], index] = True
    return table.to(trainer.strategy.root_device)


# -- the layers --------------------------------------------------------------------------------------------------------


def select_layers(module: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
    """Return layers by name: submodules that own trainable parameters or the statistics of batch normalisation.

    Args:
        module: The module.
        names: ``"norm"`` is all normalisation layers (there may be none), ``"first_conv"`` the first convolution, and
            ``"head"`` the last layer: by timm's convention if the module follows it, else the last ``nn.Linear``. Any
            other is a regular expression that is looked for in the dotted names of layers.

    Raises:
        ValueError: If one is no regular expression or stands for nothing, or all together select nothing.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
        >>> list(select_layers(net, ["head", "norm"])), list(select_layers(net, ["^[01]$"]))
        (['1', '3'], ['0', '1'])
    """
    layers = {name: layer for name, layer in module.named_modules() if _own(layer) or _statistics(layer)}
    found = {name: _matching(module, layers, name) for name in names}
    missing = [name for name, match in found.items() if not match and name != "norm"]
    if missing or not any(found.values()):
        few = ", ".join(list(layers)[:5]) + (", ..." if len(layers) > 5 else "")
        raise ValueError(f"`modules`: {missing or list(names)} must select at least one layer of {few}.")
    chosen = {name for match in found.values() for name in match}
    return {name: layer for name, layer in layers.items() if name in chosen}


def _matching(module: nn.Module, layers: Mapping[str, nn.Module], name: str) -> list[str]:
    if name == "norm":
        return [key for key, layer in layers.items() if "Norm" in type(layer).__name__]
    if name == "first_conv":
        return [key for key, layer in layers.items() if isinstance(layer, nn.modules.conv._ConvNd)][:1]
    if name == "head":
        head = last_layer_of(module)
        return [key for key in layers if f"{key}.".startswith(f"{head}.")]
    try:
        return [key for key in layers if re.search(name, key)]
    except re.error as error:
        raise ValueError(f"`modules` must hold regular expressions, got {name!r}: {error}.") from error


def _own(layer: nn.Module) -> list[nn.Parameter]:
    """The trainable parameters of a layer itself."""
    return [p for p in layer.parameters(recurse=False) if p.requires_grad]


def _statistics(layer: nn.Module) -> list[Tensor]:
    """The running mean and variance of a batch normalisation."""
    if not isinstance(layer, _BatchNorm) or layer.running_mean is None or layer.running_var is None:
        return []
    return [layer.running_mean, layer.running_var]


# -- the loop ----------------------------------------------------------------------------------------------------------


def batches_of(memory: Memory, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
    """Yield items of a memory without end: all of them in random order, and again in another.

    Args:
        memory: The memory, not empty.
        batch_size: Items in a batch; fewer if the memory has not that many for each process.
        seed: Fixes the order.
        rank: Which process this is: they share the batches of one order, if all hold the same memory.
        world_size: Number of processes.

    Example:
        >>> memory = Memory(3)
        >>> _ = memory.insert(torch.arange(3))
        >>> [sorted(batch.tolist()) for batch in islice(batches_of(memory, 3, seed=0), 2)]
        [[0, 1, 2], [0, 1, 2]]
    """
    generator = torch.Generator().manual_seed(seed)
    count = min(batch_size, max(len(memory) // world_size, 1)) * world_size
    slots = torch.empty(0, dtype=torch.long)
    while True:
        while len(slots) < count:
            slots = torch.cat([slots, torch.randperm(len(memory), generator=generator)])
        yield memory.take(slots[rank:count:world_size])
        slots = slots[count:]


@dataclass(frozen=True)
class FineTuning:
    r"""Minimise :func:`replay_loss` over a few layers, on batches from a memory.

    Plain gradient descent without momentum and weight decay, at the rate :math:`\frac{\eta}{2} (1 + \cos \frac{\pi
    s}{S})` in step :math:`s < S`. The module is used in the modes that it is in, but for the batch normalisations whose
    running statistics are to stay: these use them.

    With several processes gradients are averaged, and where the memory is replicated the processes share its batches.

    Attributes:
        steps: Number of steps :math:`S`, 0 or more.
        batch_size: Samples per step and process, 0 or more; 0 makes no step.
        lr: Learning rate :math:`\eta` of the first step, 0 or more.
        bn_stats: ``"update"``: the running statistics of the chosen batch normalisations follow the memory's samples,
            averaged over processes at the end; or ``"freeze"``. Those of other layers stay in any case.
        kd: Factor of the squared error to stored scores, 0 or more.

    Raises:
        ValueError: If one is out of its range.
    """

    steps: int
    batch_size: int
    lr: float
    bn_stats: Statistics = "update"
    kd: float = 0.0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "lr", "kd"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"`{name}` must be 0 or more, got {getattr(self, name)}.")
        if self.bn_stats not in get_args(Statistics):
            raise ValueError(f"`bn_stats` must be one of {get_args(Statistics)}, got {self.bn_stats!r}.")

    def run(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        rehearsal: RehearsalCallback,
        modules: Sequence[str],
        seed: int,
    ) -> None:
        """Fine-tune, in all processes together; with an empty memory, or an empty shard of it, nothing happens.

        Args:
            trainer: The trainer, while it fits.
            pl_module: The module.
            rehearsal: Whose memory it is.
            modules: The layers (see :func:`select_layers`).
            seed: Fixes what is drawn: samples, augmentation and dropout.
        """
        layers = select_layers(pl_module, modules).values()
        batches = self._batches(trainer, rehearsal, seed)
        moving = [layer for layer in layers if self.bn_stats == "update" and layer.training and _statistics(layer)]
        # For so few steps compiling for other modes and sizes does not pay.
        with isolated_rng(), _moving_statistics(pl_module, moving), torch.compiler.set_stance("force_eager"):
            seed_generators(derive_seed(seed, trainer.global_rank))
            self._descend(trainer, pl_module, layers, batches)
        average_over_ranks(trainer, [value for layer in moving for value in _statistics(layer)])

    def _batches(
        self, trainer: Trainer, rehearsal: RehearsalCallback, seed: int
    ) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """Inputs, labels and stored scores for each step of this process."""
        memory, rank, world_size = rehearsal.memory, trainer.global_rank, trainer.world_size
        if rehearsal.storage.sharing == "sharded":
            seed, rank, world_size = derive_seed(seed, 1 + rank), 0, 1
        filled = sum_over_ranks(trainer, torch.tensor(int(len(memory) > 0), device=trainer.strategy.root_device))
        if not self.batch_size or filled < trainer.world_size:
            return
        for stored in islice(batches_of(memory, self.batch_size, seed, rank, world_size), self.steps):
            columns = trainer.precision_plugin.convert_input(prepared(trainer, stored))
            batch = [column for name, column in columns.items() if name.isdigit()] or columns
            yield *(rehearsal.unpack or unpack_batch)(batch), columns.get(LOGITS)

    def _descend(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        layers: Iterable[nn.Module],
        batches: Iterable[tuple[Tensor, Tensor, Tensor | None]],
    ) -> None:
        weights: list[Tensor] = list(dict.fromkeys(p for layer in layers for p in _own(layer)))
        competing = competitors(trainer)
        for step, (x, y, stored) in enumerate(batches):
            with trainer.precision_plugin.forward_context():
                scores = scores_in(pl_module(x))
            loss = replay_loss(scores, y, competing, stored, self.kd)
            gradients = mean_gradients(trainer, loss, weights) if weights else None
            rate = self.lr / 2 * (1 + math.cos(math.pi * step / self.steps))
            if gradients is not None:
                with torch.no_grad():
                    torch._foreach_add_(weights, gradients, alpha=-rate)


@contextmanager
def _moving_statistics(module: nn.Module, moving: Collection[nn.Module]) -> Iterator[None]:
    """Put all batch normalisations but some in eval mode for a block."""
    chosen = set(moving)
    others = [layer for layer in module.modules() if layer.training and _statistics(layer) and layer not in chosen]
    for layer in others:
        layer.training = False
    try:
        yield
    finally:
        for layer in others:
            layer.training = True


@torch.no_grad()
def average_over_ranks(trainer: Trainer, values: Sequence[Tensor]) -> None:
    """Average tensors over all processes in place, in one collective."""
    if trainer.world_size == 1 or not values:
        return
    flat = sum_over_ranks(trainer, torch.cat([value.flatten() for value in values])) / trainer.world_size
    for value, part in zip(values, flat.split_with_sizes([value.numel() for value in values]), strict=True):
        value.copy_(part.view_as(value))


# -- the measure -------------------------------------------------------------------------------------------------------


_STATISTICS = ("running_mean", "running_var")


def measured_tensors(trainer: Trainer, module: nn.Module) -> dict[str, Tensor]:
    """Return copies of the trainable parameters and of the running statistics of batch normalisations, by name.

    The latter are averaged over processes.
    """
    named: dict[str, Tensor] = {name: p for name, p in module.named_parameters() if p.requires_grad}
    for name, layer in module.named_modules():
        named |= {f"{name}.{key}": value for key, value in zip(_STATISTICS, _statistics(layer), strict=False)}
    copies = {name: value.detach().clone() for name, value in named.items()}
    average_over_ranks(trainer, [value for name, value in copies.items() if name.endswith(_STATISTICS)])
    return copies


def parameter_change(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, float]:
    r"""Return the mean absolute change of each layer, :math:`\frac{1}{n} \lVert \theta' - \theta \rVert_1`.

    Args:
        before: Tensors by name, as :func:`measured_tensors` copies them.
        after: The same later. What is new since then, also rows of a tensor, is left out.

    Returns:
        The changes, by layer; of a batch normalisation its running statistics have values of their own.

    Example:
        >>> before = {"fc.weight": torch.zeros(1, 2), "fc.bias": torch.zeros(1), "bn.running_mean": torch.zeros(2)}
        >>> after = {name: value + 3.0 for name, value in before.items()}
        >>> parameter_change(before, after)
        {'fc': 3.0, 'bn.running_mean': 3.0}
    """
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    for name, old in before.items():
        if name not in after:
            continue
        layer, _, key = name.rpartition(".")
        entry = name if key in _STATISTICS else layer
        moved = old_rows(after[name], old).double() - old.double()
        sums[entry] = sums.get(entry, 0.0) + moved.abs().sum().item()
        counts[entry] = counts.get(entry, 0) + moved.numel()
    return {entry: total / counts[entry] for entry, total in sums.items()}


def task_sensitivity(switch: Mapping[str, float], within: Mapping[str, float]) -> dict[str, float]:
    """Return the change of each layer in an epoch after a switch of tasks over that in another epoch.

    Args:
        switch: The mean change (see :func:`parameter_change`) in the first epochs of experiences.
        within: That in later epochs.

    Returns:
        The ratios by layer, the largest first; of a layer that never moved 0.

    Example:
        >>> task_sensitivity({"conv": 1.0, "fc": 3.0}, {"conv": 1.0, "fc": 0.75})
        {'fc': 4.0, 'conv': 1.0}
    """
    pairs = {name: (change, within.get(name, 0.0)) for name, change in switch.items()}
    ratios = {name: a / b if b else (math.inf if a else 0.0) for name, (a, b) in pairs.items()}
    return dict(sorted(ratios.items(), key=lambda item: -item[1]))
