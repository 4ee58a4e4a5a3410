import math
import random
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch

from lightning_cl.revisit import Exponential, PowerLaw, Revisit, RisingPower, Rounding, Uniform, check_counts, draw

# Ages 20 to 40, from the code of Gandhi et al.
TABLE = [57927, 44078, 33969, 26483, 20867, 16603, 13329, 10790, 8802, 7232, 5981, 4978, 4167, 3508, 2968, 2523, 2155]
TABLE += [1849, 1592, 1377, 1195]
SHARING: list[Callable[[float, Rounding], Revisit]] = [
    Uniform,
    lambda fraction, rounding: Exponential(fraction, 2.0, rounding),
    lambda fraction, rounding: RisingPower(fraction, 5.0, rounding),
]


def test_power_law_is_the_table() -> None:
    every_age = PowerLaw(age_step=1).counts([60_000] * 21)[::-1]
    assert all(abs(count - entry) <= 1 for count, entry in zip(every_age, TABLE, strict=True))
    assert PowerLaw().counts([60_000] * 10)[::-1] == every_age[:20:2]
    assert every_age[0] == TABLE[0]


def test_downsampled_power_law_divides_each_entry() -> None:
    phases = [PowerLaw(downsample=6).counts([60_000] * (p + 1)) for p in range(10)]
    assert [sum(counts) for counts in phases] == [
        *(9654, 15315, 18792, 21013, 22480, 23476, 24170, 24664, 25023, 25288)
    ]
    lags = [entry // 6 for entry in TABLE[::2]]
    assert all(counts[k] == lags[p - k] for p, counts in enumerate(phases) for k in range(p + 1))


def test_power_law_falls_with_age() -> None:
    counts = PowerLaw().counts([60_000] * 10)[::-1]
    assert counts == sorted(set(counts), reverse=True)
    for lag, count in enumerate(counts):
        assert count / counts[0] == pytest.approx((1 + lag / 10) ** -5.6, abs=2 / counts[0])
    assert sum(counts) / counts[0] == pytest.approx(2.62, abs=0.01)


def test_power_law_scales_with_the_size_of_each_experience() -> None:
    large, small = PowerLaw().counts([60_000] * 3), PowerLaw().counts([600, 600, 300])
    assert small == [round(large[0] / 100), round(large[1] / 100), round(large[2] / 200)]
    assert PowerLaw(n0=60_000).counts([11, 7])[-1] == 7


@pytest.mark.parametrize("make", SHARING)
@pytest.mark.parametrize("rounding", ["exact", "truncate"])
def test_without_revisits_it_is_the_plain_stream(make: Callable[..., Revisit], rounding: Rounding) -> None:
    sizes = [30, 40, 50]
    counts = make(0.0, rounding).counts(sizes)
    assert counts == [0, 0, 50]
    assert make(0.5, rounding).counts([30]) == [30]
    assert [index.tolist() for index in draw(counts, sizes, seed=0, phase=2)] == [[], [], list(range(50))]


def test_exact_shares_add_up() -> None:
    rng = random.Random(0)
    for _ in range(1000):
        new, earlier = rng.randint(1, 5000), rng.randint(1, 30)
        fraction = rng.random()
        *old, current = rng.choice(SHARING)(fraction, "exact").counts([5000] * earlier + [new])
        assert (sum(old), current) == (math.floor(new * fraction), new)
        assert min(old) >= 0


def test_truncated_shares_are_those_of_the_published_code() -> None:
    rng = random.Random(0)
    for _ in range(300):
        total, earlier = rng.randint(1, 5000), rng.randint(1, 30)
        rising = [5 * (0.01 * (10 + j)) ** 4 for j in range(earlier)]
        falling = [math.exp(-(earlier - j) / 2) / 2 for j in range(earlier)]
        for make, weights in zip(SHARING, ([1.0] * earlier, falling, rising), strict=True):
            *old, _ = make(1.0, "truncate").counts([5000] * earlier + [total])
            factor = math.floor(total / sum(weights))
            assert old == [math.floor(w * factor) for w in weights]
            assert 0 <= total - sum(old) < earlier + sum(weights)


def test_exact_shares_follow_the_law() -> None:
    sizes = [10**9] * 6
    *falling, _ = Exponential(1.0, beta=3.0).counts(sizes)
    *equal, _ = Uniform(0.5).counts(sizes)
    *rising, _ = RisingPower(1.0, alpha=4.0).counts(sizes)
    assert equal == [10**8] * 5
    for older, newer in pairwise(falling):
        assert newer / older == pytest.approx(math.exp(1 / 3), rel=1e-6)
    assert [n / rising[0] for n in rising] == pytest.approx([(1 + j / 10) ** 3 for j in range(5)], rel=1e-6)


def test_exact_shares_differ_from_quotas_by_less_than_one() -> None:
    assert Uniform(1.0).counts([10, 10, 10, 10]) == [3, 3, 4, 10]  # of equal claims the newest wins
    weights = [math.exp(-d / 2) for d in (4, 3, 2, 1)]
    *old, _ = Exponential(1.0, beta=2.0).counts([97] * 5)
    quotas = [97 * w / sum(weights) for w in weights]
    assert all(abs(count - quota) < 1 for count, quota in zip(old, quotas, strict=True))


@pytest.mark.parametrize("phase", [0, 2, 5])
def test_a_phase_draws_what_it_says(phase: int) -> None:
    sizes = [600 - 7 * k for k in range(phase + 1)]
    counts = PowerLaw(downsample=2).counts(sizes)
    lists = draw(counts, sizes, seed=4, phase=phase)
    assert [len(index) for index in lists] == counts  # none of a later experience
    for index, size in zip(lists, sizes, strict=True):
        assert set(index.tolist()) <= set(range(size))
        assert len(set(index.tolist())) == len(index)


def test_draws_depend_on_seed_phase_and_experience_only() -> None:
    state = torch.get_rng_state()
    first = draw([20, 20, 20], [100] * 3, seed=1, phase=2)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1000)
    again, other_phase, other_seed = (draw([20, 20, 20], [100] * 3, s, p) for s, p in ((1, 2), (1, 3), (2, 2)))
    assert all(map(torch.equal, first, again))
    assert len({tuple(index.tolist()) for lists in (first, other_phase, other_seed) for index in lists}) == 9


@pytest.mark.parametrize("counts", [[11, 5], [-1, 5], [3, 0], [3, 6]])
def test_no_more_than_there_is_and_some_of_the_current(counts: list[int]) -> None:
    wrong = 0 if counts[0] not in range(11) else 1
    limits = ["0 to 10", "1 to 5"][wrong]
    message = f"`revisit` must show {limits} samples of experience {wrong} in experience 1, got {counts[wrong]}:"
    with pytest.raises(ValueError, match=message):
        check_counts(counts, [10, 5])
    with pytest.raises(ValueError, match=message):
        draw(counts, [10, 5], seed=0, phase=1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PowerLaw(exponent=0), "`exponent` must be above 0, got 0"),
        (lambda: PowerLaw(age0=-1), "`age0` must be above 0, got -1"),
        (lambda: PowerLaw(age_step=0), "`age_step` must be above 0, got 0"),
        (lambda: PowerLaw(downsample=0), "`downsample` must be 1 or more, got 0"),
        (lambda: PowerLaw(n0=60_001), r"`n0` must be in \[1, 60000\].*, got 60001"),
        (lambda: Uniform(1.5), r"`fraction` must be in \[0, 1\], got 1.5"),
        (lambda: Uniform(0.5, "round"), "`rounding` must be 'exact' or 'truncate', got 'round'"),  # type: ignore[arg-type]
        (lambda: Exponential(0.5, beta=0), "`beta` must be 0.01 or more, got 0"),
        (lambda: RisingPower(0.5, alpha=2), "`alpha` must be above 2 and at most 100, got 2"),
    ],
)
def test_rules_refuse_what_cannot_be(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_the_limits_of_the_rules_are_finite() -> None:
    for rule in (Exponential(1.0, 0.01), RisingPower(1.0, 100), RisingPower(1.0, 100, "truncate")):
        *old, _ = rule.counts([1000] * 21)
        assert 980 <= sum(old) <= 1000
        assert old == sorted(old)
