"""Exemplars: which samples stand for a class, and the classifier of the nearest mean of exemplars."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_cl.utilities import at_least_float32

TIE = 1e-12
"""Differences below it are rounding: features as long as 1 are equally good, and the first of them is taken."""


def herding(features: Tensor, count: int | None = None) -> Tensor:
    r"""Return the samples whose means come closest to the mean of all, one after another.

    Herding as in Rebuffi et al., "iCaRL: Incremental Classifier and Representation Learning", CVPR 2017: with
    :math:`\varphi_i` the features, scaled to length 1, :math:`\mu` their mean and :math:`S` the sum of those chosen,
    the :math:`k`-th is the unused

    .. math:: \arg\min_i \lVert \mu - (\varphi_i + S) / k \rVert.

    This is the greedy form, also in Mammoth, FACIL and PyCIL. The authors' code takes :math:`\arg\max_i \langle w,
    \varphi_i \rangle` with :math:`w = \mu` first and :math:`w \leftarrow w + \mu - \varphi_i` then, which chooses the
    same until it takes a sample a second time.

    Computed in float64 on the device of the features. The first ``m`` of the answer are the answer for ``m``, so that a
    list is shortened by cutting it.

    Args:
        features: Of one class, ``(N, D)``.
        count: How many to choose, 0 or more; ``None``, or more than there are, is all.

    Returns:
        Their places, the best first, int64 ``(min(count, N),)`` on the device of the features.

    Raises:
        ValueError: If ``count`` is negative, or ``features`` is not ``(N, D)``.

    Example:
        >>> herding(torch.tensor([[1.0, 0.0], [3.0, 3.0], [0.0, 2.0]]))
        tensor([1, 0, 2])
    """
    unit = _unit_rows(features)
    chosen = torch.empty(_checked(count, len(unit)), dtype=torch.int64, device=unit.device)
    mean, lengths = unit.mean(0), unit.square().sum(1)  # a feature of zeros has length 0, all others have 1
    wanted = mean.clone()  # k * mu - S
    for k in range(len(chosen)):
        gain = (2 * (unit @ wanted) - lengths).index_fill_(0, chosen[:k], -torch.inf)
        best = (gain >= gain.max() - TIE).int().argmax()
        chosen[k] = best
        wanted += mean - unit[best]
    return chosen


def closest_to_mean(features: Tensor, count: int | None = None) -> Tensor:
    """Return the samples that are closest to the mean of all: the comparison that herding is measured against.

    Features are scaled to length 1 first, as in :func:`herding`.

    Args:
        features: Of one class, ``(N, D)``.
        count: How many to choose, 0 or more; ``None``, or more than there are, is all.

    Returns:
        Their places, the closest first, int64 ``(min(count, N),)`` on the device of the features.

    Raises:
        ValueError: If ``count`` is negative, or ``features`` is not ``(N, D)``.

    Example:
        >>> closest_to_mean(torch.tensor([[1.0, 0.0], [3.0, 3.0], [2.0, 1.0]]))
        tensor([2, 1, 0])
    """
    unit = _unit_rows(features)
    distances = (unit - unit.mean(0)).square().sum(1)
    return distances.argsort(stable=True)[: _checked(count, len(unit))]


def scores_of(order: Tensor, total: int) -> Tensor:
    """Turn an order into scores, for a memory that keeps the items of the highest.

    Args:
        order: Places of samples, the best first, ``(m,)``.
        total: How many samples there are, ``m`` or more.

    Returns:
        The score of each sample, in the order of places: 0 for the best, then -1, -2, ..., and minus infinity for what
        is not in ``order``; float64 ``(total,)``.

    Example:
        >>> scores_of(torch.tensor([3, 0]), total=4)
        tensor([-1., -inf, -inf, 0.], dtype=torch.float64)
    """
    ranks = torch.arange(0, -len(order), -1, dtype=torch.float64, device=order.device)
    return ranks.new_full((total,), -torch.inf).index_copy_(0, order, ranks)


def exemplar_means(features: Tensor, y: Tensor, num_classes: int) -> Tensor:
    r"""Return the mean of the features of each class, both scaled to length 1.

    To count mirrored images as Rebuffi et al. do, put their features and labels behind those of the images.

    Args:
        features: ``(N, D)``.
        y: Labels ``(N,)`` in ``[0, num_classes)``.
        num_classes: Number :math:`C` of classes.

    Returns:
        Means ``(C, D)`` in float32 at least; that of a class without a sample is 0.

    Example:
        >>> exemplar_means(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([2, 2]), num_classes=3)
        tensor([[0.0000, 0.0000],
                [0.0000, 0.0000],
                [0.7071, 0.7071]])
    """
    unit = _unit_rows(features)
    sums = unit.new_zeros(num_classes, unit.shape[1]).index_add_(0, y.to(unit.device), unit)
    return F.normalize(sums, dim=1).to(at_least_float32(features.dtype))


def nearest_mean(features: Tensor, means: Tensor) -> Tensor:
    r"""Return scores of which the highest is that of the class whose mean is nearest.

    The score of a class is :math:`-\lVert \varphi - \mu_c \rVert^2` with the features :math:`\varphi` scaled to length
    1; that of a class without a mean is minus infinity.

    Args:
        features: ``(B, D)``.
        means: As :func:`exemplar_means` returns them, ``(C, D)``.

    Returns:
        Scores ``(B, C)`` in the type of ``means``.

    Example:
        >>> nearest_mean(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0]]))
        tensor([[-inf, -2., 0.]])
    """
    with torch.autocast(features.device.type, enabled=False):  # in half precision near means are no longer told apart
        unit = F.normalize(features.to(means.dtype), dim=1)
        lengths = means.square().sum(1)
        scores = 2 * (unit @ means.T) - lengths - unit.square().sum(1, keepdim=True)
        return scores.masked_fill(lengths == 0, -torch.inf)


def _unit_rows(features: Tensor) -> Tensor:
    """Features scaled to length 1, in float64."""
    if features.ndim != 2:
        raise ValueError(f"`features` must be (N, D), got the shape {tuple(features.shape)}: flatten or pool them.")
    return F.normalize(features.detach().double(), dim=1)


def _checked(count: int | None, available: int) -> int:
    if count is not None and count < 0:
        raise ValueError(f"`count` must be 0 or more, or None for all, got {count}.")
    return available if count is None else min(count, available)
