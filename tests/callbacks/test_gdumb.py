"""GDumb: what is trained on, and what each experience begins with."""

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor

from lightning_cl.callbacks import GDumb
from lightning_cl.heads import GrowingHead
from tests.helpers.contracts import LIGHTNINGS_OWN_WARNINGS, Net, TinyStream, learn, same, seeded
from tests.helpers.rehearsal import Normed, Spy

pytestmark = LIGHTNINGS_OWN_WARNINGS


def test_all_batches_but_the_first_come_from_a_balanced_memory() -> None:
    gdumb, module = GDumb(10), seeded(Spy)
    learn([gdumb], module, TinyStream())
    kept = gdumb.memory.items["0"].float() / 255
    for x, y in module.batches[-3:]:  # the memory is filled in the first epoch
        assert y.bincount(minlength=4).tolist() == [2, 2, 2, 2]
        assert all(torch.isclose(kept, image, atol=1e-6).flatten(1).all(1).sum() == 1 for image in x)
    assert gdumb.memory.items["1"].bincount().sort().values.tolist() == [2, 2, 3, 3]
    first = module.batches[0][0]  # the second is drawn from the first alone
    assert torch.equal(module.batches[1][0].sort(0).values, first.sort(0).values)


class Beginnings(Callback):
    """Keeps the state of the module before the first batch of each experience."""

    def __init__(self) -> None:
        self.found: list[dict[str, Tensor]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0 and trainer.current_epoch % 2 == 0:
            self.found.append({name: value.clone() for name, value in pl_module.state_dict().items()})


@pytest.mark.parametrize("reset", [True, False])
def test_each_experience_begins_from_scratch(reset: bool) -> None:
    begins = Beginnings()
    learn([GDumb(10, reset=reset), begins], seeded(Normed))
    first, second = begins.found
    assert same(first, dict(seeded(Normed).state_dict()))
    assert {name: same(second[name], first[name]) for name in first} == dict.fromkeys(first, reset)


class Grows(Net):
    """Has a head with a row for each class so far."""

    def __init__(self) -> None:
        super().__init__()
        self.net[4] = GrowingHead(12, 4, seed=5)

    def setup(self, stage: str) -> None:
        self.net[4].grow(range(self.trainer.datamodule.current + 1))


def test_rows_that_came_later_begin_from_scratch_too() -> None:
    begins, head = Beginnings(), GrowingHead(12, 4, seed=5)
    head.grow(range(4))
    learn([GDumb(10), begins], seeded(Grows), TinyStream(4))
    for experience, found in enumerate(begins.found):
        assert torch.equal(found["net.4.linear.weight"], head.linear.weight[: experience + 1])
        assert same(found["net.1.weight"], begins.found[0]["net.1.weight"])
    assert len(begins.found) == 4


def test_a_fit_that_failed_is_begun_anew() -> None:
    class Fails(Net):
        steps = 0

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.steps += 1
            if self.steps == 4:
                raise RuntimeError("once")
            return super().training_step(batch, batch_idx)

    gdumb, module, begins = GDumb(10), seeded(Fails), Beginnings()
    with pytest.raises(RuntimeError, match="once"):
        learn([gdumb], module)
    learn([gdumb, begins], module, max_epochs=1, limit_train_batches=3)
    assert same(begins.found[0], dict(seeded(Net).state_dict()))


def test_policies_without_classes_are_balanced_when_drawn() -> None:
    module = seeded(Spy)
    learn([GDumb(40, policy="reservoir")], module)
    assert module.batches[-1][1].bincount(minlength=4).tolist() == [2, 2, 2, 2]
