import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_cl import RunLogger, fit_stream
from lightning_cl.callbacks import Replay
from lightning_cl.exemplars import closest_to_mean, herding
from lightning_cl.methods import Classifier
from lightning_cl.methods.icarl import ICaRL, icarl_loss
from lightning_cl.samples import TensorData
from lightning_cl.stream import StreamDataModule
from lightning_cl.utilities import get_rng_state
from tests.helpers.contracts import (
    LIGHTNINGS_OWN_WARNINGS,
    SMALL,
    PlainData,
    TinyStream,
    jitter,
    learn,
    learn_plain,
    same,
    samples,
    scaled,
    seeded,
    trainer,
)

pytestmark = [*LIGHTNINGS_OWN_WARNINGS, pytest.mark.filterwarnings("ignore:You defined a `validation_step`")]


class Recorded(ICaRL):
    """Remembers what each step was trained on, and each experience's end."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{**SMALL, "capacity": 10, "flips": False, **kwargs})
        self.steps: list[dict[str, Any]] = []
        self.ends: list[dict[str, Any]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        with torch.no_grad():
            scores = self(batch[0])
        epoch, experience = self.trainer.current_epoch, len(self.ends)
        self.steps.append({"x": batch[0], "y": batch[1], "scores": scores, "loss": loss.detach()})
        self.steps[-1].update(epoch=epoch, experience=experience, teacher=self.teacher is not None)
        return loss

    def on_train_end(self) -> None:
        super().on_train_end()
        self.ends.append(copy.deepcopy({"net": self.backbone, "memory": self.memory.state_dict(), "means": self.means}))


def learned(stream: Any = None, **kwargs: Any) -> Recorded:
    """A recorded module after two experiences, in float64."""
    stream = TinyStream() if stream is None else stream
    module = learn([], seeded(Recorded, **kwargs), stream, precision="64-true").module
    assert isinstance(module, Recorded)
    return module


def hidden(net: Any, x: Tensor) -> Tensor:
    """The features of the small MLP, from its weights."""
    first: Any = net.layers[0]
    return F.linear(x.flatten(1), first.weight, first.bias).relu().detach()


def exemplars(end: dict[str, Any], label: int) -> Tensor:
    """The images of a class in memory, the best first."""
    memory = ICaRL(**SMALL, capacity=end["memory"]["capacity"]).memory
    memory.load_state_dict(end["memory"])
    assert memory.groups is not None
    assert memory.scores is not None
    slots = (memory.groups == label).nonzero().flatten()
    best_first = slots[memory.scores[slots].argsort(descending=True)]
    assert memory.items["1"][slots].eq(label).all()
    images: Tensor = memory.items["0"][best_first]
    return images


# -- the loss ----------------------------------------------------------------------------------------------------------


def test_gradient_of_the_loss_is_that_of_its_formula() -> None:
    torch.manual_seed(0)
    scores, old = torch.randn(6, 5, dtype=torch.float64, requires_grad=True), torch.randn(6, 5, dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 3, 4, 2])
    (grad,) = torch.autograd.grad(icarl_loss(scores, y, old, [3, 0]), scores)
    target = torch.eye(5, dtype=torch.float64)[y]
    target[:, [0, 3]] = old[:, [0, 3]].sigmoid()
    torch.testing.assert_close(grad, (scores.sigmoid() - target).detach() / 30)
    unchanged = icarl_loss(old.requires_grad_(), y, old.detach(), range(5))
    assert torch.autograd.grad(unchanged, old)[0].abs().max() < 1e-15


def test_columns_of_minus_infinity_have_no_part() -> None:
    torch.manual_seed(0)
    scores, old, y = torch.randn(4, 6), torch.randn(4, 6), torch.tensor([0, 1, 2, 2])
    few = icarl_loss(scores[:, :3], y, old[:, :3], [0, 1])
    scores[:, 3:] = old[:, 2:] = -torch.inf
    torch.testing.assert_close(icarl_loss(scores, y, old, [0, 1]), few)
    assert icarl_loss(scores.bfloat16(), y).dtype == torch.float32


@pytest.mark.parametrize(("loss_classes", "columns"), [("all", [4, 4]), ("seen", [2, 4])])
def test_each_step_has_the_targets_of_the_last_network(loss_classes: Any, columns: list[int]) -> None:
    module = learned(loss_classes=loss_classes)
    for step in module.steps:
        x, y, scores = step["x"], step["y"], step["scores"]
        target = torch.eye(4, dtype=torch.float64)[y]
        if step["experience"] == 1:  # exemplars and new images alike
            target[:, :2] = module.ends[0]["net"](x)[:, :2].sigmoid()
        assert step["teacher"] == (step["experience"] == 1)
        of = slice(columns[step["experience"]])
        torch.testing.assert_close(step["loss"], F.binary_cross_entropy(scores[:, of].sigmoid(), target[:, of]))


def test_class_that_comes_again_is_learned_again() -> None:
    """Both experiences have all classes, so that no column is old."""

    class Again(StreamDataModule):
        def dataset(self, experience: int, train: bool) -> Any:
            half = slice(24 * experience, 24 * (experience + 1))
            return TensorData(*(column[half] for column in samples(train)))

    module = learned(Again([range(4)] * 2, 4, (1, 8, 8), batch_size=8, seed=0))
    assert module.steps[-1]["teacher"]
    for step in module.steps:
        loss = F.binary_cross_entropy_with_logits(step["scores"], torch.eye(4, dtype=torch.float64)[step["y"]])
        torch.testing.assert_close(step["loss"], loss)
    assert module.learned == [0, 1, 2, 3]


# -- exemplars ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("selection", "choose"), [("herding", herding), ("closest_to_mean", closest_to_mean)])
def test_exemplars_are_chosen_on_plain_images_and_lists_are_cut(selection: Any, choose: Any) -> None:
    module = learned(TinyStream(augment=jitter), capacity=11, selection=selection)
    x, y = samples(train=True)
    quotas = [{0: 6, 1: 5}, {0: 3, 1: 3, 2: 3, 3: 2}]
    for experience, end in enumerate(module.ends):
        for label in (2 * experience, 2 * experience + 1):
            images = x[y == label]
            order = choose(hidden(end["net"], scaled(images)), quotas[experience][label])
            assert torch.equal(exemplars(end, label), images[order])
    for label in (0, 1):
        assert torch.equal(exemplars(module.ends[1], label), exemplars(module.ends[0], label)[:3])
    assert module.memory.items["0"].dtype == torch.uint8


@pytest.mark.parametrize("capacity", [4, 10])
def test_each_exemplar_is_seen_once_per_epoch(capacity: int) -> None:
    module, count = learned(capacity=capacity), capacity
    stored = sorted(scaled(row).sum().item() for row in module.ends[0]["memory"]["columns"]["0"])
    assert len(stored) == count
    orders = []
    for epoch in (2, 3):
        steps = [step for step in module.steps if step["epoch"] == epoch]
        replayed = [step["x"][step["y"] < 2] for step in steps]
        sums = [row.sum().item() for x in replayed for row in x]
        assert sorted(sums) == pytest.approx(stored)
        assert {len(x) for x in replayed} <= {count // 3, count // 3 + 1}
        orders.append(sums)
    assert orders[0] != orders[1]
    assert all((step["y"] < 2).all() for step in module.steps if step["experience"] == 0)


def test_processes_share_the_exemplars() -> None:
    module = seeded(ICaRL, **SMALL, capacity=11, seed=3)
    module.memory.insert({"0": torch.arange(11)}, groups=torch.zeros(11, dtype=torch.int64))

    def slots(rank: int, world_size: int) -> list[list[int]]:
        fake = {"num_training_batches": 3, "global_rank": rank, "world_size": world_size, "current_epoch": 5}
        module._trainer = SimpleNamespace(**fake)
        return [module._slots_of_batch(i).tolist() for i in range(3)]

    alone, (first, second) = slots(0, 1), (slots(rank, 2) for rank in (0, 1))
    for whole, *parts in zip(alone, first, second, strict=True):
        assert sorted(whole) == sorted(parts[0] + parts[1])
    assert sorted(slot for part in alone for slot in part) == list(range(11))


def test_exemplars_of_ordinary_loaders_have_their_labels() -> None:
    """The loader shuffles by a generator of its own: a second pass is in another order."""

    class Shuffled(PlainData):
        def train_dataloader(self) -> Any:
            data = super().train_dataloader().dataset
            return DataLoader(data, batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(1))

    module, run, data = Recorded(), trainer(max_epochs=1), Shuffled()
    x, y = samples(train=True)
    for task in range(2):
        data.task, run.fit_loop.max_epochs = task, task + 1
        run.fit(module, datamodule=data)
        mine = x[y // 2 == task] / 255
        for label in (2 * task, 2 * task + 1):
            order = herding(hidden(module.ends[task]["net"], x[y == label] / 255))
            found = exemplars(module.ends[task], label)
            assert all(any(torch.equal(row, image) for image in mine) for row in found)
            torch.testing.assert_close(found, (x[y == label] / 255)[order][: len(found)])


def test_exemplars_go_with_other_callbacks() -> None:
    module = learn([Replay(6)], seeded(Recorded), TinyStream()).module
    assert isinstance(module, Recorded)
    assert max(len(step["x"]) for step in module.steps if step["experience"] == 1) in (8 + 6 + 3, 8 + 6 + 4)
    assert len(module.memory) == 10


# -- prediction --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flips", [False, True])
def test_means_are_those_of_the_exemplars_with_the_new_network(flips: bool) -> None:
    module = learned(TinyStream(augment=jitter), flips=flips)
    for label in range(4):
        x = scaled(exemplars(module.ends[1], label))
        views = [F.normalize(hidden(module.backbone, view)).mean(0) for view in ((x, x.flip(-1)) if flips else (x,))]
        mean = torch.stack(views).mean(0)
        torch.testing.assert_close(module.means[label], mean / mean.norm())


def test_nearest_mean_is_predicted() -> None:
    module = learned()
    x, y = samples(train=False, per_class=4)
    distances = torch.cdist(F.normalize(hidden(module.backbone, scaled(x))), module.means)
    torch.testing.assert_close(module.classify(scaled(x)), -distances.square(), rtol=1e-6, atol=1e-9)
    assert torch.equal(module(scaled(x)), module.backbone(scaled(x)))
    predicted: Any = trainer(precision="64-true").predict(module, datamodule=TinyStream())
    assert torch.equal(torch.cat(predicted).sort().values, distances.argmin(1).sort().values)
    (measured,) = trainer().test(module.float(), datamodule=TinyStream(), verbose=False)
    assert measured["test_acc"] == pytest.approx((distances.argmin(1) == y).double().mean().item())


def test_head_is_predicted_if_asked_for() -> None:
    module = learned(classifier="head")
    x = scaled(samples(train=False)[0])
    assert torch.equal(module.classify(x), module(x))


@pytest.mark.parametrize("head", ["fixed", "growing"])
def test_weights_alone_predict(head: Any) -> None:
    module, fresh = learned(head=head), seeded(Recorded, head=head).double()
    fresh.load_state_dict(module.state_dict())
    x = scaled(samples(train=False)[0])
    assert torch.equal(fresh.classify(x), module.classify(x))


def test_validation_within_an_experience_is_of_the_head() -> None:
    seen = []

    class Validated(Recorded):
        def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
            values = super().validation_step(batch, batch_idx)
            seen.append(torch.equal(values["logits"], self(batch[0])))
            return values

    result = fit_stream(trainer(num_sanity_val_steps=0), seeded(Validated), TinyStream(val_fraction=0.25))
    assert seen == [True] * 4
    assert result.accuracy_matrix.shape == (2, 2)


# -- what it works on --------------------------------------------------------------------------------------------------


def test_backbones_of_others_name_their_features() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 7), nn.ReLU(), nn.Flatten(), nn.Linear(8, 4))
    module = learn([], ICaRL(4, net, capacity=8, features="1"), TinyStream()).module
    x = samples(train=False)[0] / 255
    features, scores = module.features_and_scores(x)  # type: ignore[operator]
    assert torch.equal(features, net[:2](x).flatten(1))
    assert torch.equal(scores, net(x))
    assert module.means.shape == (4, 8)


@pytest.mark.parametrize("name", ["resnet18_slim", "vit_tiny_patch16_224"])
def test_features_of_timm_models_come_before_the_last_layer(name: str) -> None:
    module = ICaRL(4, name, (3, 16, 16), capacity=8).eval()
    net: Any = module.backbone
    x = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        features, scores = module.features_and_scores(x)
        torch.testing.assert_close(scores, module(x))
        torch.testing.assert_close(scores, net.get_classifier()(features))


def test_nothing_but_the_network_is_trained_or_in_the_weights() -> None:
    names = set[str]()

    class Watched(Recorded):
        def on_train_batch_end(self, *args: Any) -> None:
            names.update(self.state_dict(), (name for name, _ in self.named_parameters()))

    module = learn([], seeded(Watched), TinyStream()).module
    assert names == {*dict(module.named_parameters()), "means"}
    assert module.teacher is None


@pytest.mark.filterwarnings("ignore:Found .* in eval mode")
def test_batch_norm_and_modes_are_left_alone() -> None:
    module = ICaRL(4, "resnet18_slim", (1, 8, 8), capacity=8)
    net: Any = module.backbone
    net.layer1.eval()
    before = [child.training for child in module.modules()]
    fit_stream(trainer(max_epochs=1), module, TinyStream())
    assert [child.training for child in module.modules()] == before
    assert net.bn1.num_batches_tracked == 6, "another forward than that of a training step counts"


def test_no_stream_is_needed() -> None:
    module = learn_plain([], seeded(Recorded)).module
    assert isinstance(module, Recorded)
    assert module.learned == [0, 1, 2, 3]
    assert [step["teacher"] for step in module.steps] == [False] * 6 + [True] * 6
    assert module.memory.items["0"].dtype == torch.float32
    state = get_rng_state()
    learn_plain([], seeded(Classifier, **SMALL))
    assert same(get_rng_state(), state), "the passes at the end draw from the global generator"


@pytest.mark.parametrize("checkpoint", ["experience_0.ckpt", "*step=8.ckpt", "*step=12.ckpt"])
def test_resumed_equals_uninterrupted(checkpoint: str, tmp_path: Path) -> None:
    def run(folder: Path, ckpt_path: Path | None) -> Any:
        options = {"logger": RunLogger(folder), "enable_checkpointing": True, "log_every_n_steps": 1}
        saver = ModelCheckpoint(every_n_train_steps=2, save_top_k=-1)
        return learn([saver], seeded(Recorded), TinyStream(augment=jitter), ckpt_path, **options).module

    whole = run(tmp_path / "whole", None)
    again = run(tmp_path / "again", next((tmp_path / "whole").rglob(checkpoint)))
    assert same(dict(again.state_dict()), dict(whole.state_dict()))
    assert same(again.memory.state_dict(), whole.memory.state_dict())
    assert again.learned == whole.learned


# -- errors ------------------------------------------------------------------------------------------------------------


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        while True:
            yield torch.rand(1, 8, 8), 0


def test_what_cannot_work_is_said() -> None:
    with pytest.raises(ValueError, match=r"^`capacity` must be 4 \(`num_classes`\) or more, got 3\.$"):
        ICaRL(**SMALL, capacity=3)
    with pytest.raises(ValueError, match=r"^`loss_classes` must be 'all' or 'seen', got 'current'\.$"):
        ICaRL(**SMALL, loss_classes="current")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^`features` must name the place where Sequential computes them"):
        ICaRL(4, nn.Sequential(nn.Linear(2, 4)), capacity=8)
    with pytest.raises(ValueError, match=r"^`features` must name a submodule of the backbone, got 'fc2:input'\.$"):
        ICaRL(**SMALL, capacity=8, features="fc2:input")
    with pytest.raises(ValueError, match=r"^`loss_classes='seen'` needs a stream"):
        trainer(max_epochs=1).fit(ICaRL(**SMALL, loss_classes="seen"), datamodule=PlainData())
    with pytest.raises(ValueError, match="a loader that has a length"):
        trainer(max_epochs=1).fit(ICaRL(**SMALL), DataLoader(Endless(), batch_size=4))
    pairs: Any = [(torch.rand(1, 8, 8), torch.tensor(0))]
    as_tuple: Any = DataLoader(pairs, collate_fn=lambda rows: tuple(value[None] for value in rows[0]))
    with pytest.raises(TypeError, match="ICaRL changes the batch in place"):
        trainer(max_epochs=1).fit(ICaRL(**SMALL), as_tuple)


def test_sharded_strategies_are_refused() -> None:
    module: Any = ICaRL(**SMALL)
    module._trainer = SimpleNamespace(
        strategy=FSDPStrategy.__new__(FSDPStrategy), state=SimpleNamespace(fn="fit", status="running")
    )
    with pytest.raises(ValueError, match="set `strategy` to 'ddp'"):
        module.setup("fit")


def test_checkpoint_of_weights_alone_keeps_the_rest() -> None:
    module = learned()
    state = copy.deepcopy(module.memory.state_dict())
    module.on_load_checkpoint({"state_dict": module.state_dict()})
    assert same(module.memory.state_dict(), state)
