import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_cl.memory import POLICIES, Memory
from lightning_cl.stores import FileStore, Store, TensorStore

DTYPES = [torch.uint8, torch.bool, torch.int64, torch.bfloat16, torch.float64, torch.complex64]
Make = Callable[[dict[str, Tensor], int], Store]


@pytest.fixture(params=["tensors", "file"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    if request.param == "file":
        return lambda like, capacity: FileStore.new(str(tmp_path / "rows"), like, capacity)
    return lambda like, capacity: TensorStore(like, capacity, torch.device("cpu"))


@pytest.fixture
def file(tmp_path: Path) -> str:
    return str(tmp_path / "memory.rows")


def rows(numbers: list[int] | Tensor) -> dict[str, Tensor]:
    """Rows that tell their number: 15 bytes, which are no whole words, and a label."""
    y = torch.as_tensor(numbers, dtype=torch.int64)
    return {"x": (y[:, None] * 7 + torch.arange(15)).to(torch.uint8).view(-1, 3, 5), "y": y}


def assert_equal(one: Any, other: Any) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def batches(count: int = 12) -> Iterator[Tensor]:
    sizes = torch.randint(12, (count,), generator=torch.Generator().manual_seed(0))
    return iter(torch.split(torch.arange(int(sizes.sum())), sizes.tolist()))


def insert(memory: Memory, numbers: Tensor) -> Tensor:
    """Offer numbered items, of groups that appear one after another."""
    given = {"groups": numbers // 13 * (numbers % 3), "scores": (numbers * 37 % 101) / 101 - 0.5}
    return memory.insert(rows(numbers), **{name: given[name] for name in memory.needs})


def saved(memory: Memory) -> Any:
    """A state that went through a file."""
    buffer = io.BytesIO()
    torch.save(memory.state_dict(), buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


# -- stores -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (3,), (2, 4), (0,)])
def test_rows_of_any_kind_come_back_from_their_slots(make: Make, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    values = torch.randint(256, (3, *shape), generator=torch.Generator().manual_seed(0)).to(dtype)
    columns = {"v": values, "y": torch.arange(3)}
    store = make(columns, 6)
    store.write(torch.tensor([4, 0, 2]), columns)
    read = store.read(torch.tensor([2, 4, 4, 0]))["v"]
    assert read.dtype == dtype
    assert_equal(read, values[[2, 0, 0, 1]])


def test_what_is_read_is_a_copy(make: Make) -> None:
    store = make(rows([0]), 2)
    store.write(torch.tensor([0]), rows([5]))
    store.read(torch.tensor([0]))["y"].zero_()
    assert store.front(1)["y"].tolist() == [5]


def test_columns_that_are_left_out_stay(make: Make) -> None:
    store = make(rows([0]), 4)
    store.write(torch.arange(3), rows([5, 6, 7]))
    store.write(torch.tensor([2, 0]), {"y": torch.tensor([70, 50])})
    assert_equal(store.front(3), {"x": rows([5, 6, 7])["x"], "y": torch.tensor([50, 6, 70])})


def test_compact_moves_rows_to_vacated_slots(make: Make) -> None:
    store = make(rows([0]), 6)
    store.write(torch.arange(6), rows([0, 1, 2, 3, 4, 5]))
    store.compact(torch.tensor([4, 1, 0]), source=torch.tensor([3, 5]), target=torch.tensor([1, 0]))
    assert_equal(store.front(3), rows([5, 3, 2]))


def test_rows_of_vacated_slots_are_used_once(make: Make) -> None:
    """The file gives the three rows to the next slots, and the slot that stays empty must not take one back."""
    store = make(rows([0]), 7)
    store.write(torch.arange(6), rows([0, 1, 2, 3, 4, 5]))
    store.compact(torch.tensor([4, 1, 0]), source=torch.tensor([3, 5]), target=torch.tensor([1, 0]))
    store.write(torch.tensor([3, 5, 6]), rows([7, 8, 9]))
    store.write(torch.tensor([4]), rows([10]))
    assert_equal(store.front(7), rows([5, 3, 2, 7, 10, 8, 9]))
    if isinstance(store, FileStore):
        assert sorted(store.table.tolist()) == list(range(7))


def test_file_does_not_grow_before_it_is_saved(tmp_path: Path) -> None:
    store = FileStore.new(str(tmp_path / "rows"), rows([0]), 4)
    for n in range(20):
        store.write(torch.arange(4), rows([n] * 4))
    assert sorted(store.table.tolist()) == [0, 1, 2, 3]


def test_front_of_tensors_is_a_view() -> None:
    store = TensorStore(rows([0]), 4, torch.device("cpu"))
    store.front(2)["y"].fill_(3)
    assert store.columns["y"][:2].tolist() == [3, 3]


# -- memories in files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("capacity", [1, 10])
def test_memory_in_a_file_is_the_memory_in_ram(policy: str, capacity: int, file: str) -> None:
    """Whenever it is saved."""
    ram, disk = Memory(capacity, policy), Memory(capacity, policy, file=file)
    for n, numbers in enumerate(batches()):
        assert insert(disk, numbers).equal(insert(ram, numbers))
        assert_equal(disk.items, ram.items)
        assert_equal(disk.draw(4, torch.Generator()), ram.draw(4, torch.Generator()))
        for own, other in ((disk.groups, ram.groups), (disk.scores, ram.scores)):
            assert (own is other is None) or own.equal(other)  # type: ignore[union-attr, arg-type]
        if n % 4 == 0:
            disk.state_dict()


@pytest.mark.parametrize("policy", POLICIES)
def test_every_state_stays_exact_whatever_was_inserted_later(policy: str, file: str) -> None:
    memory = Memory(10, policy, file=file)
    states = []
    for numbers in batches():
        insert(memory, numbers)
        states.append((saved(memory), rows(memory.items["y"])))
    del memory
    for k, (state, items) in enumerate(states):
        resumed = Memory(10, policy, seed=9, file=file)
        resumed.load_state_dict(state)
        assert_equal(resumed.items, items)
        for numbers in list(batches())[k + 1 :]:  # what it writes must not spoil the states that come later
            insert(resumed, numbers)
        assert_equal(resumed.items, states[-1][1])
        del resumed


def test_state_of_a_file_holds_no_rows(file: str) -> None:
    memory = Memory(10, file=file)
    memory.insert(torch.zeros(10, 100_000, dtype=torch.uint8))
    buffer = io.BytesIO()
    torch.save(memory.state_dict(), buffer)
    assert buffer.tell() < 20_000  # of which 5 056 bytes are the generator


def test_file_of_an_earlier_run_stays_as_it_is(file: str) -> None:
    """A state knows in which file its rows are."""
    old = Memory(4, file=file)
    old.insert(rows([1, 2]))
    state = saved(old)
    old.insert(rows([3]))
    del old
    new = Memory(4, file=file)
    with pytest.warns(UserWarning, match="memory.rows is of an earlier run and stays as it is"):
        new.insert(rows([7]))
    assert Path(f"{file}.1").exists()
    second = saved(new)
    del new
    for at, numbers in ((state, [1, 2]), (second, [7])):
        resumed = Memory(4, file=file)
        resumed.load_state_dict(at)
        assert_equal(resumed.items, rows(numbers))


def test_file_of_a_run_that_saved_nothing_is_used_again(file: str) -> None:
    old = Memory(4, file=file)
    old.insert(rows([1, 2]))
    del old
    new = Memory(4, file=file)
    new.insert(rows([7]))
    assert_equal(new.items, rows([7]))
    assert not Path(f"{file}.1").exists()


@pytest.mark.parametrize("to_file", [True, False])
def test_state_goes_from_file_to_file_and_from_ram_to_ram(to_file: bool, file: str) -> None:
    ram, disk = Memory(4), Memory(4, file=file)
    for memory in (ram, disk):
        memory.insert(rows([1, 2]))
    state, other = (ram.state_dict(), disk) if to_file else (disk.state_dict(), ram)
    message = "in the state itself: leave it out" if to_file else "in a file: give its path"
    with pytest.raises(ValueError, match=f"`file` is .* but the items of the saved memory are {message}"):
        other.load_state_dict(state)
    assert_equal(other.items, rows([1, 2]))


def test_file_is_read_while_another_process_may_write_it(file: str) -> None:
    memory, reader = Memory(4, file=file), Memory(4, file=file)
    memory.insert(rows([1, 2]))
    reader.load_state_dict(saved(memory), read_only=True)
    memory.insert(rows([3, 4, 5, 6, 7]))
    assert_equal(reader.items, rows([1, 2]))
    with pytest.raises(RuntimeError, match='was opened with `mode="r"`'):
        reader.insert(rows([8]))


def test_update_in_a_file_is_undone_by_an_older_state(file: str) -> None:
    memory = Memory(4, file=file)
    memory.insert(rows([1, 2, 3]))
    state = saved(memory)
    memory.update(torch.tensor([2, -1]), {"y": torch.tensor([30, 0])})
    assert_equal(memory.items, {**rows([1, 2, 3]), "y": torch.tensor([1, 2, 30])})
    del memory
    resumed = Memory(4, file=file)
    resumed.load_state_dict(state)
    assert_equal(resumed.items, rows([1, 2, 3]))


@pytest.mark.parametrize("in_file", [True, False])
def test_what_is_made_in_inference_mode_is_written_in_training(in_file: bool, file: str) -> None:
    memory = Memory(4, "class_quota", file=file if in_file else None)
    with torch.inference_mode():
        memory.insert(rows([1, 2, 3, 4, 5]), groups=torch.zeros(5))
        state = memory.state_dict()
    memory.insert(rows([6, 7, 8]), groups=torch.ones(3))
    assert len(memory) == 4
    assert not memory.items["x"].is_inference()
    memory.load_state_dict(state)
    memory.insert(rows([6, 7, 8]), groups=torch.ones(3))
    assert memory.items["y"].sort().values[-2:].tolist() > [5, 5]
