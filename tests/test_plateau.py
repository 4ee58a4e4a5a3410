"""When a stream of losses has come to rest: against the rule written over the whole stream."""

import random
from typing import Any

import numpy as np
import pytest

from lightning_cl.plateau import PlateauDetector

LOW, HIGH = [0.1] * 8, [2.0] * 8


def fired(losses: list[float], detector: PlateauDetector | None = None) -> list[int]:
    detector = PlateauDetector() if detector is None else detector
    return [i for i, loss in enumerate(losses) if detector.push(loss)]


def by_hand(losses: list[float], window: int, max_mean: float, max_variance: float) -> list[int]:
    """Look from each plateau for the first rise after it, and from there for the first low and flat window."""
    windows = np.lib.stride_tricks.sliding_window_view(np.array(losses), window)
    mean, variance = windows.mean(1), windows.var(1)
    rest = (mean < max_mean) & (variance < max_variance)
    found, start = [], 0
    while (ahead := np.flatnonzero(rest[start:])).size:
        here = start + int(ahead[0])
        found.append(here + window - 1)
        rise = np.flatnonzero(mean[here + 1 :] > mean[here] + variance[here] ** 0.5)
        if not rise.size:
            break
        start = here + 1 + int(rise[0])
    return found


@pytest.mark.parametrize("seed", range(5))
def test_the_rule_holds_on_random_streams(seed: int) -> None:
    draw = random.Random(seed)
    losses = [abs(draw.gauss(level, 0.05)) for _ in range(30) for level in [draw.choice([0.1, 0.15, 0.5])] * 6]
    expected = by_hand(losses, 4, 0.2, 0.01)
    assert fired(losses, PlateauDetector(4, 0.2, 0.01)) == expected
    assert len(expected) >= 4


def test_once_per_low_plateau() -> None:
    """Each needs a full window, and a rise since the last."""
    assert fired([*LOW, *LOW, *HIGH, *LOW, *HIGH, *LOW]) == [4, 28, 44]
    assert fired([*HIGH, *LOW]) == [12]
    assert fired([*LOW, *[0.15] * 8]) == [4, 8, 11]  # means 0.11, 0.12, 0.13, 0.14: a rise, though low all the same
    assert fired(HIGH) == []


def test_a_rise_is_more_than_the_spread_of_the_last_plateau() -> None:
    losses = [0.0, 0.2] * 3  # mean 0.1, standard deviation 0.1: the mean must pass 0.2
    for level, expected in ((0.19, [1]), (0.21, [1, 8])):
        assert fired([*losses, level, level, 0.1, 0.1], PlateauDetector(2, 0.2, 0.1)) == expected


def test_a_low_loss_that_jumps_is_no_plateau() -> None:
    assert fired([0.0, 0.2] * 5, PlateauDetector(2, 0.15, 0.01)) == []
    assert fired([0.0, 0.2] * 5, PlateauDetector(2, 0.15, 0.0101)) == [1]


def test_nan_is_no_plateau() -> None:
    assert fired([float("nan")] * 6) == []


def test_state_goes_on_anywhere() -> None:
    losses = [*HIGH, *LOW, *HIGH, *LOW]
    for cut in range(len(losses)):
        first, second = PlateauDetector(), PlateauDetector()
        before = fired(losses[:cut], first)
        second.load_state_dict(first.state_dict())
        assert before + [cut + i for i in fired(losses[cut:], second)] == fired(losses)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window": 1}, "`window` must be 2 or more, got 1"),
        ({"max_mean": 0.0}, "`max_mean` must be above 0, got 0.0"),
        ({"max_variance": float("nan")}, "`max_variance` must be above 0, got nan"),
    ],
)
def test_errors(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PlateauDetector(**arguments)
