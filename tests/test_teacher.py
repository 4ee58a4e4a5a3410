"""Distillation: losses against their formula, and a teacher that nothing changes and that changes nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from lightning_cl import RunLogger
from lightning_cl.heads import GrowingHead
from lightning_cl.teacher import DistillationCallback, FrozenTeacher, binary_distillation_loss, distillation_loss
from lightning_cl.utilities import get_rng_state
from tests.helpers.contracts import LIGHTNINGS_OWN_WARNINGS, Net, PlainData, learn, learn_plain, same, seeded, trainer

pytestmark = LIGHTNINGS_OWN_WARNINGS
INF = torch.inf


# -- losses ------------------------------------------------------------------------------------------------------------


def scores(seed: int, columns: int = 5) -> Tensor:
    return torch.randn(4, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3


def gradient(loss: Callable[..., Tensor], student: Tensor, teacher: Tensor, **kwargs: Any) -> Tensor:
    leaf = student.detach().clone().requires_grad_()
    return torch.autograd.grad(loss(leaf, teacher, **kwargs), leaf)[0]


@pytest.mark.parametrize(("temperature", "scale"), [(1.0, False), (2.0, False), (2.0, True), (0.5, True)])
def test_softmax_loss_is_the_formula(temperature: float, scale: bool) -> None:
    z, z0 = scores(0), scores(1)
    q, q0 = ((s / temperature).exp() / (s / temperature).exp().sum(1, keepdim=True) for s in (z, z0))
    factor = temperature**2 if scale else 1.0
    arguments: dict[str, Any] = {"temperature": temperature, "scale_by_t2": scale}
    expected = factor * -(q0 * q.log()).sum() / 4
    torch.testing.assert_close(distillation_loss(z, z0, **arguments), expected, rtol=0, atol=1e-12)
    expected = factor * (q - q0) / (4 * temperature)
    torch.testing.assert_close(gradient(distillation_loss, z, z0, **arguments), expected, rtol=0, atol=1e-15)


def test_softmax_loss_of_equals_has_no_gradient_and_the_value_of_the_entropy() -> None:
    z = scores(0)
    entropy = torch.distributions.Categorical(logits=z / 2).entropy().mean()
    torch.testing.assert_close(distillation_loss(z, z), entropy, rtol=0, atol=1e-12)
    assert gradient(distillation_loss, z, z).abs().max() <= 1e-15


def test_binary_loss_is_the_formula() -> None:
    z, z0 = scores(0), scores(1)
    p, p0 = z.sigmoid(), z0.sigmoid()
    expected = -(p0 * p.log() + (1 - p0) * (1 - p).log()).sum() / 4
    torch.testing.assert_close(binary_distillation_loss(z, z0), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient(binary_distillation_loss, z, z0), (p - p0) / 4, rtol=0, atol=1e-15)
    assert gradient(binary_distillation_loss, z, z).abs().max() <= 1e-15


@pytest.mark.parametrize("loss", [distillation_loss, binary_distillation_loss])
def test_columns_of_minus_infinity_have_no_part(loss: Any) -> None:
    z, z0 = scores(0), scores(1)
    z[:, 1], z0[:, 3] = -INF, -INF
    z[2], z0[3] = -INF, -INF  # rows in which nothing has a part
    kept = [0, 2, 4]
    expected = loss(z[:2, kept], z0[:2, kept]) / 2
    torch.testing.assert_close(loss(z, z0), expected, rtol=0, atol=1e-12)
    found = torch.zeros(4, 5, dtype=torch.float64)
    found[:2, kept] = gradient(loss, z[:2, kept], z0[:2, kept]) / 2
    torch.testing.assert_close(gradient(loss, z, z0), found, rtol=0, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("loss", [distillation_loss, binary_distillation_loss])
def test_loss_is_stable_and_in_float32_at_least(loss: Any, dtype: torch.dtype) -> None:
    z, z0 = scores(0).to(dtype), scores(1).to(dtype)
    assert loss(z, z0).dtype == torch.float32
    torch.testing.assert_close(loss(z, z0).double(), loss(z.double(), z0.double()), rtol=1e-6, atol=1e-6)
    far = torch.tensor([[3e4, -3e4]], dtype=dtype)
    assert loss(far, far) == 0
    assert loss(-far, far).isfinite()
    assert gradient(loss, -far, far).isfinite().all()


# -- the teacher -------------------------------------------------------------------------------------------------------


class Tied(nn.Module):
    """Has batch norm, dropout, a weight with two names, and a part that is in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 3))
        self.body[3].weight = self.body[0].weight
        self.body[2].eval()
        self.modes: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.modes.append(any(child.training for child in self.modules()))
        return self.body(x)


def test_teacher_answers_as_before_in_eval_mode_and_changes_nothing() -> None:
    torch.manual_seed(0)
    net, x = Tied(), torch.randn(4, 3)
    net.body(x)  # moves the statistics
    modes = [child.training for child in net.modules()]
    expected = net.eval()(x).detach()
    for child, mode in zip(net.modules(), modes, strict=True):
        child.training = mode
    teacher = FrozenTeacher.of(net)
    with torch.no_grad():
        for value in net.state_dict().values():
            value += 1
    before, rng = {k: v.clone() for k, v in net.state_dict().items()}, get_rng_state()
    answer = teacher(net, x, places=["body.1"])
    assert torch.equal(answer[""], expected)
    assert answer["body.1"].shape == (4, 3)
    assert not answer[""].requires_grad
    assert net.modes == [False, False]
    assert [child.training for child in net.modules()] == modes
    assert same(dict(net.state_dict()), before)
    assert same(get_rng_state(), rng)
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("moved", [False, True])
def test_teacher_shares_no_storage(moved: bool) -> None:
    net = Tied()
    teacher = FrozenTeacher.of(net).to("cpu")
    if moved:
        teacher, net = teacher.to("cpu"), net.to("cpu", torch.float64).float()
    mine = {value.untyped_storage().data_ptr() for value in teacher.tensors.values()}
    assert len(mine) == len(teacher.tensors) == 9 - 1  # of the tied weight there is one copy
    assert not mine & {value.untyped_storage().data_ptr() for value in net.state_dict().values()}


def test_teacher_of_a_head_that_grew_since() -> None:
    head, x = GrowingHead(3, 6), torch.randn(2, 3)
    head.grow([4, 1])
    teacher, before = FrozenTeacher.of(head), head(x)
    head.grow([0, 2])
    assert torch.equal(teacher(head, x)[""], before)
    assert head(x).isfinite().sum(1).tolist() == [4, 4]


# -- as a callback -----------------------------------------------------------------------------------------------------


class Distils(DistillationCallback):
    """Keeps the scores, and notes who holds a teacher and how it is."""

    def __init__(self, strength: float = 0.5, features: tuple[str, ...] = ()) -> None:
        super().__init__(strength)
        self.features = features
        self.holds: list[bool] = []
        self.states: list[dict[str, Tensor]] = []
        self.answers: list[dict[str, Any]] = []

    def places(self, pl_module: LightningModule) -> tuple[str, ...]:
        return ("", *self.features)

    def distillation(self, pl_module: LightningModule, x: Tensor, outputs: Any) -> Tensor:
        self.answers.append(self.answer(pl_module, x))
        self.holds.append(self.teacher is not None)
        if self.teacher is not None:
            self.states.append({name: value.clone() for name, value in self.teacher.tensors.items()})
        return (self.scores(pl_module, x, outputs) - self.answers[-1][""]).square().mean()


class Counted(Net):
    """Notes whether each of its forwards is in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[bool] = []
        self.extra = nn.BatchNorm1d(64)

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(self.training)
        return self.net(self.extra(x.flatten(1)))


def test_callbacks_share_one_teacher_and_one_answer_per_batch() -> None:
    first, off, second = Distils(0.5), Distils(0.0), Distils(0.3, ("net.1",))
    module = learn_plain([off, first, second], seeded(Counted)).module
    assert first.holds == [True] * 6
    assert second.holds == [False] * 6
    assert not off.answers
    assert all(a is b for a, b in zip(first.answers, second.answers, strict=True))
    assert all(answer.keys() == {"", "net.1"} for answer in first.answers)
    assert module.calls == [True] * 6 + [True, False] * 6


def test_teacher_is_asked_what_the_student_was_asked() -> None:
    class Scales(Net):
        """Does something with its inputs before it calls itself; at the first batch it still is its teacher."""

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            found.append(self(2 * batch[0]))
            return nn.functional.cross_entropy(found[-1], batch[1])

    found: list[Tensor] = []
    callback = Distils()
    learn_plain([callback], seeded(Scales, drop=0.0))
    assert torch.equal(callback.answers[0][""], found[6])
    assert not torch.equal(callback.answers[1][""], found[7])


def test_teacher_is_the_same_from_the_first_batch_to_the_last() -> None:
    callback = Distils()
    learn_plain([callback], seeded(Counted))
    assert len(callback.states) == 6
    assert all(same(state, callback.states[0]) for state in callback.states)
    assert callback.teacher is None


def test_teacher_is_held_by_the_first_also_if_another_held_it_before() -> None:
    """As in a run that goes on with its callbacks in another order."""
    first, second = Distils(0.3), Distils(0.5)
    saved = {name: torch.zeros_like(p) for name, p in seeded().named_parameters()}
    first.load_state_dict({"first_epoch": None, "learned": True, "teacher": None})
    second.load_state_dict({"first_epoch": None, "learned": True, "teacher": saved})
    trainer([first, second], max_epochs=1).fit(seeded(), PlainData())
    assert first.holds == [True] * 3
    assert same(first.states[0], saved)
    assert second.holds == [False] * 3


def test_checkpoint_holds_a_teacher_in_the_middle_of_an_experience_only(tmp_path: Path) -> None:
    first, second = Distils(0.5), Distils(0.3)
    saver = ModelCheckpoint(every_n_train_steps=2, save_top_k=-1)
    files: dict[str, Any] = {"logger": RunLogger(tmp_path), "enable_checkpointing": True, "log_every_n_steps": 1}
    learn([first, second, saver], **files)
    held: dict[str, Any] = {}
    for path in tmp_path.rglob("*.ckpt"):
        callbacks = torch.load(path, weights_only=True)["callbacks"]
        held[path.name] = [callbacks[callback.state_key]["teacher"] for callback in (first, second)]
    weights = torch.load(tmp_path / "checkpoints" / "experience_0.ckpt", weights_only=True)["state_dict"]
    assert held["experience_0.ckpt"] == held["experience_1.ckpt"] == [None, None]
    assert next(teachers for name, teachers in held.items() if name.endswith("step=2.ckpt")) == [None, None]
    teacher, none = next(teachers for name, teachers in held.items() if name.endswith("step=8.ckpt"))
    assert same(teacher, dict(weights))
    assert none is None
