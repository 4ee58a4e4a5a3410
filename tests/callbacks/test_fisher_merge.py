"""Fisher merging against the closed forms, and over a stream against merging all models at once."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from torch import Tensor

from lightning_cl.callbacks import FisherMerge
from lightning_cl.callbacks.regularization.fisher_merge import fisher_merge, norm_of
from lightning_cl.importance import squared_scores
from tests.helpers.contracts import (
    LIGHTNINGS_OWN_WARNINGS,
    Net,
    TinyStream,
    learn,
    resnet,
    same,
    samples,
    scaled,
    seeded,
)

pytestmark = LIGHTNINGS_OWN_WARNINGS
Named = dict[str, Tensor]
OFF: dict[str, Any] = {"normalize": False, "floor": 0.0}


def draw(count: int, seed: int = 0) -> list[Named]:
    g = torch.Generator().manual_seed(seed)
    shapes = {"a": (3, 2), "b": (4,)}
    return [{k: torch.rand(s, generator=g, dtype=torch.float64) for k, s in shapes.items()} for _ in range(count)]


def test_merged_is_the_weighted_mean() -> None:
    models, fishers, weights = draw(3), draw(3, 1), [0.2, 0.5, 0.3]
    merged = fisher_merge(models, fishers, weights, floor=0.0)
    norms = [sum(float((f**2).sum()) for f in fisher.values()) ** 0.5 for fisher in fishers]
    for name in models[0]:
        shares = [w / n * f[name] for w, n, f in zip(weights, norms, fishers, strict=True)]
        expected = sum(s * m[name] for s, m in zip(shares, models, strict=True)) / sum(shares)
        torch.testing.assert_close(merged[name], expected, rtol=1e-12, atol=0)


def test_equal_information_is_the_plain_average() -> None:
    models = draw(4)
    mean = {name: torch.stack([m[name] for m in models]).mean(0) for name in models[0]}
    constant = [{name: torch.full_like(v, 7.0) for name, v in m.items()} for m in models]
    for fishers in (constant, None):
        torch.testing.assert_close(fisher_merge(models, fishers, [0.25] * 4), mean, rtol=1e-12, atol=0)


def test_the_target_wins_where_nobody_knows() -> None:
    models, none = draw(3), [{name: torch.zeros_like(v) for name, v in m.items()} for m in draw(3)]
    assert same(fisher_merge(models, none, [0.1, 0.5, 0.4]), models[0])
    assert same(fisher_merge(models, none, [0.0, 0.5, 0.5]), models[0]), "no entry has a weight"
    all_floored = fisher_merge(models, none, [0.1, 0.5, 0.4], favor_first=False)
    expected = {n: sum(w * m[n] for w, m in zip((0.1, 0.5, 0.4), models, strict=True)) for n in models[0]}
    torch.testing.assert_close(all_floored, expected, rtol=1e-12, atol=0)


def test_one_model_alone_is_itself() -> None:
    models, fishers = draw(3), draw(3, 1)
    assert same(fisher_merge(models, fishers, [1.0, 0.0, 0.0]), models[0])
    assert same(fisher_merge([models[0]] * 3, fishers, [0.2, 0.5, 0.3]), models[0])


def test_scales_of_the_information_do_not_matter_and_values_stay_between() -> None:
    models, fishers = draw(3), draw(3, 1)
    merged = fisher_merge(models, fishers, floor=0.0)
    scaled_up = [{n: k * v for n, v in f.items()} for k, f in zip((2.0, 1e-4, 30.0), fishers, strict=True)]
    torch.testing.assert_close(fisher_merge(models, scaled_up, floor=0.0), merged, rtol=1e-10, atol=0)
    for name, value in merged.items():
        stacked = torch.stack([m[name] for m in models])
        assert (value >= stacked.amin(0) - 1e-15).all()
        assert (value <= stacked.amax(0) + 1e-15).all()


def test_least_squares_with_orthogonal_features_merge_to_the_joint_solution() -> None:
    """The Fisher of a linear-Gaussian model is the Gram matrix of its inputs, here a diagonal one."""
    torch.manual_seed(0)
    x = [torch.linalg.qr(torch.randn(20, 4).double())[0] * torch.rand(4).double() for _ in range(2)]
    y = [torch.randn(20, 1).double() for _ in range(2)]
    models = [{"w": torch.linalg.lstsq(a, b).solution} for a, b in zip(x, y, strict=True)]
    fishers = [{"w": a.square().sum(0)[:, None]} for a in x]
    joint = torch.linalg.lstsq(torch.cat(x), torch.cat(y)).solution
    torch.testing.assert_close(fisher_merge(models, fishers, **OFF)["w"], joint, rtol=1e-10, atol=0)


class Masked(Net):
    """Lets the classes of the current task compete among themselves."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y, task = batch
        return F.cross_entropy(self(x).view(len(x), 2, 2)[torch.arange(len(x)), task], y % 2)


class Trained(Callback):
    """Keeps each experience's weights as they were trained, and their Fisher by a pass of its own."""

    def __init__(self) -> None:
        self.models: list[Named] = []
        self.fishers: list[Named] = []
        self.statistics: list[Tensor] = []

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        x, y = samples(train=True)
        here = torch.isin(y, torch.tensor(trainer.datamodule.classes[trainer.datamodule.current]))
        sums, count = squared_scores(pl_module, [(scaled(x[here]).to(pl_module.dtype), y[here])], "exact")
        self.fishers.append({name: value / count for name, value in sums.items()})
        self.models.append({name: p.detach().clone() for name, p in pl_module.named_parameters()})
        self.statistics += [b.clone() for name, b in pl_module.named_buffers() if name == "net.bn1.running_mean"]


def test_a_stream_is_merged_as_all_models_at_once() -> None:
    trained = Trained()
    merge = FisherMerge(floor=0.0, samples=None)
    run = learn([trained, merge], seeded(drop=0.0), TinyStream(4), precision="64-true")
    expected = fisher_merge(trained.models[::-1], trained.fishers[::-1], floor=0.0)
    torch.testing.assert_close(run.weights, expected, rtol=1e-9, atol=1e-12)
    assert merge._weight == 4


def test_the_past_weighs_by_its_strength_and_the_new_model_has_the_floor() -> None:
    trained = Trained()
    merge = FisherMerge(0.3, normalize=True, floor=1e-3, samples=None)
    run = learn([trained, merge], seeded(drop=0.0), precision="64-true")
    models, fishers = (values[::-1] for values in (trained.models, trained.fishers))
    expected = fisher_merge(models, fishers, [1.0, 0.3], floor=1e-3)
    torch.testing.assert_close(run.weights, expected, rtol=1e-9, atol=1e-12)


def test_running_statistics_are_averaged() -> None:
    trained, module = Trained(), seeded(resnet)
    learn([trained, FisherMerge(0.5, samples=None)], module, TinyStream(4), max_epochs=1)
    weights = torch.tensor([0.125, 0.25, 0.5, 1.0])
    expected = (torch.stack(trained.statistics) * weights[:, None]).sum(0) / weights.sum()
    torch.testing.assert_close(module.net.bn1.running_mean, expected)


def test_rows_of_other_tasks_do_not_move() -> None:
    trained = Trained()
    run = learn([trained, FisherMerge()], seeded(Masked, drop=0.0), TinyStream(task_labels=True))
    torch.testing.assert_close(run.weights["net.4.weight"], trained.models[1]["net.4.weight"], rtol=0, atol=1e-6)
    assert not torch.equal(run.weights["net.1.weight"], trained.models[1]["net.1.weight"])


def test_what_is_tested_is_the_merged_model() -> None:
    class Tested(Callback):
        def on_test_start(self, trainer: Any, pl_module: Any) -> None:
            self.weights = {name: p.detach().clone() for name, p in pl_module.named_parameters()}

    trained, tested = Trained(), Tested()
    run = learn([trained, FisherMerge(), tested], seeded())
    assert same(tested.weights, run.weights)
    assert not same(tested.weights, trained.models[-1])


def test_norm_of_nothing_is_1() -> None:
    assert norm_of({"w": torch.zeros(3)}) == 1.0
    assert norm_of({"w": torch.tensor([3.0]), "b": torch.tensor([4.0])}) == 5.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fisher_merge([]), "1 or more, got 0 models"),
        (lambda: fisher_merge(draw(2), draw(1)), "must be as many as `models`"),
        (lambda: fisher_merge(draw(2), None, [1.0, -1.0]), r"`weights` must be 0 or more, got \[1.0, -1.0\]"),
        (lambda: FisherMerge(floor=-1e-9), "`floor` must be 0 or more, got -1e-09"),
    ],
)
def test_errors(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
