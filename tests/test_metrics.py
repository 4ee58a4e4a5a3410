"""The figures and invariants are those of the example matrix worked out by hand, or of the authors' own code."""

import copy
import math
import pickle
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_cl import metrics
from lightning_cl.metrics import AccuracyMatrix, AnytimeMetrics

R = torch.tensor([[0.90, 0.10, 0.26], [0.95, 0.72, 0.30], [0.50, 0.75, 0.60]], dtype=torch.float64)
INITIAL = torch.tensor([0.10, 0.05, 0.10], dtype=torch.float64)
COUNTS = torch.tensor([10, 20, 10])


def forward_transfer_from_zero(convention: str, R: Tensor) -> float:
    return metrics.forward_transfer(R, torch.zeros(len(R)), convention)


def clear_metric(name: str, R: Tensor) -> float:
    return metrics.clear_metrics(R)[name]


FUNCTIONS: dict[str, Callable[[Tensor], float]] = {
    "average_accuracy": metrics.average_accuracy,
    "average_incremental_accuracy": metrics.average_incremental_accuracy,
    "learning_accuracy": metrics.learning_accuracy,
    "remembering": metrics.remembering,
    "positive_backward_transfer": metrics.positive_backward_transfer,
    **{f"forgetting_{name}": partial(metrics.forgetting, convention=name) for name in metrics._FORGETTING},
    **{f"backward_{name}": partial(metrics.backward_transfer, convention=name) for name in metrics._BACKWARD},
    **{f"forward_{name}": partial(forward_transfer_from_zero, name) for name in metrics._FORWARD},
    **{name: partial(clear_metric, name) for name in metrics.clear_metrics(R)},
}


def random_matrix(size: int, seed: int = 0) -> Tensor:
    return torch.rand(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_averages_of_the_example() -> None:
    assert metrics.average_accuracy(R) == pytest.approx(1.85 / 3)
    assert metrics.average_accuracy(R[:2, :2]) == pytest.approx(0.835)
    assert metrics.average_incremental_accuracy(R) == pytest.approx((0.9 + 0.835 + 1.85 / 3) / 3)
    assert metrics.average_incremental_accuracy(R) == pytest.approx(0.783889, abs=5e-7)
    assert metrics.learning_accuracy(R) == pytest.approx(0.74)
    assert metrics.average_accuracy(R, COUNTS) == pytest.approx(0.65)


def test_sample_weighted_average_is_the_accuracy_on_the_union() -> None:
    correct = torch.round(R * COUNTS)
    rates = correct / COUNTS
    unions = [(correct[i, : i + 1].sum() / COUNTS[: i + 1].sum()).item() for i in range(3)]
    assert metrics.average_incremental_accuracy(rates, COUNTS) == pytest.approx(sum(unions) / 3)
    assert metrics.average_accuracy(R, torch.full((3,), 7)) == pytest.approx(metrics.average_accuracy(R))


@pytest.mark.parametrize(
    ("convention", "expected"),
    [
        ("chaudhry", 0.21),
        ("agem", 0.21),
        ("continuum", 0.21),
        ("avalanche", 0.185),
        ("mammoth", 0.225),
        ("pycil", 0.225),
        ("raptormai", 0.15),
    ],
)
def test_forgetting_of_the_example(convention: str, expected: float) -> None:
    assert metrics.forgetting(R, convention) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (metrics.backward_transfer(R), -0.185),
        (metrics.backward_transfer(R, "gem_code"), -0.185 * 2 / 3),
        (metrics.backward_transfer(R, "all_pairs"), -0.32 / 3),
        (metrics.remembering(R), 1 - 0.32 / 3),
        (metrics.positive_backward_transfer(R), 0.0),
        (metrics.forward_transfer(R, INITIAL), 0.125),
        (metrics.forward_transfer(R, INITIAL, "gem_code"), 0.25 / 3),
        (metrics.forward_transfer(R, convention="continuum"), 0.20),
        (metrics.forward_transfer(R, convention="clear"), 0.22),
        (metrics.intransigence(R, torch.tensor([0.9, 0.8, 0.7], dtype=torch.float64)), 0.1),
    ],
)
def test_transfer_of_the_example(value: float, expected: float) -> None:
    assert value == pytest.approx(expected)


def test_clear_metrics_of_the_example() -> None:
    expected = {"in_domain": 0.74, "next_domain": 0.20, "accuracy": 4.42 / 6, "backward": 2.2 / 3, "forward": 0.22}
    assert metrics.clear_metrics(R) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(5))
def test_forgetting_is_that_of_the_released_codes(seed: int) -> None:
    matrix = random_matrix(6, seed)
    data, tril = matrix.numpy(), np.tril(matrix.numpy())
    agem = np.mean([np.max(data[:5, i]) - data[5, i] for i in range(5)])
    assert metrics.forgetting(matrix, "agem") == pytest.approx(agem)
    assert metrics.forgetting(matrix, "raptormai") == pytest.approx(np.mean(data.max(0) - data[-1]))
    lower = matrix.masked_fill(torch.ones(6, 6).triu(1).bool(), math.nan)  # mammoth and PyCIL pad with zeros
    assert metrics.forgetting(lower, "mammoth") == pytest.approx(np.mean((tril.max(0) - tril[-1])[:5]))
    table = np.around(100 * tril, 2).T
    assert 100 * metrics.forgetting(lower, "pycil") == pytest.approx(np.mean((table.max(1) - table[:, 5])[:5]))
    continuum = np.mean([max(data[i, j] for i in range(j, 5)) - data[5, j] for j in range(5)])
    assert metrics.forgetting(matrix, "continuum") == pytest.approx(continuum)


@pytest.mark.parametrize("seed", range(5))
def test_backward_transfer_is_the_mean_over_pairs(seed: int) -> None:
    matrix = random_matrix(5, seed)
    pairs = [(matrix[i, j] - matrix[j, j]).item() for i in range(5) for j in range(i)]
    assert metrics.backward_transfer(matrix, "all_pairs") == pytest.approx(sum(pairs) / 10)
    assert metrics.positive_backward_transfer(matrix) == pytest.approx(max(sum(pairs) / 10, 0))
    assert metrics.remembering(matrix) == pytest.approx(1 - abs(min(sum(pairs) / 10, 0)))


@pytest.mark.parametrize("seed", range(3))
def test_forward_transfer_is_that_of_the_released_code(seed: int) -> None:
    matrix, initial = random_matrix(4, seed), random_matrix(4, seed + 10)[0]
    gains = np.zeros(4)
    for t in range(1, 4):
        gains[t] = matrix[t - 1, t] - initial[t]
    assert metrics.forward_transfer(matrix, initial, "gem_code") == pytest.approx(gains.mean())
    assert metrics.forward_transfer(matrix, initial) == pytest.approx(gains.sum() / 3)


def test_constant_columns_forget_nothing() -> None:
    matrix = random_matrix(5)
    constant = torch.where(torch.ones(5, 5).tril().bool(), matrix.diagonal(), math.nan)
    assert {metrics.forgetting(constant, c) for c in metrics._FORGETTING} == {0.0}
    assert {metrics.backward_transfer(constant, c) for c in metrics._BACKWARD} == {0.0}
    assert metrics.remembering(constant) == 1.0


@pytest.mark.parametrize("seed", range(20))
def test_order_of_the_conventions(seed: int) -> None:
    matrix = random_matrix(4, seed)
    assert metrics.forgetting(matrix, "mammoth") >= max(0.0, metrics.forgetting(matrix))
    assert metrics.forgetting(matrix, "avalanche") <= metrics.forgetting(matrix)
    assert metrics.forgetting(matrix, "avalanche") == pytest.approx(-metrics.backward_transfer(matrix))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_unfinished_run_equals_its_finished_part(name: str) -> None:
    unfinished = random_matrix(5)
    finished = unfinished[:3, :3].clone()
    unfinished[3:] = math.nan
    assert FUNCTIONS[name](unfinished) == FUNCTIONS[name](finished)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("size", [0, 1])
def test_undefined_is_nan(name: str, size: int) -> None:
    value = FUNCTIONS[name](torch.full((size or 2, size or 2), 0.5 if size else math.nan))
    defined = {"average_accuracy": 0.5, "average_incremental_accuracy": 0.5, "learning_accuracy": 0.5}
    defined |= {"forgetting_raptormai": 0.0, "backward_gem_code": 0.0, "forward_gem_code": 0.0}
    defined |= {"in_domain": 0.5, "accuracy": 0.5}
    assert isinstance(value, float)
    assert value == pytest.approx(defined.get(name, math.nan) if size else math.nan, nan_ok=True)


def test_missing_entries_are_not_guessed() -> None:
    gap = R.clone()
    gap[1, 1] = math.nan
    assert math.isnan(metrics.learning_accuracy(gap))
    assert math.isnan(metrics.average_incremental_accuracy(gap))
    assert math.isnan(metrics.backward_transfer(gap))
    assert metrics.forgetting(gap) == pytest.approx((0.45 + 0.10 - 0.75) / 2)  # the evaluated 0.10 is the maximum


@pytest.mark.parametrize("function", [metrics.forgetting, metrics.backward_transfer, metrics.forward_transfer])
def test_unknown_convention_is_refused(function: Callable[..., float]) -> None:
    with pytest.raises(ValueError, match=r"`convention` must be one of .*, got 'mine'\."):
        function(R, convention="mine")


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`R` must be a square matrix, got shape \(2, 3\)\."):
        metrics.forgetting(R[:2])
    with pytest.raises(ValueError, match=r"`counts` must have shape \(3,\) like a row of `R`, got \(2,\)\."):
        metrics.average_accuracy(R, COUNTS[:2])
    with pytest.raises(ValueError, match=r"`reference` must have shape \(3,\)"):
        metrics.intransigence(R, INITIAL[:1])
    with pytest.raises(ValueError, match=r"`initial` must be a tensor of shape \(3,\) with convention 'gem', got None"):
        metrics.forward_transfer(R)


def test_summary_has_what_is_defined() -> None:
    names = ["average_accuracy", "average_incremental_accuracy", "learning_accuracy"]
    assert list(metrics.summary(R[:1, :1])) == names
    full = metrics.summary(R, INITIAL, COUNTS)
    assert full["forgetting_chaudhry"] == pytest.approx(0.21)
    assert full["forward_transfer"] == pytest.approx(0.125)
    assert full["average_accuracy"] == pytest.approx(1.85 / 3)
    assert full["average_accuracy_sample_weighted"] == pytest.approx(0.65)
    assert metrics.summary(torch.full((2, 2), math.nan), INITIAL[:2]) == {}


@pytest.mark.parametrize("above", [0.0, math.nan])
def test_summary_leaves_out_forward_transfer_of_a_head_over_seen_classes(above: float) -> None:
    matrix = R.masked_fill(torch.ones(3, 3).triu(1).bool(), above)
    assert metrics.summary(matrix, INITIAL) == metrics.summary(R)


def test_learning_curve_area_is_the_mean_of_the_curve() -> None:
    curves = random_matrix(4)[:, :3]
    heights = [sum(curves[k, b].item() for k in range(4)) / 4 for b in range(3)]
    assert metrics.learning_curve_area(curves) == pytest.approx(sum(heights) / 3)


def labels(samples: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, (samples,), generator=generator), torch.randint(3, (samples,), generator=generator)


@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_batches_and_order_change_nothing(batch_size: int) -> None:
    predictions, targets = labels(33)
    order = torch.randperm(33, generator=torch.Generator().manual_seed(1))
    metric = AccuracyMatrix(2)
    for start in range(0, 33, batch_size):
        index = order[start : start + batch_size]
        metric.update(1, 0, predictions[index], targets[index])
    expected = sum(p == t for p, t in zip(predictions.tolist(), targets.tolist(), strict=True)) / 33
    assert metric.compute()[1, 0].item() == expected
    assert metric.compute().isnan().sum() == 3


@pytest.mark.parametrize("stops", [[50], [19, 50], [7, 19, 50]])
def test_uneven_shards_give_the_same_bits(stops: list[int]) -> None:
    predictions, targets = labels(50)
    whole, shards = AccuracyMatrix(3), [AccuracyMatrix(3) for _ in stops]
    whole.update(2, 1, predictions, targets)
    for shard, start, stop in zip(shards, [0, *stops], stops, strict=False):
        shard.update(2, 1, predictions[start:stop], targets[start:stop])
    for shard in shards:  # each stands for a process that gathers the states of all
        states = {getattr(shard, name): [getattr(s, name) for s in shards] for name in ("correct", "total")}
        shard.dist_sync_fn = lambda state, group, states=states: states[state]
        shard.distributed_available_fn = lambda: True
        torch.testing.assert_close(shard.compute(), whole.compute(), rtol=0, atol=0, equal_nan=True)
    assert (
        sum(int(shard.total.sum()) for shard in shards) == 50
    )  # gathering left the counts of each process as they were


def test_result_is_square_float64() -> None:
    metric = AccuracyMatrix(1)
    metric.update(0, 0, torch.tensor([1, 1, 0]), torch.tensor([1, 1, 1]))
    assert metric.compute().shape == (1, 1)
    assert metric.compute().dtype == torch.float64
    assert metric.compute().item() == 2 / 3
    assert AccuracyMatrix(1).compute().isnan().tolist() == [[True]]  # and no warning
    assert pickle.loads(pickle.dumps(metric)).compute().item() == copy.deepcopy(metric).compute().item() == 2 / 3


def test_counts_go_on_from_a_checkpoint() -> None:
    first, second = AccuracyMatrix(2), AccuracyMatrix(2)
    first.update(0, 0, *labels(10))
    saved = first.state_dict()
    second.update(0, 0, *labels(20, seed=2))
    second.compute()
    second.load_state_dict(saved)
    assert torch.equal(second.compute()[0, 0], first.compute()[0, 0])
    for metric in (first, second):
        metric.update(0, 0, *labels(7, seed=1))
    assert torch.equal(second.compute()[0, 0], first.compute()[0, 0])
    assert saved["total"][0, 0] == 10
    with pytest.raises(ValueError, match=r"`num_experiences` must be 2 as saved, got 3\."):
        AccuracyMatrix(3).load_state_dict(saved)


def test_counting_goes_on_after_inference_mode() -> None:
    metric = AccuracyMatrix(2)
    with torch.inference_mode():
        metric.reset()
        metric.update(0, 0, *labels(10))
    metric.update(0, 0, *labels(5))
    assert metric.total[0, 0] == 15


def test_wrong_updates_are_refused() -> None:
    metric = AccuracyMatrix(2)
    with pytest.raises(ValueError, match=r"`learned` must be between 0 and 1, got 2\."):
        metric.update(2, 0, *labels(3))
    with pytest.raises(ValueError, match=r"`tested` must be between 0 and 1, got -1\."):
        metric.update(0, -1, *labels(3))
    with pytest.raises(ValueError, match=r"vectors of one length, got shapes \(3, 2\) and \(3,\)"):
        metric.update(0, 0, torch.zeros(3, 2), torch.zeros(3))
    with pytest.raises(ValueError, match=r"`num_experiences` must be 1 or more, got 0\."):
        AccuracyMatrix(0)


def follow(trace: list[float], *windows: int) -> dict[str, float]:
    anytime = AnytimeMetrics(windows)
    for accuracy in trace:
        anytime.update(torch.tensor([accuracy], dtype=torch.float64))
    return anytime.compute()


def test_windowed_forgetting_and_plasticity_of_the_examples() -> None:
    values = follow([0.9, 0.5, 0.7, 0.2], 1, 2, 3, 4)
    assert [values[f"wf_{w}"] for w in (1, 2, 3, 4)] == pytest.approx([0, 0.5, 0.5, 0.7])
    assert [values[f"wp_{w}"] for w in (1, 2, 3, 4)] == pytest.approx([0, 0.2, 0.2, 0.2])
    assert follow([0.5, 0.1, 0.9], 3)["wp_3"] == pytest.approx(0.8)


@pytest.mark.parametrize("window", [1, 2, 5, 40])
def test_windows_match_all_pairs(window: int) -> None:
    trace = random_matrix(6).flatten().tolist()
    pairs = [(trace[i], trace[j]) for j in range(36) for i in range(max(0, j - window + 1), j)]
    values = follow(trace, window)
    assert values[f"wf_{window}"] == pytest.approx(max([a - b for a, b in pairs], default=0.0))
    assert values[f"wp_{window}"] == pytest.approx(max([b - a for a, b in pairs], default=0.0))


def test_windowed_forgetting_never_falls_in_time_or_with_the_window() -> None:
    trace = random_matrix(5).flatten().tolist()
    table = torch.tensor([list(follow(trace[:t], 1, 2, 3, 5, 8).values())[2::2] for t in range(1, 26)])
    assert (table.diff(dim=0) >= 0).all()
    assert (table.diff(dim=1) >= 0).all()


def test_minimum_starts_after_the_end_of_an_experience() -> None:
    anytime = AnytimeMetrics([2])
    for accuracies in ([0.1], [0.8], [0.6, 0.3], [0.7, 0.9], [0.5, 0.4, 0.2]):
        anytime.update(torch.tensor(accuracies, dtype=torch.float64))
    values = anytime.compute()
    assert values["min_acc"] == pytest.approx((0.5 + 0.4) / 2)
    assert values["wc_acc"] == pytest.approx(0.2 / 3 + (1 - 1 / 3) * 0.45)
    assert values["aaa"] == pytest.approx((0.1 + 0.8 + 0.45 + 0.8 + 1.1 / 3) / 5)


def test_worst_case_is_a_lower_bound_of_the_accuracy() -> None:
    anytime, previous = AnytimeMetrics([2]), math.inf
    for accuracies in random_matrix(30)[:, :4]:
        anytime.update(accuracies)
        values = anytime.compute()
        assert values["wc_acc"] <= accuracies.mean() + 1e-12
        assert values["min_acc"] <= previous
        previous = values["min_acc"]
    anytime.update(torch.tensor([0.0, 0.0, 0.0, 0.6], dtype=torch.float64))  # every earlier one at its minimum
    assert anytime.compute()["wc_acc"] == pytest.approx(0.15)


def test_average_anytime_accuracy() -> None:
    assert follow([0.3] * 7)["aaa"] == pytest.approx(0.3)
    once = AnytimeMetrics()
    for i in range(3):
        once.update(R[i, : i + 1])
    assert once.compute()["aaa"] == pytest.approx(metrics.average_incremental_accuracy(R))
    assert AnytimeMetrics().compute() == {}


def test_anytime_metrics_go_on_exactly() -> None:
    whole, cut = AnytimeMetrics([3]), AnytimeMetrics([3])
    for t, accuracies in enumerate(random_matrix(12)):
        whole.update(accuracies[: 1 + t // 4])
        cut.update(accuracies[: 1 + t // 4])
        saved, cut = cut.state_dict(), AnytimeMetrics([3])
        cut.load_state_dict(saved)
    assert cut.compute() == whole.compute()
    assert cut.state_dict() == whole.state_dict()
    with pytest.raises(ValueError, match=r"`windows` must give \['wf_3', 'wp_3'\] as saved, got \['wf_2', 'wp_2'\]"):
        AnytimeMetrics([2]).load_state_dict(saved)


@pytest.mark.parametrize("accuracies", [[], [0.5], [[0.5, 0.5]], [0.5, math.nan]])
def test_wrong_evaluations_are_refused(accuracies: list[float]) -> None:
    anytime = AnytimeMetrics()
    anytime.update(torch.tensor([0.5, 0.5]))
    with pytest.raises(ValueError, match="`accuracies` must be a vector of 2 or more numbers, got"):
        anytime.update(torch.tensor(accuracies))
    with pytest.raises(ValueError, match=r"`windows` must be 1 or more each, got \[0\]"):
        AnytimeMetrics([0])
