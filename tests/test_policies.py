import io
import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from lightning_cl.memory import POLICIES, Memory
from lightning_cl.policies import NO_GROUPS, NO_SCORES, GradientDiversity, KeyedReservoir, Offer

SIZES = [[64], [16] * 4, [1] * 64, [3, 0, 29, 1, 31]]
UNCUT = sorted(POLICIES.keys() - {"gss"})  # whose answers do not depend on the cut into batches
BY_GROUP = ["class_quota", "ring"]


def stream(count: int, groups: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Groups that appear one after another and are not equally common; scores with ties."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(count, generator=generator).square() * torch.arange(1, count + 1) / count
    return 10 - (u * groups).long(), torch.randint(1000, (count,), generator=generator).double() / 1000


def insert(memory: Memory, numbers: Tensor, groups: Tensor, scores: Tensor) -> Tensor:
    """Offer numbered items with what the policy needs."""
    given = {"groups": groups, "scores": scores}
    return memory.insert(numbers, **{name: given[name][numbers] for name in memory.needs})


def fed(
    policy: str, capacity: int, count: int, sizes: Sequence[int] = (7,) * 9 + (1,), seed: int = 0
) -> tuple[Memory, Tensor, Tensor]:
    memory, (groups, scores) = Memory(capacity, policy, seed), stream(count)
    for numbers in torch.split(torch.arange(count), list(sizes)):
        insert(memory, numbers, groups, scores)
    return memory, groups, scores


def offered(policy: str, capacity: int, groups: Sequence[int], scores: Sequence[float] | None = None) -> Memory:
    """All in one batch, numbered through."""
    memory = Memory(capacity, policy)
    memory.insert(
        torch.arange(len(groups)),
        groups=torch.tensor(groups),
        scores=None if scores is None else torch.tensor(scores),
    )
    return memory


def plain(memory: Memory) -> Any:
    """The state as lists, which compare."""
    return tree_map(lambda leaf: leaf.tolist() if isinstance(leaf, Tensor) else leaf, memory.state_dict())


def kept(memory: Memory) -> set[int]:
    return set(memory.items.tolist())


def sizes_of(memory: Memory) -> dict[int, int]:
    """How many there are of each group."""
    assert memory.groups is not None
    return Counter(memory.groups.tolist())


def assert_close_to_five_sigma(count: Tensor | float, trials: int, p: float) -> None:
    assert abs(torch.as_tensor(count) / trials - p).max() < 5 * (p * (1 - p) / trials) ** 0.5


@pytest.mark.parametrize("policy", POLICIES)
def test_slots_are_filled_in_order_and_then_never_more(policy: str) -> None:
    memory, (groups, scores) = Memory(9, policy), stream(64, groups=1)
    for n in range(64):
        insert(memory, torch.tensor([n]), groups, scores)
        assert (len(memory), memory.seen) == (min(n + 1, 9), n + 1)
        if n < 9:
            assert memory.items.tolist() == list(range(n + 1))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("capacity", [1, 3, 10, 63])
def test_capacity_holds_for_several_groups(policy: str, capacity: int) -> None:
    memory, (groups, scores) = Memory(capacity, policy), stream(64)
    for numbers in torch.split(torch.arange(64), [5, 1, 0, 30, 28]):
        insert(memory, numbers, groups, scores)
        assert len(kept(memory)) == len(memory) <= capacity
    if policy not in BY_GROUP:
        assert len(memory) == capacity


@pytest.mark.parametrize("policy", UNCUT)
@pytest.mark.parametrize("capacity", [1, 6, 20, 60])
def test_content_does_not_depend_on_the_cut_into_batches(policy: str, capacity: int) -> None:
    one, *others = [fed(policy, capacity, 64, sizes)[0] for sizes in SIZES]
    for other in others:
        assert kept(other) == kept(one)
        if policy in ("reservoir", "balanced_reservoir", "fifo"):
            assert other.items.equal(one.items)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("sizes", SIZES)
def test_answers_and_marks_follow_the_items(policy: str, sizes: list[int]) -> None:
    """Also where slots become vacant, and the last items move there."""
    memory, (groups, scores) = Memory(12, policy), stream(64)
    for numbers in torch.split(torch.arange(64), sizes):
        slots = insert(memory, numbers, groups, scores)
        where = {n: slot for slot, n in enumerate(memory.items.tolist())}
        assert slots.tolist() == [where.get(n, -1) for n in numbers.tolist()]
        if "groups" in memory.needs:
            torch.testing.assert_close(memory.groups, groups[memory.items], rtol=0, atol=0)
        if "scores" in memory.needs:
            torch.testing.assert_close(memory.scores, scores[memory.items], rtol=0, atol=0)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("at", [3, 30])
def test_state_goes_on_exactly(policy: str, at: int) -> None:
    memory, groups, scores = fed(policy, 9, at, [at])
    file = io.BytesIO()
    torch.save(memory.state_dict(), file)
    file.seek(0)
    resumed = fed(policy, 9, 64, seed=99)[0]  # what it held must leave no trace
    resumed.load_state_dict(torch.load(file, weights_only=True))
    groups, scores = stream(64)
    for numbers in torch.split(torch.arange(at, 64), 5):
        answers = [insert(one, numbers, groups, scores) for one in (memory, resumed)]
        assert answers[0].equal(answers[1])
    assert plain(resumed) == plain(memory)


@pytest.mark.parametrize("policy", ["fifo", "ring"])
def test_nothing_is_random_where_it_is_said(policy: str) -> None:
    assert fed(policy, 9, 64, seed=1)[0].items.equal(fed(policy, 9, 64, seed=2)[0].items)


@pytest.mark.parametrize("policy", ["keyed_reservoir", "class_quota"])
@pytest.mark.parametrize(
    ("capacity", "count", "batch_size", "trials"),
    [(1, 2, 1, 500), (1, 2, 7, 800), (10, 100, 13, 300), (10, 100, 100, 800)],
)
def test_every_item_is_equally_likely_to_stay(
    policy: str, capacity: int, count: int, batch_size: int, trials: int
) -> None:
    """With ``class_quota``: of each of two groups, which have ``capacity`` places."""
    groups = 2 if policy == "class_quota" else 1
    found = torch.zeros(groups * count)
    for seed in range(trials):
        memory = Memory(groups * capacity, policy, seed)
        for numbers in torch.split(torch.arange(groups * count), batch_size):
            memory.insert(numbers, groups=numbers % groups)
        found[memory.items] += 1
    assert_close_to_five_sigma(found, trials, capacity / count)


@pytest.mark.parametrize("policy", BY_GROUP)
def test_quotas_shrink_when_a_group_appears(policy: str) -> None:
    """The higher quotas are those of the groups that appeared first."""
    memory = Memory(10, policy)
    memory.insert(torch.arange(30), groups=torch.tensor([7, 5, 6] * 10))
    assert sizes_of(memory) == {7: 4, 5: 3, 6: 3}
    before = kept(memory)
    memory.insert(torch.arange(30, 40), groups=torch.full((10,), 1))
    assert sizes_of(memory) == {7: 3, 5: 3, 6: 2, 1: 2}
    assert {n for n in kept(memory) if n < 30} <= before


def test_places_of_a_small_group_are_not_handed_on() -> None:
    assert sizes_of(offered("class_quota", 10, [0] + [1] * 50)) == {0: 1, 1: 5}


@pytest.mark.parametrize("policy", BY_GROUP)
def test_first_groups_stay_where_there_are_more_than_places(policy: str) -> None:
    memory = Memory(3, policy)
    for group in (4, 2, 9, 1, 7, 2, 1):
        memory.insert(torch.tensor([group]), groups=torch.tensor([group]))
    assert sizes_of(memory) == {4: 1, 2: 1, 9: 1}
    assert memory.items.equal(memory.groups)


@pytest.mark.parametrize("sizes", SIZES)
def test_ring_has_the_newest_of_each_group(sizes: list[int]) -> None:
    memory, groups, _ = fed("ring", 13, 64, sizes)
    seen = list(dict.fromkeys(groups.tolist()))
    quotas = [13 // len(seen) + (k < 13 % len(seen)) for k in range(len(seen))]
    newest = [
        (groups == group).nonzero().flatten().tolist()[-quota:] for group, quota in zip(seen, quotas, strict=True)
    ]
    assert kept(memory) == {n for numbers in newest for n in numbers}


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("capacity", [1, 10, 64])
def test_fifo_has_the_newest(capacity: int, sizes: list[int]) -> None:
    memory = fed("fifo", capacity, 64, sizes)[0]
    assert memory.scores is not None
    assert memory.items[memory.scores.argsort()].tolist() == list(range(64 - capacity, 64))


@pytest.mark.parametrize("policy", ["class_quota", "keyed_reservoir"])
def test_given_scores_keep_the_first_of_a_ranking(policy: str) -> None:
    """A list of exemplars is shortened by cutting it."""
    ranks = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    memory = offered(policy, 12, [0] * 20, (20.0 - ranks).tolist())
    assert kept(memory) == set((ranks < 12).nonzero().flatten().tolist())
    memory.insert(torch.arange(20, 30), groups=torch.ones(10), scores=torch.full((10,), 30.0))
    first = {n for n in kept(memory) if n < 20}
    places = 6 if policy == "class_quota" else 2
    assert first == set((ranks < places).nonzero().flatten().tolist())


def test_of_equal_scores_the_earlier_stay() -> None:
    memory = Memory(3, "keyed_reservoir")
    for numbers in torch.split(torch.arange(10), [2, 5, 3]):
        memory.insert(numbers, scores=torch.ones(len(numbers)))
    assert memory.items.tolist() == [0, 1, 2]


@pytest.mark.parametrize("policy", ["class_quota", "keyed_reservoir"])
def test_scores_are_used_up_in_order_whatever_they_decide(policy: str) -> None:
    """A smaller memory has a part of what a larger one has."""
    parts = [kept(fed(policy, capacity, 64)[0]) for capacity in (5, 20, 40)]
    assert parts[0] < parts[1] < parts[2]


# -- balanced_reservoir -----------------------------------------------------------------------------------------------


def reference(groups: list[int], capacity: int, seed: int) -> list[int]:
    """Item by item, as the law is written."""
    generator, slots = torch.Generator().manual_seed(seed), list[int]()
    for n in range(len(groups)):
        if n < capacity:
            slots.append(n)
            continue
        accept, place = torch.rand(2, dtype=torch.float64, generator=generator).tolist()
        if int(accept * (n + 1)) < capacity:
            held = [groups[m] for m in slots]
            largest = min(set(held), key=lambda group: (-held.count(group), group))
            victims = [slot for slot, group in enumerate(held) if group == largest]
            slots[victims[int(place * len(victims))]] = n
    return slots


@pytest.mark.parametrize("capacity", [1, 5, 30])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("late", [[], [9, 1, 4] * 20])
def test_balanced_reservoir_is_its_law_item_by_item(capacity: int, seed: int, late: list[int]) -> None:
    """Also where groups appear after the memory is full, some before those that it has and some after."""
    groups = [5] * 40 + late if late else stream(64)[0].tolist()
    memory = Memory(capacity, "balanced_reservoir", seed)
    for numbers in torch.split(torch.arange(len(groups)), 7):
        memory.insert(numbers, groups=torch.tensor(groups)[numbers])
    assert memory.items.tolist() == reference(groups, capacity, seed)


def test_balanced_reservoir_evens_out_what_a_reservoir_does_not() -> None:
    groups = torch.tensor([0] * 8 + [1]).repeat(100)
    memory = Memory(40, "balanced_reservoir")
    memory.insert(torch.arange(900), groups=groups)
    assert all(abs(size - 20) <= 1 for size in sizes_of(memory).values())
    plain = fed("reservoir", 40, 64)[0]
    plain.insert(torch.arange(900))
    assert (groups[plain.items] == 1).sum() < 15


def test_balanced_reservoir_accepts_and_replaces_by_its_odds() -> None:
    """The sixth of a kind comes to four places: accepted in 4 of 6 runs, each in whose place in a quarter of those."""
    trials, found = 1500, torch.zeros(4)
    for seed in range(trials):
        memory = Memory(4, "balanced_reservoir", seed)
        memory.insert(torch.arange(5), groups=torch.zeros(5))
        slot = int(memory.insert(torch.tensor([5]), groups=torch.zeros(1)))
        if slot >= 0:
            found[slot] += 1
    assert_close_to_five_sigma(found, trials, 4 / 6 / 4)


# -- gss --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("old", "new"), [(0.5, -0.2), (-0.9, 0.9), (0.0, 0.0)])
def test_gss_replaces_in_proportion_to_old_and_new(old: float, new: float) -> None:
    """All slots are alike, so it does not matter which is the rival."""
    trials, memory = 3000, offered("gss", 3, [0] * 3, [old] * 3)
    policy, scores = GradientDiversity(3, seed=0), torch.tensor([new], dtype=torch.float64)
    assert memory.scores is not None
    offer = Offer(1, 3, None, scores, NO_GROUPS, memory.scores, 3)
    replaced = sum(int(policy.assign(offer).slots) >= 0 for _ in range(trials))
    assert_close_to_five_sigma(replaced, trials, (old + 1) / (old + new + 2))


def test_gss_takes_the_rival_among_the_redundant() -> None:
    """A new item of score -1 always wins. The odds of the slots are 0, 1 and 2, as the scores are scaled."""
    trials, policy = 3000, GradientDiversity(3, seed=0)
    held, new = torch.tensor([-0.5, 0.0, 0.5]).double(), torch.tensor([-1.0]).double()
    offer = Offer(1, 3, None, new, NO_GROUPS, held, 3)
    slots = torch.cat([policy.assign(offer).slots for _ in range(trials)]).bincount(minlength=3)
    assert slots[0] == 0
    assert_close_to_five_sigma(slots[1], trials, 1 / 3)


def test_gss_gives_each_item_a_rival_of_its_own_and_drops_the_rest() -> None:
    memory = offered("gss", 4, [0] * 4, [0.9, 0.8, 0.7, 0.6])
    slots = memory.insert(torch.arange(4, 13), groups=torch.zeros(9), scores=torch.full((9,), -1.0))
    assert slots[:4].sort().values.tolist() == [0, 1, 2, 3]
    assert slots[4:].tolist() == [-1] * 5


def test_gss_refuses_what_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="`scores` must be numbers, got NaN"):
        offered("gss", 2, [0, 0], [0.5, float("nan")])


# -- merging ----------------------------------------------------------------------------------------------------------


def part(policy: str, capacity: int, numbers: Tensor) -> Memory:
    """A memory that was offered a part of a stream, of which item ``n`` has the score ``37 n mod 101``."""
    memory = Memory(capacity, policy)
    memory.insert(numbers, groups=numbers // 20, scores=37.0 * numbers % 101)
    return memory


@pytest.mark.parametrize("policy", ["keyed_reservoir", "class_quota"])
@pytest.mark.parametrize("capacity", [1, 4, 16, 200])
def test_merging_is_being_offered_both_parts(policy: str, capacity: int) -> None:
    parts = torch.split(torch.arange(100), 60)  # groups 0 to 2, and 3 and 4
    memory, other = (part(policy, capacity, numbers) for numbers in parts)
    before = plain(other)
    memory.merge(other)
    assert kept(memory) == kept(part(policy, capacity, torch.arange(100)))
    assert memory.seen == 100
    assert plain(other) == before


@pytest.mark.parametrize("policy", ["keyed_reservoir", "class_quota"])
@pytest.mark.parametrize("capacity", [1, 3, 13])
def test_merging_into_a_smaller_memory_cuts(policy: str, capacity: int) -> None:
    memory = Memory(capacity, policy)
    memory.merge(part(policy, 40, torch.arange(100)))
    assert kept(memory) == kept(part(policy, capacity, torch.arange(100)))


def test_merging_counts_groups_of_which_nothing_is_left() -> None:
    memory, other = part("class_quota", 2, torch.arange(20)), part("class_quota", 2, torch.arange(20, 80))
    memory.merge(other)
    assert isinstance(memory._policy, KeyedReservoir)
    assert list(memory._policy.quotas.items()) == [(0, 1), (1, 1), (2, 0), (3, 0)]


def test_merging_nothing_changes_nothing() -> None:
    memory = part("class_quota", 4, torch.arange(50))
    before = plain(memory)
    memory.merge(Memory(4, "class_quota"))
    assert plain(memory) == before


@pytest.mark.parametrize(
    ("policy", "other"), [*itertools.product(["reservoir", "ring"], repeat=2), ("class_quota", "keyed_reservoir")]
)
def test_merging_other_policies_is_refused(policy: str, other: str) -> None:
    with pytest.raises(ValueError, match=f"`other` must have the same policy.*got '{other}' for '{policy}'"):
        Memory(4, policy).merge(Memory(4, other))


# -- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "given", "message"),
    [
        ("class_quota", {}, "`groups` must be given: the policy 'class_quota' needs them"),
        ("gss", {}, "`scores` must be given: the policy 'gss' needs them"),
        ("ring", {"groups": [0, 0], "scores": [1.0, 1.0]}, "`scores` must be left out: the policy 'ring'"),
        ("reservoir", {"groups": [0]}, r"`groups` must be a number for each of 2 items, got \(1,\)"),
        ("keyed_reservoir", {"scores": [[1.0, 2.0]]}, r"`scores` must be a number for each of 2 items, got \(1, 2\)"),
    ],
)
def test_groups_and_scores_are_checked(policy: str, given: dict[str, Any], message: str) -> None:
    memory = Memory(4, policy)
    with pytest.raises(ValueError, match=message):
        memory.insert(torch.arange(2), **{name: torch.tensor(values) for name, values in given.items()})
    assert memory.seen == 0


@pytest.mark.parametrize("first", [True, False])
def test_groups_are_given_always_or_never(first: bool) -> None:
    memory, groups = Memory(4), torch.zeros(2)
    memory.insert(torch.arange(2), groups=groups if first else None)
    with pytest.raises(ValueError, match=f"`groups` must be {'given' if first else 'left out'}"):
        memory.insert(torch.arange(2), groups=None if first else groups)
    assert len(memory) == memory.seen == 2


def test_marks_are_on_the_cpu_in_their_types() -> None:
    memory = offered("class_quota", 4, [1, 2])
    assert memory.groups is not None
    assert memory.scores is not None
    assert (memory.groups.dtype, memory.scores.dtype) == (torch.int64, torch.float64)
    assert NO_GROUPS.dtype == torch.int64
    assert NO_SCORES.dtype == torch.float64
