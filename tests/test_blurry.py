import json
from itertools import product
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Generator, Tensor

from lightning_cl.blurry import BlurrySplit, density, i_blurry, read_i_blurry, si_blurry

Form = Literal["fixed", "stochastic"]
FORMS: tuple[Form, ...] = ("fixed", "stochastic")


def some_labels(num_classes: int, count: int = 600, seed: int = 0) -> Tensor:
    return torch.randint(num_classes, (count,), generator=Generator().manual_seed(seed))


def occurrences(labels: Tensor, split: BlurrySplit, num_classes: int) -> Tensor:
    """Number of experiences in which each class occurs."""
    return torch.stack([labels[index].bincount(minlength=num_classes) > 0 for index in split.indices]).sum(0)


def slow_si_blurry(labels: list[int], C: int, T: int, n: int, m: int, form: Form, seed: int) -> BlurrySplit:
    """The definition, sample by sample, on lists."""
    generator = Generator().manual_seed(seed)

    def shares(total: int) -> list[int]:
        if form == "fixed" or total == 0:
            return [total // T for _ in range(T)]
        cuts = [0, *sorted(torch.randint(0, total, (T - 1,), generator=generator).tolist()), total]
        return [cuts[t + 1] - cuts[t] for t in range(T)]

    order = torch.randperm(C, generator=generator).tolist()
    disjoint = int(C * n / 100) - int(C * n / 100) % T
    rest = order[disjoint : disjoint + (C - disjoint) - (C - disjoint) % T]
    order = order[:disjoint]
    apart = [[order.pop(0) for _ in range(k)] for k in shares(disjoint)]
    mixed = [[rest.pop(0) for _ in range(k)] for k in shares(len(rest))]
    stay, own = ([[i for i, y in enumerate(labels) if y in group] for group in kind] for kind in (apart, mixed))
    give = [len(o) * m // 100 for o in own] if form == "fixed" else shares(sum(map(len, own)) * m // 100)
    pool = [i for o, k in zip(own, give, strict=True) for i in o[:k]]
    pool = [pool[j] for j in torch.randperm(len(pool), generator=generator)]
    lists = []
    for o, s, k, share in zip(own, stay, give, shares(len(pool)) if form == "fixed" else give, strict=True):
        lists.append(s + o[k:] + [pool.pop(0) for _ in range(min(share, len(pool)))])
    shuffled = [
        torch.tensor([x[j] for j in torch.randperm(len(x), generator=generator)], dtype=torch.long) for x in lists
    ]
    return BlurrySplit(shuffled, [a + b for a, b in zip(apart, mixed, strict=True)])


@pytest.mark.parametrize(
    ("form", "classes", "disjoint", "blurry"),
    list(product(FORMS, [(10, 5), (23, 4), (5, 1)], [0, 50, 100], [0, 10, 100])),
)
def test_si_blurry_is_the_definition(form: Form, classes: tuple[int, int], disjoint: int, blurry: int) -> None:
    num_classes, num_experiences = classes
    labels = some_labels(num_classes, 200)
    split = si_blurry(labels.to(torch.uint8), num_classes, num_experiences, disjoint, blurry, form, seed=3)
    slow = slow_si_blurry(labels.tolist(), num_classes, num_experiences, disjoint, blurry, form, seed=3)
    assert [index.tolist() for index in split.indices] == [index.tolist() for index in slow.indices]
    assert split.homes == slow.homes


@pytest.mark.parametrize(("num_classes", "dropped"), [(100, 0), (103, 3)])
@pytest.mark.parametrize("form", FORMS)
def test_half_of_the_classes_are_disjoint(form: Form, num_classes: int, dropped: int) -> None:
    labels = torch.arange(num_classes).repeat(40)
    split = si_blurry(labels, num_classes, 5, disjoint=50, blurry=50, form=form, seed=1)
    times = occurrences(labels, split, num_classes)
    assert (times == 0).sum() == dropped == num_classes - len({c for home in split.homes for c in home})
    assert (times == 1).sum() >= 50
    assert (times > 1).sum() > 40


@pytest.mark.parametrize(("form", "seed"), list(product(FORMS, range(5))))
def test_no_sample_comes_twice_and_few_are_lost(form: Form, seed: int) -> None:
    labels = some_labels(20, 611)
    index = torch.cat(si_blurry(labels, 20, 5, disjoint=50, blurry=30, form=form, seed=seed).indices)
    lost = 611 - len(index)
    assert len(set(index.tolist())) == len(index)
    assert lost < 5 if form == "fixed" else lost == 0


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("disjoint", "blurry"), [(50, 0), (100, 30)])
def test_without_blur_each_class_is_at_home(form: Form, disjoint: int, blurry: int) -> None:
    labels = some_labels(10)
    split = si_blurry(labels, 10, 5, disjoint, blurry, form)
    for index, home in zip(split.indices, split.homes, strict=True):
        assert set(labels[index].tolist()) == set(home)


@pytest.mark.parametrize("form", FORMS)
def test_disjoint_classes_stay_and_blurry_ones_leave(form: Form) -> None:
    labels = torch.arange(100).repeat(100)
    split = si_blurry(labels, 100, 5, disjoint=50, blurry=10, form=form, seed=2)
    at_home = torch.stack([(labels[index].bincount(minlength=100)) for index in split.indices])
    for t, home in enumerate(split.homes):
        elsewhere = at_home[:, home].sum() - at_home[t, home].sum()
        assert 0 < elsewhere <= 500  # of 5000 blurry samples in all, 10 percent moved at most
    assert at_home.sum() == 10_000


def test_fixed_experiences_are_equal_and_stochastic_ones_are_not() -> None:
    labels = torch.arange(100).repeat(20)
    fixed, stochastic = (si_blurry(labels, 100, 5, form=form, seed=0) for form in FORMS)
    assert [(len(home), len(index)) for index, home in zip(*fixed, strict=True)] == [(20, 400)] * 5
    assert len({len(home) for home in stochastic.homes}) > 1
    assert len({len(index) for index in stochastic.indices}) > 1


@pytest.mark.parametrize("form", FORMS)
def test_blurry_streams_depend_on_the_seed_only(form: Form) -> None:
    labels = some_labels(10)
    state = torch.get_rng_state()
    first = si_blurry(labels, 10, 5, form=form, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1000)
    again, other = (si_blurry(labels, 10, 5, form=form, seed=seed) for seed in (1, 2))
    assert all(map(torch.equal, again.indices, first.indices))
    assert again.homes == first.homes != other.homes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"form": "loose"}, "`form` must be 'fixed' or 'stochastic', got 'loose'"),
        ({"disjoint": 101}, r"`disjoint` must be a percentage in \[0, 100\], got 101"),
        ({"blurry": -1}, r"`blurry` must be a percentage in \[0, 100\], got -1"),
        ({"num_experiences": 11}, r"`num_experiences` must be in \[1, 10\] \(`num_classes`\), got 11"),
        ({"num_experiences": 0}, r"`num_experiences` must be in \[1, 10\]"),
        ({"labels": torch.tensor([0, 10])}, r"`labels` must be in \[0, 10\) \(`num_classes`\), got 10"),
    ],
)
def test_si_blurry_refuses_what_cannot_be(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        si_blurry(**{"labels": torch.arange(10), "num_classes": 10, "num_experiences": 5, **arguments})


def test_i_blurry_has_the_properties_of_the_published_lists() -> None:
    """Those of CIFAR-100, n 50, m 10, 10 tasks: 5000 samples each; main shares of the 50 blurry classes around 455."""
    labels = torch.arange(100).repeat_interleave(500)  # sorted by class, as the files of a folder are
    split = i_blurry(labels, 100, 10, seed=1)
    counts = torch.stack([labels[index].bincount(minlength=100) for index in split.indices])
    occurs, main = (counts > 0).sum(0), counts.max(0).values
    assert torch.cat(split.indices).sort().values.tolist() == list(range(50_000))
    assert counts.sum(1).tolist() == [5000] * 10
    assert [(occurs == 1).sum(), (occurs >= 9).sum()] == [50, 50]
    assert ((main[occurs > 1] > 435) & (main[occurs > 1] < 475)).all()
    # Exactly a tenth of its blurry samples leaves each experience (and some come back), though not of each class.
    assert all(counts[t, home].sum() >= 2500 + 2250 for t, home in enumerate(split.homes))
    assert main[occurs > 1].min() < 450


def write_lists(folder: Path, lists: list[Any], key: str = "file_name") -> None:
    for task, names in enumerate(lists):
        records = [{"klass": name.split("/")[1], key: name, "label": 7} for name in names]
        (folder / f"toy_split2_n50_m10_rand1_task{task}.json").write_text(json.dumps(records))


FILES = [f"train/{klass}/{k:04d}.png" for klass in ("cat", "dog") for k in range(1, 4)]


@pytest.mark.parametrize("key", ["file_name", "filepath"])
def test_i_blurry_lists_are_read_in_order(tmp_path: Path, key: str) -> None:
    expected = [[5, 0, 2], [3, 1, 4]]
    write_lists(tmp_path, [[FILES[i] for i in index] for index in expected], key)
    assert [index.tolist() for index in read_i_blurry(tmp_path, "toy", 2, 50, 10, 1, FILES)] == expected


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        (
            [FILES[:3], FILES[2:]],
            r"each of the 6 training files once, and 1 are listed more than once, .*'train/cat/0003",
        ),
        ([FILES[:3], FILES[4:]], "and 1 are in no list, such as 'train/dog/0001.png'"),
        ([FILES, ["train/cow/0001.png"]], "and 1 are not in the data set, such as 'train/cow/0001.png'"),
    ],
)
def test_i_blurry_lists_must_be_the_training_set(tmp_path: Path, lists: list[list[str]], message: str) -> None:
    write_lists(tmp_path, lists)
    with pytest.raises(ValueError, match=message):
        read_i_blurry(tmp_path, "toy", 2, 50, 10, 1, FILES)


def test_missing_i_blurry_lists_are_named(tmp_path: Path) -> None:
    write_lists(tmp_path, [FILES])
    with pytest.raises(FileNotFoundError, match=r"lacks toy_split2_n50_m10_rand1_task1\.json: copy .*collections/toy"):
        read_i_blurry(tmp_path, "toy", 2, 50, 10, 1, FILES)


@pytest.mark.parametrize("text", ['[{"file_name"', "[3]", '[{"klass": "cat"}]', "3", '["file"]'])
def test_i_blurry_lists_must_be_such_lists(tmp_path: Path, text: str) -> None:
    write_lists(tmp_path, [FILES, []])
    (tmp_path / "toy_split2_n50_m10_rand1_task1.json").write_text(text)
    with pytest.raises(ValueError, match=r"task1\.json is no JSON list of samples with a `file_name` or `filepath`"):
        read_i_blurry(tmp_path, "toy", 2, 50, 10, 1, FILES)


def test_density_counts_each_sample_where_it_comes() -> None:
    labels, lists = some_labels(4, 30).to(torch.uint8), [torch.arange(0, 30, 2), torch.arange(1, 30, 2)]
    counts = density(labels, lists, num_classes=4, bins=3)
    parts = torch.split(torch.cat(lists), 10)
    assert counts.tolist() == [[int((labels[part] == c).sum()) for part in parts] for c in range(4)]
    assert density(labels, lists, num_classes=4, bins=7).sum() == 30
    with pytest.raises(ValueError, match="`bins` must be 1 or more, got 0"):
        density(labels, lists, num_classes=4, bins=0)
