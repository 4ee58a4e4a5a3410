"""iCaRL: train on exemplars along with new data, distil the last network, predict the class of the nearest mean."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from typing_extensions import override

from lightning_cl.callback import (
    SHARDED,
    columns_of,
    competing_logits,
    gather_rows,
    prepared,
    replace_columns,
    statistics_batches,
    unpack_batch,
)
from lightning_cl.exemplars import closest_to_mean, exemplar_means, herding, nearest_mean, scores_of
from lightning_cl.forwards import OUTPUT, values_at
from lightning_cl.heads import classifier_of
from lightning_cl.memory import Memory
from lightning_cl.methods.classifier import Classifier
from lightning_cl.stream import StreamBatch, StreamDataModule
from lightning_cl.teacher import FrozenTeacher
from lightning_cl.utilities import (
    at_least_float32,
    default_seed,
    derive_seed,
    evaluating,
    isolated_rng,
    permutation,
)

CHECKPOINT_KEY = "ICaRL"
FORWARD_SIZE = 128
"""Exemplars per forward when the means of classes are computed."""


def icarl_loss(scores: Tensor, y: Tensor, old_scores: Tensor | None = None, old_classes: Sequence[int] = ()) -> Tensor:
    r"""Return the binary cross-entropy with the last network's answers as targets of the old classes.

    :math:`-\frac{1}{B C} \sum_{n, c} t_{nc} \log \sigma(z_{nc}) + (1 - t_{nc}) \log (1 - \sigma(z_{nc}))`, a mean over
    samples and columns, with the target :math:`t_{nc} = \sigma(z'_{nc})` in the columns of old classes, also for
    samples of an old class, and :math:`t_{nc} = [c = y_n]` in all others. A column that is minus infinity has no part
    and does not count in :math:`C`. Computed in float32 at least.

    Args:
        scores: Scores :math:`z`, ``(B, C)``.
        y: Labels ``(B,)``.
        old_scores: Scores :math:`z'` of the last network, ``(B, C)``; ``None`` if there is none.
        old_classes: The columns in which they are the target.

    Returns:
        A scalar.

    Example:
        >>> scores = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
        >>> round(icarl_loss(scores, torch.tensor([0, 1])).item(), 4)  # log 2
        0.6931
    """
    scores = scores.to(at_least_float32(scores.dtype))
    out = scores == -torch.inf
    target = F.one_hot(y, scores.shape[1]).to(scores.dtype)
    if old_scores is not None:
        columns = list(old_classes)
        target[:, columns] = old_scores[:, columns].to(scores.dtype).sigmoid()
    losses = F.binary_cross_entropy_with_logits(scores.masked_fill(out, 0.0), target, reduction="none")
    return losses.masked_fill(out, 0.0).sum() / (~out).sum()


class ICaRL(Classifier):
    r"""Learn a representation with exemplars and distillation, and predict the class whose mean is nearest.

    Rebuffi et al., "iCaRL: Incremental Classifier and Representation Learning", CVPR 2017, for class-incremental
    streams. The training set of an experience is the union of its data and the exemplars of old classes; the loss is
    :func:`icarl_loss`, with the network as it was when the experience began as teacher. At its end:

    1. The exemplars of each new class are chosen by :func:`~lightning_cl.exemplars.herding`, on features of the
       un-augmented samples in eval mode.
    2. Old lists are cut. With :math:`G` classes so far each has the first :math:`\lfloor K / G \rfloor` of its list,
       and the first :math:`K \bmod G` classes one more: never more than ``capacity`` in all, whereas the authors' code
       rounds up and may exceed it.
    3. The mean of each class, that of the features of its exemplars, is computed anew with the new network.

    ``validation_step``, ``test_step`` and ``predict_step`` answer by :meth:`classify`; within an experience that is the
    head, as means of another network say nothing. ``forward`` always gives the scores of the head: they are what is
    trained, and what callbacks look at.

    Exemplars join the batches of the data loader: each comes once per epoch, in a random order that depends on ``seed``
    and the epoch only, and an epoch has as many steps as it has without them. The authors' code shuffles the union
    and keeps the batch size, so that it makes more steps. On a :class:`~lightning_cl.stream.StreamDataModule` they are
    kept as the data set holds them, and augmented and normalised afresh each time; the samples of an experience are
    read once for their features and once more to pick the exemplars. On other data, exemplars are what reaches
    ``training_step``, and the samples of an experience are held on the CPU while exemplars are chosen.

    A class is old once an experience with it is learned. In a stream, one that is part of the current experience again
    has one-hot targets there, and keeps the best of both lists.

    With several processes all hold the same exemplars, those that one process would choose, and each trains on its
    share of them.

    Args:
        num_classes: Classes of the whole stream.
        backbone: As in :class:`Classifier`.
        input_shape: As in :class:`Classifier`.
        backbone_args: As in :class:`Classifier`.
        capacity: Number of exemplars :math:`K` in all, at least one per class. Published: 2000 for CIFAR-100, 20 000
            for ImageNet.
        classifier: ``"nearest_mean"``, the published one, or the ``"head"``, which others report as iCaRL-CNN.
        selection: ``"herding"``, or ``"closest_to_mean"`` to compare with.
        flips: Let the mirrored exemplars count in the mean of a class too, as in the authors' code; FACIL does without.
            The last dimension is mirrored, so inputs must be images.
        loss_classes: Columns that the loss is a mean over: ``"all"``, as in the authors' code, or those ``"seen"`` so
            far, as in Mammoth. While these are few, the same learning rate makes larger steps.
        head: As in :class:`Classifier`. One that grows has no columns of classes to come.
        features: Where a backbone that does not follow timm's convention computes the features, as a place of
            :func:`lightning_cl.forwards.values_at`, e.g. ``"fc:input"``. ``None``: before its last layer, as timm's
            convention tells.
        seed: Fixes which exemplars join which batch; ``None`` is the seed of ``seed_everything``, else 0.
        optimizer: As in :class:`Classifier`. The loss is a mean over columns too, so rates are large; the authors' is
            2.0.
        lr_scheduler: As in :class:`Classifier`.

    Attributes:
        memory: The exemplars, a :class:`~lightning_cl.memory.Memory` whose groups are the labels.
        learned: The classes of all experiences that were learned, in order of appearance.
        means: Means of the classes ``(num_classes, D)``; ``(num_classes, 0)`` before the first and within an
            experience, when those there were belong to another network.

    Raises:
        ValueError: If an argument is out of its range; the message names it.
        TypeError: While training, if the batch is a tuple, which cannot be changed in place.

    Example:
        >>> model = ICaRL(num_classes=10, input_shape=(1, 8, 8), backbone_args={"hidden": [32]}, capacity=100)
        >>> model.classify(torch.zeros(2, 1, 8, 8)).shape  # of the head, as there are no means yet
        torch.Size([2, 10])
    """

    means: Tensor

    def __init__(
        self,
        num_classes: int,
        backbone: str | nn.Module = "mlp",
        input_shape: tuple[int, ...] | None = None,
        backbone_args: dict[str, Any] | None = None,
        capacity: int = 2000,
        classifier: Literal["nearest_mean", "head"] = "nearest_mean",
        selection: Literal["herding", "closest_to_mean"] = "herding",
        flips: bool = True,
        loss_classes: Literal["all", "seen"] = "all",
        head: Literal["fixed", "growing"] = "fixed",
        features: str | None = None,
        seed: int | None = None,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.SGD(parameters, lr=2.0),
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        if loss_classes not in ("all", "seen"):
            raise ValueError(f"`loss_classes` must be 'all' or 'seen', got {loss_classes!r}.")
        super().__init__(
            num_classes, backbone, input_shape, backbone_args, "binary", loss_classes, head, optimizer, lr_scheduler
        )
        if capacity < num_classes:
            raise ValueError(f"`capacity` must be {num_classes} (`num_classes`) or more, got {capacity}.")
        if classifier not in ("nearest_mean", "head"):
            raise ValueError(f"`classifier` must be 'nearest_mean' or 'head', got {classifier!r}.")
        if selection not in ("herding", "closest_to_mean"):
            raise ValueError(f"`selection` must be 'herding' or 'closest_to_mean', got {selection!r}.")
        self.capacity = capacity
        self.classifier = classifier
        self.selection = selection
        self.flips = flips
        self.features = _place_of_features(self.backbone, features)
        self.seed = default_seed(seed)
        self.memory = Memory(capacity, "class_quota", derive_seed(self.seed, 0))
        self.learned: list[int] = []
        self.teacher: FrozenTeacher | None = None
        self.register_buffer("means", torch.empty(num_classes, 0))

    # -- prediction -------------------------------------------------------------------------------------------------

    def classify(self, x: Tensor) -> Tensor:
        """Scores ``(B, num_classes)`` by which a class is predicted.

        With ``classifier="nearest_mean"``, as soon as there are means, minus the squared distance of the features to
        the mean of each class, and minus infinity for a class without one; else those of the head.
        """
        return self._classified(*self.features_and_scores(x))

    def _classified(self, features: Tensor, scores: Tensor) -> Tensor:
        by_means = self.classifier == "nearest_mean" and self.means.shape[1] > 0
        return nearest_mean(features, self.means) if by_means else scores

    def features_and_scores(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features ``(B, D)`` and scores of the head ``(B, num_classes)``, in one forward."""
        if self.features is not None:
            found: tuple[Tensor, Tensor] = _watched(self.backbone, self.features, x)
            return found
        backbone: Any = self.backbone
        maps = backbone.forward_features(x)
        return backbone.forward_head(maps, pre_logits=True), backbone.forward_head(maps)

    @override
    def _evaluate(self, batch: Any, stage: str) -> dict[str, Tensor]:
        x, y = unpack_batch(batch)
        features, scores = self.features_and_scores(x)
        classified = self._classified(features, scores)
        values = {f"{stage}_acc": (classified.argmax(1) == y).float().mean()}
        if stage == "val":  # when all is learned there is no teacher, and no more loss
            values["val_loss"] = self.objective(x, scores, y)
        self.log_dict(values, batch_size=len(y), sync_dist=True)
        return {"logits": classified}

    @override
    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, _ = unpack_batch(batch)
        return self.classify(x).argmax(1)

    # -- training ---------------------------------------------------------------------------------------------------

    @property
    def old_classes(self) -> list[int]:
        """The classes whose targets are the teacher's."""
        stream = self._stream_or_none
        current = () if stream is None else stream.classes[stream.current]
        return [c for c in self.learned if c not in current]

    def objective(self, x: Tensor, scores: Tensor, y: Tensor) -> Tensor:
        """The loss of a batch of inputs ``x`` with the scores ``(B, num_classes)`` of the head."""
        if self.loss_classes == "seen":
            scores = competing_logits(self.trainer, "seen")(scores)
        if self.teacher is None:
            return icarl_loss(scores, y)
        return icarl_loss(scores, y, _asked(self.teacher, self.backbone, x), self.old_classes)

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = unpack_batch(batch)
        loss = self.objective(x, self(x), y)
        if self._is_shown(batch_idx):
            self.log("train_loss", loss, prog_bar=True)
        return loss

    @property
    def _stream_or_none(self) -> StreamDataModule | None:
        data = getattr(self.trainer, "datamodule", None)
        return data if isinstance(data, StreamDataModule) else None

    @override
    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit" and isinstance(self.trainer.strategy, SHARDED):
            raise ValueError(
                "ICaRL copies whole parameters for its teacher, of which each process has a part with "
                f"{type(self.trainer.strategy).__name__}: set `strategy` to 'ddp'."
            )

    @override
    def on_train_start(self) -> None:
        if math.isinf(self.trainer.num_training_batches):
            raise ValueError(
                "ICaRL spreads its exemplars over the batches of an epoch, of which this training loader does not tell "
                "the number: set `limit_train_batches`, or use a loader that has a length."
            )
        if self.loss_classes == "seen":
            self._stream("loss_classes", "seen", "all")
        self.means = self.means.new_empty(self.num_classes, 0)
        if self.learned:
            self.teacher = (FrozenTeacher.of(self.backbone) if self.teacher is None else self.teacher).to(self.device)

    @override
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        columns = columns_of(batch, "ICaRL")
        if len(slots := self._slots_of_batch(batch_idx)):
            joining = prepared(self.trainer, self.memory.take(slots))
            replace_columns(batch, {name: torch.cat([column, joining[name]]) for name, column in columns.items()})

    def _slots_of_batch(self, batch_idx: int) -> Tensor:
        """The exemplars that join a batch: over an epoch and all processes, each once."""
        trainer = self.trainer
        count, batches = len(self.memory), int(trainer.num_training_batches)
        order = permutation(count, derive_seed(self.seed, 1, len(self.learned), trainer.current_epoch))
        part = order[batch_idx * count // batches : (batch_idx + 1) * count // batches]
        return part[trainer.global_rank :: trainer.world_size]

    # -- the end of an experience -----------------------------------------------------------------------------------

    @override
    def on_train_end(self) -> None:
        with isolated_rng(), evaluating(self), torch.no_grad():
            self._choose_exemplars()
            self.means = self._means()
        self.teacher = None

    def _choose_exemplars(self) -> None:
        """Offer the best of each class to the memory, the same in all processes."""
        features, y, again = self._features()
        # Processes take samples in turn; by their places they come together as one process would have them.
        place = torch.arange(len(y)) * self.trainer.world_size + self.trainer.global_rank
        places, features, labels = _in_turn(self.trainer, place, [place, features, y])
        scores = self._ranked(features, labels)[torch.searchsorted(places, place)]
        chosen = scores.isfinite()
        columns = _picked(again, chosen)
        *rows, groups, scores = _in_turn(self.trainer, place[chosen], [*columns.values(), y[chosen], scores[chosen]])
        by_class = groups.argsort(stable=True)  # which class is the first to get one more depends on nothing else
        items = {name: column[by_class] for name, column in zip(columns, rows, strict=True)}
        self.memory.insert(items, groups=groups[by_class], scores=scores[by_class])

    def _features(self) -> tuple[Tensor, Tensor, Iterator[dict[str, Tensor]]]:
        """Features and labels of this process's samples, and the samples as they are kept, once more."""
        features, y, held, rereads = [], [], [], self._stream_or_none is not None
        for batch in statistics_batches(self.trainer):
            x, labels = unpack_batch(batch)
            found = self.features_and_scores(x)[0]
            features.append(found.to(at_least_float32(found.dtype)))
            y.append(labels.cpu())
            if not rereads:  # the next pass may be in another order
                held.append(_kept_form(batch))
        again = map(_kept_form, statistics_batches(self.trainer)) if rereads else iter(held)
        return torch.cat(features), torch.cat(y), again

    def _ranked(self, features: Tensor, y: Tensor) -> Tensor:
        """Scores ``(N,)`` of all samples of an experience: within a class, the first exemplar has the highest."""
        classes = sorted(set(y.tolist()))
        self.learned = list(dict.fromkeys([*self.learned, *classes]))
        most = self.capacity // len(self.learned) + 1
        choose = herding if self.selection == "herding" else closest_to_mean
        scores = torch.empty(len(y), dtype=torch.float64)
        for c in classes:
            rows = (y == c).nonzero().flatten()
            scores[rows] = scores_of(choose(features[rows], most).cpu(), len(rows))
        return scores

    def _means(self) -> Tensor:
        """The means of all classes, with the network as it is now."""
        features, y = [], []
        for slots in torch.split(torch.arange(len(self.memory)), FORWARD_SIZE):
            x, labels = unpack_batch(self._as_evaluated(self.memory.take(slots)))
            for images in (x, x.flip(-1)) if self.flips else (x,):
                features.append(self.features_and_scores(images)[0])
                y.append(labels)
        return exemplar_means(torch.cat(features), torch.cat(y), self.num_classes)

    def _as_evaluated(self, columns: dict[str, Tensor]) -> Any:
        """A batch of exemplars on the device, without augmentation."""
        moved = {name: column.to(self.device) for name, column in columns.items()}
        if (stream := self._stream_or_none) is not None:
            return stream.transform_batch(list(moved.values()))
        return list(moved.values()) if "0" in moved else moved

    # -- state ------------------------------------------------------------------------------------------------------

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[CHECKPOINT_KEY] = {
            "memory": self.memory.state_dict(),
            "learned": list(self.learned),
            "teacher": None if self.teacher is None else self.teacher.tensors,
        }

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if (state := checkpoint.get(CHECKPOINT_KEY)) is None:  # weights alone, which are enough to predict
            return
        self.memory.load_state_dict(state["memory"])
        self.learned = list(state["learned"])
        self.teacher = None if state["teacher"] is None else FrozenTeacher(state["teacher"])

    @override
    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        if (saved := state_dict.get(f"{prefix}means")) is not None:
            self.means = self.means.new_empty(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _place_of_features(backbone: nn.Module, place: str | None) -> str | None:
    """Where features are computed; ``None`` if the backbone tells them as timm's do."""
    if place is not None:
        if place.partition(":")[0] not in dict(backbone.named_modules()):
            raise ValueError(f"`features` must name a submodule of the backbone, got {place!r}.")
        return place
    if hasattr(backbone, "forward_features") and hasattr(backbone, "forward_head"):
        return None
    if (name := classifier_of(backbone)) is None:
        raise ValueError(
            f"`features` must name the place where {type(backbone).__name__} computes them, such as 'fc:input', as it "
            "does not follow timm's convention."
        )
    return f"{name}:input"


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _watched(backbone: nn.Module, place: str, x: Tensor) -> tuple[Tensor, Tensor]:
    values = values_at(backbone, [place], lambda: backbone(x))
    return values[place].flatten(1), values[OUTPUT]


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _asked(teacher: FrozenTeacher, backbone: nn.Module, x: Tensor) -> Tensor:
    """The scores of the teacher; in compiled code it cannot stand in for the student."""
    scores: Tensor = teacher(backbone, x)[OUTPUT]
    return scores


def _kept_form(batch: Any) -> dict[str, Tensor]:
    """The columns of a batch as exemplars are kept, on the CPU."""
    columns = columns_of(batch, "ICaRL")
    if isinstance(batch, StreamBatch):
        return dict(zip(columns, batch.raw, strict=True))
    return {name: column.cpu() for name, column in columns.items()}


def _picked(batches: Iterable[Mapping[str, Tensor]], chosen: Tensor) -> dict[str, Tensor]:
    """The rows of all batches, one after another, that ``chosen`` ``(N,)`` is true for."""
    parts, start = [], 0
    for columns in batches:
        stop = start + len(next(iter(columns.values())))
        parts.append({name: column[chosen[start:stop]] for name, column in columns.items()})
        start = stop
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _in_turn(trainer: Trainer, place: Tensor, columns: Iterable[Tensor]) -> list[Tensor]:
    """Gather rows from all processes, in the order of ``place`` ``(N,)`` (a collective)."""
    order = gather_rows(trainer, place).argsort()
    return [gather_rows(trainer, column)[order] for column in columns]
