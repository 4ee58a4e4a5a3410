"""How a memory is shared by processes, kept in a file, and offered what comes, whatever its form."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, StackDataset

from lightning_cl import Memory, RunLogger, rehearsal
from lightning_cl.callbacks import DER, ERACE, GDumb, Replay
from lightning_cl.rehearsal import Storage
from lightning_cl.utilities import derive_seed
from tests.helpers.contracts import (
    LIGHTNINGS_OWN_WARNINGS,
    Learned,
    Net,
    TinyStream,
    jitter,
    learn,
    same,
    samples,
    seeded,
    trainer,
)
from tests.helpers.rehearsal import Spy, process

pytestmark = LIGHTNINGS_OWN_WARNINGS


def shards(
    world_size: int, state: dict[str, Any] | None = None, policy: str = "reservoir", file: str | None = None
) -> list[Replay]:
    """The callbacks of several processes that share one memory."""
    made = [Replay(10, policy=policy, storage=Storage("sharded", file=file), seed=3) for _ in range(world_size)]
    for rank, replay in enumerate(made):
        if state is not None:
            replay.load_state_dict(state)
        replay.start(process(rank, world_size), None)  # type: ignore[arg-type]
    return made


def offer(made: list[Replay], batches: Tensor) -> None:
    """Offer each process its own part of each batch."""
    for batch in batches:
        for replay, y in zip(made, batch.tensor_split(len(made)), strict=True):
            groups = y % 3 if replay.needs_groups else None
            replay.keep(process(0, len(made)), {"0": y.float(), "1": y}, groups)


def state_of(monkeypatch: pytest.MonkeyPatch, made: list[Replay]) -> Any:
    """The state that rank 0 writes for all."""
    states = [replay.memory.state_dict() for replay in made]
    monkeypatch.setattr(rehearsal, "gather_objects", lambda trainer, value: states)
    return made[0].state_dict()


@pytest.mark.parametrize("world_size", [1, 3, 4])
def test_each_shard_is_a_reservoir_of_its_own(world_size: int) -> None:
    made = shards(world_size)
    batches = torch.arange(120).view(10, 12)
    offer(made, batches)
    for rank, replay in enumerate(made):
        own = Memory(10 // world_size + (rank < 10 % world_size), seed=derive_seed(3, 0, rank))
        own.insert({"1": torch.cat([batch.tensor_split(world_size)[rank] for batch in batches])})
        assert torch.equal(replay.memory.items["1"], own.items["1"])
    assert sum(len(replay.memory) for replay in made) == 10


@pytest.mark.parametrize("policy", ["reservoir", "class_quota", "ring"])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_checkpoint_of_two_goes_on_with_any_number(
    world_size: int, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = shards(2, policy=policy)
    offer(before, torch.arange(60).view(5, 12))
    state = state_of(monkeypatch, before)
    after = shards(world_size, state, policy)
    kept = [torch.cat([replay.memory.items["1"] for replay in made]).sort().values for made in (before, after)]
    assert sum(replay.memory.capacity for replay in after) == 10
    if policy == "reservoir" or world_size == 2:  # smaller quotas may round otherwise
        assert torch.equal(*kept)
    assert set(kept[1].tolist()) <= set(kept[0].tolist())
    assert sum(replay.memory.seen for replay in after) == 60
    if world_size == 2:
        assert same([replay.memory.state_dict() for replay in after], state["memory"])
    offer(after, torch.arange(60, 120).view(5, 12))
    assert sum(len(replay.memory) for replay in after) == 10


def test_a_checkpoint_of_one_goes_on_with_two() -> None:
    (alone,) = shards(1)
    offer([alone], torch.arange(60).view(5, 12))
    after = shards(2, alone.state_dict())
    kept = torch.cat([replay.memory.items["1"] for replay in after])
    assert torch.equal(kept.sort().values, alone.memory.items["1"].sort().values)
    assert [replay.memory.capacity for replay in after] == [5, 5]


def test_replicas_hold_what_one_process_would(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks with parts of unequal length, whose rows a gather joins in the order of ranks."""
    alone, replicas = ([GDumb(10, seed=3) for _ in range(count)] for count in (1, 2))
    for batch in torch.arange(66).view(6, 11):
        parts = batch.tensor_split(2)
        joined = {name: torch.cat([name_of(part) for part in parts]) for name, name_of in COLUMNS.items()}
        alone[0].keep(process(0, 1), {"0": joined["0"], "1": joined["1"]}, joined["groups"])
        for rank, (replica, part) in enumerate(zip(replicas, parts, strict=True)):
            gathered = iter([joined["0"], joined["1"], joined["groups"]])
            monkeypatch.setattr(rehearsal, "gather_rows", lambda trainer, rows, gathered=gathered: next(gathered))
            rows = {name: COLUMNS[name](part) for name in ("0", "1")}
            replica.keep(process(rank, 2), rows, COLUMNS["groups"](part))
        assert same(alone[0].state_dict(), replicas[0].state_dict())
        assert same(replicas[0].state_dict(), replicas[1].state_dict())


COLUMNS: dict[str, Any] = {"0": lambda y: y.float(), "1": lambda y: y, "groups": lambda y: y % 3}


# -- files -------------------------------------------------------------------------------------------------------------


def run(cls: Any, folder: Path, storage: Storage, ckpt_path: Path | None = None) -> tuple[Any, Learned]:
    callback = cls(10, storage=storage, seed=2)
    logger = RunLogger(folder)
    return callback, learn([callback], seeded(), None, ckpt_path, logger=logger, enable_checkpointing=True)


@pytest.mark.parametrize(("cls", "sharing"), [(Replay, "replicated"), (DER, "sharded"), (GDumb, "replicated")])
def test_a_run_with_a_file_is_that_with_ram_and_goes_on(cls: Any, sharing: Any, tmp_path: Path) -> None:
    storage = Storage(sharing, file=str(tmp_path / "memory.rows"))
    in_ram, expected = run(cls, tmp_path / "ram", Storage(sharing))
    in_file, found = run(cls, tmp_path / "file", storage)
    assert same(found.weights, expected.weights)
    assert same(in_file.memory.items, in_ram.memory.items)
    in_file.memory._store.rows.close()  # as the end of a process would
    path = tmp_path / "file/checkpoints/experience_0.ckpt"
    again, resumed = run(cls, tmp_path / "again", storage, path)
    assert same(resumed.weights, expected.weights)
    assert same(again.memory.items, in_ram.memory.items)
    states = torch.load(path, weights_only=True)["callbacks"]
    memory = next(state["memory"] for state in states.values() if "memory" in state)
    (columns,) = [shard["columns"] for shard in (memory if isinstance(memory, list) else [memory])]
    assert columns.keys() == {"marker", "table"}
    assert columns["table"].shape == (10,)


def test_replicas_cannot_share_a_file(tmp_path: Path) -> None:
    replay = Replay(10, storage=Storage(file=str(tmp_path / "memory.rows")))
    replay.check(process(0, 1), None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"`storage.sharing` must be 'sharded' for a `storage.file`"):
        replay.check(process(0, 2), None)  # type: ignore[arg-type]


def test_each_process_needs_a_place() -> None:
    with pytest.raises(ValueError, match="`capacity` must be 3 or more, one for each process"):
        Replay(2, storage=Storage("sharded")).check(process(0, 3), None)  # type: ignore[arg-type]


def test_each_shard_has_a_file_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which other processes may read, when there are more of them now, while somebody has it open."""
    before = shards(2, file=str(tmp_path / "memory.rows"))
    offer(before, torch.arange(12)[None])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["memory.rows.0-of-2", "memory.rows.1-of-2"]
    after = shards(3, state_of(monkeypatch, before), file=str(tmp_path / "memory.rows"))
    kept = [torch.cat([replay.memory.items["1"] for replay in made]).sort().values for made in (before, after)]
    assert torch.equal(*kept)


def test_sharing_is_checked() -> None:
    with pytest.raises(ValueError, match="`sharing` must be 'replicated' or 'sharded', got 'none'"):
        Storage("none")  # type: ignore[arg-type]


# -- batches -----------------------------------------------------------------------------------------------------------


class Renamed(Net):
    """Gets a dict with names of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[dict[str, Tensor]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.batches.append(batch)
        return super().training_step([batch["pixels"], batch["kind"]], batch_idx)


def pixels_and_kind(batch: Any) -> tuple[Tensor, Tensor]:
    return batch["pixels"], batch["kind"]


@pytest.mark.parametrize(
    "make", [lambda unpack: Replay(10, retrieval="balanced", unpack=unpack), lambda unpack: DER(10, unpack=unpack)]
)
def test_a_batch_of_another_form_is_unpacked(make: Any) -> None:
    x, y = samples(train=True)
    data = StackDataset(pixels=x / 255, kind=y, index=torch.arange(48, dtype=torch.int32))
    replay, module = make(pixels_and_kind), seeded(Renamed)
    trainer([replay], max_epochs=1).fit(module, DataLoader(data, batch_size=8))
    kept = replay.memory.items
    assert kept["index"].dtype == torch.int32
    assert torch.equal(kept["pixels"], x[kept["index"]] / 255)
    for batch in module.batches:
        assert torch.equal(batch["pixels"], x[batch["index"]] / 255)
        assert torch.equal(batch["kind"], y[batch["index"]])
    needs_labels = make(None)
    needs_labels.unpack = None
    with pytest.raises(TypeError, match="pass `unpack`"):
        trainer([needs_labels], max_epochs=1).fit(seeded(Renamed), DataLoader(data, batch_size=8))


def test_task_labels_are_replayed_as_they_are() -> None:
    module = seeded(Spy)
    learn([DER(10, forward="joint"), Replay(10, seed=1)], module, TinyStream(task_labels=True, augment=jitter))
    x, y, task = module.batches[-1]
    assert len(x) == len(y) == len(task) == 16
    assert task.dtype == torch.int64
    assert torch.equal(task, y // 2)


def test_what_nothing_would_come_of_is_refused() -> None:
    online = {"stream": TinyStream(boundaries=False)}
    with pytest.raises(ValueError, match="`insert_epochs` must be 'first' or 'all' in a stream without boundaries"):
        learn([Replay(10, insert_epochs="end")], **online)
    with pytest.raises(ValueError, match="`task_free` must be True in a stream without boundaries"):
        learn([ERACE(10)], **online)
    with pytest.raises(TypeError, match=r"`storage` must be a Storage, as Storage\(sharing='sharded'\), got {"):
        Replay(storage={"sharing": "sharded"})
