"""Synaptic intelligence against its sums written out, step by step."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor

from lightning_cl.callbacks import SynapticIntelligence
from lightning_cl.callbacks.regularization.synaptic_intelligence import path_importance
from lightning_cl.methods import Classifier
from tests.helpers.contracts import LIGHTNINGS_OWN_WARNINGS, Net, TinyStream, learn, same, scaled, seeded, trainer

pytestmark = LIGHTNINGS_OWN_WARNINGS
DOUBLE: dict[str, Any] = {"precision": "64-true"}
Named = dict[str, Tensor]


def written_out(strength: float, damping: float, lr: float, clip: float = 0.0) -> tuple[Named, Named, Named]:
    """SI by hand: plain SGD with momentum on the loss and the penalty; the path from the gradient of the loss alone."""
    module, stream = seeded(drop=0.0).double(), TinyStream(4)
    weights = dict(module.named_parameters())
    omega = {name: torch.zeros_like(p) for name, p in weights.items()}
    old = {name: p.detach().clone() for name, p in weights.items()}
    path: Named = {}
    for stream.current in range(4):
        optimizer, loader = torch.optim.SGD(module.parameters(), lr=lr, momentum=0.5), stream.train_dataloader()
        path = {name: torch.zeros_like(p) for name, p in weights.items()}
        for epoch in range(2):
            for index in loader.batches(2 * stream.current + epoch):
                x, y = loader.dataset.batch(index)
                loss = F.cross_entropy(module(scaled(x)), y)
                g = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
                before = {name: p.detach().clone() for name, p in weights.items()}
                for name, p in weights.items():
                    p.grad = g[name] + 2 * strength * omega[name] * (before[name] - old[name])
                if clip:
                    torch.nn.utils.clip_grad_norm_(list(weights.values()), clip)
                optimizer.step()
                for name, p in weights.items():
                    path[name] -= g[name] * (p.detach() - before[name])
        for name, p in weights.items():
            drift = p.detach() - old[name]
            omega[name] = torch.relu(omega[name] + path[name] / (drift**2 + damping))
        old = {name: p.detach().clone() for name, p in weights.items()}
    return {name: p.detach() for name, p in weights.items()}, omega, path


@pytest.mark.parametrize("clip", [0.0, 0.3])
def test_run_equals_the_one_written_out(clip: float) -> None:
    si = SynapticIntelligence(0.8, damping=0.05)
    stream = TinyStream(4)
    run = learn([si], seeded(drop=0.0), stream, gradient_clip_val=clip or None, **DOUBLE)
    weights, omega, _ = written_out(0.8, 0.05, lr=0.2, clip=clip)
    close = {"rtol": 1e-9, "atol": 1e-12}
    torch.testing.assert_close(run.weights, weights, **close)
    torch.testing.assert_close(si.anchor.importance, omega, **close)
    assert all(not value.any() for value in si.path.values()), "the path starts anew"


def test_path_of_small_steps_sums_to_the_fall_of_the_loss() -> None:
    """On a quadratic loss, to first order in the learning rate."""

    class Quadratic(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = self.net[4].weight.square().mul(self.curvature).sum() / 2
            self.losses.append(loss.item())
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD([self.net[4].weight], lr=1e-4)

        curvature = torch.linspace(0, 3, 48, dtype=torch.float64).view(4, 12)

    module = seeded(Quadratic)
    module.losses = []
    si = SynapticIntelligence(1.0)
    si.consolidate = lambda *args: None  # type: ignore[method-assign]  # keep the path
    learn([si], module, TinyStream(1), max_epochs=20, **DOUBLE)
    final = (module.net[4].weight.square() * module.curvature).sum().item() / 2
    assert si.path["net.4.weight"].sum().item() == pytest.approx(module.losses[0] - final, rel=1e-3)
    assert not si.path["net.1.weight"].any(), "what never moves has no path"


def test_importance_is_rectified_after_the_sum() -> None:
    omega, path, drift = torch.tensor([1.0, 1.0, 0.0]), torch.tensor([-0.5, -3.0, 0.0]), torch.tensor([0.0, 0.0, 2.0])
    assert path_importance(omega, path, drift, 1.0).tolist() == [0.5, 0.0, 0.0]


def test_first_experience_is_fine_tuning() -> None:
    assert same(learn([SynapticIntelligence(50.0)], stream=TinyStream(1)).weights, learn(stream=TinyStream(1)).weights)


def test_rows_that_come_later_start_with_nothing() -> None:
    si = SynapticIntelligence(0.5)
    module = seeded(Classifier, num_classes=4, input_shape=(1, 8, 8), backbone_args={"hidden": (8,)}, head="growing")
    learn([si], module)
    name = "backbone.fc.linear.weight"
    assert si.anchor.importance[name].shape == si.path[name].shape == (4, 8)
    assert si.anchor.importance[name][2:].gt(0).any()
    assert torch.equal(si.anchor.anchor[name], module.get_parameter(name).detach())


def test_a_step_that_the_scaler_skips_adds_nothing() -> None:
    class Overflows(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx) * (torch.inf if self.global_step == 1 else 1)

    run = trainer([si := SynapticIntelligence(1.0)], plugins=[MixedPrecision("16-mixed", "cpu")], max_epochs=1)
    stream = TinyStream(1)
    run.fit(seeded(Overflows), datamodule=stream)
    assert all(value.isfinite().all() for value in si.anchor.importance.values())


def test_errors() -> None:
    with pytest.raises(ValueError, match="`damping` must be above 0, got 0"):
        SynapticIntelligence(damping=0)
