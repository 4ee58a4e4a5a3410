import re
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_cl.blurry import i_blurry, si_blurry
from lightning_cl.revisit import PowerLaw, Revisit, Uniform
from lightning_cl.samples import Samples, TensorData
from lightning_cl.scenarios import ClassStream, DomainStream, OwnStream, SourceStream
from lightning_cl.sources.base import Source


class Ten(ClassStream):
    """Ten classes; sample ``k`` is ``k``, of the class ``k % 10``: 400 to train, 50 to test."""

    def __init__(self, num_experiences: int | None = None, **kwargs: Any) -> None:
        super().__init__(10, (1,), num_experiences, **kwargs)

    def load(self, train: bool) -> tuple[Tensor, Tensor]:
        count = 400 if train else 50
        return torch.arange(count).view(-1, 1) + (0 if train else 1000), torch.arange(count) % 10


def ids(data: Any) -> list[int]:
    return [int(x) for x in data.batch(torch.arange(len(data)))[0][:, 0]]


def seen(stream: Any) -> list[int]:
    """What training is given, in order."""
    return [int(x) for batch in stream.train_dataloader() for x in batch[0][:, 0]]


# -- which classes come when ------------------------------------------------------------------------------------------


def test_seed_1993_gives_the_classes_of_the_convention() -> None:
    pycil = Ten(5, class_order=1993)
    mammoth = Ten(5, class_order=1993, convention="mammoth")
    assert pycil.classes == [(4, 2), (7, 6), (0, 3), (5, 8), (9, 1)]
    order = [4, 2, 7, 6, 0, 3, 5, 8, 9, 1]
    assert [set(group) for group in mammoth.classes] == [{c for c in range(10) if order[c] // 2 == t} for t in range(5)]
    for stream in (pycil, mammoth):
        assert [{k % 10 for k in ids(stream.part(t, "train"))} for t in range(5)] == [set(g) for g in stream.classes]


@pytest.mark.parametrize("convention", ["pycil", "mammoth"])
def test_relabelled_classes_are_numbered_by_appearance(convention: Any) -> None:
    plain = Ten(class_order=1993, base_classes=4, increment=3, convention=convention)
    stream = Ten(class_order=1993, base_classes=4, increment=3, convention=convention, relabel=True)
    assert stream.classes == [(0, 1, 2, 3), (4, 5, 6), (7, 8, 9)]
    for t in range(3):
        for name in ("train", "test"):
            assert ids(stream.part(t, name)) == ids(plain.part(t, name))
        new, old = stream.part(t, "train").labels, plain.part(t, "train").labels
        assert {(int(a), int(b)) for a, b in zip(new, old, strict=True)} == {
            *zip(stream.classes[t], plain.classes[t], strict=True)
        }


def test_sizes_of_each_form() -> None:
    assert [len(group) for group in Ten(4, convention="facil").classes] == [3, 3, 2, 2]
    assert [len(group) for group in Ten(base_classes=5, increment=2).classes] == [5, 2, 2, 1]
    assert [len(group) for group in Ten(increment=5).classes] == [5, 5]


def test_usual_length_is_that_of_the_class() -> None:
    class Usual(Ten):
        standard_length = 2

    assert (len(Usual()), len(Usual(5)), len(Usual(increment=1))) == (2, 5, 10)


def test_few_shot_sessions() -> None:
    stream = Ten(base_classes=4, increment=3, shots=5, seed=1)
    assert [e.num_train for e in stream.experiences] == [160, 15, 15]
    assert [e.num_test for e in stream.experiences] == [20, 15, 15]
    assert stream.part(1, "train").labels.bincount().tolist() == [0] * 4 + [5] * 3
    assert ids(stream.part(1, "train")) == ids(Ten(base_classes=4, increment=3, shots=5, seed=1).part(1, "train"))
    assert ids(stream.part(1, "train")) != ids(Ten(base_classes=4, increment=3, shots=5, seed=2).part(1, "train"))


# -- blurry -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["stochastic", "fixed", "i-blurry"])
def test_blurry_experiences_have_the_samples_of_the_split(form: Any) -> None:
    stream = Ten(3, convention="facil", blurry=form, disjoint_percent=50, blurry_percent=20, seed=1)
    labels = torch.arange(400) % 10
    fresh = form == "i-blurry"
    split = i_blurry(labels, 10, 3, 50, 20, 1) if fresh else si_blurry(labels, 10, 3, 50, 20, form, 1)
    for t, (index, home) in enumerate(zip(split.indices, split.homes, strict=True)):
        assert sorted(ids(stream.part(t, "train"))) == sorted(index.tolist())
        assert set(stream.classes[t]) == {k % 10 for k in index.tolist()}
        assert {k % 10 for k in ids(stream.part(t, "test"))} == set(home)
    tested = [k for t in range(3) for k in ids(stream.part(t, "test"))]
    assert sorted(tested) == [k for k in range(1000, 1050) if k % 10 in {c for home in split.homes for c in home}]
    assert any(set(a) & set(b) for a, b in zip(stream.classes, stream.classes[1:], strict=False))
    stream.current = 2
    assert set(stream.seen_classes) == {c for home in split.homes for c in home}


def test_blurry_experience_without_a_class_of_its_own_is_tested_on_what_occurs() -> None:
    splits = [si_blurry(torch.arange(400) % 10, 10, 5, 50, 20, "stochastic", seed) for seed in range(20)]
    full = {seed: split for seed, split in enumerate(splits) if all(map(len, split.indices))}
    seed, split = next((seed, split) for seed, split in full.items() if not all(split.homes))
    without = split.homes.index([])
    stream = Ten(5, blurry="stochastic", blurry_percent=20, seed=seed)
    assert {k % 10 for k in ids(stream.part(without, "test"))} == {int(k) % 10 for k in split.indices[without]}


def test_blurry_experience_without_samples_is_refused() -> None:
    stream = Ten(10, blurry="stochastic", blurry_percent=0, seed=0)
    with pytest.raises(ValueError, match=r"With `blurry_seed` 0 no sample is dealt to experiences \[.*choose another"):
        _ = stream.classes


@pytest.mark.parametrize("form", ["stochastic", "fixed", "i-blurry"])
def test_who_is_dealt_what_does_not_depend_on_the_order_of_samples(form: Any) -> None:
    def dealt(**seeds: int) -> list[list[int]]:
        stream = Ten(3, convention="facil", blurry=form, **seeds)
        return [ids(stream.part(t, "train")) for t in range(3)]

    assert dealt(seed=5, blurry_seed=1) == dealt(seed=6, blurry_seed=1) == dealt(seed=1)
    assert dealt(seed=5, blurry_seed=1) != dealt(seed=5, blurry_seed=2)


def test_a_test_sample_is_tested_once_without_boundaries() -> None:
    splits = [si_blurry(torch.arange(400) % 10, 10, 3, 50, 10, "stochastic", seed) for seed in range(40)]
    seeds = [seed for seed, split in enumerate(splits) if all(map(len, split.indices)) and not all(split.homes)]
    assert seeds
    for seed in seeds:
        tested = ids(Ten(3, convention="facil", blurry="stochastic", boundaries=False, seed=seed).part(0, "test"))
        assert len(tested) == len(set(tested))


# -- online, revisiting, limited --------------------------------------------------------------------------------------


def test_without_boundaries_the_experiences_come_in_one() -> None:
    stream = Ten(5, boundaries=False, batch_size=7, seed=2)
    assert (len(stream), stream.classes) == (1, [tuple(range(10))])
    order = seen(stream)
    assert sorted(order) == list(range(400))
    assert [k % 10 // 2 for k in order] == sorted(k % 10 // 2 for k in order)  # one experience after the other
    assert order[:80] != sorted(order[:80])
    assert [e.num_test for e in stream.experiences] == [50]
    assert order == seen(Ten(5, boundaries=False, batch_size=7, seed=2)) != seen(Ten(5, boundaries=False, seed=3))
    batches = list(stream.train_dataloader())
    assert len(batches) == 58
    assert any(len({int(k) % 10 // 2 for k in x[:, 0]}) == 2 for x, _ in batches)  # across a boundary


def test_without_boundaries_validation_is_held_out() -> None:
    stream = Ten(5, boundaries=False, val_fraction=0.25)
    val = [int(x) for batch in stream.val_dataloader() for x in batch[0][:, 0]]
    assert len(val) == 100
    assert sorted(val + seen(stream)) == list(range(400))


def test_revisited_samples_are_those_of_the_schedule() -> None:
    class Some(Revisit):
        def counts(self, sizes: Any) -> list[int]:
            return [3 * (k + 1) for k in range(len(sizes))]

    stream = Ten(5, revisit=Some(), seed=1)
    stream.current = 2
    order = seen(stream)
    assert torch.tensor([k % 10 // 2 for k in order]).bincount().tolist() == [3, 6, 9]
    assert len(set(order)) == 18
    assert order == seen(_at(Ten(5, revisit=Some(), seed=1), 2)) != seen(_at(Ten(5, revisit=Some(), seed=2), 2))
    assert [e.num_train for e in stream.experiences] == [80] * 5


def test_more_than_there_is_cannot_be_revisited() -> None:
    class TooMany(Revisit):
        def counts(self, sizes: Any) -> list[int]:
            return [81 if len(sizes) == 4 and k == 1 else 1 for k in range(len(sizes))]

    with pytest.raises(ValueError, match="81"):
        Ten(5, revisit=TooMany()).setup("fit")
    Ten(5, revisit=PowerLaw()).setup("fit")


def test_power_law_shows_less_of_what_is_older() -> None:
    stream = _at(Ten(5, revisit=PowerLaw()), 4)
    counts = torch.tensor([k % 10 // 2 for k in seen(stream)]).bincount()
    assert (counts.diff() > 0).all()


def _at(stream: Any, current: int) -> Any:
    stream.current = current
    return stream


def test_statistics_are_of_what_is_shown() -> None:
    class Few(Revisit):
        def counts(self, sizes: Any) -> list[int]:
            return [5] * len(sizes)

    stream = _at(Ten(5, revisit=Few()), 2)
    shown = {k for k in seen(stream) if k % 10 // 2 == 2}
    assert {int(x) for batch in stream.statistics_dataloader() for x in batch[0][:, 0]} == shown
    assert len(shown) == 5


def test_facil_holds_out_the_same_fraction_of_each_class() -> None:
    stream = Ten(4, convention="facil", val_fraction=0.1)
    assert stream.part(0, "val").labels.bincount().tolist() == [4, 4, 4]
    assert not set(ids(stream.part(0, "val"))) & set(ids(stream.part(0, "train")))
    assert len(stream.part(0, "train")) == 108


def test_facil_limits_an_experience_over_all_of_its_classes() -> None:
    stream = Ten(2, convention="facil", samples_per_experience=100, val_fraction=0.5, seed=1)
    assert [(e.num_train, e.num_val) for e in stream.experiences] == [(50, 50)] * 2
    assert stream.part(1, "val").labels.unique(return_counts=True)[1].tolist() == [10] * 5
    assert stream.part(1, "train").labels.unique().tolist() == [5, 6, 7, 8, 9]


def test_limited_experiences_are_chosen_by_the_seed() -> None:
    stream = Ten(5, samples_per_experience=20, val_fraction=0.25, seed=1)
    assert [(e.num_train, e.num_val) for e in stream.experiences] == [(15, 5)] * 5
    train, val = set(ids(stream.part(0, "train"))), set(ids(stream.part(0, "val")))
    assert not train & val
    whole = Ten(5, samples_per_experience=20, seed=1)
    assert train | val == set(ids(whole.part(0, "train")))
    assert train | val != set(ids(Ten(5, samples_per_experience=20, seed=2).part(0, "train")))


# -- somebody's own ---------------------------------------------------------------------------------------------------


def own(**kwargs: Any) -> OwnStream:
    train = TensorData(torch.arange(60).view(-1, 1), torch.arange(60) % 6)
    return OwnStream(train, **{"test": TensorData(torch.arange(100, 112).view(-1, 1), torch.arange(12) % 6), **kwargs})


def test_another_cut_of_the_same_sizes_is_another_stream() -> None:
    cuts: list[dict[str, Any]] = [
        {"lists": [[3, 1], [0, 6]], "test_lists": [[2], [0, 1]]},
        {"lists": [[0, 6], [3, 1]], "test_lists": [[2], [0, 1]]},
        {"domains": torch.arange(60) // 30, "test_domains": torch.arange(12) // 6},
        {"domains": torch.arange(60) % 2, "test_domains": torch.arange(12) // 6},
        {"num_experiences": 2},
    ]
    shapes = [own(**cut).shape() for cut in cuts]
    assert all(one != other for k, one in enumerate(shapes) for other in shapes[:k])
    assert [own(**cut).shape() for cut in cuts] == shapes


def test_defaults_that_are_spelled_out_are_no_contradiction() -> None:
    """A config that `--print_config` wrote says everything."""
    spelled = {"class_order": None, "convention": "pycil", "relabel": False, "blurry_percent": None, "shots": None}
    assert len(own(domains=torch.arange(60) % 2, test_domains=torch.arange(12) % 2, **spelled)) == 2


def test_own_samples_by_class() -> None:
    stream = own(num_experiences=3, class_order=[5, 4, 3, 2, 1, 0])
    assert stream.classes == [(5, 4), (3, 2), (1, 0)]
    assert (stream.num_classes, stream.input_shape) == (6, (1,))
    assert ids(stream.part(0, "test")) == [104, 105, 110, 111]


def test_own_samples_by_domain() -> None:
    stream = own(domains=torch.arange(60) // 20, test_domains=torch.arange(12) % 3)
    assert [ids(stream.part(t, "train")) for t in range(3)] == [[*range(20 * t, 20 * t + 20)] for t in range(3)]
    assert ids(stream.part(1, "test")) == [101, 104, 107, 110]
    assert stream.classes[0] == tuple(range(6))


def test_own_samples_by_list() -> None:
    stream = own(lists=[[3, 1], [0, 6]], test_lists=[[2], [0, 1]])
    assert [ids(stream.part(t, "train")) for t in (0, 1)] == [[3, 1], [0, 6]]
    assert [ids(stream.part(t, "test")) for t in (0, 1)] == [[102], [100, 101]]
    assert stream.classes == [(1, 3), (0,)]


@pytest.mark.parametrize("labels", [[], [[0, 1]] * 4, [-1, 0, 1, 1]])
def test_labels_that_are_no_class_numbers_are_refused(labels: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"`train` must (hold samples|be class numbers)"):
        OwnStream(TensorData(torch.zeros(len(labels), 1), torch.tensor(labels)), num_experiences=1)


def test_a_label_that_does_not_occur_is_named() -> None:
    with pytest.raises(ValueError, match=r"`num_classes` is 4, and there is no training sample of \[1, 2\]"):
        OwnStream(TensorData(torch.zeros(20, 1), torch.tensor([0, 3] * 10)), num_experiences=2)


def test_a_part_of_each_domain_is_cut_off_over_all_of_its_classes() -> None:
    train = TensorData(torch.arange(100).view(-1, 1), torch.arange(100) % 10)
    stream = OwnStream(train, domains=torch.arange(100) // 20)
    assert [(e.num_train, e.num_test) for e in stream.experiences] == [(16, 4)] * 5
    assert [len(set(stream.part(t, "test").labels.tolist())) for t in range(5)] == [4] * 5
    assert all(k // 20 == t for t in range(5) for k in ids(stream.part(t, "test")))


def test_a_domain_of_which_nothing_would_be_kept_is_named() -> None:
    train = TensorData(torch.arange(21).view(-1, 1), torch.zeros(21))
    with pytest.raises(ValueError, match=r"`domains` \[1\] have too few samples to hold some out"):
        OwnStream(train, domains=torch.arange(21) // 20, test_fraction=0.9)


def test_test_samples_are_cut_off_each_class() -> None:
    stream = own(test=None, num_experiences=3, test_fraction=0.3)
    assert [(e.num_train, e.num_test) for e in stream.experiences] == [(14, 6)] * 3
    domains = own(test=None, domains=torch.arange(60) // 30, test_fraction=0.5)
    assert sum(e.num_test for e in domains.experiences) == 30
    assert [ids(domains.part(t, "test"))[0] // 30 for t in (0, 1)] == [0, 1]


# -- one data set in several domains ----------------------------------------------------------------------------------


class Few(Source):
    name, num_classes, input_shape, mean, std, remedy = "Few", 2, (1, 2, 2), (0.5,), (0.25,), ""

    def missing(self) -> list[str]:
        return []

    def load(self, train: bool) -> TensorData:
        return TensorData(torch.arange(16, dtype=torch.uint8).view(4, 1, 2, 2), torch.tensor([0, 1, 0, 1]))


class Many(Few):
    def load(self, train: bool) -> TensorData:
        return TensorData(torch.zeros(10, 1, 2, 2, dtype=torch.uint8), torch.arange(10) % 2)


class Shifted(DomainStream):
    def domain(self, experience: int, data: Samples, train: bool) -> Samples:
        assert isinstance(data, TensorData)
        return TensorData(data.inputs + 100 * experience, data.targets)


def test_domains_show_all_classes_and_are_normalised_as_the_data_set() -> None:
    stream = Shifted(Few(), 2)
    assert stream.classes == [(0, 1), (0, 1)]
    assert ids_of_images(stream.part(1, "train")) == [100, 104, 108, 112]
    (x,) = stream.transform_batch([torch.full((1, 1, 2, 2), 255, dtype=torch.uint8)])
    torch.testing.assert_close(x, torch.full((1, 1, 2, 2), (1 - 0.5) / 0.25))
    assert Shifted(Few(), 2, mean=[0.0], std=[1.0]).transform_batch([x])[0] is x


@pytest.mark.parametrize("limit", [None, 3])
def test_what_is_held_out_is_so_in_every_domain(limit: int | None) -> None:
    """The same image in another domain would tell the answer."""
    stream = Shifted(Many(), 3, val_fraction=0.4, samples_per_experience=limit)
    held_out = {int(k) for t in range(3) for k in stream.part(t, "val").indices}
    trained = {int(k) for t in range(3) for k in stream.part(t, "train").indices}
    assert len(held_out) == int((limit or 10) * 0.4)
    assert not held_out & trained


def ids_of_images(data: Any) -> list[int]:
    return [int(sample[0][0, 0, 0]) for sample in data]


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ten(12), "`num_experiences` must divide the 10 classes"),
        (lambda: Ten(5, increment=2), "`num_experiences`"),
        (lambda: Ten(increment=11), "`increment`"),
        (lambda: Ten(5, class_order=[0] * 10), "`class_order` must be a permutation of 0 to 9"),
        (lambda: Ten(5, shots=0), "`shots` must be 1 or more, got 0"),
        (lambda: Ten(5, shots=41).part(1, "train"), "`shots`"),
        (lambda: Ten(5, blurry="much"), "`blurry` must be 'stochastic', 'fixed' or 'i-blurry', got 'much'"),
        (lambda: Ten(5, blurry_percent=10), "`blurry_percent` is for a `blurry` stream: set that too, or leave it out"),
        (lambda: Ten(5, disjoint_percent=101), "`disjoint_percent` must be in [0, 100], got 101"),
        (lambda: Ten(5, blurry="fixed", class_order=1993), "it cannot go with `class_order`"),
        (lambda: Ten(5, blurry="fixed", task_labels=True), "it cannot go with `task_labels`"),
        (lambda: Ten(5, boundaries=False, task_labels=True), "`boundaries=False` is a stream of one experience: it"),
        (lambda: Ten(5, boundaries=False, cumulative=True), "cannot go with `cumulative`"),
        (lambda: Ten(5, revisit=Uniform(), cumulative=True), "`revisit` and `cumulative` both say"),
        (lambda: Ten(5, samples_per_experience=0), "`samples_per_experience` must be 1 or more, got 0"),
        (lambda: Ten(5, samples_per_experience=81).experiences, "`samples_per_experience` must be 80 or less in"),
        (lambda: own(domains=torch.zeros(60), lists=[[0]]), "`domains` and `lists` both cut the stream"),
        (lambda: own(domains=torch.zeros(60), num_experiences=2), "`num_experiences` cuts by class"),
        (lambda: own(domains=torch.zeros(60), class_order=1993), "`class_order` cuts by class"),
        (lambda: own(domains=torch.zeros(60)), "`test_domains` must be given with `domains`"),
        (lambda: own(test_domains=torch.zeros(12), num_experiences=2), "`test_domains` go with `domains`"),
        (lambda: own(test_lists=[[0]], num_experiences=2), "`lists` and `test_lists` go together"),
        (lambda: own(lists=[], test_lists=[]), "`lists` and `test_lists` go together, a list for each experience"),
        (lambda: own(test=None, num_experiences=2, test_fraction=0.01), "`test_fraction` 0.01 leaves nothing"),
        (lambda: own(domains=torch.zeros(60, 2), test_domains=torch.zeros(12)), "got the shape (60, 2)"),
        (lambda: own(domains=torch.zeros(60), class_order=torch.arange(6)), "`class_order` cuts by class"),
        (lambda: Ten(5, shots=5, samples_per_experience=9), "it cannot go with `samples_per_experience`"),
        (lambda: Ten(5, shots=5, val_fraction=0.1), "`shots` are all trained on: it cannot go with `val_fraction`"),
        (lambda: Ten(5, blurry="fixed", blurry_seed=-1), "`blurry_seed` must be 0 or more, got -1"),
        (lambda: own(domains=torch.zeros(59), test_domains=torch.zeros(12)), "`domains` must hold one number per"),
        (lambda: own(domains=torch.zeros(60), test_domains=torch.ones(12)), "must be the same domains, got [0.0]"),
        (lambda: own(lists=[[0]], test_lists=[[0], [1]]), "`test_lists` must be of one length, got 1 and 2"),
        (lambda: own(lists=[[0, 60]], test_lists=[[0]]), "`lists` must hold indices in [0, 60)"),
        (lambda: own(lists=[[0]], test_lists=[[12]]), "`test_lists` must hold indices in [0, 12)"),
        (lambda: own(lists=[[0]], test_lists=[[0]], test=None), "`lists` go with test samples of their own"),
        (lambda: own(num_experiences=3, test_fraction=0.5), "`test_fraction` is for samples without others to test on"),
        (lambda: own(test=None, domains=torch.arange(60)), "have too few samples to hold some out (`test_fraction`)"),
        (lambda: Ten(5, blurry="fixed", convention="mammoth"), "it cannot go with `convention`"),
        (lambda: Ten(), "`num_experiences` must be given, or the classes of each experience with `increment`"),
        (lambda: Ten(5, increment=2), "`num_experiences` and `increment` both cut the classes, got 5 and 2: leave one"),
        (lambda: own(test=None, num_experiences=3, test_fraction=1.0), "`test_fraction` must be in (0, 1), got 1.0"),
        (lambda: Shifted(Few(), 0), "`num_experiences` must be 1 or more, got 0"),
    ],
)
def test_bad_arguments_are_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


# -- at the edges -----------------------------------------------------------------------------------------------------


def test_each_experience_revisits_others_and_validates_on_its_own() -> None:
    class Three(Revisit):
        def counts(self, sizes: Any) -> list[int]:
            return [3] * len(sizes)

    third, fourth = (_at(Ten(5, revisit=Three(), val_fraction=0.25), current) for current in (3, 4))
    assert {k for k in seen(third) if k % 10 < 2} != {k for k in seen(fourth) if k % 10 < 2}
    val = [int(x) for batch in fourth.val_dataloader() for x in batch[0][:, 0]]
    assert sorted(val) == ids(fourth.part(4, "val"))


def test_what_the_last_experience_revisits_is_checked_too() -> None:
    class TooMany(Revisit):
        def counts(self, sizes: Any) -> list[int]:
            return [81 if len(sizes) == 5 else 1] * len(sizes)

    with pytest.raises(ValueError, match="samples of experience 0 in experience 4, got 81"):
        Ten(5, revisit=TooMany()).setup("fit")


def test_sessions_of_one_size_are_drawn_differently() -> None:
    few_shot = Ten(base_classes=4, increment=3, shots=5)
    assert len({tuple(k // 10 for k in ids(few_shot.part(t, "train"))) for t in (1, 2)}) == 2
    facil = [Ten(5, convention="facil", val_fraction=0.25, seed=seed) for seed in (1, 2)]
    assert len({tuple(k // 10 for k in ids(stream.part(t, "val"))) for stream in facil for t in (0, 1)}) == 4


def test_half_of_the_classes_and_a_tenth_of_the_samples_blur_by_default() -> None:
    split = si_blurry(torch.arange(400) % 10, 10, 5, 50, 10, "fixed", seed=0)
    stream = Ten(5, blurry="fixed")
    for t, index in enumerate(split.indices):
        assert sorted(ids(stream.part(t, "train"))) == sorted(index.tolist())


def test_shape_tells_apart_streams_of_the_same_classes_and_sizes() -> None:
    blurred: dict[str, Any] = {"num_experiences": 2, "blurry": "fixed", "disjoint_percent": 0}
    forms: list[dict[str, Any]] = [
        *({"num_experiences": 5, "val_fraction": 0.25, "convention": rule} for rule in ("pycil", "facil")),
        *({**blurred, "blurry_percent": 50, "blurry_seed": seed} for seed in (1, 2)),
        {**blurred, "blurry_percent": 60, "blurry_seed": 1},
    ]
    shapes = [Ten(**form).shape() for form in forms]
    assert all(shape not in shapes[:k] for k, shape in enumerate(shapes))


@pytest.mark.parametrize(
    "given", [{"base_classes": 4, "increment": 3}, {"increment": 5}, {"relabel": True}, {"shots": 5}]
)
def test_what_a_blurry_stream_cannot_go_with_is_named(given: dict[str, Any]) -> None:
    length = None if "increment" in given else 5
    with pytest.raises(ValueError, match=f"it cannot go with `{next(iter(given))}`"):
        Ten(length, blurry="fixed", **given)


def test_own_cuts_of_the_same_classes_and_sizes_are_told_apart() -> None:
    lists = {"lists": [[0, 1], [2, 3]], "test_lists": [[0], [2]]}
    cuts = [lists, {**lists, "lists": [[6, 1], [2, 3]]}, {**lists, "test_lists": [[6], [2]]}]
    shapes = [own(**cut).shape() for cut in cuts]
    assert all(shape not in shapes[:k] for k, shape in enumerate(shapes))
    x, y = torch.zeros(60, 1), torch.arange(60) % 6
    one, other = (OwnStream(TensorData(x, labels), num_experiences=3).shape() for labels in (y, y.flip(0)))
    assert one != other


@pytest.mark.parametrize(
    "name",
    [
        *("num_experiences", "class_order", "base_classes", "increment", "convention", "relabel", "shots"),
        *("blurry", "disjoint_percent", "blurry_percent", "blurry_seed"),
    ],
)
def test_what_cuts_by_class_does_not_go_with_another_cut(name: str) -> None:
    given = {"convention": "facil", "relabel": True, "blurry": "fixed"}.get(name, 2)
    with pytest.raises(ValueError, match=f"`{name}` cuts by class: it cannot go with `domains` or `lists`"):
        own(domains=torch.arange(60) % 2, test_domains=torch.arange(12) % 2, **{name: given})


def test_experiences_may_share_samples_to_test_on_but_not_to_train_on() -> None:
    stream = own(lists=[[0], [1]], test_lists=[[2], [2]])
    assert [ids(stream.part(t, "test")) for t in (0, 1)] == [[102], [102]]
    with pytest.raises(ValueError, match="`lists` must hold each index at most once, and 0 is in lists"):
        own(lists=[[0], [0]], test_lists=[[2], [3]])


def test_samples_that_are_cut_off_keep_their_order() -> None:
    stream = own(test=None, domains=torch.arange(60) // 30)
    parts = [ids(stream.part(t, name)) for t in (0, 1) for name in ("train", "test")]
    assert sorted(k for part in parts for k in part) == list(range(60))
    assert all(part == sorted(part) for part in parts)


def test_own_test_samples_that_do_not_fit_are_named() -> None:
    for labels, message in (([], "`test` must hold samples"), ([-1], "labels of `test` must be class numbers")):
        with pytest.raises(ValueError, match=message):
            own(test=TensorData(torch.zeros(len(labels), 1), torch.tensor(labels)), num_experiences=2)
    with pytest.raises(ValueError, match=r"`num_classes` is 7, and there is no training sample of \[6\]"):
        own(test=TensorData(torch.zeros(1, 1), torch.tensor([6])), num_experiences=1)
    with pytest.raises(ValueError, match="`test_domains` must hold one number per sample, 12, got"):
        own(domains=torch.zeros(60), test_domains=torch.zeros(11))


@pytest.mark.parametrize("kind", [SourceStream, Shifted])
def test_a_source_is_read_once_and_before_the_other_processes_ask(kind: Any) -> None:
    loads: list[bool] = []

    class Noted(Few):
        def load(self, train: bool) -> TensorData:
            loads.append(train)
            return super().load(train)

    stream = kind(Noted(), 2)
    stream.prepare_data()
    assert loads == [True, False]
    assert [len(stream.experiences), *loads] == [2, True, False]
    assert stream.shape()["data_set"] == "Few"


def test_a_source_without_samples_of_a_class_is_named() -> None:
    class Three(Few):
        num_classes = 3

    with pytest.raises(ValueError, match=r"`num_classes` is 3, and there is no training sample of \[2\]"):
        Shifted(Three(), 2).part(0, "train")


def test_domains_may_be_of_another_shape_and_of_other_samples() -> None:
    assert Shifted(Few(), 2, (1, 4, 4)).input_shape == (1, 4, 4)
    stream = Shifted(Many(), 3, samples_per_experience=3)
    assert len({tuple(stream.part(t, "train").indices.tolist()) for t in range(3)}) > 1
