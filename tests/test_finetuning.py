"""Fine-tuning of a few layers: its loss, its layers, its optimum, and the measure of which layers forget."""

import math
from itertools import islice
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_cl import Memory, backbones
from lightning_cl.callback import mean_gradients
from lightning_cl.callbacks import Replay
from lightning_cl.finetuning import (
    FineTuning,
    batches_of,
    competitors,
    measured_tensors,
    parameter_change,
    replay_loss,
    select_layers,
    task_sensitivity,
)
from tests.helpers.contracts import LIGHTNINGS_OWN_WARNINGS, Growing, TinyStream, same, trainer

pytestmark = LIGHTNINGS_OWN_WARNINGS
INF = torch.inf


# -- the loss ----------------------------------------------------------------------------------------------------------


def test_classes_that_do_not_compete_have_no_part() -> None:
    scores, labels = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 0, 2, 3, 2])
    competing = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]).bool()
    expected = (
        3 * F.cross_entropy(scores[:3, :2], labels[:3]) + 3 * F.cross_entropy(scores[3:, 2:], labels[3:] - 2)
    ) / 6
    torch.testing.assert_close(replay_loss(scores, labels, competing), expected)
    torch.testing.assert_close(
        replay_loss(scores[:3, :2], labels[:3], competing), F.cross_entropy(scores[:3, :2], labels[:3])
    )


def test_stored_scores_are_matched_where_there_are_any() -> None:
    scores = torch.tensor([[1.0, 2.0, -INF], [0.0, 5.0, -INF]], requires_grad=True)
    stored, labels = torch.tensor([[4.0, -INF], [2.0, -INF]]), torch.tensor([0, 1])
    error = replay_loss(scores, labels, stored=stored, kd=3.0) - replay_loss(scores, labels)
    assert error.item() == pytest.approx(3.0 * (3.0**2 + 2.0**2) / 2)
    (gradient,) = torch.autograd.grad(error, scores)
    torch.testing.assert_close(gradient, torch.tensor([[-9.0, 0.0, 0.0], [-6.0, 0.0, 0.0]]))


@pytest.mark.parametrize("task_labels", [True, False])
def test_classes_seen_or_of_the_own_task_compete(task_labels: bool) -> None:
    stream, run = TinyStream(4, task_labels=task_labels), trainer()
    assert competitors(run) is None
    run.datamodule = stream
    stream.current = 2
    expected = torch.diag(torch.tensor([1, 1, 1, 0])) if task_labels else torch.tensor([[1, 1, 1, 0]] * 3 + [[0] * 4])
    assert torch.equal(competitors(run), expected.bool())


# -- the layers --------------------------------------------------------------------------------------------------------


def test_layers_of_the_resnet_of_the_paper() -> None:
    with torch.device("meta"):
        net = backbones.resnet18_cifar(num_classes=10)

    def size(*names: str) -> int:
        return sum(p.numel() for layer in select_layers(net, names).values() for p in layer.parameters(recurse=False))

    assert len(select_layers(net, ["norm"])) == 20
    assert (size("norm"), size("head"), size("norm", "head"), size(".")) == (9600, 5130, 14730, 11173962)
    (first,) = select_layers(net, ["first_conv"]).values()
    assert first.in_channels == 3


def test_head_and_norm_of_other_networks() -> None:
    net = Growing()
    net.heads.extend([nn.Linear(12, 2), nn.Linear(12, 2)])
    assert list(select_layers(net, ["norm", "head"])) == ["heads.1"]
    assert list(select_layers(net, ["heads", "^$"])) == ["", "heads.0", "heads.1"]
    assert list(select_layers(nn.Sequential(nn.LayerNorm(2), nn.GroupNorm(1, 2), nn.ReLU()), ["norm"])) == ["0", "1"]


@pytest.mark.parametrize("names", [["first_conv"], ["norm"], ["net.1", "layer9"], [], ["net.1", "("]])
def test_what_selects_nothing_is_named(names: list[str]) -> None:
    with pytest.raises(
        ValueError, match=r"`modules`.*" + (r"'\('" if "(" in names else "must select at least one layer")
    ):
        select_layers(Growing(), names)


# -- the loop ----------------------------------------------------------------------------------------------------------


def filled(**columns: Tensor) -> Replay:
    """A replay callback that has these samples in its memory, under the names without their first letter."""
    replay = Replay(len(next(iter(columns.values()))), seed=0)
    replay.memory.insert({name[1:]: rows for name, rows in columns.items()})
    return replay


def problem() -> tuple[Any, Tensor, Tensor]:
    """A network, and samples of three classes that no line parts."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 3)).double()
    return net, torch.randn(30, 3).double(), torch.randint(3, (30,))


def test_the_optimum_of_softmax_regression_is_reached() -> None:
    net, x, y = problem()
    frozen = {name: p.clone() for name, p in net[0].named_parameters()}
    FineTuning(steps=1500, batch_size=30, lr=8.0).run(
        trainer(precision="64-true"), net, filled(_0=x, _1=y), ["head"], 0
    )
    gradients = torch.autograd.grad(F.cross_entropy(net(x), y), list(net[2].parameters()))
    assert torch.cat([g.flatten() for g in gradients]).norm() < 1e-6
    assert same(dict(net[0].named_parameters()), frozen)


def test_stored_scores_are_approached() -> None:
    net, x, y = problem()
    z = net(x).detach() + 1.0
    replay = filled(_0=x, _1=y, _logits=z)
    before = F.mse_loss(net(x), z).item()
    FineTuning(steps=200, batch_size=30, lr=0.1, kd=10.0).run(trainer(precision="64-true"), net, replay, ["2"], 0)
    assert F.mse_loss(net(x), z).item() < 0.1 * before


def test_dropout_and_order_are_a_function_of_the_seed() -> None:
    def tuned(seed: int, drawn: int) -> Any:
        net, x, y = problem()
        net.insert(2, nn.Dropout())
        torch.manual_seed(drawn)
        state = torch.get_rng_state()
        FineTuning(steps=3, batch_size=4, lr=0.1).run(
            trainer(precision="64-true"), net, filled(_0=x, _1=y), ["0"], seed
        )
        assert torch.equal(torch.get_rng_state(), state)
        return net.state_dict()

    assert same(tuned(seed=1, drawn=5), tuned(seed=1, drawn=6))
    assert not same(tuned(seed=1, drawn=5), tuned(seed=2, drawn=5))


@pytest.mark.parametrize(("length", "batch_size"), [(12, 2), (7, 2), (5, 100), (1, 3)])
def test_processes_share_the_batches_of_one(length: int, batch_size: int) -> None:
    memory = Memory(length)
    memory.insert(torch.arange(length))
    count = min(batch_size, max(length // 2, 1))
    whole = islice(batches_of(memory, 2 * count, seed=3), 9)
    ranks = [list(islice(batches_of(memory, batch_size, 3, rank, 2), 9)) for rank in (0, 1)]
    assert all(len(batch) == count for rank in ranks for batch in rank)
    if length > 1:
        joined = [torch.stack(parts, 1).flatten() for parts in zip(*ranks, strict=True)]
        assert same(joined, list(whole))


def test_batches_are_passes_over_the_memory() -> None:
    memory = Memory(10)
    memory.insert(torch.arange(10))
    drawn = torch.cat(list(islice(batches_of(memory, 4, seed=0), 5)))
    passes = drawn.view(2, 10)
    assert all(sorted(row.tolist()) == list(range(10)) for row in passes)
    assert not torch.equal(*passes)


class Scaler:
    """Reads as a GradScaler does."""

    def get_scale(self) -> float:
        return 1024.0


def test_gradients_are_averaged_and_unscaled() -> None:
    plugin = SimpleNamespace(scaler=Scaler())
    other = torch.tensor([10.0, 20.0, 30.0]) * 1024
    strategy = SimpleNamespace(reduce=lambda value, reduce_op: value + other)
    run = SimpleNamespace(precision_plugin=plugin, world_size=2, strategy=strategy)
    a, b = torch.ones(2, requires_grad=True), torch.ones((), requires_grad=True)
    found = mean_gradients(run, (4 * a).sum(), [a, b])
    torch.testing.assert_close(found, [torch.tensor([7.0, 12.0]), torch.tensor(15.0)])
    assert mean_gradients(run, (a * math.inf).sum(), [a, b]) is None


# -- the measure -------------------------------------------------------------------------------------------------------


def test_change_of_one_layer_alone() -> None:
    with torch.random.fork_rng():
        net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 2)).double()
    before = measured_tensors(trainer(), net)
    for p in net[2].parameters():
        p.data -= 0.25
    net[1].running_var += 3.0
    change = parameter_change(before, measured_tensors(trainer(), net))
    assert change == {
        "0": 0.0,
        "1": 0.0,
        "2": pytest.approx(0.25, abs=1e-15),
        "1.running_mean": 0.0,
        "1.running_var": 3.0,
    }


def test_what_is_new_does_not_count() -> None:
    after = {"head.weight": torch.tensor([[1.0], [9.0]]), "other.weight": torch.ones(1)}
    assert parameter_change({"head.weight": torch.zeros(1, 1), "gone.weight": torch.ones(1)}, after) == {"head": 1.0}


def test_sensitivity_ranks_by_the_ratio() -> None:
    found = task_sensitivity({"a": 1.0, "still": 0.0, "new": 2.0, "b": 1.0}, {"a": 2.0, "still": 0.0, "b": 0.1})
    assert list(found.items()) == [("new", INF), ("b", 10.0), ("a", 0.5), ("still", 0.0)]
