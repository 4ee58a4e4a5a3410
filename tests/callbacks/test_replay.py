"""Experience replay against a loop written out, and what its memory must hold."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_cl import Memory
from lightning_cl.callbacks import Replay
from lightning_cl.utilities import derive_seed
from tests.helpers.contracts import (
    LIGHTNINGS_OWN_WARNINGS,
    Net,
    PlainData,
    TinyStream,
    learn,
    learn_plain,
    same,
    samples,
    scaled,
    seeded,
    trainer,
)

pytestmark = LIGHTNINGS_OWN_WARNINGS


class Spy(Net):
    """Keeps the batches that ``training_step`` gets."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.batches: list[list[Tensor]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.batches.append([column.clone() for column in batch])
        return super().training_step(batch, batch_idx)


def written_out(capacity: int, batch_size: int | None, insert_epochs: str, seed: int) -> dict[str, Tensor]:
    """ER by hand: mean loss of the joint batch, step, and only then offer the current samples."""
    module, stream = seeded(drop=0.0).double(), TinyStream()
    memory, draws = Memory(capacity, "reservoir", derive_seed(seed, 0)), 0
    for stream.current in range(2):
        optimizer, loader = module.configure_optimizers(), stream.train_dataloader()
        for epoch in range(2):
            for index in loader.batches(2 * stream.current + epoch):
                x, y = loader.dataset.batch(index)
                joint = [x, y]
                if len(memory):
                    generator = torch.Generator().manual_seed(derive_seed(seed, 1, 0) + draws)
                    draws += 1
                    old = memory.draw(len(x) if batch_size is None else batch_size, generator)
                    joint = [torch.cat([x, old["0"]]), torch.cat([y, old["1"]])]
                losses = F.cross_entropy(module(scaled(joint[0])), joint[1], reduction="none")
                optimizer.zero_grad()
                (losses.sum() / len(losses)).backward()
                optimizer.step()
                if epoch == 0 or insert_epochs == "all":
                    memory.insert({"0": x, "1": y})
    return dict(module.named_parameters())


@pytest.mark.parametrize(
    ("capacity", "batch_size", "insert_epochs"),
    [(10, None, "first"), (5, 3, "first"), (10, None, "all"), (3, 50, "all")],
)
def test_equals_the_loop_written_out(capacity: int, batch_size: int | None, insert_epochs: Any) -> None:
    replay = Replay(capacity, batch_size, insert_epochs, seed=4)
    found = learn([replay], seeded(drop=0.0), TinyStream(), precision="64-true")
    expected = written_out(capacity, batch_size, insert_epochs, seed=4)
    torch.testing.assert_close(found.weights, expected, rtol=0, atol=1e-12)
    assert replay.memory.seen == (48 if insert_epochs == "first" else 96)


def test_an_empty_memory_changes_nothing() -> None:
    one = {"stream": TinyStream(1), "max_epochs": 1, "limit_train_batches": 1}
    assert same(learn([Replay(10)], **one).weights, learn(**one).weights)


def test_no_batch_replays_itself() -> None:
    module = seeded(Spy)
    learn([Replay(100, batch_size=100)], module, TinyStream(1), max_epochs=1)
    lengths = [len(y) for _, y in module.batches]
    assert lengths == [8, 16, 24, 32, 40, 48]  # all that came before
    assert all(len(x.unique(dim=0)) == len(x) for x, _ in module.batches)


def test_memory_is_raw_and_what_is_replayed_is_augmented() -> None:
    replay, module = Replay(10), seeded(Spy)
    learn([replay], module, TinyStream(augment=lambda x: 255 - x))
    stored = replay.memory.items["0"]
    originals = samples(train=True)[0]
    assert stored.dtype == torch.uint8
    assert all((originals == image).flatten(1).all(1).any() for image in stored)
    x, y = module.batches[-1]
    assert len(x) == 16
    for image, label in zip(x[8:], y[8:], strict=True):
        match = ((255 - originals).float() / 255 - image).abs().flatten(1).amax(1) < 1e-6
        assert samples(train=True)[1][match].tolist() == [label]


def test_memory_costs_a_byte_per_pixel() -> None:
    replay = Replay(7)
    learn([replay])
    x = replay.memory.items["0"]
    assert x.untyped_storage().nbytes() == 7 * 64
    assert len(replay.memory) == 7


def test_every_column_is_replayed() -> None:
    module = seeded(Spy)
    learn([Replay(30)], module, TinyStream(task_labels=True))
    _, y, task = module.batches[-1]
    assert len(y) == 16
    assert torch.equal(task, y // 2)


def test_each_draw_is_another() -> None:
    module = seeded(Spy)
    learn([Replay(24, insert_epochs="first")], module, TinyStream(1, batch_size=24), max_epochs=4)
    replayed = [x[24:] for x, _ in module.batches[2:]]
    assert len(replayed[0]) == 24
    assert not torch.equal(replayed[0], replayed[1])


@pytest.mark.parametrize("how", [learn, learn_plain])
def test_each_instance_is_offered_the_current_samples_only(how: Any) -> None:
    alone = Replay(6, seed=2)
    how([alone], seeded(drop=0.0))  # dropout would draw more for longer batches, and shuffles would be others
    module = seeded(Spy, drop=0.0)
    first, second = Replay(10, batch_size=3), Replay(6, seed=2)
    how([first, second], module)
    assert second.memory.seen == alone.memory.seen == 48
    assert same(second.memory.state_dict(), alone.memory.state_dict())
    assert len(module.batches[-1][0]) == 8 + 3 + 6  # as many as the data loader gave, of those that there are


def test_ordinary_batches_are_kept_as_they_reach_the_module() -> None:
    replay = Replay(100)
    learn_plain([replay])
    stored, originals = replay.memory.items["0"], samples(train=True)[0].float() / 255
    assert stored.dtype == torch.float32
    assert torch.equal(stored.flatten(1).sum(1).sort().values, originals.flatten(1).sum(1).sort().values)


def test_a_step_may_change_its_inputs() -> None:
    class Erases(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            batch[0].zero_()
            return super().training_step(batch, batch_idx)

    replay = Replay(100)
    learn_plain([replay], seeded(Erases))
    assert replay.memory.items["0"].flatten(1).sum(1).min() > 0


def collate(kind: Any) -> Any:
    return lambda items: kind(zip(("x", "y"), map(torch.stack, zip(*items, strict=True)), strict=True))


def test_a_dict_is_changed_in_place() -> None:
    class Named(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            lengths.append(len(batch["y"]))
            return super().training_step([batch["x"], batch["y"]], batch_idx)

    lengths: list[int] = []
    loader = PlainData().train_dataloader()
    loader.collate_fn = collate(dict)
    trainer([Replay(10)], max_epochs=1).fit(seeded(Named), loader)
    assert lengths == [8, 16, 16]


def test_a_tuple_is_refused() -> None:
    loader = PlainData().train_dataloader()
    loader.collate_fn = lambda items: tuple(map(torch.stack, zip(*items, strict=True)))
    with pytest.raises(TypeError, match=r"Replay changes the batch in place, .* `collate_fn`"):
        trainer([Replay(10)], max_epochs=1).fit(seeded(), loader)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"capacity": 0}, "`capacity` must be 1 or more, got 0"),
        ({"policy": "resevoir"}, "`policy` must be one of .*'reservoir'.*, got 'resevoir'"),
        ({"batch_size": -2}, "`batch_size` must be 0 or more, .* got -2"),
    ],
)
def test_errors(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Replay(**arguments)


def test_seed_of_the_run_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "17")
    assert Replay().seed == 17
    assert Replay(seed=3).seed == 3


def test_each_rank_draws_its_own() -> None:
    def draw(rank: int) -> Tensor:
        replay = Replay(20, seed=0)
        replay.memory.insert({"y": torch.arange(20)})
        strategy = SimpleNamespace(root_device=torch.device("cpu"))
        trainer = SimpleNamespace(global_rank=rank, strategy=strategy)
        replay.start(trainer, None)
        return replay.draw(trainer, 8)["y"]

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(0), draw(1))
