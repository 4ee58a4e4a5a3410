"""Gradient projection memory: old inputs of a layer keep their outputs, whatever the optimizer."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from lightning_cl import RunLogger
from lightning_cl.callbacks.projection import gpm as gpm_module
from lightning_cl.callbacks.projection.gpm import GPM
from lightning_cl.subspace import project_out
from tests.helpers.contracts import (
    LIGHTNINGS_OWN_WARNINGS,
    Foreign,
    Net,
    TinyStream,
    learn,
    resnet,
    same,
    samples,
    scaled,
    seeded,
    trainer,
)

pytestmark = LIGHTNINGS_OWN_WARNINGS
DOUBLE: dict[str, Any] = {"precision": "64-true"}


class Conv(Net):
    """Convolutions with stride, padding and groups, batch normalisation, and an optimizer to choose."""

    def __init__(self, optimizer: Any = None) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 6, 3, stride=2, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 9, 3, padding="same", groups=3, bias=False),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(144, 4),
        )
        self.optimizer = optimizer or (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9))

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.parameters())


class Snapshots(Callback):
    """Keeps the weights and the bank at the end of each experience."""

    def __init__(self, gpm: GPM) -> None:
        self.gpm = gpm
        self.weights: list[dict[str, Tensor]] = []
        self.spaces: list[dict[str, Tensor]] = []

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.weights.append({name: value.clone() for name, value in pl_module.state_dict().items()})
        self.spaces.append(dict(self.gpm.bank.basis))


def changes(gpm: GPM, module: Any, experiences: int = 2, **kwargs: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """By how much weights changed in the last experience, and the spaces that were protected in it."""
    kept = Snapshots(gpm)
    learn([gpm, kept], module, TinyStream(experiences), **kwargs)
    new, old = kept.weights[-1], kept.weights[-2]
    return {name: new[name] - old[name] for name in new}, kept.spaces[-2]


def inside(changed: dict[str, Tensor], spaces: dict[str, Tensor]) -> float:
    """The largest effect of a change on an input in the space of its layer."""
    deltas = {name: changed[f"{name}.weight"] for name in spaces}
    return max(float((d - project_out(d, spaces[name])).abs().max()) for name, d in deltas.items())


# -- what is protected -------------------------------------------------------------------------------------------------


def test_first_experience_is_fine_tuning() -> None:
    first = TinyStream(1)
    assert same(learn([GPM()], seeded(Conv), first).weights, learn((), seeded(Conv), first).weights)


OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "decay": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
}


@pytest.mark.parametrize(
    ("optimizer", "correction", "exact"),
    [
        ("sgd", None, True),
        ("sgd", False, True),
        ("decay", None, True),
        ("decay", False, False),
        ("adam", None, True),
        ("adam", True, True),
        ("adam", False, False),
    ],
)
def test_steps_do_not_act_on_old_inputs(optimizer: str, correction: Any, exact: bool) -> None:
    gpm = GPM(0.9, correction=correction)
    changed, spaces = changes(gpm, seeded(Conv, optimizer=OPTIMIZERS[optimizer]), 4, **DOUBLE)
    assert {name: tuple(space.shape[:2]) for name, space in spaces.items()} == {
        "net.0": (1, 9),
        "net.3": (3, 18),
        "net.6": (1, 144),
    }
    assert all(changed[f"{name}.weight"].abs().max() > 1e-3 for name in spaces)
    drift = inside(changed, spaces)
    assert drift < 1e-10 if exact else drift > 1e-4


def test_old_outputs_stay() -> None:
    module = seeded(lambda: Foreign(nn.Sequential(nn.Flatten(), nn.Linear(64, 4, bias=False))))
    gpm, kept = (made := GPM(0.97)), Snapshots(made)
    learn([gpm, kept], module, TinyStream(2, batch_size=6), max_epochs=25)  # 100 steps each
    basis = kept.spaces[0]["net.1"][0]
    x = scaled(samples(train=True)[0][::2]).float().flatten(1) @ basis @ basis.T
    before, after = (weights["net.1.weight"] for weights in kept.weights)
    assert (after - before).abs().max() > 0.1
    assert (x @ (after - before).T).abs().max() < 1e-6


def test_parameters_that_cannot_be_protected_stay() -> None:
    module = seeded(Conv, optimizer=lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1))
    changed, _ = changes(GPM(0.9), module)
    assert {n for n, d in changed.items() if d.any()} == {"net.0.weight", "net.3.weight", "net.6.weight"}


def test_layers_that_are_made_late_are_protected_too() -> None:
    class Late(Net):
        def configure_model(self) -> None:
            if self.net is None:
                torch.manual_seed(1)
                self.net = Net().net

    def late() -> Any:
        module = Late()
        module.net = None
        return module

    gpm = GPM([0.9, 0.8])
    changed, spaces = changes(gpm, seeded(late), **DOUBLE)
    assert spaces.keys() == {"net.1", "net.4"}
    assert inside(changed, spaces) < 1e-10


def test_free_modules_train_as_ever() -> None:
    gpm = GPM(0.9, free=["net.6", "net.1", "net.3.weight", "net.0.bias"])
    changed, spaces = changes(gpm, seeded(Conv), **DOUBLE)
    assert spaces.keys() == {"net.0"}
    assert all(changed[name].any() for name in ("net.6.weight", "net.6.bias", "net.1.weight", "net.1.running_mean"))
    assert changed["net.0.bias"].any()


def test_the_head_is_free_with_task_labels() -> None:
    gpm = GPM(0.9)
    learn([gpm], seeded(resnet), TinyStream(task_labels=True), max_epochs=1)
    assert "net.layer4.0.conv2" in gpm.bank.basis
    assert "net.fc" not in gpm.bank.basis
    with pytest.raises(ValueError, match=r"`free` must name the head .* has no `get_classifier`: give"):
        learn([GPM()], stream=TinyStream(task_labels=True))


@pytest.mark.parametrize("batch_norm", ["freeze", "train"])
def test_running_statistics(batch_norm: Any) -> None:
    module = seeded(Conv)
    changed, _ = changes(GPM(0.9, batch_norm=batch_norm), module)
    assert changed["net.1.running_mean"].any() == (batch_norm == "train")
    assert module.net[1].training


# -- how the basis is made ---------------------------------------------------------------------------------------------


def test_basis_is_by_singular_values_of_all_patches() -> None:
    gpm, module = GPM([0.9, 0.8, 0.7], samples=None), seeded(Conv)
    learn([gpm], module, TinyStream(1), **DOUBLE)
    module.eval()
    with torch.no_grad():
        h = module.net[:3](scaled(samples(train=True)[0]))
    patches = nn.functional.unfold(h[:, 2:4], 3, padding=1).transpose(0, 1).flatten(1)  # of the second group
    u, s, _ = torch.linalg.svd(patches, full_matrices=False)
    count = int((s.square().cumsum(0) < 0.8 * s.square().sum()).sum())
    basis = gpm.bank.basis["net.3"][1]
    assert count == int(basis.any(0).sum()) > 0
    torch.testing.assert_close(basis @ basis.T, u[:, :count] @ u[:, :count].T)


def test_threshold_grows_with_experiences(monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[float] = []
    update = gpm_module.SubspaceBank.update
    monkeypatch.setattr(gpm_module.SubspaceBank, "update", lambda *a: (shares.append(a[3]), update(*a))[1])
    learn([GPM([0.0, 0.95], threshold_step=0.03)], stream=TinyStream(4))
    assert shares == pytest.approx([0.95, 0.98, 1.0, 1.0])


def test_free_rank_is_logged_and_a_full_basis_is_told(tmp_path: Path) -> None:
    gpm = GPM([0.0, 0.9999])
    with pytest.warns(UserWarning, match=r"GPM: all directions of net.4 are protected.*set `threshold` lower"):
        learn([gpm], seeded(lambda: Wide(nn.Linear(64, 4))), logger=RunLogger(tmp_path))
    rows = csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines())
    assert [row["free_rank/GPM/net.4"] for row in rows if row["free_rank/GPM/net.4"]] == ["0.25", "0.0"]


class Wide(Net):
    """Has a layer with few inputs, all of which vary."""

    def __init__(self, first: nn.Module) -> None:
        super().__init__(drop=0.0)
        self.net = nn.Sequential(nn.Flatten(), first, nn.Tanh(), nn.Identity(), nn.Linear(4, 4))


# -- resuming and refusing ---------------------------------------------------------------------------------------------


def test_corrected_run_resumes(tmp_path: Path) -> None:
    def run(folder: str, ckpt_path: Any = None) -> Any:
        callbacks = [GPM(0.9), ModelCheckpoint(every_n_train_steps=2, save_top_k=-1)]
        files = {"logger": RunLogger(tmp_path / folder), "enable_checkpointing": True}
        module = seeded(Conv, optimizer=OPTIMIZERS["adam"])
        return learn(callbacks, module, TinyStream(), ckpt_path, **files), callbacks[0].state_dict()

    whole, state = run("whole")
    again, state_again = run("again", next((tmp_path / "whole").rglob("*step=10.ckpt")))
    assert same(again.weights, whole.weights)
    assert same(state_again, state)
    assert state["reference"] == {}


def test_momentum_of_an_earlier_experience_is_corrected() -> None:
    class Keeping(Conv):
        def configure_optimizers(self) -> Any:
            self.made = self.made or [super().configure_optimizers()]
            return self.made[0]

    changed, spaces = changes(GPM(0.9), seeded(Keeping), **DOUBLE)
    assert inside(changed, spaces) < 1e-10
    changed, spaces = changes(GPM(0.9, correction=False), seeded(Keeping), **DOUBLE)
    assert inside(changed, spaces) > 1e-4
    assert not changed["net.0.bias"].any()


def test_a_basis_larger_than_the_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Patches(Net):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Conv2d(1, 2, 8), nn.Flatten(), nn.Linear(2, 4))

    monkeypatch.setattr(gpm_module, "SMALL", 0)
    with pytest.raises(ValueError, match=r"`free` must name layer 'net.0'.* takes 0.0 MB, more than .* with 0.0 MB"):
        learn([GPM()], seeded(Patches))
    learn([GPM(0.1, free=["net.0"])], seeded(Patches), max_epochs=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": 1.1}, r"`threshold` must be in \[0, 1\], .* got 1.1"),
        ({"threshold": [0.9, -0.1]}, r"`threshold` must be in \[0, 1\], .* got \[0.9, -0.1\]"),
        ({"threshold": []}, r"`threshold` must be in \[0, 1\]"),
        ({"threshold_step": -0.1}, "`threshold_step` must be 0 or more, got -0.1"),
        ({"samples": 0}, "`samples` must be 1 or more"),
        ({"batch_norm": "off"}, "`batch_norm` must be 'freeze' or 'train', got 'off'"),
    ],
)
def test_errors(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GPM(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": [0.9]}, r"`threshold` must hold a number for each layer \(net.1, net.4\), got 1"),
        ({"free": ["net.4", "head"]}, "`free` must name submodules or parameters of the module, got head"),
    ],
)
def test_arguments_that_do_not_fit_the_module(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trainer([GPM(**arguments)]).fit(seeded(), datamodule=TinyStream())
