"""How a data set becomes experiences: pure functions of integers and labels, which need no data."""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from lightning_cl.utilities import permutation

Convention = Literal["pycil", "facil", "mammoth"]
"""Whose rule says which classes an experience has, and how they are numbered; see :func:`class_groups`."""


def class_order(num_classes: int, order: int | Sequence[int] | None) -> list[int]:
    """Return the order in which classes arrive.

    Args:
        num_classes: Number of classes ``N``.
        order: ``None`` is the numeric order. A number seeds a permutation as PyCIL and its kin draw it: NumPy's legacy
            ``RandomState(seed).permutation(N)``; the field's seed is 1993. A list is taken as it is.

    Returns:
        A permutation of 0 to ``N - 1``.

    Raises:
        ValueError: If the list is no permutation, or the seed is not one of NumPy's.

    Example:
        >>> class_order(10, 1993)
        [4, 2, 7, 6, 0, 3, 5, 8, 9, 1]
    """
    if isinstance(order, int | np.integer):
        order = int(order)
        if not 0 <= order < 2**32:
            raise ValueError(f"`class_order` must be in [0, 2**32) where it is a seed, got {order}.")
        return [int(c) for c in np.random.RandomState(order).permutation(num_classes)]
    chosen = list(range(num_classes)) if order is None else [int(c) for c in order]
    if sorted(chosen) != list(range(num_classes)):
        raise ValueError(f"`class_order` must be a permutation of 0 to {num_classes - 1}, got {order}.")
    return chosen


def label_map(order: Sequence[int], convention: Convention) -> list[int]:
    """Return the new label of each old one, so that classes are numbered in the order in which they arrive.

    The two rules are inverse permutations: with the same order they make different experiences.

    Args:
        order: A permutation of the classes, as from :func:`class_order`.
        convention: ``"pycil"`` and ``"facil"`` (also LAMDA-PILOT, Continuum): the position of the old label in
            ``order``. ``"mammoth"`` (also the code base of van de Ven): ``order[old]``.

    Example:
        >>> label_map([2, 0, 1], "pycil"), label_map([2, 0, 1], "mammoth")
        ([1, 2, 0], [2, 0, 1])
    """
    _check_convention(convention)
    return list(order) if convention == "mammoth" else _inverse(order)


def group_sizes(
    num_classes: int,
    num_experiences: int | None = None,
    base_classes: int | None = None,
    increment: int | None = None,
    convention: Convention = "pycil",
) -> list[int]:
    """Return the number of classes of each experience.

    Args:
        num_classes: Number of classes ``C``.
        num_experiences: Number of experiences ``T``, all of one size (but see ``convention``). Either this or
            ``increment`` is given.
        base_classes: Classes of the first experience where it has others than the rest (50 is the field's "B50"), which
            is then cut as said, into ``T - 1`` experiences or by ``increment``; ``None`` is the field's "B0".
        increment: Classes of each further experience; what remains makes a smaller last one, as in PyCIL.
        convention: What happens if ``num_experiences`` does not divide the classes: ``"facil"`` gives one more to the
            first ``C mod T``, the others refuse.

    Raises:
        ValueError: If the arguments contradict each other, or there are more experiences than classes.

    Example:
        >>> group_sizes(100, base_classes=50, increment=20), group_sizes(100, 6, convention="facil")
        ([50, 20, 20, 10], [17, 17, 17, 17, 16, 16])
    """
    _check_convention(convention)
    if base_classes is not None and not 0 < base_classes < num_classes:
        raise ValueError(f"`base_classes` must be in [1, {num_classes - 1}], got {base_classes}.")
    base = [] if base_classes is None else [base_classes]
    rest = num_classes - sum(base)
    if num_experiences is not None and increment is None:
        return base + _by_count(rest, num_experiences, len(base), convention)
    if increment is not None and num_experiences is None:
        return base + _by_increment(rest, increment)
    if increment is None:
        raise ValueError("`num_experiences` must be given, or the classes of each experience with `increment`.")
    raise ValueError(
        f"`num_experiences` and `increment` both cut the classes, got {num_experiences} and {increment}: leave one "
        "out, or set `num_experiences` to null."
    )


def class_groups(order: Sequence[int], sizes: Sequence[int], convention: Convention) -> list[list[int]]:
    """Return the old labels of each experience, in the order of their new ones (see :func:`label_map`).

    Args:
        order: A permutation of the classes, as from :func:`class_order`.
        sizes: Number of classes of each experience, as from :func:`group_sizes`.
        convention: ``"pycil"`` and ``"facil"`` cut ``order`` itself. In ``"mammoth"`` an experience has the classes
            ``c`` whose ``order[c]`` falls into its range.

    Raises:
        ValueError: If the sizes are not those of all classes together.

    Example:
        >>> class_groups([2, 0, 3, 1], [2, 2], "pycil"), class_groups([2, 0, 3, 1], [2, 2], "mammoth")
        ([[2, 0], [3, 1]], [[1, 3], [0, 2]])
    """
    if sum(sizes) != len(order) or min(sizes, default=1) < 1:
        raise ValueError(f"`sizes` must be 1 or more and add up to the {len(order)} classes, got {list(sizes)}.")
    arrival = iter(_inverse(label_map(order, convention)))
    return [[next(arrival) for _ in range(size)] for size in sizes]


def few_shot(labels: Tensor, shots: int, seed: int) -> Tensor:
    """Choose the same number of samples of each class.

    Args:
        labels: Labels ``(N,)``.
        shots: Samples per class, 1 or more.
        seed: Fixes the choice.

    Returns:
        Indices into ``labels`` in ascending order, ``(classes * shots,)``.

    Raises:
        ValueError: If a class has fewer samples.

    Example:
        >>> labels = torch.tensor([0, 1, 1, 0, 1, 0, 0])
        >>> labels[few_shot(labels, shots=2, seed=0)].bincount()
        tensor([2, 2])
    """
    classes, of_class, counts = torch.unique(labels, return_inverse=True, return_counts=True)
    if shots < 1:
        raise ValueError(f"`shots` must be 1 or more, got {shots}.")
    if len(scarce := classes[counts < shots]):
        raise ValueError(f"`shots` must be at most the samples of any class, and {scarce.tolist()} have not {shots}.")
    order = permutation(len(labels), seed)
    order = order[of_class[order].argsort(stable=True)]  # class after class, each in random order
    return torch.cat([samples[:shots] for samples in torch.split(order, counts.tolist())]).sort().values


def cut_off(labels: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """Cut a part of each class off for testing, evenly spread over its samples in the order they come in.

    Args:
        labels: ``(N,)``.
        fraction: Part that is cut off, in ``(0, 1)``.

    Returns:
        Indices of the samples that are kept, and of those that are cut off, ascending.

    Raises:
        ValueError: If ``fraction`` is out of range.

    Example:
        >>> cut_off(torch.tensor([7, 7, 8, 7, 8, 7]), 0.5)
        (tensor([1, 4, 5]), tensor([0, 2, 3]))
    """
    if not 0 < fraction < 1:
        raise ValueError(f"`test_fraction` must be in (0, 1), got {fraction}.")
    order = labels.argsort(stable=True)
    _, counts = torch.unique(labels, return_counts=True)
    starts = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    rank = torch.arange(len(labels)) - starts  # the how manieth of its class each sample is, by class
    chosen = ((rank + 1) * fraction + 0.5).floor() > (rank * fraction + 0.5).floor()
    return order[~chosen].sort().values, order[chosen].sort().values


def hold_out_of_each_class(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Choose samples for validation, the same fraction of each class, as FACIL does.

    Args:
        labels: ``(N,)``.
        fraction: In ``[0, 1)``; of a class with ``n`` samples ``round(fraction * n)`` are held out.
        seed: Fixes the choice.

    Returns:
        Indices of the samples that are held out, class after class, and of the others in random order.

    Example:
        >>> held_out, rest = hold_out_of_each_class(torch.tensor([0, 0, 1, 1, 1, 1]), 0.5, seed=0)
        >>> torch.tensor([0, 0, 1, 1, 1, 1])[held_out].bincount(), len(rest)
        (tensor([1, 2]), 3)
    """
    order = permutation(len(labels), seed)
    _, counts = torch.unique(labels, return_counts=True)
    classes = torch.split(order[labels[order].argsort(stable=True)], counts.tolist())
    sizes = [round(fraction * len(samples)) for samples in classes]
    held_out = torch.cat([samples[:size] for samples, size in zip(classes, sizes, strict=True)])
    return held_out, order[~torch.isin(order, held_out)]


def by_domain(domains: Tensor) -> list[Tensor]:
    """Return the samples of each domain: one index list per id, ids and indices in ascending order.

    Args:
        domains: Domain of each sample, ``(N,)``.

    Example:
        >>> by_domain(torch.tensor([7, 2, 7, 2]))
        [tensor([1, 3]), tensor([0, 2])]
    """
    _, counts = torch.unique(domains, return_counts=True)
    return list(torch.split(domains.argsort(stable=True), counts.tolist()))


def check_lists(lists: Sequence[Tensor | Sequence[int]], count: int, name: str = "lists") -> None:
    """Refuse index lists that are not disjoint parts of a data set.

    Args:
        lists: Samples of each experience.
        count: Number of samples ``N`` of the data set.
        name: The argument that errors name.

    Raises:
        ValueError: If a list is empty or holds something that is not in ``[0, N)``, or an index comes twice.

    Example:
        >>> check_lists([[0, 2], [1]], count=3)
    """
    tensors = [torch.as_tensor(indices) for indices in lists]
    for number, indices in enumerate(tensors):
        if not len(indices):
            raise ValueError(f"`{name}` must have an index for each experience, and list {number} is empty.")
        if indices.is_floating_point() or indices.dtype == torch.bool:
            raise ValueError(f"`{name}` must hold integers, and list {number} is of {indices.dtype}.")
        if len(out := indices[(indices < 0) | (indices >= count)]):
            raise ValueError(f"`{name}` must hold indices in [0, {count}), and list {number} holds {out[0]}.")
    values, counts = torch.unique(torch.cat([torch.empty(0, dtype=torch.long), *tensors]), return_counts=True)
    if len(twice := values[counts > 1]):
        where = [number for number, indices in enumerate(tensors) for _ in range(int((indices == twice[0]).sum()))]
        raise ValueError(f"`{name}` must hold each index at most once, and {twice[0]} is in lists {where}.")


def _check_convention(convention: str) -> None:
    if convention not in get_args(Convention):
        raise ValueError(f"`convention` must be one of {list(get_args(Convention))}, got {convention!r}.")


def _inverse(permutation: Sequence[int]) -> list[int]:
    return sorted(range(len(permutation)), key=permutation.__getitem__)


def _by_increment(rest: int, increment: int) -> list[int]:
    if not 1 <= increment <= rest:
        raise ValueError(f"`increment` must be in [1, {rest}], the classes that there are for it, got {increment}.")
    full, left = divmod(rest, increment)
    return [increment] * full + [left] * (left > 0)


def _by_count(rest: int, num_experiences: int, with_base: int, convention: Convention) -> list[int]:
    parts = num_experiences - with_base
    possible = 1 <= parts <= rest
    if convention == "facil" and not possible:
        raise ValueError(
            f"`num_experiences` must be in [{1 + with_base}, {rest + with_base}], so that each has a class, "
            f"got {num_experiences}."
        )
    if convention != "facil" and not (possible and rest % parts == 0):
        allowed = [n + with_base for n in range(1, rest + 1) if rest % n == 0]
        rule = f"less 1 must divide the {rest} other" if with_base else f"must divide the {rest}"
        remedy = " Or set `convention` to 'facil', which makes the first ones larger by one." if possible else ""
        raise ValueError(f"`num_experiences` {rule} classes: one of {allowed}, got {num_experiences}.{remedy}")
    size, left = divmod(rest, parts)
    return [size + 1] * left + [size] * (parts - left)
