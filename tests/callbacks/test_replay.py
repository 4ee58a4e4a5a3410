"""Experience replay against a loop written out, and what its memory must hold."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_cl.callbacks import DER, ERACE, UER, FeatureDistillation, LwF, Replay
from lightning_cl.rehearsal import Storage
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
from tests.helpers.rehearsal import Erases, Normed, Rows, Spy, forward_of, process, surprise, written_out

pytestmark = LIGHTNINGS_OWN_WARNINGS


def joint(module: Any, x: Tensor, y: Tensor, old: list[Rows]) -> tuple[Tensor, Tensor]:
    """The mean loss of the joint batch, in one forward."""
    scores = module(torch.cat([x, *(scaled(rows["0"]) for rows in old)]))
    return surprise(scores, torch.cat([y, *(rows["1"] for rows in old)])), scores[: len(x)]


def summed(module: Any, x: Tensor, y: Tensor, old: list[Rows], share: float = 1.0) -> tuple[Tensor, Tensor]:
    """A share of the sum of two means, in separate forwards."""
    scores = module(x)
    loss = surprise(scores, y)
    return share * (loss + surprise(forward_of(module, old[0]), old[0]["1"])) if old else loss, scores


def summed_in_one_forward(module: Any, x: Tensor, y: Tensor, old: list[Rows]) -> tuple[Tensor, Tensor]:
    """The sum of two means."""
    scores = module(torch.cat([x, *(scaled(rows["0"]) for rows in old)]))
    loss = surprise(scores[: len(x)], y)
    return loss + surprise(scores[len(x) :], old[0]["1"]) if old else loss, scores[: len(x)]


@pytest.mark.parametrize(
    ("capacity", "batch_size", "insert_epochs"),
    [(10, None, "first"), (5, 3, "first"), (10, None, "all"), (3, 50, "all")],
)
def test_equals_the_loop_written_out(capacity: int, batch_size: int | None, insert_epochs: Any) -> None:
    replay = Replay(capacity, batch_size, insert_epochs, seed=4)
    found = learn([replay], seeded(drop=0.0), TinyStream(), precision="64-true")
    count = 8 if batch_size is None else batch_size
    expected = written_out(joint, capacity=capacity, count=count, insert_epochs=insert_epochs)
    torch.testing.assert_close(found.weights, dict(expected.named_parameters()), rtol=0, atol=1e-12)
    assert replay.memory.seen == (48 if insert_epochs == "first" else 96)


@pytest.mark.parametrize("forward", ["joint", "separate"])
@pytest.mark.parametrize(
    ("loss", "retrieval", "policy"),
    [("sum", "uniform", "reservoir"), ("mean", "balanced", "class_quota"), ("sum", "balanced", "ring")],
)
def test_sum_and_mean_equal_the_loop_written_out(loss: Any, retrieval: Any, policy: str, forward: Any) -> None:
    replay = Replay(10, 3, policy=policy, retrieval=retrieval, loss=loss, forward=forward, seed=4)
    found = learn([replay], seeded(drop=0.0), TinyStream(), precision="64-true")
    by_hand = partial(summed, share=0.5 if loss == "mean" else 1.0)
    expected = written_out(by_hand, count=3, balanced=retrieval == "balanced", policy=policy)
    torch.testing.assert_close(found.weights, dict(expected.named_parameters()), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("forward", "by_hand", "updates"), [("joint", summed_in_one_forward, 12), ("separate", summed, 12 + 11)]
)
def test_batch_norm_sees_what_goes_through_one_forward(forward: Any, by_hand: Any, updates: int) -> None:
    replay = Replay(10, loss="sum", forward=forward, seed=4)
    found = learn([replay], seeded(Normed), TinyStream(), precision="64-true").module
    expected = written_out(by_hand, seeded(Normed))
    torch.testing.assert_close(found.state_dict(), expected.state_dict(), rtol=0, atol=1e-12)
    assert found.net[3].num_batches_tracked == updates


def test_balanced_retrieval_draws_as_many_of_each_class() -> None:
    module = seeded(Spy)
    learn([Replay(40, retrieval="balanced")], module)
    counts = torch.stack([y[8:].bincount(minlength=4) for _, y in module.batches[-3:]])
    assert counts.tolist() == [[2, 2, 2, 2]] * 3


@pytest.mark.parametrize("batch_size", [8, 10])
def test_passes_use_each_sample_as_often_as_any_other(batch_size: int) -> None:
    """What is offered at the end is first replayed in the second experience: 6 batches, of 24 samples."""
    module = seeded(Spy)
    learn([Replay(40, batch_size, "end", retrieval="passes")], module, TinyStream())
    assert [len(x) for x, _ in module.batches] == [8] * 6 + [8 + batch_size] * 6
    replayed = torch.cat([x[8:] for x, _ in module.batches]).flatten(1)
    times = replayed[:24].unique(dim=0, return_counts=True)[1]
    assert times.tolist() == [1] * 24 if batch_size == 8 else times.max() <= 2
    times = replayed.unique(dim=0, return_counts=True)[1]
    assert len(times) == 24
    assert times.max() - times.min() <= 1
    assert all(len(x[8:].unique(dim=0)) == batch_size for x, _ in module.batches[6:])


@pytest.mark.parametrize("seed", range(5))
def test_a_pass_survives_a_memory_that_loses_items(seed: int) -> None:
    replay = Replay(10, policy="class_quota", retrieval="passes", seed=seed)
    for y in (torch.zeros(10), torch.ones(2)):  # the second class takes five places and fills two
        replay.memory.insert({"y": y}, groups=y)
        slots = replay._next(7)
        assert len(slots.unique()) == 7
        assert slots.max() < len(replay.memory)
    assert len(replay.memory) == 7


JOINT: dict[str, Any] = {"loss": "sum", "forward": "joint"}


def test_a_joint_forward_needs_a_step_that_calls_the_module() -> None:
    class Inside(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return F.cross_entropy(self.net(batch[0]), batch[1])

    with pytest.raises(ValueError, match=r"`forward='joint'` needs .* `self\(x\)`.* set `forward='separate'`"):
        learn([Replay(10, **JOINT)], seeded(Inside))
    learn([Replay(10, loss="sum", forward="separate")], seeded(Inside))


class Named(Net):
    """Calls the module by keyword, and gets a dict."""

    def forward(self, image: Tensor, factor: float = 1.0) -> Any:
        return {"factor": factor, "logits": factor * self.net(image), "rows": [image]}

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        output = self(image=batch[0], factor=1.0)
        assert len(output["rows"][0]) == len(output["logits"]) == len(batch[1])
        return {"loss": F.cross_entropy(output["logits"], batch[1])}


def test_a_joint_forward_of_any_form() -> None:
    plain, named = (learn([Replay(10, **JOINT, seed=2)], seeded(cls)) for cls in (Net, Named))
    assert same(plain.weights, named.weights)


@pytest.mark.parametrize(
    "other",
    [
        lambda: LwF(strength=2.0),
        lambda: FeatureDistillation(strength=0.5, features=["net"]),
        lambda: Replay(10, seed=1),
        lambda: ERACE(6, forward="joint", seed=1),
        lambda: DER(6, forward="joint", seed=1),
        lambda: UER(6, forward="joint", seed=1),
    ],
)
def test_others_see_the_current_rows_of_a_joint_forward(other: Any) -> None:
    found = []
    for forward in ("joint", "separate"):
        callbacks = [Replay(10, loss="sum", forward=forward, seed=2), other()]
        found.append(learn(callbacks, seeded(drop=0.0), precision="64-true").weights)
    torch.testing.assert_close(*found, rtol=0, atol=1e-12)


def test_two_join_one_forward() -> None:
    module = seeded(Spy)
    learn([DER(10, forward="joint"), UER(6, forward="joint"), Replay(8, **JOINT)], module)
    assert module.forwards == len(module.batches) == 12


def test_each_micro_batch_draws_once() -> None:
    replay, module = Replay(10, **JOINT), seeded(Spy)
    learn([replay], module, accumulate_grad_batches=4)
    assert replay.state_dict()["draws"] == len(module.batches) - 1 == 11  # the first found an empty memory


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
        ({"forward": "separate"}, "`forward` must be 'joint' for the joint loss"),
        ({"policy": "gss"}, "`policy` must not be 'gss', which needs scores"),
        ({"retrieval": "passes", "storage": Storage("sharded")}, "`retrieval='passes'` goes through one memory"),
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
        replay.start(process(rank, 2), None)
        return replay.draw(process(rank, 2), 8)["y"]

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(0), draw(1))


def test_offered_at_the_end_only_earlier_experiences_are_replayed() -> None:
    replay, module = Replay(100, insert_epochs="end"), seeded(Spy)
    learn([replay], module, TinyStream(augment=lambda x: 255 - x))
    assert [len(y) for _, y in module.batches] == [8] * 6 + [16] * 6
    assert all((y[8:] < 2).all() for _, y in module.batches)
    kept = replay.memory.items["0"].flatten(1).unique(dim=0)
    assert same(kept, samples(train=True)[0].flatten(1).unique(dim=0))  # raw, each once


@pytest.mark.parametrize("batch_size", [5, 6, 30])
def test_in_passes_each_comes_once_before_any_comes_again(batch_size: int) -> None:
    replay, module = Replay(24, batch_size, insert_epochs="end", retrieval="passes"), seeded(Spy)
    learn([replay], module, TinyStream())
    rows = [row.numpy().tobytes() for x, _ in module.batches[6:] for row in x[8:]]
    size = min(batch_size, 24)
    assert len(rows) == 6 * size
    assert all(len(set(rows[i : i + size])) == size for i in range(0, len(rows), size))
    assert len(set(rows[:24])) == min(24, len(rows))
    assert rows[24:48] != rows[: len(rows[24:48])]


def test_a_pass_goes_on_in_a_memory_that_becomes_smaller() -> None:
    replay = Replay(4, policy="class_quota", retrieval="passes")
    replay.memory.insert({"y": torch.arange(4)}, groups=torch.zeros(4))
    assert len(replay._next(1)) == 1
    replay.memory.insert({"y": torch.arange(1)}, groups=torch.ones(1))
    assert len(replay.memory) == 3
    assert sorted(replay._next(3).tolist()) == [0, 1, 2]


def test_passes_of_several_processes_need_a_batch_size() -> None:
    with pytest.raises(ValueError, match="`batch_size` must be a number for `retrieval='passes'` with several"):
        Replay(10, retrieval="passes").check(SimpleNamespace(world_size=2), None)
    with pytest.raises(ValueError, match=r"`retrieval='passes'` goes through one memory: set `storage.sharing`"):
        Replay(10, retrieval="passes", storage=Storage("sharded"))
