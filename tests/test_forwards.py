"""Values at places of a forward, and rows that join one; what a callback is told is in ``test_callback.py``."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_cl.forwards import OUTPUT, Forwards, scores_in, values_at
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


@pytest.fixture
def net() -> Any:
    return seeded(drop=0.0).net


@pytest.fixture
def forwards(net: Any) -> Iterator[Forwards]:
    listening = Forwards(net)
    listening.watch(OUTPUT)
    listening.watch("1")
    yield listening
    listening.release()
    assert not any(child._forward_hooks or child._forward_pre_hooks for child in net.modules())


def rows(*counts: int) -> list[Tensor]:
    return [torch.rand(count, 64) for count in counts]


def test_rows_join_a_forward_that_does_not_see_them(net: Any, forwards: Forwards) -> None:
    x, first, second = rows(3, 2, 5)
    expected = [net(part) for part in (x, first, second)]
    numbers = [forwards.join(first), forwards.join(second)]
    own = forwards.during(lambda: net(x))
    for found, part in zip((own, *map(forwards.joined, numbers)), expected, strict=True):
        torch.testing.assert_close(found, part)
    forward = forwards.of(x)
    assert forward.got(x)
    assert forward[OUTPUT] is own
    torch.testing.assert_close(forward["1"], net[1](x))
    forwards.forget()
    assert torch.equal(forwards.during(lambda: net(x)), expected[0])


def test_parts_of_what_a_module_returns() -> None:
    class Rich(nn.Module):
        def forward(self, *, x: Tensor, scale: float) -> Any:
            return {"rows": [scale * x, (x, 7)], "mean": x.mean(), "other": torch.arange(4), "text": "a"}

    rich, (x, joining) = Rich(), rows(3, 2)
    listening = Forwards(rich)
    listening.watch(OUTPUT)
    listening.join(joining)
    for part, output in ((x, listening.during(lambda: rich(x=x, scale=2.0))), (joining, listening.joined(0))):
        assert torch.equal(output["rows"][0], 2 * part)
        assert torch.equal(output["rows"][1][0], part)
        assert (output["rows"][1][1], output["text"], len(output["other"])) == (7, "a", 4)
        assert output["mean"] == torch.cat([x, joining]).mean()


def test_only_the_first_call_with_gradients_is_joined(net: Any, forwards: Forwards) -> None:
    x, joining = rows(3, 2)

    def step() -> Any:
        with torch.no_grad():
            assert len(net(x)) == 3
        return net(x), net(2 * x)

    expected, number = step(), forwards.join(joining)
    torch.testing.assert_close(forwards.during(step), expected)
    torch.testing.assert_close(forwards.joined(number), net(joining))


def test_how_many_rows_are_its_own(net: Any, forwards: Forwards) -> None:
    seen: list[int | None] = []
    net[4].register_forward_hook(lambda *_: seen.append(forwards.own_rows))
    x, joining = rows(3, 2)
    net(x)
    forwards.during(lambda: net(x))
    forwards.join(joining)
    forwards.during(lambda: (net(x), net(x)))
    net[4]._forward_hooks.popitem()
    assert seen == [None, 0, 3, 0]


@pytest.mark.parametrize("joining", [0, 2])
def test_scores_are_changed_for_the_step_alone(net: Any, forwards: Forwards, joining: int) -> None:
    x, others = rows(3, 2)
    expected = net(x), net(others)
    number = forwards.join(others) if joining else None
    forwards.adjust(lambda scores: scores + 5)
    torch.testing.assert_close(forwards.during(lambda: net(x)), expected[0] + 5)
    torch.testing.assert_close(forwards.of(x)[OUTPUT], expected[0])
    if number is not None:
        torch.testing.assert_close(forwards.joined(number), expected[1])
    forwards.forget()
    torch.testing.assert_close(forwards.during(lambda: net(x)), expected[0])


def test_a_joint_forward_that_cannot_be_is_refused(net: Any, forwards: Forwards) -> None:
    x, joining = rows(3, 2)
    number = forwards.join(joining)
    forwards.during(lambda: net[1](x))
    with pytest.raises(ValueError, match=r"`forward='joint'` needs a `training_step` that calls the module itself"):
        forwards.joined(number)
    with pytest.raises(TypeError, match="calls the module with the inputs, got a dict: set `forward='separate'`"):
        forwards.during(lambda: net({"x": x}))
