"""Squared scores and sensitivities of outputs against closed forms and against autograd on single samples."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, jacrev
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lightning_cl import importance
from lightning_cl.importance import Estimator, OutputNorm, output_sensitivity, squared_scores


class Net(nn.Module):
    """A model made of layers and of the function that runs them."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def conv(*args: Any, **kwargs: Any) -> nn.Module:
    return nn.Sequential(nn.Conv2d(*args, **kwargs), nn.Tanh(), nn.Flatten(), nn.LazyLinear(3))


def tokens(layer: nn.Module) -> nn.Module:
    """A classifier of 5 tokens of 4 features, with the layer in its middle."""
    return nn.Sequential(nn.Linear(4, 6), layer, nn.Flatten(), nn.Linear(30, 3))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.short, self.head, self.relu = nn.Conv2d(2, 4, 1), nn.Linear(4, 3), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        h += self.short(x)
        logits: Tensor = self.head(self.relu(h).mean((2, 3)))
        return logits


class Scale(nn.Module):
    """No rule, parameters used directly, and one that is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.unused = nn.Parameter(torch.rand(6)), nn.Parameter(torch.rand(2))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale.exp()


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(2 * x)


def tied(same: nn.Linear) -> nn.Module:
    other = nn.Linear(5, 5)
    other.weight = same.weight
    return nn.Sequential(same, nn.Tanh(), other, nn.Tanh(), nn.Linear(5, 3))


def encoder(batch_first: bool) -> nn.Module:
    return nn.TransformerEncoderLayer(6, 2, 8, dropout=0.3, batch_first=batch_first)


def batch_norm(features: int) -> nn.Module:
    layer = nn.BatchNorm1d(features)
    layer.get_buffer("running_mean").normal_()
    layer.get_buffer("running_var").uniform_(0.5, 2)
    return layer


BY_RULE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3, bias=False)), (4,)),
    "linear, 3-D": (lambda: tokens(nn.Linear(6, 6)), (5, 4)),
    "linear, 4-D": (lambda: nn.Sequential(nn.Linear(4, 2), nn.Flatten(), nn.Linear(12, 3)), (2, 3, 4)),
    "conv": (lambda: conv(2, 3, 3), (2, 5, 6)),
    "conv, stride and padding": (lambda: conv(2, 3, (3, 2), stride=(2, 1), padding=(1, 2), bias=False), (2, 6, 5)),
    "conv, dilation": (lambda: conv(2, 3, 3, padding=2, dilation=2), (2, 6, 6)),
    "conv, groups": (lambda: conv(4, 6, 3, groups=2, padding=1, stride=2), (4, 5, 5)),
    "conv, depthwise": (lambda: conv(4, 8, 3, groups=4), (4, 5, 5)),
    "batch norm": (lambda: nn.Sequential(batch_norm(4), nn.Linear(4, 3)), (4,)),
    "batch norm, 3-D": (lambda: tokens(batch_norm(5)), (5, 4)),
    "layer norm": (lambda: tokens(nn.LayerNorm(6)), (5, 4)),
    "layer norm, two axes": (lambda: tokens(nn.LayerNorm((5, 6))), (5, 4)),
    "group norm": (
        lambda: nn.Sequential(nn.Conv2d(2, 6, 3), nn.GroupNorm(3, 6), nn.Flatten(), nn.Linear(54, 3)),
        (2, 5, 5),
    ),
    "residual block": (Residual, (2, 5, 5)),
}
BY_SAMPLE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "no rule": (lambda: tokens(Scale()), (5, 4)),
    "subclass": (lambda: nn.Sequential(Doubled(4, 5), nn.Tanh(), nn.Linear(5, 3)), (4,)),
    "circular padding": (lambda: conv(2, 3, 3, padding=1, padding_mode="circular"), (2, 5, 5)),
    "attention": (lambda: tokens(encoder(batch_first=True)), (5, 4)),
    "tied weight": (lambda: tied(nn.Linear(5, 5)), (5,)),
    "layer used twice": (lambda: Net(lambda m, x: m.b(m.a(m.a(x).tanh())), a=nn.Linear(4, 4), b=nn.Linear(4, 3)), (4,)),
    "weight used directly too": (
        lambda: Net(lambda m, x: m.b(m.a(x).tanh() @ m.a.weight), a=nn.Linear(4, 4), b=nn.Linear(4, 3)),
        (4,),
    ),
    "call without effect": (
        lambda: Net(lambda m, x: (m.a(x), m.b(F.linear(x, m.a.weight)))[1], a=nn.Linear(4, 4), b=nn.Linear(4, 3)),
        (4,),
    ),
    "weight norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), (4,)),
    "first axis is time": (
        lambda: Net(lambda m, x: m.b(m.a(x.transpose(0, 1))[-1]), a=encoder(batch_first=False), b=nn.Linear(6, 3)),
        (7, 6),  # as many steps as samples
    ),
}


def data(*shape: int, samples: int = 7) -> tuple[Tensor, Tensor]:
    return torch.randn(samples, *shape, dtype=torch.float64), torch.randint(3, (samples,))


def batched(x: Tensor, y: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return [(x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]


def one_by_one(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Sum the squared gradients of samples given to autograd one at a time."""
    model.eval()
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for x_n, y_n in batched(x, y, 1):
        loss = F.cross_entropy(model(x_n), y_n)
        scores = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True, allow_unused=True)
        total = {name: value + score**2 for (name, value), score in zip(total.items(), scores, strict=True)}
    return {name: value.detach() for name, value in total.items()}


def build(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = make().double().eval()
    x, y = data(*shape)
    model(x)  # lazy layers take their shape
    return model, x, y


@pytest.mark.parametrize("case", BY_RULE)
def test_rules_equal_single_samples(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, y = build(*BY_RULE[case])
    monkeypatch.delattr(importance._Scores, "_by_sample")  # every layer has its rule
    sums, count = squared_scores(model, batched(x, y, 5))
    torch.testing.assert_close(sums, one_by_one(model, x, y), rtol=1e-12, atol=1e-14)
    assert count == 7


@pytest.mark.parametrize("case", BY_SAMPLE)
def test_other_uses_of_parameters_equal_single_samples(case: str) -> None:
    model, x, y = build(*BY_SAMPLE[case])
    sums, _ = squared_scores(model, [(x, y)], chunk_size=3)
    torch.testing.assert_close(sums, one_by_one(model, x, y), rtol=1e-12, atol=1e-14)


def test_embedding_sums_repeated_tokens_before_squaring() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(6, 4, padding_idx=0), nn.Flatten(), nn.Linear(20, 3)).double()
    x, y = torch.tensor([[1, 1, 2, 0, 5], [5, 5, 5, 0, 1], [0, 0, 0, 0, 0]]), torch.tensor([0, 1, 2])
    sums, _ = squared_scores(model, [(x, y)])
    torch.testing.assert_close(sums, one_by_one(model, x, y))
    assert sums["0.weight"][0].eq(0).all()


def test_control_flow_is_exact_and_warns_once() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        parts = [m.a(row) if row.sum() > 0 else m.b(row) for row in x]
        return torch.stack(parts)

    model, x, y = build(lambda: Net(run, a=nn.Linear(4, 3), b=nn.Linear(4, 3)), (4,))
    with pytest.warns(UserWarning, match="one by one") as caught:
        sums, _ = squared_scores(model, [(x, y), (x, y)])
    torch.testing.assert_close(sums, {name: 2 * value for name, value in one_by_one(model, x, y).items()})
    assert len(caught) == 1


@pytest.mark.parametrize(
    "run",
    [
        lambda m, x: m.b(m.a(x - x.mean(0))),
        lambda m, x: m.b(m.a(x)) / m.b(m.a(x)).detach().norm(),
        lambda m, x: (lambda z: z - z.mean(0))(m.b(m.a(x))),
        lambda m, x: (lambda z: z * z.detach().std(0, correction=0))(m.b(m.a(x))),
    ],
)
def test_rules_are_dropped_where_samples_depend_on_each_other(run: Callable[[Any, Tensor], Tensor]) -> None:
    """The score of a sample is that of the sample alone, whatever its batch."""
    model, x, y = build(lambda: Net(run, a=nn.Linear(4, 5), b=nn.Linear(5, 3)), (4,))
    sums, _ = squared_scores(model, [(x, y)])
    torch.testing.assert_close(sums, one_by_one(model, x, y))


def test_rounding_at_a_kink_does_not_drop_the_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a ReLU passes an input of about zero depends on the batch size, in float32."""
    monkeypatch.delattr(importance._Scores, "_by_sample")
    torch.manual_seed(0)
    first, x, y = nn.Linear(50, 200), torch.randn(2, 50), torch.randint(3, (2,))
    first.bias.data[:100] -= first(x[:1])[0, :100].detach()  # half of what the ReLU gets is zero up to rounding
    model = nn.Sequential(first, nn.ReLU(), nn.Linear(200, 3))
    sums, _ = squared_scores(model, [(x, y)])
    assert sums["0.weight"].isfinite().all()


@pytest.mark.parametrize("estimator", ["empirical", "sampled", "exact"])
def test_a_diverged_model_is_not_scored_sample_by_sample(estimator: Estimator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(importance._Scores, "_by_sample")
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    nn.init.constant_(model[0].weight, torch.nan)
    sums, count = squared_scores(model, [(torch.randn(6, 4), torch.randint(3, (6,)))], estimator)
    assert count == 6
    assert all(value.isnan().any() for value in sums.values())


@pytest.mark.parametrize("batch_size", [1, 3, 12])
def test_linear_softmax_has_closed_forms(batch_size: int) -> None:
    """The score of ``W x`` is ``(p_c - [y = c]) * x_d``; the Fisher diagonal is that of the loss's Hessian."""
    torch.manual_seed(0)
    model = nn.Linear(5, 3, bias=False).double()
    x, y = data(5, samples=12)
    batches = batched(x, y, batch_size)
    p = model(x).softmax(1).detach()
    empirical, count = squared_scores(model, batches)
    torch.testing.assert_close(empirical["weight"], (p - torch.eye(3)[y]).square().T @ x.square(), rtol=1e-12, atol=0)
    exact, _ = squared_scores(model, batches, "exact")
    torch.testing.assert_close(exact["weight"], (p * (1 - p)).T @ x.square(), rtol=1e-12, atol=0)

    def loss(weight: Tensor) -> Tensor:
        return F.cross_entropy(x @ weight.T, y)

    diagonal = jacrev(grad(loss))(model.weight.detach()).view(15, 15).diagonal().view(3, 5)
    torch.testing.assert_close(exact["weight"] / count, diagonal, rtol=1e-12, atol=1e-15)


def test_exact_is_the_expectation_over_labels() -> None:
    model, x, _ = build(lambda: tokens(Scale()), (5, 4))  # rules and vmap
    exact, _ = squared_scores(model, [(x, None)], "exact")
    p = model(x).softmax(1).detach()
    expected = {name: torch.zeros_like(value) for name, value in exact.items()}
    for n in range(7):
        for c in range(3):
            for name, value in one_by_one(model, x[n : n + 1], torch.tensor([c])).items():
                expected[name] += p[n, c] * value
    torch.testing.assert_close(exact, expected)


def test_sampled_and_predicted_choose_their_labels() -> None:
    model, x, y = build(lambda: nn.Linear(4, 3), (4,))
    p = model(x).softmax(1).detach()
    drawn = torch.multinomial(p, 1, generator=torch.Generator().manual_seed(5)).squeeze(1)
    sampled, _ = squared_scores(model, [(x, y)], "sampled", generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(sampled, one_by_one(model, x, drawn))
    predicted, _ = squared_scores(model, [(x, y)], "predicted")
    torch.testing.assert_close(predicted, one_by_one(model, x, p.argmax(1)))


def test_batch_estimators_square_the_mean_gradient() -> None:
    model, x, y = build(Residual, (2, 5, 5))
    batches = batched(x, y, 4)
    mean, count = squared_scores(model, batches, "batch_mean")
    scaled, _ = squared_scores(model, batches, "batch_scaled")
    for name, p in model.named_parameters():
        first, second = (torch.autograd.grad(F.cross_entropy(model(a), b), p)[0] ** 2 for a, b in batches)
        torch.testing.assert_close(mean[name], first + second)
        torch.testing.assert_close(scaled[name], 4 * first + 3 * second)
    assert count == 2


def test_all_label_estimators_agree_on_single_samples() -> None:
    model, x, y = build(Residual, (2, 5, 5))
    batches = batched(x, y, 1)
    estimators: list[Estimator] = ["empirical", "batch_mean", "batch_scaled"]
    (first, count), *others = (squared_scores(model, batches, estimator) for estimator in estimators)
    for sums, n in others:
        torch.testing.assert_close(sums, first, rtol=1e-12, atol=1e-15)
        assert n == count == 7


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("estimator", ["sampled", "batch_mean"])
def test_everything_is_left_as_found(estimator: Estimator, fails: bool) -> None:
    block, head = Residual(), nn.Linear(3, 3)
    model = nn.Sequential(block, nn.Dropout(), head)
    block.bn1.eval()
    head.bias.requires_grad_(False)
    head.weight.grad = torch.ones(3, 3)
    x, y = torch.randn(6, 2, 5, 5), torch.randint(3, (6,))

    def look() -> tuple[Any, ...]:
        state = {name: value.clone() for name, value in model.state_dict().items()}
        hooks = [len(m._forward_hooks) for m in model.modules()]
        modes = [m.training for m in model.modules()]
        grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
        return state, hooks, modes, grads, [p.requires_grad for p in model.parameters()], torch.get_rng_state()

    before, ids = look(), [id(p) for p in model.parameters()]
    batches = [(x, y), (x[:, :1], y)] if fails else [(x, y)]
    try:
        squared_scores(model, batches, estimator)
    except RuntimeError:
        assert fails
    torch.testing.assert_close(look(), before, rtol=0, atol=0)
    assert [id(p) for p in model.parameters()] == ids


def test_no_gradient_mode_of_the_caller_matters() -> None:
    model, x, y = build(Residual, (2, 5, 5))
    expected, _ = squared_scores(model, [(x, y)])
    with torch.no_grad():
        torch.testing.assert_close(squared_scores(model, [(x, y)])[0], expected)
    with torch.inference_mode():
        torch.testing.assert_close(squared_scores(model, [(x.clone(), y)])[0], expected)


def test_half_precision_is_scored_in_float32() -> None:
    torch.manual_seed(0)
    model = Residual().bfloat16()
    wide = Residual()
    wide.load_state_dict(model.state_dict())
    x, y = torch.randn(6, 2, 5, 5).bfloat16(), torch.randint(3, (6,))
    with torch.autocast("cpu"):
        sums, _ = squared_scores(model, [(x, y)])
    torch.testing.assert_close(sums, one_by_one(wide, x.float(), y))
    assert model.conv1.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("estimator", ["exact", "empirical", "predicted", "batch_mean"])
def test_sums_of_two_shards_add_up(estimator: Estimator) -> None:
    model, x, y = build(Residual, (2, 5, 5))
    batches = batched(x, y, 4)
    whole, count = squared_scores(model, batches, estimator)
    shards = [squared_scores(model, [batch], estimator) for batch in batches]
    total = sum(n for _, n in shards)
    for name, value in whole.items():
        torch.testing.assert_close(sum(sums[name] for sums, _ in shards) / total, value / count, rtol=1e-6, atol=0)


def test_scores_are_finite_and_zero_without_influence() -> None:
    model, x, y = build(lambda: tokens(Scale()), (5, 4))
    sums, _ = squared_scores(model, [(1e3 * x, y)])
    assert all(value.isfinite().all() and value.ge(0).all() for value in sums.values())
    assert sums["1.unused"].eq(0).all()
    assert sums["1.scale"].gt(0).all()


def test_only_the_named_parameters_and_classes_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(importance._Scores, "_by_sample")
    model, x, y = build(Residual, (2, 5, 5))
    some, _ = squared_scores(model, [(x, y)], parameters=["bn1.bias", "conv2.weight"])
    everything, _ = squared_scores(model, [(x, y)])
    torch.testing.assert_close(some, {name: everything[name] for name in ("conv2.weight", "bn1.bias")})
    hidden = torch.tensor([0.0, 0.0, -torch.inf])
    seen, _ = squared_scores(model, [(x, y)], "exact", logits=lambda output: output + hidden)
    first, _ = squared_scores(model, [(x, y)], "exact", logits=lambda output: output[:, :2])
    torch.testing.assert_close(seen, first)


def test_hooks_of_the_user_do_not_disturb_the_rule() -> None:
    first = nn.Linear(4, 5)
    first.register_forward_pre_hook(lambda layer, args: (args[0] + 1,))
    first.register_forward_hook(lambda layer, args, output: output.tanh())
    model, x, y = build(lambda: nn.Sequential(first, nn.Linear(5, 3)), (4,))
    expected = one_by_one(model, x, y)
    first.weight.register_hook(torch.zeros_like)  # type: ignore[no-untyped-call]  # of use in training only
    torch.testing.assert_close(squared_scores(model, [(x, y)])[0], expected)


class Hidden(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        out = checkpoint(super().forward, x.requires_grad_(), use_reentrant=True)
        assert isinstance(out, Tensor)
        return out


class Keeping(nn.Linear):
    """Keeps its parameters in a list, where they cannot be replaced."""

    def __init__(self) -> None:
        super().__init__(2, 3)
        self.kept = [self.weight, self.bias]

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, *self.kept)


@pytest.mark.parametrize("estimator", ["empirical", "batch_mean"])
@pytest.mark.parametrize(
    ("model", "message"), [(Hidden(2, 3), "use_reentrant=False"), (Keeping(), "must read bias from")]
)
def test_parameters_out_of_sight_are_an_error(model: nn.Module, estimator: Estimator, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        squared_scores(model, [(torch.ones(2, 2), torch.tensor([0, 1]))], estimator)


@pytest.mark.parametrize(
    ("model", "batches", "kwargs", "message"),
    [
        (nn.Linear(2, 3), [], {}, "`batches` must hold at least one sample"),
        (nn.Linear(2, 3), [(torch.ones(2, 2), torch.tensor([0, 3]))], {}, r"labels in \[0, 3\), got 0 to 3"),
        (nn.Linear(2, 3), [(torch.ones(2, 2), torch.tensor([-1, 2]))], {}, r"labels in \[0, 3\), got -1 to 2"),
        (nn.Linear(2, 3), [(torch.ones(2, 2), torch.ones(2))], {}, "`batches` must hold integer labels"),
        (nn.Linear(2, 3), [(torch.ones(2, 4, 2), torch.ones(2))], {}, r"`model` must return .* got \(2, 4, 3\)"),
        (nn.LSTM(2, 3), [(torch.ones(2, 2), torch.ones(2))], {}, "`model` must return .* got tuple"),
        (nn.Linear(2, 3), [], {"estimator": "fisher"}, "`estimator` must be one of exact, .* got 'fisher'"),
        (nn.Linear(2, 3), [], {"parameters": ["weights"]}, "`parameters` must name .* got weights"),
    ],
)
def test_errors_name_what_came(model: nn.Module, batches: Any, kwargs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        squared_scores(model, batches, **kwargs)


# -- sensitivity of outputs --------------------------------------------------------------------------------------------

NORMS: list[OutputNorm] = ["squared", "plain", "outputs"]


def moved(model: nn.Module, x: Tensor, norm: OutputNorm) -> dict[str, Tensor]:
    """Sum the absolute gradients of what the norm is of, written out, over ``x`` as one sample or batch."""
    output = model(x)
    terms = {"squared": [(output**2).sum()], "plain": [output.norm(dim=1).sum()], "outputs": list(output.sum(0))}[norm]
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for term in terms:
        found = torch.autograd.grad(
            term, list(model.parameters()), retain_graph=True, materialize_grads=True, allow_unused=True
        )
        total = {name: value + g.abs() for (name, value), g in zip(total.items(), found, strict=True)}
    return {name: value.detach() for name, value in total.items()}


def added(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([part[name] for part in parts]).sum(0) for name in parts[0]}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("case", {**BY_RULE, **BY_SAMPLE})
def test_sensitivity_equals_single_samples(case: str, norm: OutputNorm) -> None:
    model, x, y = build(*{**BY_RULE, **BY_SAMPLE}[case])
    sums, count = output_sensitivity(model, batched(x, y, 3), norm)  # the last sample comes alone
    expected = added([moved(model, x_n, norm) for x_n in x.split(1)])
    torch.testing.assert_close(sums, expected, rtol=1e-11, atol=1e-12)
    assert count == 7


@pytest.mark.parametrize("case", BY_RULE)
def test_every_layer_has_its_rule_for_sensitivity(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, y = build(*BY_RULE[case])
    monkeypatch.delattr(importance._Scores, "_by_sample")
    output_sensitivity(model, batched(x, y, 5))


def test_sensitivity_of_an_embedding_is_that_of_its_rows() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(6, 4, padding_idx=0), nn.Flatten(), nn.Linear(20, 3)).double()
    x = torch.tensor([[1, 1, 2, 0, 5], [5, 5, 5, 0, 1], [0, 0, 0, 0, 0]])
    sums, _ = output_sensitivity(model, [(x,)])
    torch.testing.assert_close(sums, added([moved(model, x_n, "squared") for x_n in x.split(1)]))


@pytest.mark.parametrize("norm", NORMS)
def test_sensitivity_by_batch_adds_gradients_first(norm: OutputNorm) -> None:
    model, x, y = build(Residual, (2, 5, 5))
    sums, count = output_sensitivity(model, batched(x, y, 4), norm, by_batch=True)
    torch.testing.assert_close(sums, added([moved(model, part, norm) for part in x.split(4)]))
    assert count == 7
    single, _ = output_sensitivity(model, batched(x, y, 1), norm, by_batch=True)
    torch.testing.assert_close(single, output_sensitivity(model, [(x, y)], norm)[0])


@pytest.mark.parametrize("batch_size", [1, 3, 12])
def test_sensitivity_of_a_linear_map_has_closed_forms(batch_size: int) -> None:
    """``|2 f_c x_d|`` of each sample; of a batch the absolute value of the sum, which is at most that."""
    torch.manual_seed(0)
    model = nn.Linear(5, 3, bias=False).double()
    x, y = data(5, samples=12)
    terms = 2 * torch.einsum("nc,nd->ncd", model(x).detach(), x)
    sums, _ = output_sensitivity(model, batched(x, y, batch_size))
    torch.testing.assert_close(sums["weight"], terms.abs().sum(0), rtol=1e-12, atol=0)
    by_batch, _ = output_sensitivity(model, batched(x, y, batch_size), by_batch=True)
    torch.testing.assert_close(by_batch["weight"], sum(part.sum(0).abs() for part in terms.split(batch_size)))
    assert (by_batch["weight"] <= sums["weight"] + 1e-12).all()


def test_sensitivity_reads_no_labels() -> None:
    model, x, y = build(Residual, (2, 5, 5))
    expected, _ = output_sensitivity(model, [(x, y)])
    for batch in ((x, y.flip(0)), (x, None), (x,)):
        assert all(torch.equal(value, expected[name]) for name, value in output_sensitivity(model, [batch])[0].items())


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("make", [lambda: nn.Linear(4, 3), lambda: nn.Sequential(Doubled(4, 3))])
def test_outputs_that_do_not_compete_have_no_part(make: Callable[[], nn.Module], norm: OutputNorm) -> None:
    model, x, y = build(make, (4,))
    hidden = torch.tensor([False, False, True])
    masked, _ = output_sensitivity(model, [(x, y)], norm, logits=lambda out: out.masked_fill(hidden, -torch.inf))
    cut, _ = output_sensitivity(model, [(x, y)], norm, logits=lambda out: out[:, :2])
    torch.testing.assert_close(masked, cut)
    assert all(value[2].eq(0).all() for value in masked.values())


def test_an_output_of_zero_has_no_direction() -> None:
    sums, _ = output_sensitivity(nn.Linear(4, 3, bias=False), [(torch.zeros(2, 4),)], "plain")
    assert sums["weight"].eq(0).all()


@pytest.mark.parametrize(
    ("batches", "kwargs", "message"),
    [
        ([], {}, "`batches` must hold at least one sample"),
        ([(torch.ones(2, 4, 2),)], {}, r"`model` must return .* got \(2, 4, 3\)"),
        ([], {"norm": "cubed"}, "`norm` must be one of squared, plain, outputs, got 'cubed'"),
        ([], {"parameters": ["weights"]}, "`parameters` must name .* got weights"),
    ],
)
def test_errors_of_sensitivity_name_what_came(batches: Any, kwargs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        output_sensitivity(nn.Linear(2, 3), batches, **kwargs)
