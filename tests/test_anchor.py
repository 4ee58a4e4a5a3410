"""Quadratic anchors against explicit sums of terms and against autograd."""

import io
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_cl.anchor import MergeMode, QuadraticAnchor, add_anchor_gradient, anchor_penalty

MODES: list[MergeMode] = ["separate", "online", "mixed"]
SHAPES = {"weight": (4, 3), "bias": (4,), "scale": ()}


def draw(seed: int = 0, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(shape, generator=generator, dtype=dtype) for name, shape in SHAPES.items()}


def parameters(seed: int) -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(value) for name, value in draw(seed).items()}


def filled(mode: MergeMode, experiences: int = 3, gamma: float = 0.7, alpha: float = 0.4) -> QuadraticAnchor:
    anchor = QuadraticAnchor(mode, gamma=gamma, alpha=alpha)
    for t in range(experiences):
        anchor.merge(draw(t).items(), draw(100 + t))
    return anchor


def gradient(anchor: QuadraticAnchor, weights: dict[str, nn.Parameter], strength: float) -> dict[str, Tensor]:
    for p in weights.values():
        p.grad = torch.zeros_like(p)
    anchor.add_gradient(weights.items(), strength)
    return {name: p.grad.clone() for name, p in weights.items() if p.grad is not None}


def terms(mode: MergeMode) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Give the (importance, anchor) of each term of the penalty after 3 experiences, unrolled by hand."""
    f = [draw(100 + t) for t in range(3)]
    if mode == "separate":
        yield from ((f[t], draw(t)) for t in range(3))
    elif mode == "online":
        yield {name: 0.49 * f[0][name] + 0.7 * f[1][name] + f[2][name] for name in SHAPES}, draw(2)
    else:
        yield {name: 0.16 * f[0][name] + 0.24 * f[1][name] + 0.6 * f[2][name] for name in SHAPES}, draw(2)


@pytest.mark.parametrize("mode", MODES)
def test_merged_state_equals_the_explicit_terms(mode: MergeMode) -> None:
    anchor, weights = filled(mode), parameters(7)
    added = gradient(anchor, weights, 3.0)
    expected = torch.zeros((), dtype=torch.float64)
    for importance, old in terms(mode):
        expected = expected + sum(1.5 * (importance[n] * (weights[n] - old[n]) ** 2).sum() for n in SHAPES)
    torch.testing.assert_close(anchor.penalty(weights.items(), 3.0), expected, rtol=1e-12, atol=1e-12)
    by_autograd = dict(zip(SHAPES, torch.autograd.grad(expected, list(weights.values())), strict=True))
    torch.testing.assert_close(added, by_autograd, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_added_gradient_is_that_of_the_penalty(mode: MergeMode) -> None:
    anchor, weights = filled(mode), parameters(7)
    added = gradient(anchor, weights, 0.3)
    value = anchor.penalty(weights.items(), 0.3)
    expected = dict(zip(SHAPES, torch.autograd.grad(value, list(weights.values())), strict=True))
    torch.testing.assert_close(added, expected, rtol=1e-12, atol=1e-12)


def test_separate_terms_do_not_cancel_in_float32() -> None:
    """Far from zero ``A * w - sum F * theta`` loses all digits of a small drift; the weighted mean keeps them."""
    anchor, weight = QuadraticAnchor("separate"), nn.Parameter(torch.tensor([4096.5]))
    for theta in (4096.0, 4097.0, 4096.25):
        anchor.merge([("w", torch.tensor([theta]))], {"w": torch.tensor([0.1])})
    weight.grad = torch.zeros(1)
    anchor.add_gradient([("w", weight)], 1.0)
    torch.testing.assert_close(weight.grad, torch.tensor([0.1 * (0.5 - 0.5 + 0.25)]), rtol=0.02, atol=0)
    expected = torch.tensor(0.05 * (0.25 + 0.25 + 0.0625))
    torch.testing.assert_close(anchor.penalty([("w", weight)], 1.0), expected, rtol=1e-3, atol=0)


def test_online_equals_separate_only_where_the_first_term_has_no_slope() -> None:
    """With gamma 1 the gradients differ by ``F_1 * (theta_1 - theta_2)``."""
    first, second, weights = draw(0)["weight"], draw(1)["weight"], parameters(7)
    second[0] = first[0]
    importance = draw(2)["weight"]
    importance[1] = 0.0
    grads = []
    for mode in MODES[:2]:
        anchor = QuadraticAnchor(mode)
        anchor.merge([("weight", first)], {"weight": importance})
        anchor.merge([("weight", second)], {"weight": draw(3)["weight"]})
        grads.append(gradient(anchor, {"weight": weights["weight"]}, 1.0)["weight"])
    torch.testing.assert_close(grads[1] - grads[0], importance * (first - second), rtol=1e-12, atol=1e-14)
    assert importance[2:].mul(first[2:] - second[2:]).ne(0).all()


@pytest.mark.parametrize(("strength", "experiences"), [(0.0, 3), (5.0, 0)])
def test_without_strength_or_past_nothing_changes(strength: float, experiences: int) -> None:
    anchor, weights = filled("online", experiences), parameters(7)
    for p in weights.values():
        p.grad = torch.full_like(p, -0.0)
    anchor.add_gradient(weights.items(), strength)
    assert all(p.grad is not None and p.grad.signbit().all() for p in weights.values())
    assert anchor.penalty(weights.items(), strength) == 0


@pytest.mark.parametrize("given", [True, False])
def test_last_forgets_what_was_before(given: bool) -> None:
    anchor, weights = QuadraticAnchor("last"), parameters(7)
    for t in range(2):
        anchor.merge(draw(t).items(), draw(100 + t) if given else None)
    added = gradient(anchor, weights, 3.0)
    for name, w in weights.items():
        importance = draw(101)[name] if given else 1.0
        torch.testing.assert_close(added[name], 3 * importance * (w.detach() - draw(1)[name]))
    penalty = anchor.penalty(weights.items(), 3.0)
    (by_autograd,) = torch.autograd.grad(penalty, [weights["bias"]])
    torch.testing.assert_close(added["bias"], by_autograd)
    assert bool(anchor.importance) == given


def test_without_importance_half_precision_is_rounded_once() -> None:
    theta, p = torch.randn(9).bfloat16(), nn.Parameter(torch.randn(9).bfloat16())
    anchor = QuadraticAnchor("last")
    anchor.merge([("p", theta)])
    p.grad = torch.randn(9).bfloat16()
    expected = (p.grad.float() + 3 * (p.detach().float() - theta.float())).bfloat16()
    anchor.add_gradient([("p", p)], 3.0)
    torch.testing.assert_close(p.grad, expected)


def test_new_rows_are_anchored_where_they_are_with_importance_0() -> None:
    anchor, grown, new = filled("last"), torch.rand(6, 3, dtype=torch.float64), torch.rand(2)
    old, importance = anchor.anchor["weight"].clone(), anchor.importance["weight"].clone()
    anchor.grow([("weight", grown), ("new", new)])
    torch.testing.assert_close(anchor.anchor["weight"], torch.cat([old, grown[4:]]))
    torch.testing.assert_close(anchor.importance["weight"], torch.cat([importance, 0 * grown[4:]]))
    assert torch.equal(anchor.anchor["new"], new)
    assert not anchor.importance["new"].any()


def test_zero_importance_leaves_the_gradient_alone() -> None:
    anchor, p = QuadraticAnchor(), nn.Parameter(torch.randn(50))
    anchor.merge([("p", torch.randn(50))], {"p": torch.zeros(50)})
    p.grad = torch.randn(50)
    before = p.grad.clone()
    anchor.add_gradient([("p", p)], 1e6)
    assert p.grad.equal(before)


def test_term_is_counted_once_under_accumulation() -> None:
    torch.manual_seed(0)
    layer, x, y = nn.Linear(3, 4).double(), torch.randn(8, 3).double(), torch.randint(4, (8,))
    anchor = filled("online")
    for a, b in zip(x.chunk(4), y.chunk(4), strict=True):
        torch.autograd.backward(F.cross_entropy(layer(a), b) / 4)
    anchor.add_gradient(layer.named_parameters(), 2.0)
    loss = F.cross_entropy(layer(x), y) + anchor.penalty(layer.named_parameters(), 2.0)
    for p, expected in zip(layer.parameters(), torch.autograd.grad(loss, list(layer.parameters())), strict=True):
        torch.testing.assert_close(p.grad, expected, rtol=1e-12, atol=1e-12)


def test_unknown_and_gradless_parameters_are_skipped() -> None:
    anchor, weights, other = filled("online"), parameters(7), nn.Parameter(torch.ones(2))
    other.grad = torch.ones(2)
    weights["bias"].grad = torch.zeros(4, dtype=torch.float64)
    anchor.add_gradient([*weights.items(), ("other", other)], 1.0)
    assert weights["weight"].grad is None
    assert other.grad.eq(1).all()
    assert weights["bias"].grad.ne(0).all()


def test_replaced_parameters_are_followed_by_name() -> None:
    anchor, weights = filled("online"), parameters(7)
    gradient(anchor, weights, 1.0)
    new = parameters(8)
    expected = {n: anchor.importance[n] * (new[n].detach() - anchor.anchor[n]) for n in SHAPES}
    torch.testing.assert_close(gradient(anchor, dict(reversed(new.items())), 1.0), dict(reversed(expected.items())))


def test_grown_parameter_is_anchored_in_its_old_rows() -> None:
    anchor, p = filled("online"), nn.Parameter(torch.rand(6, 3, dtype=torch.float64))
    added = gradient(anchor, {"weight": p}, 2.0)["weight"]
    torch.testing.assert_close(added[:4], 2 * anchor.importance["weight"] * (p[:4] - anchor.anchor["weight"]).detach())
    assert added[4:].eq(0).all()
    (by_autograd,) = torch.autograd.grad(anchor.penalty([("weight", p)], 2.0), p)
    torch.testing.assert_close(added, by_autograd)


@pytest.mark.parametrize("mode", MODES)
def test_new_rows_are_merged_as_if_seen_first(mode: MergeMode) -> None:
    anchor, old = QuadraticAnchor(mode, gamma=0.7, alpha=0.4), QuadraticAnchor(mode, gamma=0.7, alpha=0.4)
    theta, importance = torch.rand(2, 5, 3), torch.rand(2, 5, 3)
    anchor.merge([("w", theta[0, :3])], {"w": importance[0, :3]})
    anchor.merge([("w", theta[1])], {"w": importance[1]})
    for t in range(2):
        old.merge([("w", theta[t, :3])], {"w": importance[t, :3]})
    torch.testing.assert_close(anchor.importance["w"], torch.cat([old.importance["w"], importance[1, 3:]]))
    torch.testing.assert_close(anchor.anchor["w"], torch.cat([old.anchor["w"], theta[1, 3:]]))
    assert anchor.residual == pytest.approx(old.residual)


def test_half_precision_weights_have_a_float32_anchor() -> None:
    torch.manual_seed(0)
    theta, importance, p = torch.randn(9).bfloat16(), torch.rand(9), nn.Parameter(torch.randn(9).bfloat16())
    anchor = QuadraticAnchor()
    anchor.merge([("p", theta)], {"p": importance})
    p.grad = torch.randn(9).bfloat16()
    expected = (p.grad.float() + 3 * importance * (p.detach().float() - theta.float())).bfloat16()
    anchor.add_gradient([("p", p)], 3.0)
    assert anchor.anchor["p"].dtype == anchor.importance["p"].dtype == torch.float32
    torch.testing.assert_close(p.grad, expected)


def test_stored_tensors_are_copies() -> None:
    anchor, weights, importance = QuadraticAnchor(), parameters(0), draw(1)
    anchor.merge(weights.items(), importance)
    with torch.no_grad():
        weights["bias"].add_(1)
    importance["bias"].add_(1)
    torch.testing.assert_close((anchor.anchor["bias"], anchor.importance["bias"]), (draw(0)["bias"], draw(1)["bias"]))


@pytest.mark.parametrize("mode", MODES)
def test_restored_state_goes_on_as_if_never_saved(mode: MergeMode) -> None:
    anchor, restored, weights, file = filled(mode), QuadraticAnchor(mode, gamma=0.7, alpha=0.4), draw(9), io.BytesIO()
    torch.save(anchor.state_dict(), file)
    file.seek(0)
    restored.load_state_dict(torch.load(file, weights_only=True))
    for a in (anchor, restored):
        a.merge(draw(5).items(), draw(6))
    state, expected = restored.state_dict(), anchor.state_dict()
    assert state.pop("mode") == expected.pop("mode")
    torch.testing.assert_close(state, expected, rtol=0, atol=0)
    assert restored.penalty(weights.items(), 2.0) == anchor.penalty(weights.items(), 2.0)


def test_state_moves_to_a_device() -> None:
    anchor = filled("online").to("meta")
    assert {value.device.type for value in (*anchor.anchor.values(), *anchor.importance.values())} == {"meta"}


def test_functions_need_no_state() -> None:
    w = torch.tensor([1.0, 2.0], requires_grad=True)
    w.grad = torch.tensor([1.0, 1.0])
    add_anchor_gradient([w], [torch.zeros(2)], [torch.tensor([2.0, 3.0])], 0.5)
    assert w.grad.tolist() == [2.0, 4.0]
    assert anchor_penalty([w], [torch.zeros(2)], [torch.tensor([2.0, 3.0])], 0.5).item() == 0.25 * (2 + 12)


def test_errors_name_what_came() -> None:
    with pytest.raises(ValueError, match="`mode` must be one of separate, online, mixed, last, got 'both'"):
        QuadraticAnchor("both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"`gamma` must be in \[0, 1\], got 1.5"):
        QuadraticAnchor(gamma=1.5)
    with pytest.raises(ValueError, match="`importance` must be given in mode 'online'"):
        QuadraticAnchor("online").merge(draw().items())
    with pytest.raises(ValueError, match=r"`alpha` must be in \[0, 1\], got -1"):
        QuadraticAnchor(alpha=-1)
    anchor = filled("online")
    with pytest.raises(ValueError, match=r"got \(2, 3\) for \(4, 3\)"):
        anchor.penalty([("weight", torch.ones(2, 3))], 1.0)
    with pytest.raises(ValueError, match=r"`importance` must match .* got \(2,\) for bias: shape \(4,\)"):
        anchor.merge(draw().items(), {"bias": torch.ones(2)})
    with pytest.raises(ValueError, match="for head: no such parameter"):
        anchor.merge(draw().items(), {"head": torch.ones(2)})
    with pytest.raises(ValueError, match="`mode` must be 'online', in which the state was made, got 'mixed'"):
        QuadraticAnchor("mixed").load_state_dict(anchor.state_dict())
