import io
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_cl.memory import POLICIES, Memory, deal, share
from lightning_cl.policies import Choice, Offer, Policy, Reservoir

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fed(batches: tuple[Tensor, ...] | list[Tensor], capacity: int, policy: str = "reservoir", seed: int = 0) -> Memory:
    memory = Memory(capacity, policy, seed)
    for batch in batches:
        memory.insert(batch)
    return memory


def assert_same_state(one: Memory, other: Memory) -> None:
    for key in ("columns", "policy_state", "seen"):
        torch.testing.assert_close(one.state_dict()[key], other.state_dict()[key], rtol=0, atol=0)


def assert_close_to_five_sigma(count: Tensor, trials: int, p: float) -> None:
    five_sigma = 5 * (p * (1 - p) / trials) ** 0.5
    torch.testing.assert_close(count / trials, torch.full_like(count, p), rtol=0, atol=five_sigma)


def assert_uniform(capacity: int, length: int, batch_size: int, trials: int, policy: str = "reservoir") -> None:
    kept = torch.zeros(length)
    for seed in range(trials):
        kept[fed(torch.split(torch.arange(length), batch_size), capacity, policy, seed).items] += 1
    assert_close_to_five_sigma(kept, trials, capacity / length)


class Biased(Reservoir):
    """The common mistake for batches of one item: draw from {0..n-1}."""

    def assign(self, offer: Offer) -> Choice:
        n = offer.seen
        slot = n if n < self.capacity else int(torch.randint(n, (), generator=self.generator))
        return Choice(torch.tensor([slot if slot < self.capacity else -1]))


class Fixed(Policy):
    """Items name their own slots."""

    accepts_scores = True

    def __init__(self, capacity: int, seed: int) -> None: ...

    def assign(self, offer: Offer) -> Choice:
        assert offer.scores is not None
        return Choice(offer.scores.long())

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None: ...


@pytest.mark.parametrize("batch_size", [1, 3, 5, 9])
def test_items_stay_in_order_until_the_memory_is_full(batch_size: int) -> None:
    memory = Memory(5)
    for n, batch in enumerate(torch.split(torch.arange(9), batch_size)):
        memory.insert(batch)
        offered = min((n + 1) * batch_size, 9)
        assert (len(memory), memory.seen) == (min(offered, 5), offered)
        if offered <= 5:
            assert memory.items.tolist() == list(range(offered))


@pytest.mark.parametrize(("batch_size", "trials"), [(1, 1500), (7, 3000), (32, 3000)])
def test_every_item_is_equally_likely_to_stay_in_one_slot(batch_size: int, trials: int) -> None:
    assert_uniform(1, 2, batch_size, trials)


@pytest.mark.parametrize(("batch_size", "trials"), [(1, 100), (7, 600), (32, 2000), (100, 5000)])
def test_every_item_is_equally_likely_to_stay_in_ten_slots(batch_size: int, trials: int) -> None:
    assert_uniform(10, 100, batch_size, trials)


def test_uniformity_check_rejects_the_off_by_one_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(POLICIES, "biased", Biased)
    with pytest.raises(AssertionError, match="not close"):
        assert_uniform(1, 2, batch_size=1, trials=100, policy="biased")


@pytest.mark.parametrize("capacity", [1, 16, 69])
def test_reservoir_is_algorithm_r_item_by_item(capacity: int) -> None:
    slots: list[int] = []
    rng = generator(3)
    for n in range(70):
        r = int(torch.rand((), dtype=torch.float64, generator=rng) * (n + 1)) if n >= capacity else n
        slots[r : r + 1] = [n] if r < capacity else []
    assert fed([torch.arange(70)], capacity, seed=3).items.tolist() == slots


@pytest.mark.parametrize("capacity", [1, 16, 69])
def test_content_does_not_depend_on_the_cut_into_batches(capacity: int) -> None:
    stream = torch.arange(70)
    whole = fed([stream], capacity)
    for size in range(1, 71):
        assert_same_state(fed(torch.split(stream, size), capacity), whole)


def test_draws_reach_the_slots_that_float32_cannot_count() -> None:
    """From 2**25 on float32 has only every fourth number."""
    full = Offer(64, 2**26, None, None, torch.empty(0), torch.empty(0), 2**26)
    slots = Reservoir(2**26, seed=0).assign(full).slots
    assert (slots[slots > 2**25] % 2 == 1).any()


@pytest.mark.parametrize("device", DEVICES)
def test_the_later_of_two_items_for_one_slot_wins(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(POLICIES, "fixed", Fixed)
    memory = Memory(4, policy="fixed", device=device)
    value = torch.arange(500, device=device)
    slot = torch.where(value % 7 == 6, -1, value % 4)
    written = memory.insert({"value": value}, scores=slot)
    last = [max(n for n in range(500) if n % 4 == k and n % 7 != 6) for k in range(4)]
    assert memory.items["value"].tolist() == last
    assert {n: int(written[n]) for n in range(500) if written[n] >= 0} == {n: n % 4 for n in last}


def test_saved_memory_goes_on_as_if_nothing_had_happened() -> None:
    stream = torch.randn(60, 2, generator=generator())
    memory = fed(torch.split(stream[:30], 4), 8)
    file = io.BytesIO()
    torch.save(memory.state_dict(), file)
    memory.insert(stream[30:])
    file.seek(0)
    resumed = Memory(8, seed=99)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert resumed.seen == 30
    resumed.insert(stream[30:])
    assert_same_state(resumed, memory)
    assert resumed.draw(3, generator()).equal(memory.draw(3, generator()))


def test_state_holds_the_filled_part_only() -> None:
    memory = fed([torch.zeros(10, 3, 32, 32, dtype=torch.uint8)], 10_000)
    file = io.BytesIO()
    torch.save(memory.state_dict(), file)
    assert file.tell() < 10 * 3 * 32 * 32 + 20_000  # of which 5 056 bytes are the generator


def test_state_is_a_copy_and_an_empty_memory_has_one() -> None:
    memory, resumed = Memory(2), Memory(2)
    resumed.load_state_dict(memory.state_dict())
    memory.insert(torch.tensor([1]))
    state = memory.state_dict()
    memory.insert(torch.arange(50))
    assert state["columns"]["items"].tolist() == [1]
    resumed.load_state_dict(state)
    resumed.insert(torch.arange(50))
    assert resumed.items.equal(memory.items)


def test_state_of_another_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    state = fed([torch.arange(3)], 8).state_dict()
    with pytest.raises(
        ValueError, match=r"`capacity` is 9 but the saved memory has 8. Make this one with `capacity=8`"
    ):
        Memory(9).load_state_dict(state)
    monkeypatch.setitem(POLICIES, "fixed", Fixed)
    with pytest.raises(ValueError, match="`policy` is 'fixed' but the saved memory has 'reservoir'"):
        Memory(8, policy="fixed").load_state_dict(state)


def test_equal_memories_fed_equal_batches_stay_equal() -> None:
    """Ranks that insert the same gathered batches need no further communication."""
    ranks = [Memory(5, seed=7), Memory(5, seed=7)]
    for batch in torch.split(torch.arange(40), 6):
        for rank, memory in enumerate(ranks):
            memory.insert(batch)
            memory.draw(2, generator(rank))
        assert_same_state(ranks[0], ranks[1])
    assert ranks[0].items.equal(fed([torch.arange(40)], 5, seed=7).items)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.bfloat16, torch.float64, torch.complex64])
@pytest.mark.parametrize("shape", [(), (3,), (2, 4), (0,)])
def test_rows_of_any_kind_come_back_bit_for_bit(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    rows = torch.randint(256, (6, *shape), generator=generator()).to(dtype)
    memory = fed(torch.split(rows, 4), 6)
    assert memory.items.dtype == dtype
    assert memory.items.equal(rows)
    kept = int(fed(torch.split(torch.arange(6), 1), 1).items)  # four of the six one-item batches are dropped whole
    assert fed(torch.split(rows, 1), 1).items.equal(rows[kept : kept + 1])


def test_uint8_images_survive_the_way_over_floats() -> None:
    image = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    memory = fed([(image / 255 * 255).round().to(torch.uint8)], 1)
    assert memory.draw(1, generator(1)).equal(image)
    assert memory.draw(1, generator(2)).equal(image)


@pytest.mark.parametrize("structure", [dict, list, tuple])
def test_columns_stay_together_in_the_given_structure(structure: Any) -> None:
    y = torch.arange(50)
    named = {"x": y[:, None].expand(50, 3).to(torch.uint8), "y": y, "z": y[:, None] * torch.ones(2)}
    memory = Memory(20)
    memory.insert(named if structure is dict else structure(named.values()))
    for items in (memory.items, memory.draw(9, generator())):
        assert type(items) is structure
        x, y, z = items.values() if structure is dict else items
        assert x.tolist() == [[n] * 3 for n in y.tolist()]
        assert z.tolist() == [[n] * 2 for n in y.tolist()]


@pytest.mark.parametrize(("size", "count", "trials"), [(12, 4, 5000), (202, 2, 8000)])
def test_draw_is_uniform_in_either_of_its_two_ways(size: int, count: int, trials: int) -> None:
    memory, rng = fed([torch.arange(size)], size), generator()
    draws = torch.stack([memory.draw(count, rng) for _ in range(trials)])
    assert_close_to_five_sigma(draws.flatten().bincount(minlength=size).float(), trials, count / size)
    assert_close_to_five_sigma(draws[:, -1].bincount(minlength=size).float(), trials, 1 / size)


@pytest.mark.parametrize(("size", "count"), [(50, 50), (50, 20), (5001, 50)])
def test_draw_has_no_repeats(size: int, count: int) -> None:
    """At 50 of 5001 one set of independent draws in five has a repeat."""
    memory, rng = fed([torch.arange(size)], size), generator()
    for _ in range(50):
        assert len(set(memory.draw(count, rng).tolist())) == count


def test_draw_is_at_most_what_there_is_and_a_copy() -> None:
    memory = fed([torch.arange(3)], 8)
    assert memory.draw(5, generator()).sort().values.tolist() == [0, 1, 2]
    assert memory.draw(0, generator()).tolist() == []
    memory.draw(3, generator()).zero_()
    assert memory.items.tolist() == [0, 1, 2]
    memory.items.zero_()
    assert memory.items.tolist() == [0, 0, 0]


def test_first_insert_may_be_empty() -> None:
    memory = Memory(3)
    assert memory.insert(torch.zeros(0, 2)).shape == (0,)
    assert memory.items.shape == memory.draw(4, generator()).shape == (0, 2)


def test_storage_leaves_no_trace_in_autograd_or_in_the_global_generator() -> None:
    before = torch.get_rng_state()
    memory = Memory(4)
    with torch.inference_mode():
        memory.insert(torch.ones(3, 5))
    memory.insert(torch.ones(9, 5, requires_grad=True) * 2)
    drawn = memory.draw(4, generator())
    assert not drawn.requires_grad
    (drawn * torch.ones(5, requires_grad=True)).sum().backward()
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"capacity": 0}, "`capacity` must be 1 or more, got 0"),
        (
            {"capacity": 4, "policy": "resevoir"},
            r"`policy` must be one of .*'reservoir', 'ring'.*Did you mean 'reservoir'\?",
        ),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Memory(**arguments)


@pytest.mark.parametrize(
    ("items", "error", "message"),
    [
        (
            {"x": torch.zeros(2, 3), "y": torch.zeros(3)},
            ValueError,
            r"one and the same first dimension.*'x': 2, 'y': 3",
        ),
        ({"x": torch.zeros(2, 3), "y": torch.tensor(0)}, ValueError, "one and the same first dimension.*'y': None"),
        ({}, ValueError, "one and the same first dimension"),
        ({"x": torch.zeros(2, 3), "y": [0, 1]}, TypeError, "column 'y' must be a tensor, got list"),
        ("x", TypeError, "got str"),
        ({"x": torch.zeros(2, 3)}, ValueError, r"columns of the first insert, \['x', 'y'\], got \['x'\]"),
        (
            {"x": torch.zeros(2, 4), "y": torch.zeros(2)},
            ValueError,
            r"column 'x' must be torch.float32 with items of shape \(3,\).*got torch.float32 with \(4,\)",
        ),
        ({"x": torch.zeros(2, 3), "y": torch.zeros(2).int()}, ValueError, "column 'y' must be .*got torch.int32"),
    ],
)
def test_items_are_checked(items: Any, error: type[Exception], message: str) -> None:
    memory = Memory(4)
    memory.insert({"x": torch.zeros(2, 3), "y": torch.zeros(2)})
    with pytest.raises(error, match=message):
        memory.insert(items)
    assert memory.seen == 2


def test_draw_is_checked() -> None:
    with pytest.raises(ValueError, match="`count` must be 0 or more, got -1"):
        fed([torch.zeros(2)], 4).draw(-1, generator())
    with pytest.raises(RuntimeError, match="Nothing was ever inserted"):
        Memory(4).draw(2, generator())


def groups_in(memory: Memory) -> Tensor:
    assert memory.groups is not None
    return memory.groups


def grouped(sizes: dict[int, int], policy: str = "reservoir") -> Memory:
    """A memory of items that are numbered through, of so many of each group."""
    groups = torch.tensor([group for group, size in sizes.items() for _ in range(size)])
    memory = Memory(len(groups), policy)
    memory.insert(torch.arange(len(groups)), groups=groups)
    return memory


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, [0, 0, 0]),
        (1, [0, 0, 1]),
        (3, [1, 1, 1]),
        (9, [3, 3, 3]),
        (16, [3, 6, 7]),
        (73, [3, 20, 50]),
        (90, [3, 20, 50]),
    ],
)
def test_balanced_draws_have_as_many_of_each_group(count: int, expected: list[int]) -> None:
    memory, rng = grouped({7: 50, -2: 20, 0: 3}), generator()
    for _ in range(20):
        slots = memory.sample(count, rng, balanced=True)
        assert len(set(slots.tolist())) == min(count, 73)
        drawn = groups_in(memory)[slots]
        assert sorted(int((drawn == group).sum()) for group in (7, -2, 0)) == expected


def test_balanced_draws_are_uniform_in_each_group_and_between_groups() -> None:
    """Of three items one group has two, each in half of the draws; so has each place."""
    memory, rng, trials = grouped({0: 6, 1: 3}), generator(), 3000
    draws = torch.stack([memory.draw(3, rng, balanced=True) for _ in range(trials)])
    found = draws.flatten().bincount(minlength=9).float()
    assert_close_to_five_sigma(found[:6], trials, 1.5 / 6)
    assert_close_to_five_sigma(found[6:], trials, 1.5 / 3)
    assert_close_to_five_sigma((draws >= 6).float().sum(0), trials, 1 / 2)


def test_balanced_draws_need_groups() -> None:
    with pytest.raises(ValueError, match="`balanced` needs groups: give `groups` to `insert`"):
        fed([torch.arange(3)], 4).draw(2, generator(), balanced=True)


def test_draw_is_sample_and_take() -> None:
    memory = grouped({0: 30, 1: 10})
    for balanced in (False, True):
        slots = memory.sample(7, generator(5), balanced)
        assert memory.draw(7, generator(5), balanced).equal(memory.take(slots))
        assert memory.items[slots].equal(memory.take(slots))


def test_update_replaces_some_columns_of_some_items() -> None:
    memory = Memory(4)
    memory.insert({"x": torch.arange(8, dtype=torch.uint8).view(4, 2), "logits": torch.zeros(4, 3)})
    memory.update(
        torch.tensor([2, -1, 0]), {"logits": torch.ones(3, 3, requires_grad=True) * torch.arange(1, 4)[:, None]}
    )
    assert memory.items["logits"][:, 0].tolist() == [3, 0, 1, 0]
    assert memory.items["x"].flatten().tolist() == list(range(8))
    memory.update(torch.tensor([-1]), {"logits": torch.ones(1, 3)})
    assert memory.items["logits"].sum() == 12


@pytest.mark.parametrize(
    ("slots", "columns", "error", "message"),
    [
        ([4], {"y": [1]}, IndexError, "`slots` must be filled, which 0 to 2 are, got 4 to 4"),
        (
            [0],
            {"z": [1]},
            ValueError,
            r"`columns` must be of the columns of the first insert, \['x', 'y'\], got \['z'\]",
        ),
        ([0], {"y": [1.5]}, ValueError, "`columns`: column 'y' must be torch.int64"),
        ([0], {"y": [1, 2]}, ValueError, "`columns` must have a row for each of 1 slots"),
    ],
)
def test_update_is_checked(slots: list[int], columns: Any, error: type[Exception], message: str) -> None:
    memory = Memory(8)
    memory.insert({"x": torch.zeros(3, 2), "y": torch.arange(3)})
    with pytest.raises(error, match=message):
        memory.update(torch.tensor(slots), {name: torch.tensor(rows) for name, rows in columns.items()})
    assert memory.items["y"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("slot", [-1, 3])
def test_empty_slots_cannot_be_taken(slot: int) -> None:
    with pytest.raises(IndexError, match=f"`slots` must be filled, which 0 to 2 are, got {slot} to {slot}"):
        fed([torch.arange(3)], 8).take(torch.tensor([slot]))


# -- shards -----------------------------------------------------------------------------------------------------------


def sharded(policy: str, capacity: int, counts: list[int], tmp_path: Path | None = None, seed: int = 0) -> list[Memory]:
    """Memories that were offered so many numbers each, one after another; numbers 0, 1, 2 of each 3 are of a group."""
    shards, ends = [], torch.tensor([0, *counts]).cumsum(0).tolist()
    for rank, (start, end) in enumerate(pairwise(ends)):
        part = share(capacity, rank, len(counts))
        file = str(tmp_path / f"{rank}-of-{len(counts)}") if tmp_path else None
        shards.append(Memory(part, policy, seed=100 * seed + rank, file=file))
        for numbers in torch.split(torch.arange(start, end), 7):
            offer(shards[-1], numbers)
    return shards


def offer(memory: Memory, numbers: Tensor) -> Tensor:
    given = {"groups": numbers % 3, "scores": numbers % 10 / 10 - 0.5}
    return memory.insert({"n": numbers, "x": numbers[:, None] * 2}, **{name: given[name] for name in memory.needs})


def dealt(shards: list[Memory], world_size: int, tmp_path: Path | None = None, seed: int = 0) -> list[Memory]:
    capacity = sum(shard.capacity for shard in shards)
    parts = sharded(shards[0].policy, capacity, [0] * world_size, tmp_path, seed)
    for rank, part in enumerate(parts):
        deal(shards, part, rank, world_size)
    return parts


def numbers_in(memories: list[Memory]) -> list[int]:
    return sorted(n for memory in memories if len(memory) for n in memory.items["n"].tolist())


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("counts", [[40, 40], [30, 2, 12], [3]])
def test_what_is_dealt_is_what_there_was(policy: str, world_size: int, counts: list[int]) -> None:
    shards = sharded(policy, 12, counts)
    parts = dealt(shards, world_size)
    assert sum(part.seen for part in parts) == sum(counts)
    assert all(len(part) <= part.capacity and len(part) <= part.seen for part in parts)
    for memory in parts:
        if len(memory):
            assert memory.items["x"].equal(memory.items["n"][:, None] * 2)
    before, after = numbers_in(shards), numbers_in(parts)
    if policy in ("class_quota", "ring"):
        assert set(after) <= set(before)
    else:
        assert after == before


@pytest.mark.parametrize("policy", ["class_quota", "ring", "balanced_reservoir"])
@pytest.mark.parametrize("world_size", [1, 2, 6])
def test_every_rank_gets_as_many_of_each_group(policy: str, world_size: int) -> None:
    shards = sharded(policy, 18, [60, 60, 60])
    parts = dealt(shards, world_size)
    assert numbers_in(parts) == numbers_in(shards)
    counts = torch.stack([groups_in(part).bincount(minlength=3) for part in parts])
    assert (counts.amax(0) - counts.amin(0)).max() <= 1


def test_groups_that_appeared_first_still_have_the_larger_quotas() -> None:
    shards = sharded("class_quota", 16, [60, 60])
    assert groups_in(shards[0]).bincount().tolist() == [3, 3, 2]
    assert groups_in(dealt(shards, 1)[0]).bincount().tolist() == [6, 5, 4]  # of 6 + 6 + 4, the second has 5 places


@pytest.mark.parametrize("policy", ["reservoir", "balanced_reservoir"])
def test_after_dealing_the_union_is_uniform_over_all(policy: str) -> None:
    """Of 60 numbers before and 60 after, in all 12 places."""
    trials, found = 400, torch.zeros(120)
    for seed in range(trials):
        shards = [Memory(6, policy, seed=10 * seed + rank) for rank in range(2)]
        parts = [Memory(4, policy, seed=10 * seed + rank) for rank in range(2, 5)]
        for rank, shard in enumerate(shards):
            shard.insert(torch.arange(60)[rank::2], groups=torch.zeros(30))
        for rank, part in enumerate(parts):
            deal(shards, part, rank, 3)
            part.insert(torch.arange(60, 120)[rank::3], groups=torch.zeros(20))
            found[part.items] += 1
    assert_close_to_five_sigma(found, trials, 0.1)
    assert_close_to_five_sigma(found[:60].sum() / 12, trials * 5, 0.1)


@pytest.mark.parametrize("policy", ["fifo", "ring"])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_after_dealing_the_oldest_still_goes_first(policy: str, world_size: int) -> None:
    """The age of an item is its place among the 40 that its shard was offered."""
    for part in dealt(sharded(policy, 18, [40, 40]), world_size):
        numbers = part.items["n"].tolist()
        oldest = min(n % 40 for n in numbers if policy == "fifo" or n % 3 == 1)
        offer(part, torch.tensor([100]))
        (gone,) = set(numbers) - set(part.items["n"].tolist())
        assert gone % 40 == oldest


@pytest.mark.parametrize("policy", ["reservoir", "class_quota"])
def test_shards_in_files_are_dealt_alike(policy: str, tmp_path: Path) -> None:
    expected = dealt(sharded(policy, 12, [40, 40]), 3)
    parts = dealt(sharded(policy, 12, [40, 40], tmp_path), 3, tmp_path)
    for part, other in zip(parts, expected, strict=True):
        assert part.items["n"].equal(other.items["n"])


def test_equal_numbers_of_shards_and_parts_of_many_rows() -> None:
    """Rows are read in parts."""
    shards = sharded("keyed_reservoir", 12_000, [9000, 9000])
    parts = dealt(shards, 2)
    assert [len(part) for part in parts] == [6000, 6000]
    assert numbers_in(parts) == numbers_in(shards)
