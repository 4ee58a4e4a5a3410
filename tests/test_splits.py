from typing import Any, get_args

import numpy as np
import pytest
import torch

from lightning_cl.splits import (
    Convention,
    by_domain,
    check_lists,
    class_groups,
    class_order,
    cut_off,
    few_shot,
    group_sizes,
    label_map,
)

# The orders of seed 1993 as the field publishes them (PyCIL, FACIL).
ORDER_10 = [4, 2, 7, 6, 0, 3, 5, 8, 9, 1]
ORDER_100 = [
    *(68, 56, 78, 8, 23, 84, 90, 65, 74, 76, 40, 89, 3, 92, 55, 9, 26, 80, 43, 38, 58, 70, 77, 1, 85),
    *(19, 17, 50, 28, 53, 13, 81, 45, 82, 6, 59, 83, 16, 15, 44, 91, 41, 72, 60, 79, 52, 20, 10, 31, 54),
    *(37, 95, 14, 71, 96, 98, 97, 2, 64, 66, 42, 22, 35, 86, 24, 34, 87, 21, 99, 0, 88, 27, 18, 94, 11),
    *(12, 47, 25, 30, 46, 62, 69, 36, 61, 7, 63, 75, 5, 32, 4, 51, 48, 73, 93, 39, 67, 29, 49, 57, 33),
]
START_200 = [168, 136, 51, 9, 183, 101, 171, 99, 42, 159]
START_1000 = [54, 7, 894, 512, 126, 337, 988, 11, 284, 493]
CONVENTIONS: tuple[Convention, ...] = get_args(Convention)


@pytest.mark.parametrize(
    ("num_classes", "start"), [(10, ORDER_10), (100, ORDER_100), (200, START_200), (1000, START_1000)]
)
def test_seed_1993_gives_the_published_orders(num_classes: int, start: list[int]) -> None:
    assert class_order(num_classes, 1993)[: len(start)] == start


def test_class_order_neither_uses_nor_changes_the_global_generator() -> None:
    np.random.seed(3)
    first = np.random.rand()
    np.random.seed(3)
    assert class_order(10, 1993) == ORDER_10
    assert np.random.rand() == first


def test_class_order_may_be_numeric_or_given() -> None:
    assert class_order(4, None) == [0, 1, 2, 3]
    assert class_order(3, (2, 0, 1)) == [2, 0, 1]


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ([0, 1, 1], r"`class_order` must be a permutation of 0 to 2, got \[0, 1, 1\]\."),
        ([0, 1], r"`class_order` must be a permutation of 0 to 2, got \[0, 1\]\."),
        (-1, r"`class_order` must be in \[0, 2\*\*32\) where it is a seed, got -1\."),
    ],
)
def test_class_order_must_be_a_permutation(order: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        class_order(3, order)


def test_the_two_label_maps_are_inverse_permutations() -> None:
    by_position, by_value = label_map(ORDER_100, "pycil"), label_map(ORDER_100, "mammoth")
    assert by_position == np.argsort(ORDER_100).tolist() == label_map(ORDER_100, "facil")
    assert by_value == ORDER_100
    assert [by_position[by_value[c]] for c in range(100)] == list(range(100))


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_new_labels_of_an_experience_are_the_next_ones(convention: Convention) -> None:
    new, sizes = label_map(ORDER_10, convention), [5, 3, 2]
    groups = class_groups(ORDER_10, sizes, convention)
    assert [[new[old] for old in group] for group in groups] == [[0, 1, 2, 3, 4], [5, 6, 7], [8, 9]]


def test_first_experience_of_the_two_rules() -> None:
    first = [class_groups(ORDER_100, [10] * 10, convention)[0] for convention in ("pycil", "mammoth")]
    assert set(first[0]) == {68, 56, 78, 8, 23, 84, 90, 65, 74, 76}
    assert set(first[1]) == {c for c in range(100) if ORDER_100[c] < 10}


@pytest.mark.parametrize(
    ("arguments", "sizes"),
    [
        ({"num_experiences": 10}, [10] * 10),
        ({"num_experiences": 11, "base_classes": 50}, [50] + [5] * 10),
        ({"increment": 20}, [20] * 5),
        ({"increment": 30}, [30, 30, 30, 10]),
        ({"increment": 20, "base_classes": 50}, [50, 20, 20, 10]),
        ({"num_experiences": 6, "convention": "facil"}, [17, 17, 17, 17, 16, 16]),
        ({"num_experiences": 4, "base_classes": 50, "convention": "facil"}, [50, 17, 17, 16]),
        ({"num_experiences": 100}, [1] * 100),
        ({"num_experiences": 1}, [100]),
    ],
)
def test_group_sizes_of_100_classes(arguments: dict[str, Any], sizes: list[int]) -> None:
    assert group_sizes(100, **arguments) == sizes


@pytest.mark.parametrize(("num_classes", "num_experiences"), [(10, 3), (10, 7), (23, 5), (12, 4)])
def test_facil_deals_the_remainder_to_the_first(num_classes: int, num_experiences: int) -> None:
    dealt = [len(range(t, num_classes, num_experiences)) for t in range(num_experiences)]  # like cards, one by one
    assert group_sizes(num_classes, num_experiences, convention="facil") == dealt


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "`num_experiences` must be given, or the classes of"),
        (
            {"num_experiences": 2, "increment": 5},
            "both cut the classes, got 2 and 5: leave one out",
        ),
        (
            {"num_experiences": 3},
            r"`num_experiences` must divide the 10 classes: one of \[1, 2, 5, 10\], got 3\. Or set .* 'facil'",
        ),
        ({"num_experiences": 11}, r"`num_experiences` must divide the 10 classes: one of \[1, 2, 5, 10\], got 11\.$"),
        ({"num_experiences": 0}, r"`num_experiences` must divide the 10 classes: one of \[1, 2, 5, 10\], got 0\.$"),
        (
            {"num_experiences": 4, "base_classes": 6},
            r"`num_experiences` less 1 must divide the 4 other classes: one of \[2, 3, 5\], got 4\. Or set",
        ),
        ({"num_experiences": 11, "convention": "facil"}, r"`num_experiences` must be in \[1, 10\], .* got 11\."),
        (
            {"num_experiences": 6, "base_classes": 6, "convention": "facil"},
            r"`num_experiences` must be in \[2, 5\], so that each has a class, got 6\.",
        ),
        ({"increment": 0}, r"`increment` must be in \[1, 10\]"),
        ({"increment": 5, "base_classes": 6}, r"`increment` must be in \[1, 4\]"),
        ({"increment": 5, "base_classes": 10}, r"`base_classes` must be in \[1, 9\], got 10\."),
        ({"num_experiences": 2, "convention": "mine"}, r"`convention` must be one of \['pycil', 'facil', 'mammoth'\]"),
    ],
)
def test_group_sizes_that_cannot_be(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        group_sizes(10, **arguments)


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("sizes", [[5, 5], [3, 3, 4], [10]])
def test_experiences_partition_the_samples(convention: Convention, sizes: list[int]) -> None:
    labels = torch.randint(10, (200,), generator=torch.Generator().manual_seed(0))
    groups = class_groups(ORDER_10, sizes, convention)
    lists = [torch.isin(labels, torch.tensor(group)).nonzero().flatten() for group in groups]
    assert [len(group) for group in groups] == sizes
    assert torch.cat(lists).sort().values.tolist() == list(range(200))


@pytest.mark.parametrize("sizes", [[5, 4], [5, 5, 0], [11], []])
def test_sizes_must_be_those_of_all_classes(sizes: list[int]) -> None:
    with pytest.raises(ValueError, match="`sizes` must be 1 or more and add up to the 10 classes, got"):
        class_groups(ORDER_10, sizes, "pycil")


def test_few_shot_takes_as_many_of_each_class() -> None:
    labels = torch.tensor([7, 3, 7, 7, 3, 9, 3, 9, 3, 9])
    chosen = few_shot(labels, shots=3, seed=0)
    assert {c: (labels[chosen] == c).sum().item() for c in (3, 7, 9)} == {3: 3, 7: 3, 9: 3}
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert torch.equal(few_shot(labels, shots=3, seed=0), chosen)


def test_few_shot_may_take_any_sample() -> None:
    labels = torch.tensor([1, 0, 0, 1, 0, 0])
    counts = torch.zeros(6)
    for seed in range(400):
        counts[few_shot(labels, shots=1, seed=seed)] += 1
    expected = 400 / torch.tensor([2, 4, 4, 2, 4, 4])
    assert ((counts - expected).abs() < 5 * (expected * (1 - expected / 400)).sqrt()).all()


@pytest.mark.parametrize(("shots", "message"), [(0, "1 or more, got 0"), (2, r"and \[5, 8\] have not 2")])
def test_few_shot_needs_enough_samples(shots: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"`shots` must be .*{message}"):
        few_shot(torch.tensor([5, 1, 1, 8]), shots, seed=0)


def test_domains_partition_the_samples() -> None:
    domains = torch.randint(3, 8, (100,), generator=torch.Generator().manual_seed(0))
    lists = by_domain(domains)
    assert [index.tolist() for index in lists] == [[i for i in range(100) if domains[i] == d] for d in range(3, 8)]


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ([[0, 1], []], "an index for each experience, and list 1 is empty"),
        ([[0, 1], [4]], r"indices in \[0, 4\), and list 1 holds 4"),
        ([[-1]], r"indices in \[0, 4\), and list 0 holds -1"),
        ([[0, 2], [1], [2, 3]], r"each index at most once, and 2 is in lists \[0, 2\]"),
        ([[3, 3]], r"each index at most once, and 3 is in lists \[0, 0\]"),
        ([torch.tensor([0.0])], "integers, and list 0 is of torch.float32"),
        ([torch.tensor([True, False])], "integers, and list 0 is of torch.bool"),
    ],
)
def test_lists_must_be_disjoint_parts(lists: list[Any], message: str) -> None:
    check_lists([torch.tensor([2, 0]), [3]], count=4)
    with pytest.raises(ValueError, match=f"`lists` must (hold|have) {message}"):
        check_lists(lists, count=4)


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.5, 0.9])
def test_what_is_cut_off_is_a_part_of_each_class_and_spread_over_it(fraction: float) -> None:
    labels = torch.randint(6, (300,), generator=torch.Generator().manual_seed(0))
    kept, held_out = cut_off(labels, fraction)
    assert sorted([*kept.tolist(), *held_out.tolist()]) == list(range(300))
    for c in range(6):
        mine = (labels == c).nonzero().flatten()
        place = torch.isin(mine, held_out).nonzero().flatten()
        assert abs(len(place) - fraction * len(mine)) <= 0.5
        assert (place.diff() - 1 / fraction).abs().max() < 1  # as even as whole numbers allow


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5])
def test_fraction_that_is_cut_off_is_a_part(fraction: float) -> None:
    with pytest.raises(ValueError, match=rf"`test_fraction` must be in \(0, 1\), got {fraction}"):
        cut_off(torch.zeros(3), fraction)
