import io
import random
from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from lightning_cl.utilities import (
    default_seed,
    derive_seed,
    evaluating,
    get_rng_state,
    isolated_rng,
    seed_generators,
    select_parameters,
    set_rng_state,
)


def draws() -> tuple[float, ...]:
    return torch.rand(()).item(), torch.randn(3)[0].item(), np.random.randn(), np.random.rand(), random.random()


def test_derived_seeds_are_all_different_and_fit_every_generator() -> None:
    """Also for numbers of which some are zero, left out, or themselves derived."""
    numbers = [key for n in (1, 2, 3, 4) for key in product((0, 1, 2, derive_seed(1)), repeat=n) if key[-1]]
    seeds = {key: derive_seed(*key) for key in numbers}
    assert len(set(seeds.values())) == len(numbers)
    assert all(0 <= seed < 2**63 for seed in seeds.values())
    assert seeds == {key: derive_seed(*key) for key in numbers}
    for seed in seeds.values():
        seed_generators(seed)


def test_derived_seeds_look_random() -> None:
    """The mean of n uniform numbers lies within 5 standard errors of one half."""
    seeds = torch.tensor([derive_seed(0, i) for i in range(400)]).double() / 2**63
    assert abs(seeds.mean() - 0.5) < 5 * (1 / 12 / 400) ** 0.5


def test_derived_seed_stays_what_it_was() -> None:
    """Checkpoints of earlier versions resume with it; NumPy promises that its SeedSequence does not change."""
    assert derive_seed(3, 1, 4) == int(np.random.SeedSequence([3, 1, 4]).generate_state(1, np.uint64)[0]) // 2
    assert derive_seed(3, 1, 0) == derive_seed(3, 1)


def test_default_seed_is_lightnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "13")
    assert (default_seed(None), default_seed(0)) == (13, 0)
    monkeypatch.delenv("PL_GLOBAL_SEED")
    assert default_seed(None) == 0
    with pytest.raises(ValueError, match=r"^`seed` must be 0 or more, got -3\.$"):
        default_seed(-3)


def test_evaluating_gives_each_module_its_own_mode_back() -> None:
    inner = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout())
    net = nn.Sequential(nn.Dropout(), inner, nn.Dropout())
    inner.training = inner[0].training = False
    with evaluating(net):
        assert [module.training for module in net.modules()] == [False] * 6
    assert [module.training for module in net.modules()] == [True, True, False, False, True, True]


def test_evaluating_gives_modes_back_after_an_error() -> None:
    net = nn.Dropout()
    with pytest.raises(ZeroDivisionError), evaluating(net):
        _ = 1 / 0
    assert net.training


def test_random_state_goes_through_a_checkpoint() -> None:
    seed_generators(3)
    np.random.randn()  # NumPy keeps the other half of a pair of normal numbers
    file = io.BytesIO()
    torch.save(get_rng_state(), file)
    expected = draws()
    seed_generators(4)
    file.seek(0)
    set_rng_state(torch.load(file, weights_only=True))
    assert draws() == expected


def test_seeding_fixes_all_generators() -> None:
    seed_generators(2**63 - 1)
    first = draws()
    seed_generators(2**63 - 1)
    assert draws() == first
    seed_generators(1)
    assert not set(draws()) & set(first)


def test_isolated_block_leaves_no_trace() -> None:
    seed_generators(0)
    expected = draws()
    seed_generators(0)
    with pytest.raises(ZeroDivisionError), isolated_rng():
        _ = [draws() for _ in range(3)][3 // 0]
    assert draws() == expected


def test_parameters_are_selected_by_name() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    net[2].bias.requires_grad_(False)
    assert list(select_parameters(net)) == ["0.weight", "0.bias", "1.weight", "1.bias", "2.weight"]
    assert list(select_parameters(net, [r"^2\.", "bias"])) == ["0.bias", "1.bias", "2.weight"]
    assert select_parameters(net, ["0.bias"])["0.bias"] is net[0].bias


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("2.bias", "'2.bias' matches no trainable parameter; there are 0.weight, 0.bias, 1.weight, 1.bias, 2.weight."),
        ("", r"`parameters` must be a list of regular expressions, got one: write \['bias'\]"),
        ("(", r"`parameters` must hold regular expressions, got '\('"),
    ],
)
def test_a_pattern_that_selects_nothing_is_an_error(pattern: str, message: str) -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    net[2].bias.requires_grad_(False)
    with pytest.raises(ValueError, match=message):
        select_parameters(net, [pattern] if pattern else "bias")
