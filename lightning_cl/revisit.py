"""Environments in which the old comes back: how many samples of earlier experiences are shown again in a later one.

They are part of the stream, not a memory: nothing bounds what is kept, and the data of all earlier experiences must
stay at hand. Compare with a replay memory at equal numbers of stored samples and of optimizer steps, not of epochs.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

from torch import Tensor
from typing_extensions import override

from lightning_cl.utilities import derive_seed, permutation

Rounding = Literal["exact", "truncate"]
"""How shares become whole numbers: they add up to what there is to share, or are cut off one by one."""


class Revisit(ABC):
    """A rule for how much of the past is shown again."""

    @abstractmethod
    def counts(self, sizes: Sequence[int]) -> list[int]:
        """Return how many samples of each experience are shown in the last one.

        Args:
            sizes: Number of training samples of each experience so far, the current one last.

        Returns:
            As many numbers, in the same order; :func:`check_counts` says what is allowed.
        """


class PowerLaw(Revisit):
    r"""Show less of an experience the older it is, by a power of its age.

    The naturalistic environment of Gandhi, Shah, Marupudi and Varma, "Catastrophic Interference is Mitigated in
    Naturalistic Power-Law Learning Environments", 2024. An experience that was new :math:`d` experiences ago has
    the age :math:`a = a_0 + s d`, and of its samples :math:`n_d = \lfloor n_0 (a_0 / a)^e / D \rfloor` are shown, the
    numerator being rounded. The power is one of the age, not of :math:`d`: by default :math:`n_d / n_0 = (1 + d /
    10)^{-5.6}`. The code of the authors' precursor project has a table of ages from 20 to 40 and takes every second
    entry; this formula was fitted to it: it differs by 1 at most, and not at all after :math:`D = 6`.

    Args:
        exponent: The power :math:`e`, above 0.
        age0: Age :math:`a_0` of the current experience, above 0.
        age_step: Ages :math:`s` between experiences, above 0.
        downsample: Divisor :math:`D`; the authors trained with 6.
        n0: Samples that are shown of a new experience of 60 000 samples (as MNIST has), in [1, 60000]; for other sizes
            it is scaled in proportion.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> PowerLaw(downsample=6).counts([60_000] * 4)
        [2221, 3477, 5661, 9654]
    """

    def __init__(
        self, exponent: float = 5.6, age0: float = 20, age_step: float = 2, downsample: int = 1, n0: int = 57_927
    ) -> None:
        for name, value in (("exponent", exponent), ("age0", age0), ("age_step", age_step)):
            if not value > 0:
                raise ValueError(f"`{name}` must be above 0, got {value}.")
        if downsample < 1:
            raise ValueError(f"`downsample` must be 1 or more, got {downsample}.")
        if not 1 <= n0 <= 60_000:
            raise ValueError(f"`n0` must be in [1, 60000], as it is of 60 000 samples, got {n0}.")
        self.exponent = exponent
        self.age0 = age0
        self.age_step = age_step
        self.downsample = downsample
        self.n0 = n0

    @override
    def counts(self, sizes: Sequence[int]) -> list[int]:
        ages = [self.age0 + self.age_step * lag for lag in reversed(range(len(sizes)))]
        shown = [self.n0 * n / 60_000 * (self.age0 / age) ** self.exponent for n, age in zip(sizes, ages, strict=True)]
        return [round(n) // self.downsample for n in shown]


class _Budget(Revisit):
    """Show all of the current experience, and share a number of old samples among the earlier ones.

    That number is a fraction of the new samples. The rules and ``"truncate"`` are those of the code that
    :class:`PowerLaw` names.
    """

    def __init__(self, fraction: float = 0.1, rounding: Rounding = "exact") -> None:
        if not 0 <= fraction <= 1:
            raise ValueError(f"`fraction` must be in [0, 1], got {fraction}.")
        if rounding not in ("exact", "truncate"):
            raise ValueError(f"`rounding` must be 'exact' or 'truncate', got {rounding!r}.")
        self.fraction = fraction
        self.rounding = rounding

    @abstractmethod
    def _weights(self, count: int) -> list[float]:
        """Relative shares of ``count`` earlier experiences, the oldest first."""

    @override
    def counts(self, sizes: Sequence[int]) -> list[int]:
        *old, new = sizes
        total = int(new * self.fraction + 1e-9)  # 0.29 of 100 is 29
        return [*_shares(total, self._weights(len(old)), self.rounding), new]


class Uniform(_Budget):
    """Show as much of each earlier experience.

    Args:
        fraction: Old samples that are shown, as a fraction of the new ones, in [0, 1]; 0 is the plain stream.
        rounding: ``"exact"``: shares add up to that number; the newest get what is left over. ``"truncate"``: all are
            equal, as in the authors' code.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> Uniform(0.5).counts([100, 100, 100, 100]), Uniform(0.5, "truncate").counts([100, 100, 100, 100])
        ([16, 17, 17, 100], [16, 16, 16, 100])
    """

    @override
    def _weights(self, count: int) -> list[float]:
        return [1.0] * count


class Exponential(_Budget):
    r"""Show less of an experience the older it is, by a constant factor: :math:`w_d = \exp(-d / \beta) / \beta`.

    :math:`d = 1` is the experience before the current one.

    Args:
        fraction: Old samples that are shown, as a fraction of the new ones, in [0, 1]; 0 is the plain stream.
        beta: Experiences :math:`\beta` after which the share has fallen to :math:`1 / e`, 0.01 or more.
        rounding: ``"exact"``: shares add up to that number :math:`R`. ``"truncate"``: they are :math:`\lfloor w_d
            \lfloor R / \sum w \rfloor \rfloor`, as in the authors' code, which is less in all.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> Exponential(0.5, beta=1.0).counts([100, 100, 100, 100])
        [5, 12, 33, 100]
    """

    def __init__(self, fraction: float = 0.1, beta: float = 1.0, rounding: Rounding = "exact") -> None:
        super().__init__(fraction, rounding)
        if not beta >= 0.01:
            raise ValueError(f"`beta` must be 0.01 or more, got {beta}.")
        self.beta = beta

    @override
    def _weights(self, count: int) -> list[float]:
        return [math.exp(-lag / self.beta) / self.beta for lag in range(count, 0, -1)]


class RisingPower(_Budget):
    r"""Show more of an experience the later its position, by a power: :math:`w_j = \alpha x_j^{\alpha - 1}`.

    :math:`x_j = (10 + j) / 100`, :math:`j = 0` being the first experience. The authors' code calls this a power law
    too, but it is not the one of :class:`PowerLaw`: it rises with the position, and does not fall with the age.

    Args:
        fraction: Old samples that are shown, as a fraction of the new ones, in [0, 1]; 0 is the plain stream.
        alpha: :math:`\alpha`, above 2 and at most 100.
        rounding: ``"exact"``: shares add up to that number :math:`R`. ``"truncate"``: they are :math:`\lfloor w_j
            \lfloor R / \sum w \rfloor \rfloor`, as in the authors' code, which is less in all.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> RisingPower(0.5, alpha=5.0).counts([100, 100, 100, 100])
        [11, 16, 23, 100]
    """

    def __init__(self, fraction: float = 0.1, alpha: float = 5.0, rounding: Rounding = "exact") -> None:
        super().__init__(fraction, rounding)
        if not 2 < alpha <= 100:
            raise ValueError(f"`alpha` must be above 2 and at most 100, got {alpha}.")
        self.alpha = alpha

    @override
    def _weights(self, count: int) -> list[float]:
        return [self.alpha * (0.01 * (10 + j)) ** (self.alpha - 1) for j in range(count)]


def check_counts(counts: Sequence[int], sizes: Sequence[int]) -> None:
    """Refuse to show more samples than there are, or none of the current experience.

    Args:
        counts: How many of each, as from :meth:`Revisit.counts`.
        sizes: How many there are of each.

    Raises:
        ValueError: If one is out of its range.

    Example:
        >>> check_counts([0, 7], sizes=[10, 10])
    """
    for task, (count, size) in enumerate(zip(counts, sizes, strict=True)):
        least = int(task == len(sizes) - 1)
        if not least <= count <= size:
            raise ValueError(
                f"`revisit` must show {least} to {size} samples of experience {task} in experience {len(sizes) - 1}, "
                f"got {count}: change its fraction or scale."
            )


def draw(counts: Sequence[int], sizes: Sequence[int], seed: int, phase: int) -> list[Tensor]:
    """Choose the samples of each experience that are shown in one phase, without replacement.

    Each phase chooses anew. The choice depends on the seed, the phase and the index of the experience only, so that it
    is the same on every rank and after a resume.

    Args:
        counts: How many of each, as from :meth:`Revisit.counts`.
        sizes: How many there are of each.
        seed: Seed of the stream.
        phase: Index of the current experience.

    Returns:
        For each experience indices into its samples, in ascending order.

    Raises:
        ValueError: If more are asked for than there are.

    Example:
        >>> [len(index) for index in draw([2, 3], [10, 3], seed=0, phase=1)]
        [2, 3]
    """
    check_counts(counts, sizes)
    chosen = []
    for task, (count, size) in enumerate(zip(counts, sizes, strict=True)):
        chosen.append(permutation(size, derive_seed(seed, phase, task))[:count].sort().values)
    return chosen


def _shares(total: int, weights: Sequence[float], rounding: Rounding) -> list[int]:
    if rounding == "truncate":
        return [int(weight * (total // sum(weights))) for weight in weights]
    quotas = [total * weight / sum(weights) for weight in weights]
    counts = [int(quota) for quota in quotas]
    # What is left over goes to the largest remainders, of equal ones to the newest.
    ranked = sorted(range(len(counts)), key=lambda j: (quotas[j] - counts[j], j), reverse=True)
    for j in ranked[: total - sum(counts)]:
        counts[j] += 1
    return counts
