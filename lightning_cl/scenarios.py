"""Streams by how one data set becomes experiences: cut by class, or seen through one domain after another."""

import hashlib
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from typing_extensions import override

from lightning_cl.blurry import i_blurry, si_blurry
from lightning_cl.samples import Samples, TensorData, check_samples
from lightning_cl.sources.base import Source
from lightning_cl.splits import (
    Convention,
    by_domain,
    check_lists,
    class_groups,
    cut_off,
    few_shot,
    group_sizes,
    hold_out_of_each_class,
    label_map,
)
from lightning_cl.splits import class_order as make_order
from lightning_cl.stream import StreamDataModule
from lightning_cl.utilities import derive_seed


class ClassStream(StreamDataModule):
    """A stream of a labelled data set that is cut by class: each experience brings new classes.

    A concrete stream implements :meth:`load`. Which classes come when follows a named convention, so that figures can
    be compared with published ones:

    - ``"pycil"`` (also LAMDA-PILOT, Continuum): experience ``t`` has the classes at its positions of ``class_order``;
      sizes are equal, or ``base_classes``, then ``increment`` each, and what remains as a smaller last one.
    - ``"facil"``: the same classes by position; if ``num_experiences`` does not divide them, the first experiences have
      one more. ``val_fraction`` (0.1 there) is taken of each class, not of the experience as a whole.
    - ``"mammoth"`` (also van de Ven): experience ``t`` has the classes ``c`` whose ``class_order[c]`` falls into its
      range. The two rules are inverse permutations: the same seed gives different experiences.

    Args:
        num_classes: Number of classes of the data set.
        input_shape: Shape of one sample, ``(C, H, W)`` for images.
        num_experiences: Length of the stream; ``None`` is the usual one of the data set, or follows from ``increment``.
        class_order: Permutation of the classes, or the seed of one (1993 is the field's; by NumPy's
            ``RandomState(seed).permutation``); ``None`` is the numeric order.
        base_classes: Classes of the first experience, if it has others than the rest (B50 is 50).
        increment: Classes of each further experience.
        convention: ``"pycil"``, ``"facil"`` or ``"mammoth"``, see above.
        relabel: Number the labels in order of appearance: those of the first experience come first. By default they
            are those of the data set.
        shots: Training samples per class in every experience but the first (few-shot class-incremental); the seed
            chooses them.
        blurry: Let a part of the classes occur in several experiences: ``"stochastic"`` (Si-Blurry, Moon et al., ICCV
            2023; also the generalised streams of G-ACIL, Zhuang et al., NeurIPS 2024), ``"fixed"`` (its form with equal
            shares), or ``"i-blurry"`` (by the rule of the published lists of Koh et al., ICLR 2022). An experience is
            tested on the classes that were dealt to it; if none was, on all that occur in it.
        disjoint_percent: Of a blurry stream, the percentage of classes that occur in one experience; ``None`` is 50.
        blurry_percent: Of a blurry stream, the percentage of samples of the other classes that change places; ``None``
            is 10.
        blurry_seed: Fixes who is dealt what in a blurry stream; ``None`` is ``seed``.
        **kwargs: As for :class:`StreamDataModule`.

    Raises:
        ValueError: If an argument is out of its range; the message names it.
    """

    standard_length: ClassVar[int | None] = None
    """``num_experiences`` where neither it nor ``increment`` is given."""

    def __init__(
        self,
        num_classes: int,
        input_shape: tuple[int, ...],
        num_experiences: int | None = None,
        class_order: int | Sequence[int] | None = None,
        *,
        base_classes: int | None = None,
        increment: int | None = None,
        convention: Convention = "pycil",
        relabel: bool = False,
        shots: int | None = None,
        blurry: Literal["stochastic", "fixed", "i-blurry"] | None = None,
        disjoint_percent: int | None = None,
        blurry_percent: int | None = None,
        blurry_seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        if num_experiences is None and increment is None:
            num_experiences = self.standard_length
        order = make_order(num_classes, class_order)
        sizes = group_sizes(num_classes, num_experiences, base_classes, increment, convention)
        groups = class_groups(order, sizes, convention)
        if shots is not None and shots < 1:
            raise ValueError(f"`shots` must be 1 or more, got {shots}.")
        if shots is not None and kwargs.get("val_fraction"):
            raise ValueError("`shots` are all trained on: it cannot go with `val_fraction`.")
        if shots is not None and kwargs.get("samples_per_experience"):
            raise ValueError("`shots` says how many there are: it cannot go with `samples_per_experience`.")
        _check_blurry(
            blurry,
            {"disjoint_percent": disjoint_percent, "blurry_percent": blurry_percent, "blurry_seed": blurry_seed},
            {
                "class_order": class_order is not None,
                "convention": convention == "mammoth",
                "base_classes": base_classes is not None,
                "increment": increment is not None,
                "relabel": relabel,
                "shots": shots is not None,
                "task_labels": kwargs.get("task_labels"),
            },
        )
        self._new_label = label_map(order, convention) if relabel else None
        if self._new_label is not None:
            groups = [[self._new_label[c] for c in group] for group in groups]
        super().__init__(groups, num_classes, input_shape, **kwargs)
        self.shots = shots
        self.blurry = blurry
        self.disjoint_percent = 50 if disjoint_percent is None else disjoint_percent
        self.blurry_percent = 10 if blurry_percent is None else blurry_percent
        self.blurry_seed = self.seed if blurry_seed is None else blurry_seed
        self.convention = convention
        self._order_of_classes = order
        self._loaded: dict[bool, Samples] = {}

    @abstractmethod
    def load(self, train: bool) -> tuple[Tensor, Tensor] | Samples:
        """Return the training or test set: inputs ``(N, *input_shape)`` and labels ``(N,)``, or any samples."""

    @override
    def dataset(self, experience: int, train: bool) -> Samples:
        data = self._data(train)
        if self.blurry and train:
            return data.subset(self._blurry[0][experience])
        homes = self._blurry[2] if self.blurry else self._groups
        mine = torch.isin(data.labels, torch.tensor(homes[experience])).nonzero().flatten()
        if train and self.shots is not None and experience:
            mine = mine[few_shot(data.labels[mine], self.shots, derive_seed(self.seed, experience))]
        return data.subset(mine)

    @property
    @override
    def groups(self) -> list[tuple[int, ...]]:
        return self._blurry[1] if self.blurry else self._groups

    @override
    def _held_out(self, group: int, data: Samples, count: int) -> tuple[Tensor, Tensor]:
        if self.convention != "facil" or not count:
            return super()._held_out(group, data, count)
        fraction = self.val_fraction * (self.samples_per_experience or len(data)) / len(data)
        return hold_out_of_each_class(data.labels, fraction, derive_seed(self.seed, group))

    @cached_property
    def _blurry(self) -> tuple[list[Tensor], list[tuple[int, ...]], list[Sequence[int]]]:
        """Training samples of each experience, the classes that occur in it, and those that it is tested on."""
        assert self.blurry is not None
        sizes = self.num_classes, len(self._groups), self.disjoint_percent, self.blurry_percent
        labels = self._data(True).labels
        if self.blurry == "i-blurry":
            split = i_blurry(labels, *sizes, self.blurry_seed)
        else:
            split = si_blurry(labels, *sizes, self.blurry, self.blurry_seed)
        if empty := [t for t, index in enumerate(split.indices) if not len(index)]:
            raise ValueError(
                f"With `blurry_seed` {self.blurry_seed} no sample is dealt to experiences {empty}: choose another, "
                "fewer experiences (`num_experiences`), or `blurry` 'fixed'."
            )
        occur = [tuple(torch.unique(labels[index]).tolist()) for index in split.indices]
        return split.indices, occur, [home or others for home, others in zip(split.homes, occur, strict=True)]

    @override
    def shape(self) -> dict[str, Any]:
        percentages = [self.disjoint_percent, self.blurry_percent]
        blurry = [self.blurry, *percentages, self.blurry_seed] if self.blurry else None
        cut = {"class_order": self._order_of_classes, "relabel": self._new_label, "shots": self.shots, "blurry": blurry}
        return {**super().shape(), **cut, "convention": self.convention}

    def _data(self, train: bool) -> Samples:
        if train not in self._loaded:
            loaded = self.load(train)
            data = loaded if isinstance(loaded, Samples) else TensorData(*loaded)
            check_samples(data, self.num_classes, self.input_shape, train)
            self._loaded[train] = data if self._new_label is None else data.relabelled(self._new_label)
        return self._loaded[train]


class FromSource(StreamDataModule):
    """What streams of one :class:`~lightning_cl.sources.base.Source` have in common."""

    source: Source
    _loaded: dict[bool, Samples]

    def _data(self, train: bool) -> Samples:
        """All samples to train or to test; read once."""
        if train not in self._loaded:
            data = self.source.read(train)
            check_samples(data, self.source.num_classes, self.source.input_shape, train)
            self._loaded[train] = data
        return self._loaded[train]

    @override
    def prepare_data(self) -> None:
        self.source.prepare()
        for train in (True, False):
            self._data(train)  # images that are decoded into a file are so by one process, before the others ask

    @override
    def shape(self) -> dict[str, Any]:
        return {**super().shape(), **self.source.shape()}


class SourceStream(ClassStream, FromSource):
    """A stream that cuts a :class:`~lightning_cl.sources.base.Source` by class.

    Args:
        source: The data set.
        num_experiences: Length of the stream; ``None`` is the usual one of the data set, or follows from ``increment``.
        class_order: Permutation of the classes, or the seed of one (1993 is the field's); ``None`` is numeric.
        mean: Mean that is subtracted from pixels in ``[0, 1]``: one, or one per channel; ``None`` is the data set's.
        std: Standard deviation that is divided by, likewise.
        **kwargs: As for :class:`ClassStream`.
    """

    def __init__(
        self,
        source: Source,
        num_experiences: int | None = None,
        class_order: int | Sequence[int] | None = None,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            source.num_classes,
            source.input_shape,
            num_experiences,
            class_order,
            mean=source.mean if mean is None else mean,
            std=source.std if std is None else std,
            **kwargs,
        )
        self.source = source

    @override
    def load(self, train: bool) -> Samples:
        return self.source.read(train)


class DomainStream(FromSource):
    """A stream in which each experience shows the same classes in another domain.

    A concrete stream implements :meth:`domain`.

    Args:
        source: The data set.
        num_experiences: Number of domains.
        input_shape: Shape of one sample; ``None`` is the data set's own.
        mean: Mean that is subtracted from pixels in ``[0, 1]``: one, or one per channel; ``None`` is the data set's.
        std: Standard deviation that is divided by, likewise.
        **kwargs: As for :class:`StreamDataModule`.
    """

    same_samples = True

    def __init__(
        self,
        source: Source,
        num_experiences: int,
        input_shape: tuple[int, ...] | None = None,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        **kwargs: Any,
    ) -> None:
        if num_experiences < 1:
            raise ValueError(f"`num_experiences` must be 1 or more, got {num_experiences}.")
        super().__init__(
            [range(source.num_classes)] * num_experiences,
            source.num_classes,
            source.input_shape if input_shape is None else input_shape,
            mean=source.mean if mean is None else mean,
            std=source.std if std is None else std,
            **kwargs,
        )
        self.source = source
        self._loaded: dict[bool, Samples] = {}

    @abstractmethod
    def domain(self, experience: int, data: Samples, train: bool) -> Samples:
        """Return the training or test samples ``data`` as they look in one experience."""

    @override
    def dataset(self, experience: int, train: bool) -> Samples:
        return self.domain(experience, self._data(train), train)


class OwnStream(ClassStream):
    """Somebody's own samples, cut by class, by domain or by lists of indices.

    By class every argument of :class:`ClassStream` applies. By domain or list an experience has whatever labels occur
    in it.

    Args:
        train: The training samples.
        test: The test samples; ``None`` cuts ``test_fraction`` off the training samples, of each class or domain.
        num_experiences: Length of the stream, by class.
        domains: The domain of each training sample ``(N,)``, any integers: one experience per domain, ascending.
        test_domains: The domain of each test sample; where test samples are cut off, they bring their own.
        lists: The training samples of each experience, as indices.
        test_lists: The test samples of each experience, likewise.
        test_fraction: Part of each class (or domain) that is for testing, if there are no test samples, in ``(0, 1)``;
            ``None`` is 0.2.
        num_classes: Number of classes; ``None`` is the largest label and one.
        **kwargs: As for :class:`ClassStream`.

    Raises:
        ValueError: If an argument is out of range or does not go with another; the message names it.
    """

    def __init__(
        self,
        train: Samples,
        test: Samples | None = None,
        num_experiences: int | None = None,
        *,
        domains: Tensor | None = None,
        test_domains: Tensor | None = None,
        lists: Sequence[Sequence[int]] | None = None,
        test_lists: Sequence[Sequence[int]] | None = None,
        test_fraction: float | None = None,
        num_classes: int | None = None,
        **kwargs: Any,
    ) -> None:
        for name, samples in {"train": train, "test": test}.items():
            _check_labels(name, samples)
        if test_fraction is not None and test is not None:
            raise ValueError("`test_fraction` is for samples without others to test on: leave it out.")
        if domains is not None and lists is not None:
            raise ValueError("`domains` and `lists` both cut the stream: leave one out.")
        if (lists is None) != (test_lists is None) or (lists is not None and not len(lists)):
            raise ValueError("`lists` and `test_lists` go together, a list for each experience: give both or neither.")
        if lists is not None and test is None:
            raise ValueError("`lists` go with test samples of their own: give those and `test_lists`.")
        if test_domains is not None and (domains is None or test is None):
            raise ValueError("`test_domains` go with `domains` and with test samples of their own: leave it out.")
        by_class = domains is None and lists is None
        given = {"num_experiences": num_experiences, **kwargs}
        for name, default in ONLY_BY_CLASS.items():
            if not by_class and repr(given.get(name, default)) != repr(default):  # an array has no truth value
                raise ValueError(f"`{name}` cuts by class: it cannot go with `domains` or `lists`.")
        if domains is not None:
            domains = _numbers("domains", domains, len(train))
        if test is None:
            kept, held_out = _cut_off(train.labels, domains, 0.2 if test_fraction is None else test_fraction)
            if domains is not None:
                domains, test_domains = domains[kept], domains[held_out]
            train, test = train.subset(kept), train.subset(held_out)
        if num_classes is None:
            num_classes = int(max(train.labels.max(), test.labels.max())) + 1
        first = train[0][0]
        if not isinstance(first, Tensor):
            raise ValueError(f"Samples must be tensors, arrays or images, got {first!r}: choose another `input_key`.")
        shape = tuple(first.shape)
        check_samples(train, num_classes, shape, train=True)
        super().__init__(num_classes, shape, num_experiences if by_class else 1, **kwargs)
        self._samples = {True: train, False: test}
        self._lists: dict[bool, list[Tensor]] | None = None
        if domains is not None:
            self._cut_by(*_lists_of_domains(domains, test_domains, len(test)))
        elif lists is not None:
            self._cut_by([*map(torch.as_tensor, lists)], [*map(torch.as_tensor, test_lists or ())])

    def _cut_by(self, train: list[Tensor], test: list[Tensor]) -> None:
        if len(train) != len(test):
            raise ValueError(f"`lists` and `test_lists` must be of one length, got {len(train)} and {len(test)}.")
        check_lists(train, len(self._samples[True]))
        for index in test:  # these may have samples in common
            check_lists([index], len(self._samples[False]), "test_lists")
        labels = self._samples[True].labels
        self._lists = {True: train, False: test}
        self._set_groups([torch.unique(labels[index]).tolist() for index in train])

    @override
    def shape(self) -> dict[str, Any]:
        return {**super().shape(), "samples": self._digest}

    @cached_property
    def _digest(self) -> str:
        """What tells this stream from others of the same sizes: its labels, and how they are cut."""
        digest = hashlib.sha256()
        labels = [self._samples[train].labels for train in (True, False)]
        for tensor in [*labels, *(self._lists or {}).get(True, []), *(self._lists or {}).get(False, [])]:
            digest.update(len(tensor).to_bytes(8, "little") + tensor.long().numpy().tobytes())
        return digest.hexdigest()[:16]

    @override
    def load(self, train: bool) -> Samples:
        return self._samples[train]

    @override
    def dataset(self, experience: int, train: bool) -> Samples:
        if self._lists is None:
            return super().dataset(experience, train)
        return self._data(train).subset(self._lists[train][experience])


def _check_blurry(blurry: str | None, numbers: Mapping[str, int | None], contradictions: Mapping[str, Any]) -> None:
    if blurry not in (None, "stochastic", "fixed", "i-blurry"):
        raise ValueError(f"`blurry` must be 'stochastic', 'fixed' or 'i-blurry', got {blurry!r}.")
    for name, value in numbers.items():
        most, allowed = (math.inf, "0 or more") if name == "blurry_seed" else (100, "in [0, 100]")
        if value is not None and not 0 <= value <= most:
            raise ValueError(f"`{name}` must be {allowed}, got {value}.")
        if value is not None and blurry is None:
            raise ValueError(f"`{name}` is for a `blurry` stream: set that too, or leave it out.")
    if blurry and (given := [name for name, on in contradictions.items() if on]):
        raise ValueError(f"`blurry` deals the classes at random: it cannot go with `{given[0]}`.")


ONLY_BY_CLASS = {
    **dict.fromkeys(["num_experiences", "class_order", "base_classes", "increment", "shots", "blurry", "blurry_seed"]),
    **dict.fromkeys(["disjoint_percent", "blurry_percent"]),
    "convention": "pycil",
    "relabel": False,
}
"""Arguments that cut by class, with their defaults."""


def _cut_off(labels: Tensor, domains: Tensor | None, fraction: float) -> tuple[Tensor, Tensor]:
    """Cut a part of each class off, or of each domain, over all of its classes; both in the order of the samples."""
    order = labels.argsort(stable=True)
    groups = labels if domains is None else domains
    kept, held_out = (order[part].sort().values for part in cut_off(groups[order], fraction))
    if domains is not None and (small := sorted({*domains[kept].tolist()} ^ {*domains[held_out].tolist()})):
        raise ValueError(f"`domains` {small} have too few samples to hold some out (`test_fraction`).")
    if not len(kept) or not len(held_out):
        raise ValueError(f"`test_fraction` {fraction} leaves nothing to train on, or to test on: choose another.")
    return kept, held_out


def _lists_of_domains(
    domains: Tensor, test_domains: Tensor | None, test_count: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Index lists of each domain among the training and among the test samples."""
    if test_domains is None:
        raise ValueError("`test_domains` must be given with `domains` where there are test samples of their own.")
    test_domains = _numbers("test_domains", test_domains, test_count)
    here, there = torch.unique(domains).tolist(), torch.unique(test_domains).tolist()
    if here != there:
        raise ValueError(f"`domains` and `test_domains` must be the same domains, got {here} and {there}.")
    return by_domain(domains), by_domain(test_domains)


def _check_labels(name: str, samples: Samples | None) -> None:
    if samples is None:
        return
    if not len(samples):
        raise ValueError(f"`{name}` must hold samples, got none.")
    if samples.labels.ndim != 1 or samples.labels.min() < 0:
        what = f"of shape {tuple(samples.labels.shape)} from {samples.labels.min()}"
        raise ValueError(f"The labels of `{name}` must be class numbers, 0 or more, one for each sample, got {what}.")


def _numbers(name: str, values: Any, count: int) -> Tensor:
    found = torch.as_tensor(values)
    if found.shape != (count,):
        raise ValueError(f"`{name}` must hold one number per sample, {count}, got the shape {tuple(found.shape)}.")
    return found
