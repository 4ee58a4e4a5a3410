"""Learning without forgetting: the term by hand, LwF.MC as one loss, and which classes are old."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from torch import Tensor, nn

from lightning_cl import fit_stream
from lightning_cl.callbacks.regularization import lwf as lwf_module
from lightning_cl.callbacks.regularization.lwf import LwF
from lightning_cl.methods import Classifier
from tests.helpers.contracts import (
    LIGHTNINGS_OWN_WARNINGS,
    Net,
    PlainData,
    TinyStream,
    learn,
    learn_plain,
    same,
    samples,
    seeded,
    trainer,
)

pytestmark = LIGHTNINGS_OWN_WARNINGS
DOUBLE: dict[str, Any] = {"precision": "64-true"}
EXACT = {"rtol": 0.0, "atol": 1e-12}
OLD = [0, 1]  # of the tiny stream, in its second experience


@pytest.mark.parametrize("loss", ["softmax", "binary"])
def test_first_experience_is_fine_tuning(loss: Any) -> None:
    first = TinyStream(1)
    assert same(learn([LwF(5.0, loss)], stream=first).weights, learn(stream=first).weights)


class ByHand(Net):
    """Has the term in its own ``training_step``, with a copy of itself as teacher."""

    binary = False
    temperature = 2.0

    def __init__(self) -> None:
        super().__init__(drop=0.0)
        self.teacher: list[nn.Module] = []  # not a submodule

    def on_train_end(self) -> None:
        self.teacher = [copy.deepcopy(self.net)]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        scores = self(batch[0])
        loss = F.cross_entropy(scores, batch[1])
        if not self.teacher:
            return loss
        z, z0 = scores[:, OLD], self.teacher[0](batch[0])[:, OLD].detach()
        if self.binary:
            return loss + 0.7 * F.binary_cross_entropy(z.sigmoid(), z0.sigmoid(), reduction="sum") / len(z)
        q, q0 = ((s / self.temperature).softmax(1) for s in (z, z0))
        return loss - 0.7 * (q0 * q.log()).sum(1).mean()


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("how", [learn, learn_plain])
@pytest.mark.parametrize(
    ("arguments", "by_hand"),
    [({}, {}), ({"temperature": 3.0}, {"temperature": 3.0}), ({"loss": "binary"}, {"binary": True})],
)
def test_loss_equals_the_term_by_hand(how: Any, accumulate: int, arguments: Any, by_hand: Any) -> None:
    settings = {**DOUBLE, "accumulate_grad_batches": accumulate}
    added = how([LwF(0.7, **arguments)], seeded(drop=0.0), **settings)
    expected = how([], seeded(type("Mine", (ByHand,), by_hand)), **settings)
    torch.testing.assert_close(added.weights, expected.weights, **EXACT)
    assert not same(added.weights, how([], seeded(drop=0.0), **settings).weights)


def test_factor_of_hinton() -> None:
    weights = [learn([lwf], **DOUBLE).weights for lwf in (LwF(1.0, scale_by_t2=True), LwF(4.0))]
    torch.testing.assert_close(*weights, **EXACT)


# -- LwF.MC ------------------------------------------------------------------------------------------------------------


class Joint(Classifier):
    """One binary cross-entropy over the seen classes, whose targets of old classes are what the last model said."""

    teacher: tuple[nn.Module, ...] = ()

    def on_train_end(self) -> None:
        self.teacher = (copy.deepcopy(self.backbone),)

    def loss(self, scores: Tensor, y: Tensor) -> Tensor:
        targets = torch.eye(4, dtype=scores.dtype)[y]
        if not self.teacher:
            return F.binary_cross_entropy(scores[:, OLD].sigmoid(), targets[:, OLD], reduction="sum") / len(y)
        targets[:, OLD] = self.teacher[0](self.x).sigmoid().detach()[:, OLD]
        return F.binary_cross_entropy(scores.sigmoid(), targets, reduction="sum") / len(y)

    def forward(self, x: Tensor) -> Tensor:
        self.x = x
        return super().forward(x)


def classifier(cls: type[Classifier] = Classifier, **kwargs: Any) -> Any:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    return seeded(cls, num_classes=4, backbone=copy.deepcopy(net), **kwargs)


def test_binary_loss_with_the_classifier_is_one_loss_with_overwritten_targets() -> None:
    torch.manual_seed(0)
    parts = learn([LwF(1.0, "binary")], classifier(loss="binary", loss_classes="current"), **DOUBLE)
    torch.manual_seed(0)
    joint = learn([], classifier(Joint), **DOUBLE)
    torch.testing.assert_close(parts.weights, joint.weights, **EXACT)


def test_gradient_of_lwf_mc_at_the_last_model() -> None:
    """At the first step the student is the teacher: nothing for old columns, and for new ones that of their targets."""

    class First(Callback):
        def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
            if trainer.global_step == 6:
                grads.append(pl_module.backbone[1].bias.grad.clone())
                bias.append(pl_module.scores.sigmoid() - torch.eye(4)[pl_module.y])

    class Noted(Classifier):
        def loss(self, scores: Tensor, y: Tensor) -> Tensor:
            self.scores, self.y = scores.detach(), y
            return super().loss(scores, y)

    grads: list[Tensor] = []
    bias: list[Tensor] = []
    learn([LwF(1.0, "binary"), First()], classifier(Noted, loss="binary", loss_classes="current"), **DOUBLE)
    assert grads[0][:2].abs().max() <= 1e-15
    torch.testing.assert_close(grads[0][2:], bias[0][:, 2:].mean(0), **EXACT)


# -- old classes -------------------------------------------------------------------------------------------------------


class Columns(LwF):
    """Notes the columns of each softmax, by experience."""

    def start(self, trainer: Any, pl_module: Any) -> None:
        super().start(trainer, pl_module)
        noted.append([columns.tolist() for columns in self._columns])


noted: list[Any] = []
ORDER = {"class_order": [3, 1, 0, 2]}


@pytest.mark.parametrize(
    ("arguments", "stream", "expected"),
    [
        ({}, ORDER, [[], [[3]], [[1, 3]], [[0, 1, 3]]]),
        ({"logits": "task"}, ORDER, [[], [[3]], [[3], [1]], [[3], [1], [0]]]),
        ({}, {**ORDER, "task_labels": True}, [[], [[3]], [[3], [1]], [[3], [1], [0]]]),
        ({"logits": "old"}, {**ORDER, "task_labels": True}, [[], [[3]], [[1, 3]], [[0, 1, 3]]]),
        ({"loss": "binary"}, {**ORDER, "task_labels": True}, [[], [[3]], [[1, 3]], [[0, 1, 3]]]),
    ],
)
def test_old_classes_of_a_stream(arguments: Any, stream: Any, expected: Any) -> None:
    noted.clear()
    learn([Columns(1.0, **arguments)], stream=TinyStream(4, **stream), max_epochs=1)
    assert noted == expected


@pytest.mark.parametrize(("logits", "expected"), [("old", [[0, 1]]), ("task", [[0, 1], [2]])])
def test_old_classes_of_other_data_are_the_labels_of_earlier_fits(logits: Any, expected: Any) -> None:
    class Third(PlainData):
        def train_dataloader(self) -> Any:
            x, y = samples(train=True)
            chosen = torch.isin(y, torch.tensor([[0, 1], [2], [3]][self.task])) if self.task else y // 2 == 0
            return torch.utils.data.DataLoader([*zip(x[chosen] / 255, y[chosen], strict=True)], batch_size=8)

    noted.clear()
    run, data, module = trainer([Columns(1.0, logits=logits)], max_epochs=1), Third(), seeded()
    for data.task in range(3):
        run.fit_loop.max_epochs = data.task + 1
        run.fit(module, datamodule=data)
    together = [[0, 1, 2]] if logits == "old" else expected
    assert noted == [[], [[0, 1]], together]


def test_labels_of_a_fit_are_kept_in_a_state_in_its_middle(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all processes; here one that saw no other labels and one that did."""

    class Stops(Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            if trainer.global_step == 2:
                trainer.save_checkpoint(tmp_path / "a.ckpt")

    monkeypatch.setattr(lwf_module, "gather_rows", lambda trainer, rows: torch.cat([rows, torch.tensor([3, 1])]))
    lwf = LwF(1.0)
    trainer([lwf, Stops()], max_epochs=1).fit(seeded(), PlainData())
    (state,) = torch.load(tmp_path / "a.ckpt", weights_only=True)["callbacks"].values()
    assert state["classes"] == []
    assert same(state["labels"], [torch.tensor([0, 1, 3])])
    assert same(lwf.state_dict()["classes"], [torch.tensor([0, 1, 3])])
    assert lwf.state_dict()["labels"] == []


def test_scores_of_classes_to_come_have_no_part() -> None:
    class Shifted(Net):
        """Adds something to the scores of the last class, which its own loss leaves out."""

        shift = 0.0

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) + torch.tensor([0.0, 0.0, 0.0, self.shift])

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return F.cross_entropy(self(batch[0])[:, :3], batch[1])

    def weights(shift: float) -> dict[str, Tensor]:
        module, stream = seeded(type("Mine", (Shifted,), {"shift": shift})), TinyStream(4)
        run = trainer([LwF(1.0)], max_epochs=1)
        for stream.current in range(3):
            run.fit_loop.max_epochs = stream.current + 1
            run.fit(module, datamodule=stream)
        return dict(module.named_parameters())

    assert same(weights(0.0), weights(5.0))


def test_a_growing_head_learns() -> None:
    shape = {"num_classes": 4, "backbone": "mlp", "input_shape": (1, 8, 8), "backbone_args": {"hidden": (16,)}}
    runs = []
    for callbacks in ([LwF(1.0)], [LwF(1.0, "binary")], []):
        module = seeded(Classifier, **shape, head="growing")
        fit_stream(trainer(callbacks), module, TinyStream())
        runs.append({name: p.detach() for name, p in module.named_parameters()})
    assert all(p.isfinite().all() for weights in runs for p in weights.values())
    assert not same(runs[0], runs[2])
    assert not same(runs[1], runs[2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strength": -1.0}, "`strength` must be 0 or more, got -1.0"),
        ({"loss": "kl"}, "`loss` must be one of .*softmax.*, got 'kl'"),
        ({"temperature": 0.0}, "`temperature` must be above 0, or None for 2, got 0.0"),
        ({"logits": "all"}, "`logits` must be None or one of .*task.*, got 'all'"),
        ({"loss": "binary", "temperature": 2.0}, "`temperature` belongs to the softmax: leave it out, or set `loss`"),
        ({"loss": "binary", "logits": "task"}, "`logits` belongs to the softmax"),
        ({"loss": "binary", "scale_by_t2": True}, "`scale_by_t2` belongs to the softmax"),
    ],
)
def test_errors(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LwF(**arguments)
