"""DER against a loop written out, and what is stored of a sample."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_cl.callbacks import DER
from lightning_cl.callbacks.replay.der import logit_matching
from tests.helpers.contracts import (
    LIGHTNINGS_OWN_WARNINGS,
    Growing,
    Net,
    TinyStream,
    learn,
    learn_plain,
    samples,
    seeded,
)
from tests.helpers.rehearsal import Erases, Rows, distance, forward_of, surprise, written_out

pytestmark = LIGHTNINGS_OWN_WARNINGS


@pytest.mark.parametrize(("batch", "classes"), [(1, 1), (3, 7), (8, 100)])
def test_scores_that_are_off_by_one_cost_one(batch: int, classes: int) -> None:
    z = torch.randn(batch, classes, dtype=torch.float64)
    torch.testing.assert_close(logit_matching(z + 1, z), torch.tensor(1.0, dtype=torch.float64))


def test_classes_that_a_head_did_not_have_have_no_part() -> None:
    scores, stored = torch.randn(5, 6, requires_grad=True), torch.randn(5, 6)
    stored[:, 4:] = -torch.inf
    loss = logit_matching(scores, stored)
    torch.testing.assert_close(loss, (scores[:, :4] - stored[:, :4]).square().sum() / (5 * 4))
    loss.backward()
    assert scores.grad is not None
    assert not scores.grad[:, 4:].any()
    assert logit_matching(stored, scores.detach()) == loss  # nor those that it has lost
    assert logit_matching(scores.detach(), torch.full((5, 6), -torch.inf)) == 0


def by_hand(module: Any, x: Tensor, y: Tensor, old: list[Rows], alpha: float) -> tuple[Tensor, Tensor]:
    scores = module(x)
    loss = surprise(scores, y)
    return loss + alpha * distance(forward_of(module, old[0]), old[0]["logits"]) if old else loss, scores


@pytest.mark.parametrize("forward", ["joint", "separate"])
@pytest.mark.parametrize(("alpha", "insert_epochs"), [(0.3, "first"), (2.0, "all")])
def test_equals_the_loop_written_out(alpha: float, insert_epochs: Any, forward: Any) -> None:
    der = DER(10, alpha, 5, forward, insert_epochs, seed=4)
    found = learn([der], seeded(drop=0.0), TinyStream(), precision="64-true")
    loss = partial(by_hand, alpha=alpha)
    expected = written_out(loss, count=5, insert_epochs=insert_epochs, keeps_logits=True)
    torch.testing.assert_close(found.weights, dict(expected.named_parameters()), rtol=0, atol=1e-12)


class Answers(Net):
    """Keeps what it was asked and what it answered, with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        scores = super().forward(x)
        if self.training:
            self.asked.append((x, scores.detach()))
        return scores


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("forward", ["joint", "separate"])
def test_stored_are_raw_images_and_the_scores_of_the_forward_of_the_loss(forward: Any, precision: Any) -> None:
    der, module = DER(100, forward=forward), seeded(Answers)
    learn([der], module, TinyStream(1, augment=lambda x: 255 - x), max_epochs=1, precision=precision)
    stored = der.memory.items
    # The first step has one forward; with separate ones the others have two.
    asked = module.asked if forward == "joint" else [module.asked[0], *module.asked[1::2]]
    x, z = (torch.cat([row[:8] for row in rows]) for rows in zip(*asked, strict=True))
    assert stored["0"].dtype == torch.uint8
    torch.testing.assert_close((255 - stored["0"]).float() / 255, x)
    assert stored["logits"].dtype == torch.float32
    assert torch.equal(stored["logits"], z.float())


def test_scores_at_the_end_are_those_of_the_finished_network() -> None:
    der, module = DER(100, insert_epochs="end"), seeded()
    learn([der], module, TinyStream(1, augment=lambda x: 255 - x))
    x, _, z = der.memory.items.values()
    assert torch.equal(*(images.flatten(1).sum(1).sort().values for images in (x, samples(train=True)[0])))
    torch.testing.assert_close(z, module.eval()(x / 255).detach())


class Recorded(DER):
    """Keeps what is added to the loss."""

    def replay_loss(self, *args: Any) -> Tensor:
        self.added = [*getattr(self, "added", []), super().replay_loss(*args)]
        return self.added[-1]


def test_a_frozen_network_agrees_with_itself() -> None:
    class Frozen(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.net.eval()
            return super().training_step(batch, batch_idx)

        def on_train_end(self) -> None:
            self.net.train()

    der = Recorded(10, alpha=5.0)
    learn([der], seeded(Frozen, lr=0.0), TinyStream())
    assert [value.item() for value in der.added] == [0.0] * 11


def test_a_head_that_grows_is_compared_where_it_was() -> None:
    der = Recorded(40)
    learned = learn([der], seeded(Growing), TinyStream())
    first = der.memory.items["1"] < 2
    z = der.memory.items["logits"]
    assert z[first][:, 2:].isneginf().all()
    assert z[~first].isfinite().all()
    assert all(value.isfinite().all() for value in (*der.added, *learned.weights.values()))
    assert sum(value.item() > 0 for value in der.added) >= 10


def test_a_step_may_change_its_batch() -> None:
    der = DER(100)
    learn_plain([der], seeded(Erases))
    stored = der.memory.items
    sums = (images.flatten(1).sum(1).sort().values for images in (stored["0"], samples(train=True)[0] / 255))
    torch.testing.assert_close(*sums)
    assert stored["1"].bincount().tolist() == [12] * 4


def test_errors() -> None:
    with pytest.raises(ValueError, match="`alpha` must be 0 or more, got nan"):
        DER(alpha=float("nan"))
