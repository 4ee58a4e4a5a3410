import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_cl.exemplars import closest_to_mean, exemplar_means, herding, nearest_mean, scores_of


def features(count: int = 30, width: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(given: Tensor) -> list[int]:
    """Herding as it is written: the distance of each possible mean to the mean of all."""
    unit, chosen = F.normalize(given), list[int]()
    while len(chosen) < len(unit):
        left = [i for i in range(len(unit)) if i not in chosen]
        distances = [(unit.mean(0) - unit[[*chosen, i]].mean(0)).norm() for i in left]
        chosen.append(left[int(torch.stack(distances).argmin())])
    return chosen


def dual(given: Tensor) -> list[int]:
    """The rule of the authors' code, until it would take a sample again."""
    unit, chosen = F.normalize(given), list[int]()
    w = unit.mean(0)
    while (best := int((unit @ w).argmax())) not in chosen:
        chosen.append(best)
        w = w + unit.mean(0) - unit[best]
    return chosen


@pytest.mark.parametrize("seed", range(5))
def test_herding_is_the_greedy_rule(seed: int) -> None:
    given = features(seed=seed)
    assert herding(given).tolist() == by_hand(given)


def test_herding_is_the_dual_rule_until_its_first_repeat() -> None:
    lengths = []
    for seed in range(100):
        given = features(seed=seed)
        expected = dual(given)
        assert herding(given, len(expected)).tolist() == expected
        lengths.append(len(expected))
    assert min(lengths) >= 2
    assert max(lengths) < 30, "the rules never part, so nothing is tested"


def test_a_shorter_list_is_a_prefix() -> None:
    given = features()
    for choose in (herding, closest_to_mean):
        whole = choose(given)
        assert sorted(whole.tolist()) == list(range(30))
        assert all(choose(given, m).equal(whole[:m]) for m in range(31))
        assert choose(given, 99).equal(whole)


def test_mean_of_all_chosen_is_the_mean() -> None:
    unit = F.normalize(features(200))
    chosen = unit[herding(unit)]
    assert (chosen.mean(0) - unit.mean(0)).norm() < 1e-12
    first = [(chosen[:m].mean(0) - unit.mean(0)).norm().item() for m in (1, 10, 100)]
    assert first == sorted(first, reverse=True)


@pytest.mark.parametrize("choose", [herding, closest_to_mean])
def test_features_count_by_direction_only(choose: object) -> None:
    assert callable(choose)
    given = features()
    longer = given * torch.rand(30, 1, dtype=torch.float64).add(0.5)
    assert choose(longer).equal(choose(given))
    assert choose(given.float()).equal(choose(given.float().double()))


def test_features_of_zeros_are_herded_as_they_are() -> None:
    given = features(8)
    given[2] = given[5] = 0.0
    assert herding(given).tolist() == by_hand(given)


def test_of_equal_samples_the_first_is_taken() -> None:
    given = features(7).repeat(5, 1)
    first = herding(given, 7)
    assert all(int(i) < 7 for i in first[: len(dual(given))])
    assert herding(torch.ones(9, 3)).tolist() == closest_to_mean(torch.ones(9, 3)).tolist() == list(range(9))


def test_closest_to_mean_is_in_order_of_distance() -> None:
    unit = F.normalize(features())
    distances = (unit - unit.mean(0)).norm(dim=1)[closest_to_mean(features())]
    assert distances.equal(distances.sort().values)


def test_scores_give_the_order_back() -> None:
    order = herding(features(), 12)
    scores = scores_of(order, 30)
    assert scores.argsort(descending=True)[:12].equal(order)
    assert scores.isinf().sum() == 18


def test_means_have_length_1_and_are_those_of_each_class() -> None:
    given, y = features(), torch.arange(30) % 3 * 2
    means = exemplar_means(given, y, 6)
    for c in (0, 2, 4):
        mean = F.normalize(given[y == c]).mean(0)
        torch.testing.assert_close(means[c], mean / mean.norm())
    assert means[[1, 3, 5]].eq(0).all()


def test_mirrored_images_count_as_the_average_of_two_means() -> None:
    given, mirrored, y = features(), features(seed=1), torch.arange(30) % 3
    both = exemplar_means(torch.cat([given, mirrored]), torch.cat([y, y]), 3)
    for c in range(3):
        mean = (F.normalize(given[y == c]).mean(0) + F.normalize(mirrored[y == c]).mean(0)) / 2
        torch.testing.assert_close(both[c], mean / mean.norm())


def test_scores_are_minus_the_squared_distance() -> None:
    means = exemplar_means(features(4), torch.tensor([0, 1, 3, 3]), 4)
    scores = nearest_mean(features(10, seed=1), means)
    expected = -torch.cdist(F.normalize(features(10, seed=1)), means).square()
    torch.testing.assert_close(scores[:, [0, 1, 3]], expected[:, [0, 1, 3]])
    assert scores[:, 2].eq(-torch.inf).all()


def test_near_means_are_told_apart_in_half_precision() -> None:
    means = F.normalize(torch.tensor([[1.0, 1e-3], [1.0, -1e-3]]))
    given = torch.tensor([[3.0, 2e-3], [3.0, -2e-3]])
    with torch.autocast("cpu", torch.bfloat16):
        assert nearest_mean(given, means).argmax(1).tolist() == [0, 1]
    assert nearest_mean(given.bfloat16(), means).dtype == torch.float32


@pytest.mark.parametrize("choose", [herding, closest_to_mean])
def test_bad_arguments_are_named(choose: object) -> None:
    assert callable(choose)
    with pytest.raises(ValueError, match=r"^`count` must be 0 or more, or None for all, got -1\.$"):
        choose(features(), -1)
    with pytest.raises(ValueError, match=r"^`features` must be \(N, D\), got the shape \(2, 3, 4\)"):
        choose(torch.zeros(2, 3, 4))
