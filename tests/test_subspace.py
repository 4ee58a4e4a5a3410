"""Subspaces: Gram matrices of inputs, the rules of choice by singular values, and what a projection leaves."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_cl import subspace
from lightning_cl.subspace import (
    Projector,
    SubspaceBank,
    exact_products,
    input_grams,
    leading_vectors,
    linear_layers,
    loss_gradients,
    missing_vectors,
    pooled_vectors,
    project_out,
    scaled_weight,
    shape_of,
)

DOUBLE: dict[str, Any] = {"dtype": torch.float64}


def inputs(d: int, n: int, seed: int = 0) -> Tensor:
    """Inputs as columns ``(d, n)`` with energies that fall off."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(d, n, generator=generator, **DOUBLE) * 0.6 ** torch.arange(d)[:, None]


def energy(columns: Tensor, basis: Tensor) -> float:
    """Share of the energy of inputs that a basis holds."""
    return float((basis.T @ columns).square().sum() / columns.square().sum())


# -- what goes into the layers -----------------------------------------------------------------------------------------


CONVS = {
    "plain": {},
    "strided": {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)},
    "grouped": {"groups": 2, "padding": "same"},
    "depthwise": {"groups": 4, "padding": 1, "padding_mode": "reflect"},
}


@pytest.mark.parametrize("case", CONVS)
def test_convolution_is_a_product_with_the_columns(case: str) -> None:
    torch.manual_seed(0)
    layer, x = nn.Conv2d(4, 8, 3, bias=False, **CONVS[case], **DOUBLE), torch.randn(3, 4, 6, 7, **DOUBLE)
    groups, d = shape_of(layer)
    (columns,) = subspace._columns(layer, x)
    product = layer.weight.reshape(groups, -1, d) @ columns
    expected = layer(x).transpose(0, 1).reshape(groups, 8 // groups, -1)
    torch.testing.assert_close(product, expected)


@pytest.mark.parametrize("chunk", [1, 2**23])
def test_gram_is_of_all_inputs_of_all_batches(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subspace, "CHUNK", chunk)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(2), nn.Linear(16, 5))
    x = torch.randn(6, 2, 6, 6)
    grams = input_grams(net, [(x[:4], None), (x[4:],)], linear_layers(net))
    patches = F.unfold(x.double(), 3).transpose(0, 1).flatten(1)
    rows = net[:2](x).reshape(-1, 16).double().T
    torch.testing.assert_close(grams, {"0": (patches @ patches.T)[None], "2": (rows @ rows.T)[None]})


def test_shared_weights_and_repeated_calls_add_up() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 3)
            self.b.weight = self.a.weight
            self.embed = nn.Embedding(3, 2)
            self.embed.weight = self.c.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.a(x) + self.a(2 * x) + self.b(input=3 * x))

    net, x = Net(), torch.tensor([[1.0, 2.0]])
    layers = linear_layers(net)
    assert layers == {"a": [net.a, net.b]}  # an embedding is no product, so that `c` cannot be protected
    gram = x.double().T @ x.double()
    torch.testing.assert_close(input_grams(net, [(x,)], layers)["a"], 14 * gram[None])


def test_layers_that_may_compute_anything_are_left_out() -> None:
    class Twice(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    patched = nn.Linear(2, 2)
    patched.forward = lambda x: x  # type: ignore[method-assign]
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    net = nn.ModuleList([nn.Linear(2, 2), Twice(2, 2), patched, normed, nn.MultiheadAttention(2, 1)])
    assert list(linear_layers(net)) == ["0"]


def test_the_pass_leaves_the_model_as_it_was() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2))
    net[1].eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modes, rng = [child.training for child in net], torch.get_rng_state()
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        grams = input_grams(net, [(x,)], linear_layers(net))
    torch.testing.assert_close(grams["3"][0], (h := net[:2].eval()(x).double()).T @ h)
    assert [False, *modes[1:]] == [False, False, True, True]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng)
    assert not any(child._forward_pre_hooks for child in net)


def test_inputs_that_are_not_finite() -> None:
    net = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="layer '0' are not finite: training has diverged"):
        input_grams(net, [(torch.tensor([[1.0, torch.nan]]),)], linear_layers(net))


# -- which directions matter -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 0.999, 1.0])
def test_first_task_stays_below_the_share(share: float) -> None:
    r = inputs(12, 40)
    u, s, _ = torch.linalg.svd(r)
    chosen = leading_vectors(r @ r.T, share)
    held = s.square().cumsum(0) / s.square().sum()
    count = int((held < share - 1e-12).sum())
    assert chosen.shape == (12, count if share < 1 else 12)
    torch.testing.assert_close(project_out(u[:, :count].T, chosen[None]), torch.zeros(count, 12, **DOUBLE))


@pytest.mark.parametrize("share", [0.5, 0.9, 0.999])
def test_later_tasks_reach_the_share_with_the_fewest(share: float) -> None:
    old = torch.linalg.qr(inputs(12, 2, seed=1))[0]
    r = inputs(12, 40)
    new = missing_vectors(r @ r.T, old, share)
    u, _, _ = torch.linalg.svd(r - old @ (old.T @ r))
    for count in range(new.shape[1] + 1):
        held = energy(r, torch.cat([old, u[:, :count]], 1))
        assert (held >= share) == (count == new.shape[1])
    assert project_out(u[:, : new.shape[1]].T, new[None]).abs().sum() < 1e-9


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 0.999])
def test_the_pool_is_sorted_by_energy(share: float) -> None:
    old = torch.linalg.qr(inputs(12, 3, seed=1))[0]
    r = inputs(12, 40)
    used, new = pooled_vectors(r @ r.T, old, share)
    u, s, _ = torch.linalg.svd(r - old @ (old.T @ r))
    pool = [(float((old[:, i] @ r).square().sum()), True, i) for i in range(3)]
    pool += [(float(value**2), False, i) for i, value in enumerate(s)]
    chosen, held = [], 0.0
    for value, is_old, i in sorted(pool, reverse=True):
        if held < share * r.square().sum():
            chosen.append((is_old, i))
            held += value
    assert used.tolist() == [(True, i) in chosen for i in range(3)]
    expected = u[:, [i for is_old, i in chosen if not is_old]]
    assert new.shape == expected.shape
    torch.testing.assert_close(project_out(expected.T, new[None]), torch.zeros_like(expected.T))


def test_rounding_is_no_direction() -> None:
    r = torch.ones(5, 3, **DOUBLE) + 1e-9 * inputs(5, 3)
    gram = r @ r.T
    one = leading_vectors(gram, 1.0)
    assert one.shape == (5, 1)
    assert missing_vectors(gram, one, 1.0).shape == (5, 0)
    assert pooled_vectors(gram, one, 1.0)[1].shape == (5, 0)
    for nothing in (leading_vectors(0 * gram, 1.0), missing_vectors(0 * gram, one, 1.0)):
        assert nothing.shape == (5, 0)


# -- what is kept of the past ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["residual", "pool"])
def test_bank_only_grows_and_stays_orthonormal(rule: Any) -> None:
    bank, before = SubspaceBank(rule), torch.zeros(2, 9, 0)
    for task in range(5):
        pairs = [inputs(9, 20, seed=task), inputs(9, 20, seed=10 + task).flip(0)[:, : 3 * task]]  # ranks differ
        gram = torch.stack([r @ r.T for r in pairs])
        bank.update("conv", gram, 0.97)
        after = bank.space("conv")
        for group, r in enumerate(pairs):
            rank = int(before[group].any(0).sum())
            assert torch.equal(after[group, :, :rank], before[group, :, :rank])
            product = after[group].T @ after[group]
            torch.testing.assert_close(product, torch.diag(after[group].any(0).float()), rtol=0, atol=1e-6)
            if task:
                assert energy(r, bank.space("conv", [2 * task])[group].double()) >= 0.97 - 1e-6
        bank.update("conv", gram, 0.97)  # the same data again
        assert torch.equal(bank.space("conv"), after) or task == 0
        before = bank.space("conv")
    assert before.shape[2] <= 9
    assert bank.used["conv"].shape[0] == 10


def test_faint_directions_are_orthonormal_too() -> None:
    """Rounding leaves them with a part of what is there already, which counts for them."""
    bank, rotation = SubspaceBank(), torch.linalg.qr(inputs(8, 8))[0]
    for scale in (1.0, 1e-5):
        r = rotation * torch.tensor([1.0, 0.9, *[scale, 0.9 * scale] * 3])
        bank.update("layer", (r @ r.T)[None], 1.0 if scale < 1 else 0.5, torch.float64)
    basis = bank.space("layer")[0]
    assert basis.shape == (8, 8)
    torch.testing.assert_close(basis.T @ basis, torch.eye(8, **DOUBLE), rtol=0, atol=1e-12)


def test_spaces_of_tasks_are_united() -> None:
    bank = SubspaceBank("pool")
    for diagonal in ([9.0, 5, 1, 0], [0.0, 9, 0, 9], [9.0, 0, 0, 0]):
        bank.update("layer", torch.diag(torch.tensor(diagonal))[None], 0.95)
    # the first task holds less than the share: e0 and e1; the second uses e1 and adds e3; the third uses e0
    covers = [bank.space("layer", tasks).square().sum(-1)[0].tolist() for tasks in ([0], [1], [2], [1, 2], [0, 2], [])]
    e = [[1.0, 1, 0, 0], [0.0, 1, 0, 1], [1.0, 0, 0, 0], [1.0, 1, 0, 1], [1.0, 1, 0, 0], [0.0, 0, 0, 0]]
    assert covers == e
    assert bank.free_share("layer") == 0.25


def test_bank_state_is_plain(tmp_path: Any) -> None:
    bank, again = SubspaceBank(), SubspaceBank()
    assert not bank
    bank.update("layer", torch.eye(3)[None], 0.5)
    torch.save(bank.state_dict(), tmp_path / "bank.pt")
    again.load_state_dict(torch.load(tmp_path / "bank.pt", weights_only=True))
    assert again
    assert torch.equal(again.space("layer"), bank.space("layer"))
    assert again.space("layer").dtype == torch.float32
    with pytest.raises(ValueError, match=r"`rule` must be one of .*, got 'best'"):
        SubspaceBank("best")  # type: ignore[arg-type]


# -- updates that leave a space alone ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, 2, 3, 5, 6])
@pytest.mark.parametrize("groups", [1, 2])
def test_projection_is_that_of_the_matrix(rank: int, groups: int) -> None:
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(groups, 6, 6, **DOUBLE))[0][..., :rank]
    value = torch.randn(4 * groups, 3, 2, 1, **DOUBLE)
    flat = value.view(groups, 4, 6)
    expected = (flat - flat @ basis @ basis.mT).view_as(value)
    torch.testing.assert_close(project_out(value, basis), expected)
    strided = value.to(memory_format=torch.channels_last)
    Projector(basis).apply_(strided)
    torch.testing.assert_close(strided, expected)
    assert project_out(value, basis).view(groups, 4, 6).matmul(basis).abs().sum() < 1e-12


def test_half_precision_is_projected_in_float32() -> None:
    torch.manual_seed(0)
    basis, value = torch.linalg.qr(torch.randn(6, 2))[0][None], torch.randn(4, 6).bfloat16()
    assert torch.equal(project_out(value, basis), project_out(value.float(), basis).bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16), exact_products(value.device):
        assert torch.equal(project_out(value, basis), project_out(value.float(), basis).bfloat16())


def test_matrix_products_are_exact_for_a_block_only() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    settings = torch.backends.cuda.matmul
    name, exact = ("fp32_precision", "ieee") if hasattr(settings, "fp32_precision") else ("allow_tf32", False)
    try:
        with exact_products(torch.device("cpu")):
            assert getattr(settings, name) == exact
        assert torch.get_float32_matmul_precision() == "high"
        assert settings.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before)


# -- weights that are scaled in a space --------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2])
def test_scaled_weight_is_by_the_formula(groups: int) -> None:
    torch.manual_seed(0)
    weight = torch.randn(4 * groups, 6, **DOUBLE)
    bases = [torch.linalg.qr(torch.randn(groups, 6, r, **DOUBLE))[0] for r in (2, 3)]
    q = [torch.randn(groups, r, r, **DOUBLE) for r in (2, 3)]
    w = weight.view(groups, 4, 6)
    expected = w + sum(w @ b @ (m @ b.mT) - w @ b @ b.mT for b, m in zip(bases, q, strict=True))
    offsets = [m - torch.eye(m.shape[-1]) for m in q]
    torch.testing.assert_close(
        scaled_weight(weight, [(b, d, None) for b, d in zip(bases, offsets, strict=True)]), expected.view_as(weight)
    )
    assert torch.equal(scaled_weight(weight, [(bases[0], torch.zeros_like(q[0]), None)]), weight)
    known = [(b, d, w @ b) for b, d in zip(bases, offsets, strict=True)]
    torch.testing.assert_close(scaled_weight(weight, known), expected.view_as(weight))


def test_gradients_of_the_loss_are_summed_over_samples() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Dropout(), nn.Linear(4, 2), nn.Linear(2, 2, bias=False))
    x, y = torch.randn(6, 3), torch.randint(0, 2, (6,))
    weights = {"0": net[0].weight, "unused": net[3].weight}
    net[0].weight.grad = torch.ones(4, 3)
    sums, count = loss_gradients(net[:3], [(x[:4], y[:4]), (x[4:], y[4:], None)], weights, lambda scores: 2 * scores)
    loss = F.cross_entropy(2 * net[:3].eval()(x), y)
    torch.testing.assert_close(sums["0"] / count, torch.autograd.grad(loss, net[0].weight)[0])
    assert not sums["unused"].any()
    assert torch.equal(net[0].weight.grad, torch.ones(4, 3))
