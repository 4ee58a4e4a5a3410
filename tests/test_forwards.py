"""Values at places of a forward; what a callback is told of ``training_step``'s own is in ``test_callback.py``."""

from typing import Any

import pytest
import torch

from lightning_cl.forwards import scores_in, values_at
from tests.helpers.contracts import seeded


def test_values_at_places_are_those_of_the_forward() -> None:
    net = seeded().net
    x = torch.rand(3, 64)
    values = values_at(net, ["1", "2:input", "4"], lambda: net(x))
    assert values["1"] is values["2:input"]
    assert values["4"] is values[""]
    assert torch.equal(values["1"], net[1](x))
    assert not any(child._forward_hooks for child in net)


@pytest.mark.parametrize(
    ("output", "got"), [({"scores": 1}, "a dict"), (torch.zeros(3), r"a tensor \(3,\)"), ((1, 2), "a tuple")]
)
def test_scores_must_be_found_in_what_a_module_returns(output: Any, got: str) -> None:
    logits = torch.zeros(2, 3)
    assert scores_in({"logits": logits}) is scores_in(logits) is logits
    with pytest.raises(TypeError, match=f"must return scores .* got {got}: let `forward`"):
        scores_in(output)
