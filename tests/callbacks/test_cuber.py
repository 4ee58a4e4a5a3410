"""CUBER: its three regimes, what they allow, and the way from the third to the second."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_cl import RunLogger
from lightning_cl.callbacks.projection.cuber import CUBER, agreement, norm_gradient
from lightning_cl.callbacks.projection.gpm import GPM
from lightning_cl.callbacks.projection.trgp import TRGP
from lightning_cl.subspace import project_out
from tests.callbacks.test_trgp import DOUBLE, TRUSTING, Tasks, convolutions, run
from tests.helpers.contracts import LIGHTNINGS_OWN_WARNINGS, learn, same, seeded

pytestmark = LIGHTNINGS_OWN_WARNINGS


# -- the mathematics ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2])
def test_gradient_of_the_norm(groups: int) -> None:
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(groups, 6, 2, dtype=torch.float64))[0]
    change = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    norm = change.view(groups, -1, 6).matmul(basis @ basis.mT).norm()
    torch.testing.assert_close(norm_gradient(change.detach(), basis), torch.autograd.grad(norm, change)[0])
    assert not norm_gradient(torch.zeros(4, 3, 2, dtype=torch.float64), basis).any()


def test_agreement_is_that_of_the_cosine() -> None:
    torch.manual_seed(0)
    old, new = torch.randn(3, 5), torch.randn(4, 5)  # a head that has grown since
    cosine = torch.cosine_similarity(torch.cat([old, torch.zeros(1, 5)]).flatten(), new.flatten(), dim=0)
    assert agreement(old, new, float(cosine) - 1e-4) > 0 > agreement(old, new, float(cosine) + 1e-4)


# -- what it is at its limits ------------------------------------------------------------------------------------------


def test_without_relation_it_is_gpm() -> None:
    cuber = CUBER(0.95, eps1=1.0, free=[])
    assert same(run(cuber, stream=Tasks(2)).weights, run(GPM(0.95, free=[]), stream=Tasks(2)).weights)


def test_without_agreement_it_is_trgp() -> None:
    assert same(run(CUBER(**TRUSTING, eps2=1.0)).weights, run(TRGP(**TRUSTING)).weights)
    assert not same(run(CUBER(**TRUSTING, eps2=0.0)).weights, run(TRGP(**TRUSTING)).weights)


# -- the regimes -------------------------------------------------------------------------------------------------------


class Before(Callback):
    """Keeps the gradients as they come, and the weights and what is in regime 3 before each step."""

    def __init__(self, cuber: CUBER) -> None:
        self.cuber = cuber
        self.grads: dict[str, Tensor] = {}
        self.weights: list[list[dict[str, Tensor]]] = []
        self.regimes: list[list[dict[str, list[int]]]] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.regimes.append([])
        self.weights.append([])

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.grads = {name: p.grad.clone() for name, p in pl_module.named_parameters()}
        self.regimes[-1].append({name: list(tasks) for name, tasks in self.cuber._improved.items()})
        self.weights[-1].append({name: p.detach().clone() for name, p in pl_module.named_parameters()})


class End(Callback):
    """Adds the weights after the last step."""

    def __init__(self, before: Before) -> None:
        self.before = before

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.before.weights[-1].append({name: p.detach().clone() for name, p in pl_module.named_parameters()})


class After(Callback):
    """Compares the gradient with penalty and projection, written out."""

    def __init__(self, before: Before) -> None:
        self.before = before
        self.held = 0

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        cuber, past = self.before.cuber, len(self.before.cuber.tasks)
        for name in cuber.bank.basis:
            w, grad = pl_module.get_parameter(f"{name}.weight"), self.before.grads[f"{name}.weight"]
            improved = [
                j
                for j in self.before.regimes[-1][-1].get(name, [])
                if (cuber.gradients[j][name] * grad).sum() >= cuber.eps2 * cuber.gradients[j][name].norm() * grad.norm()
            ]
            assert cuber._improved.get(name, []) == improved
            change = w.detach() - self.before.weights[-1][0][f"{name}.weight"]
            for j in improved:
                inside = change - project_out(change, cuber.bank.space(name, [j]))
                grad = grad + cuber.strength * (inside / inside.norm() if inside.any() else inside)
                self.held += bool(inside.any())
            protected = [j for j in range(past) if j not in improved]
            torch.testing.assert_close(w.grad, project_out(grad, cuber.bank.space(name, protected)))


def test_gradient_is_penalised_and_projected() -> None:
    before = Before(cuber := CUBER(**TRUSTING, strength=0.3, eps2=0.05))
    after = After(before)
    learn([before, cuber, after], seeded(convolutions), Tasks(), **DOUBLE)
    assert after.held > 5


def test_regime_3_only_turns_into_regime_2() -> None:
    before = Before(cuber := CUBER(**TRUSTING, strength=0.3, eps2=0.05))
    learn([before, cuber], seeded(convolutions), Tasks())
    sizes = [[sum(map(len, step.values())) for step in steps] for steps in before.regimes]
    assert sizes[0] == [0] * len(sizes[0])
    assert all(later <= earlier for steps in sizes for earlier, later in pairwise(steps))
    assert any(steps[-1] < steps[0] for steps in sizes)
    assert all(len(tasks) <= 2 for steps in before.regimes for step in steps for tasks in step.values())


class Turn(Before):
    """Turns the stored gradients round at the third step of the second experience, so that no task agrees any more."""

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        super().on_before_optimizer_step(trainer, pl_module, optimizer)
        if len(self.regimes) == 2 and len(self.regimes[-1]) == 3:
            for gradient in self.cuber.gradients[0].values():
                gradient.neg_()


@pytest.mark.parametrize(("optimizer", "lr"), [(torch.optim.SGD, 0.1), (torch.optim.AdamW, 0.001)])
def test_a_space_is_protected_from_demotion_on(optimizer: Any, lr: float) -> None:
    """Under correction too, which takes nothing back of what was allowed before."""

    def made() -> Any:
        module = convolutions()
        module.configure_optimizers = lambda: optimizer(module.parameters(), lr=lr, weight_decay=0.1)
        return module

    turn = Turn(cuber := CUBER(**TRUSTING, strength=0.3))
    learn([turn, cuber, End(turn)], seeded(made), Tasks(), **DOUBLE)
    steps, regimes = turn.weights[1], turn.regimes[1]
    assert regimes[2]
    assert not regimes[3]
    for name in regimes[2]:
        before, between, after = (steps[k][f"{name}.weight"] for k in (0, 2, 4))
        assert inside(between - before, cuber.bank.space(name, [0])) > 1e-4
        assert inside(after - between, cuber.bank.space(name, [0])) < 1e-10


def inside(change: Tensor, space: Tensor) -> float:
    return float((change - project_out(change, space)).abs().max())


def test_demoted_run_resumes(tmp_path: Any) -> None:
    def once(folder: str, ckpt_path: Any = None) -> Any:
        cuber = CUBER(**TRUSTING, strength=0.3, eps2=0.05, correction=True)
        files = {"logger": RunLogger(tmp_path / folder), "enable_checkpointing": True}
        saves = ModelCheckpoint(every_n_train_steps=1, save_top_k=-1)
        return learn([cuber, saves], seeded(convolutions), Tasks(), ckpt_path, **files).weights, cuber.state_dict()

    weights, state = once("whole")
    path = next((tmp_path / "whole").rglob("*step=15.ckpt"))
    saved = next(v for k, v in torch.load(path, weights_only=True)["callbacks"].items() if k.startswith("CUBER"))
    assert saved["improved"]
    assert saved["origin"]
    assert saved["reference"]
    assert same(once("again", path), (weights, state))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eps2": -0.5}, r"`eps2` must be in \[0, 1\], got -0.5"),
        ({"eps2": 1.5}, r"`eps2` must be in \[0, 1\], got 1.5"),
        ({"strength": -1.0}, "`strength` must be 0 or more, got -1.0"),
    ],
)
def test_errors(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CUBER(**arguments)
