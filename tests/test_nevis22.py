"""The lists of NEVIS'22 against the numbers that are known of them."""

import re
from collections import Counter
from typing import Any

import numpy as np
import pytest

from lightning_cl.nevis22 import CLASSES, FULL, STREAMS, data_sets, nevis_batch_size, shuffle_within_years
from lightning_cl.sources import SOURCES, make_source

PER_YEAR = {
    **{1992: 2, 1998: 3, 2000: 1, 2001: 2, 2004: 2, 2005: 3, 2006: 4, 2007: 1, 2008: 1, 2009: 2, 2010: 4, 2011: 10},
    **{2012: 5, 2013: 5, 2014: 1, 2015: 4, 2016: 14, 2017: 4, 2018: 11, 2019: 13, 2020: 3, 2021: 11},
}


def test_full_stream_has_the_published_size() -> None:
    names = data_sets("full")
    assert {year: len(found) for year, found in FULL.items()} == PER_YEAR
    assert (len(names), len(set(names)), len(data_sets(stop_year=2020))) == (106, 97, 92)
    assert sorted(name for name, times in Counter(names).items() if times > 1) == [
        *("15 Scenes", "Brodatz", "COIL 100", "COIL 20", "Caltech 101", "ImageNet", "MNIST", "Olivetti Face Dataset"),
        "Oxford Flowers 102",
    ]
    assert (names[0], names[91], names[92], names[105]) == (
        *("Magellan Venus Volcanoes", "COIL 100", "ShanghaiTech", "Synthetic COVID-19 Chest X-ray Dataset"),
    )


def test_other_streams_have_the_published_sizes() -> None:
    assert {name: len(data_sets(name)) for name in STREAMS} == {"full": 106, "short": 29, "tiny": 7, "debug": 2}  # type: ignore[arg-type]
    assert len(data_sets("short", stop_year=2020)) == 25
    assert data_sets("tiny")[:5] == ["MNIST", "Caltech 101", "Pascal 2012", "CIFAR 100", "MNIST"]
    assert data_sets("debug") == ["Pascal 2007", "COIL 20"]
    assert all(list(stream) == sorted(stream) for stream in STREAMS.values())
    assert {name for stream in STREAMS.values() for names in stream.values() for name in names} == CLASSES.keys()


def test_numbers_of_classes_are_those_of_our_own_sources() -> None:
    found = {re.sub(r"[^a-z0-9]", "", name.lower()): count for name, count in CLASSES.items()}
    known = [key for key in SOURCES if key.replace("_", "") in found]
    assert len(known) >= 8
    assert all(make_source(key).num_classes == found[key.replace("_", "")] for key in known)


@pytest.mark.parametrize("seed", [0, 1, 17])
def test_shuffling_stays_within_years(seed: int) -> None:
    shuffled = shuffle_within_years(FULL, seed)
    assert list(shuffled) == list(FULL)
    assert all(Counter(shuffled[year]) == Counter(FULL[year]) for year in FULL)
    assert shuffled == shuffle_within_years(FULL, seed) != shuffle_within_years(FULL, seed + 1)
    assert (
        data_sets(shuffle_seed=seed)[:92] == data_sets(stop_year=2020, shuffle_seed=seed) != data_sets(stop_year=2020)
    )


def test_shuffling_draws_as_the_authors_code() -> None:
    """NumPy's generator, seeded once, shuffles one year after another."""
    generator, expected = np.random.default_rng(1), []
    for year in PER_YEAR:
        names = list(FULL[year])
        generator.shuffle(names)
        expected += names
    assert data_sets(shuffle_seed=1) == expected


@pytest.mark.parametrize("count", [1, 399, 6_399, 6_400, 12_799, 12_800, 60_000, 102_400, 204_799, 204_800, 1_281_167])
def test_batch_size_is_by_the_formula(count: int) -> None:
    assert nevis_batch_size(count) == min(512, max(16, 2 ** int(np.floor(np.log2(0.0025 * count)))))


def test_batch_sizes_that_are_known() -> None:
    assert [nevis_batch_size(n) for n in (60_000, 1_000, 1_281_167, 6_400, 12_800)] == [128, 16, 512, 16, 32]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variant": "ful"}, "`data_sets` must be a list or one of full, short, tiny, debug, got 'ful'."),
        ({"stop_year": 1992}, "`stop_year` must be 1993 or more, got 1992: nothing is left."),
        ({"shuffle_seed": -1}, "`shuffle_seed` must be 0 or more, got -1."),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        data_sets(**arguments)
