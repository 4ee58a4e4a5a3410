"""DER++ against a loop written out."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_cl.callbacks import DER, DERpp
from tests.helpers.contracts import LIGHTNINGS_OWN_WARNINGS, TinyStream, learn, same, seeded
from tests.helpers.rehearsal import Rows, Spy, distance, forward_of, surprise, written_out

pytestmark = LIGHTNINGS_OWN_WARNINGS


def by_hand(module: Any, x: Tensor, y: Tensor, old: list[Rows], alpha: float, beta: float) -> tuple[Tensor, Tensor]:
    scores = module(x)
    loss = surprise(scores, y)
    if old:
        dark, labelled = old[0], old[-1]
        loss = loss + alpha * distance(forward_of(module, dark), dark["logits"])
        loss = loss + beta * surprise(forward_of(module, labelled), labelled["1"])
    return loss, scores


@pytest.mark.parametrize("forward", ["joint", "separate"])
@pytest.mark.parametrize(("num_draws", "alpha", "beta"), [(1, 0.3, 0.5), (2, 0.3, 0.5), (2, 0.0, 2.0)])
def test_equals_the_loop_written_out(num_draws: Any, alpha: float, beta: float, forward: Any) -> None:
    derpp = DERpp(10, alpha, beta, num_draws, 5, forward, seed=4)
    found = learn([derpp], seeded(drop=0.0), TinyStream(), precision="64-true")
    loss = partial(by_hand, alpha=alpha, beta=beta)
    expected = written_out(loss, count=5, draws=num_draws, keeps_logits=True)
    torch.testing.assert_close(found.weights, dict(expected.named_parameters()), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("forward", "num_draws", "forwards"), [("separate", 2, 3), ("separate", 1, 2), ("joint", 2, 1), ("joint", 1, 1)]
)
def test_number_of_forwards(forward: Any, num_draws: Any, forwards: int) -> None:
    module = seeded(Spy)
    learn([DERpp(10, forward=forward, num_draws=num_draws)], module, TinyStream(1), max_epochs=1)
    assert module.forwards == 1 + 5 * forwards  # the first step has nothing to replay


def test_without_labels_it_is_der() -> None:
    one, other = (learn([method]).weights for method in (DERpp(10, beta=0.0, num_draws=1), DER(10)))
    assert same(one, other)


@pytest.mark.parametrize(("name", "value"), [("beta", -1.0), ("num_draws", 3)])
def test_errors(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be .*, got {value}"):
        DERpp(**{name: value})
