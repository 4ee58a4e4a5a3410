"""ER-ACE against a loop written out: which classes compete in which loss."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_cl.callbacks import ERACE, Replay
from lightning_cl.callbacks.replay.er_ace import mask_absent
from tests.helpers.contracts import LIGHTNINGS_OWN_WARNINGS, Net, TinyStream, learn, same, seeded
from tests.helpers.rehearsal import Rows, forward_of, surprise, written_out

pytestmark = LIGHTNINGS_OWN_WARNINGS
ORDER = [3, 0, 2, 1]


class ByHand:
    """The sum over classes that compete in the denominator of the softmax, and no others."""

    def __init__(self, absent: str, task_free: bool, share: float) -> None:
        self.absent, self.first, self.share = absent, 0 if task_free else 6, share
        self.steps, self.seen = 0, set[int]()

    def __call__(self, module: Any, x: Tensor, y: Tensor, old: list[Rows]) -> tuple[Tensor, Tensor]:
        present, scores = set(y.tolist()), module(x)
        out = (self.seen if self.absent == "seen" else set(range(4))) - present if self.steps >= self.first else set()
        self.seen |= present
        self.steps += 1
        kept = [c for c in range(4) if c not in out]
        loss = (scores[:, kept].exp().sum(1).log() - scores.gather(1, y[:, None])[:, 0]).mean()
        if old:
            loss = self.share * (loss + surprise(forward_of(module, old[0]), old[0]["1"]))
        return loss, scores


@pytest.mark.parametrize("forward", ["joint", "separate"])
@pytest.mark.parametrize(
    ("absent", "task_free", "loss"), [("seen", True, "sum"), ("seen", False, "mean"), ("all", True, "mean")]
)
def test_equals_the_loop_written_out(absent: Any, task_free: bool, loss: Any, forward: Any) -> None:
    er_ace = ERACE(10, 5, absent, task_free, loss, forward, seed=4)
    found = learn([er_ace], seeded(drop=0.0), TinyStream(class_order=ORDER), precision="64-true")
    by_hand = ByHand(absent, task_free, 0.5 if loss == "mean" else 1.0)
    expected = written_out(by_hand, stream=TinyStream(class_order=ORDER), count=5)
    torch.testing.assert_close(found.weights, dict(expected.named_parameters()), rtol=0, atol=1e-12)
    assert er_ace.seen.tolist() == [0, 1, 2, 3]


def test_first_experience_is_that_of_replay() -> None:
    methods = (ERACE(10, forward="separate"), Replay(10, loss="sum", forward="separate"))
    one, other = (learn([method], stream=TinyStream(1)) for method in methods)
    assert same(one.weights, other.weights)


def test_memory_is_filled_at_the_end_if_so_asked() -> None:
    er_ace = ERACE(100, insert_epochs="end", task_free=True)
    learn([er_ace])
    assert er_ace.memory.items["1"].bincount().tolist() == [12] * 4
    assert er_ace.state_dict()["draws"] == 6  # in the second experience only


class Pulled(Net):
    """Keeps the scores of each forward, with their gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.scores: list[Tensor] = []
        self.net[4].register_forward_hook(self.keep)

    def keep(self, layer: Any, args: Any, scores: Tensor) -> None:
        if scores.requires_grad:
            self.scores.append(scores)
            scores.retain_grad()


@pytest.mark.parametrize(("absent", "pushed"), [("seen", [2, 3]), ("all", [])])
def test_absent_classes_are_not_pushed(absent: Any, pushed: list[int]) -> None:
    """Of four experiences of one class each, the third: classes 0 and 1 are old, and 3 never came."""
    module = seeded(Pulled)
    learn([ERACE(10, absent=absent, task_free=True)], module, TinyStream(4), limit_train_batches=1, max_epochs=1)
    current, replayed = (scores.grad != 0 for scores in module.scores[3:5])  # the first step has one forward
    assert current.any(0).nonzero().flatten().tolist() == pushed  # with no rival a class is not pulled either
    assert replayed.all()


def test_mask_has_exactly_no_gradient_and_does_not_overflow() -> None:
    scores = torch.tensor([[6e4, 1.0, -3.0, 2.0]], dtype=torch.float16, requires_grad=True)
    masked = mask_absent(scores, torch.tensor([True, False, False, True]))
    loss = F.cross_entropy(masked, torch.tensor([1]))
    loss.backward()
    assert masked.dtype == torch.float32
    torch.testing.assert_close(loss, torch.tensor(-4.0).exp().log1p())
    assert scores.grad is not None
    assert scores.grad[0, [0, 3]].tolist() == [0, 0]
    assert (scores.grad[0, [1, 2]] != 0).all()


@pytest.mark.parametrize("name", ["absent", "loss", "forward"])
def test_errors(name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be '.*', got 'none'"):
        ERACE(**{name: "none"})  # type: ignore[arg-type]
