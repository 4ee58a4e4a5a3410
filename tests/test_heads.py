"""The growing head: rows by class, whatever the order, and checkpoints of any width."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from lightning_cl.heads import GrowingHead, classifier_of
from lightning_cl.methods import Classifier
from tests.helpers.contracts import Net, resnet, transformer


def grown(*steps: list[int], **kwargs: Any) -> GrowingHead:
    head = GrowingHead(**{"in_features": 3, "num_classes": 6, "seed": 0, **kwargs})
    for classes in steps:
        head.grow(classes)
    return head


def row(head: GrowingHead, label: int) -> list[float]:
    """Weights and bias of a class."""
    k = head.classes.tolist().index(label)
    return [*head.linear.weight[k].tolist(), head.linear.bias[k].item()]


def test_scores_are_those_of_the_rows_and_minus_infinity_elsewhere() -> None:
    head, x = grown([4, 1], [2]), torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    scores = head(x)
    assert scores.shape == (5, 6)
    assert torch.isinf(scores).all(0).tolist() == [True, False, False, True, False, True]
    for label in (4, 1, 2):
        *weight, bias = row(head, label)
        torch.testing.assert_close(scores[:, label], (x * torch.tensor(weight)).sum(1) + bias)


def test_a_head_without_rows_gives_no_scores() -> None:
    assert grown()(torch.zeros(2, 3)).tolist() == [[-math.inf] * 6] * 2
    assert sum(p.numel() for p in grown().parameters()) == 0


def test_a_row_depends_on_seed_and_class_alone() -> None:
    state = torch.get_rng_state()
    at_once = grown([0, 1, 2, 5])
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)
    later = grown([5], [2, 5, 1])
    assert all(row(at_once, label) == row(later, label) for label in (5, 2, 1))
    assert row(at_once, 1) != row(grown([1], seed=1), 1)
    assert len({tuple(row(at_once, label)) for label in (0, 1, 2, 5)}) == 4


def test_new_rows_are_uniform_as_in_a_linear_layer() -> None:
    """The largest of 4 040 draws is beyond 99 % of the bound with probability 1 - 0.99 ** 4040."""
    head = grown(list(range(40)), in_features=100, num_classes=40)
    assert 0.099 < head.linear.weight.abs().max() < 0.1
    assert 0.08 < head.linear.bias.abs().max() < 0.1
    assert head.linear.weight.mean().abs() < 5 * 0.1 / math.sqrt(3 * 4000)


def test_growing_keeps_the_rows_that_were_trained() -> None:
    head = grown([3, 0])
    with torch.no_grad():
        head.linear.weight += 1
    before = {label: row(head, label) for label in (3, 0)}
    head.double().grow([0, 2])
    assert head.classes.tolist() == [3, 0, 2]
    assert head.linear.weight.dtype == torch.float64
    assert {label: row(head, label) for label in (3, 0)} == before
    kept = head.linear.weight
    head.grow([2, 3])
    assert head.linear.weight is kept
    assert head.linear.out_features == 3


@pytest.mark.parametrize("here", [[], [[1]], [[1, 2, 3, 4]], [[5, 4]]])
def test_a_checkpoint_of_any_width_loads(here: list[list[int]]) -> None:
    saved, model = grown([4], [1]), nn.Sequential(nn.Identity(), grown(*here, seed=9))
    state = nn.Sequential(nn.Identity(), saved).state_dict()
    model.load_state_dict(state)
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


def test_loading_the_same_classes_keeps_the_parameters_of_the_optimizer() -> None:
    head, other = grown([1, 4]), grown([1, 4], seed=1)
    parameters = list(head.parameters())
    head.load_state_dict(other.state_dict())
    assert all(a is b for a, b in zip(parameters, head.parameters(), strict=True))
    assert row(head, 4) == row(other, 4)


def test_a_checkpoint_without_the_head_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"Missing key.*classes"):
        grown([1]).load_state_dict({})


@pytest.mark.parametrize(
    ("arguments", "classes", "message"),
    [
        ({"in_features": 0}, [], "`in_features` must be 1 or more, got 0."),
        ({"num_classes": 0}, [], "`num_classes` must be 1 or more, got 0."),
        ({"seed": -1}, [], "`seed` must be 0 or more, got -1."),
        ({}, [2, 6, -1], r"`classes` must be in \[0, 6\) \(`num_classes`\), got \[6, -1\]."),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], classes: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        grown(classes, **arguments)


def test_the_classifier_is_found_by_timms_convention() -> None:
    assert classifier_of(resnet()) == "net.fc"
    assert classifier_of(transformer()) == "net.head"
    assert classifier_of(Classifier(4, "mlp", (1, 8, 8), head="growing")) == "backbone.fc"
    assert classifier_of(Net()) is None


def test_a_frozen_head_grows_frozen() -> None:
    head = grown([1])
    head.requires_grad_(False).grow([2])
    assert not any(p.requires_grad for p in head.parameters())
    assert len(head.linear.weight) == 2
