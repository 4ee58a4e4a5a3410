"""The streams of NEVIS'22: which data sets come when, and the rules that go with them.

Bornschein, Galashov, Hemsley, Rannen-Triki et al., "NEVIS'22: A stream of 100 tasks sampled from 30 years of computer
vision research", JMLR 2023. Names, years and numbers of classes are those of the authors' code, dm_nevis.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

Variant = Literal["full", "short", "tiny", "debug"]
Years = Mapping[int, Sequence[str]]

_ISIC = "ISBI-ISIC 2017 melanoma classification challenge"

# fmt: off
FULL: Years = {
    1992: ("Magellan Venus Volcanoes", "Aberdeen face database."),
    1998: ("LandSat UCI repo", "Brodatz", "Olivetti Face Dataset"),
    2000: ("COIL 20",),
    2001: ("COIL 100", "MPEG-7"),
    2004: ("Butterfly dataset", "MNIST"),
    2005: ("Caltech 101", "UMIST", "CMU AMP expression"),
    2006: ("Pascal 2005", "Caltech cars, motorbikes", "UIUC cars", "ALOI"),
    2007: ("8 Scene Dataset",),
    2008: ("15 Scenes",),
    2009: ("Pascal 2006", "Extended YaleB"),
    2010: ("Pascal 2007", "Graz-02", "Olivetti Face Dataset", "PPMI"),
    2011: (
        "Caltech 256", "ImageNet", "LFW", "Oxford Flowers", "Flicker Material Dataset", "Oxford Flowers 102",
        "Belgium Traffic Sign Dataset", "German Traffic Sign Recognition Benchmark", "Brodatz", "VisTex",
    ),
    2012: ("UMD", "KTH-TIPS", "UIUC texture", "KTH-TIPS2-b", "CVC-MUSCIMA"),
    2013: ("IAPRTC-12", "sketch dataset", "KTH-TIPS2-a", "Pascal 2012", "NORB"),
    2014: ("Wikipaintings",),
    2015: ("MNIST", "MIT Scenes", "SUN 397", "CIFAR 10"),
    2016: (
        "CUB 200", "Stanford Cars", "FGVC Aircraft", "DTD", "MS COCO", "Caltech 101", "Oxford IIIT Pets",
        "Stanford Dogs", "ANIMAL", "Caltech 101 Silhouettes", "Interact", "VOC Actions", "SVHN", "Chars74K",
    ),
    2017: ("CelebA", "LFWA", "SUN Attribute", "CIFAR 100"),
    2018: (
        "TID2008", "TID2013", "USPS", "Semeion", "MNIST-m", "Office Caltech", "PACS", "Caltech Camera Traps",
        "EMNIST Balanced", "CASIA-HWDB1.1", _ISIC,
    ),
    2019: (
        "Trancos", "Mall dataset", "Fashion MNIST", "NotMNIST", "Tiny Imagenet", "STL10", "Food 101", "MNIST-rot",
        "AWA2", "15 Scenes", "Food 101 N", "COIL 20", "COIL 100",
    ),
    2020: ("ShanghaiTech", "AnimalWeb", "BIWI"),
    2021: (
        "ImageNet", "Oxford Flowers 102", "DomainNet-Real", "Pneumonia Chest X-ray", "Path MNIST", "NIH Chest X-ray",
        "Tubercolosis", "covid-19 x-ray", "PatchCamelyon", "DDSM", "Synthetic COVID-19 Chest X-ray Dataset",
    ),
}
"""106 data sets, of which the 14 from 2020 on are held out while a method is developed."""

SHORT: Years = {
    2004: ("COIL 100", "MNIST"),
    2006: ("Pascal 2005", "Caltech cars, motorbikes", "UIUC cars"),
    2009: ("Pascal 2006",),
    2010: ("Caltech 101",),
    2011: ("Graz-02", "15 Scenes", "Pascal 2007", "LFW"),
    2013: ("sketch dataset", "Brodatz"),
    2014: ("ImageNet", "Pascal 2012", "Caltech 256"),
    2018: ("CIFAR 100", "CIFAR 10", "USPS", "MNIST", "MNIST-m", "Office Caltech", "PACS", _ISIC),
    2019: ("Fashion MNIST",),
    2020: ("Stanford Dogs", "CUB 200", "Stanford Cars", "FGVC Aircraft"),
}
"""29 of them; some years are others than in ``FULL``."""

TINY: Years = {
    2004: ("MNIST",),
    2010: ("Caltech 101",),
    2014: ("Pascal 2012",),
    2018: ("CIFAR 100", "MNIST", _ISIC),
    2020: ("CUB 200",),
}
"""7 of them."""

DEBUG: Years = {1999: ("Pascal 2007",), 2000: ("COIL 20",)}
"""2 of them."""

CLASSES: Mapping[str, int] = {
    "15 Scenes": 15, "8 Scene Dataset": 8, "ALOI": 1000, "ANIMAL": 20, "AWA2": 85, "Aberdeen face database.": 92,
    "AnimalWeb": 352, "BIWI": 15, "Belgium Traffic Sign Dataset": 62, "Brodatz": 111, "Butterfly dataset": 7,
    "CASIA-HWDB1.1": 3926, "CIFAR 10": 10, "CIFAR 100": 100, "CMU AMP expression": 13, "COIL 100": 100, "COIL 20": 20,
    "CUB 200": 200, "CVC-MUSCIMA": 50, "Caltech 101": 102, "Caltech 101 Silhouettes": 101, "Caltech 256": 257,
    "Caltech Camera Traps": 16, "Caltech cars, motorbikes": 2, "CelebA": 40, "Chars74K": 62, "DDSM": 3, "DTD": 47,
    "DomainNet-Real": 345, "EMNIST Balanced": 47, "Extended YaleB": 28, "FGVC Aircraft": 70, "Fashion MNIST": 10,
    "Flicker Material Dataset": 10, "Food 101": 101, "Food 101 N": 101,
    "German Traffic Sign Recognition Benchmark": 43, "Graz-02": 3, "IAPRTC-12": 276, _ISIC: 3, "ImageNet": 1000,
    "Interact": 60, "KTH-TIPS": 10, "KTH-TIPS2-a": 11, "KTH-TIPS2-b": 11, "LFW": 423, "LFWA": 423,
    "LandSat UCI repo": 7, "MIT Scenes": 67, "MNIST": 10, "MNIST-m": 10, "MNIST-rot": 10, "MPEG-7": 70, "MS COCO": 90,
    "Magellan Venus Volcanoes": 2, "Mall dataset": 10, "NIH Chest X-ray": 15, "NORB": 5, "NotMNIST": 10,
    "Office Caltech": 10, "Olivetti Face Dataset": 41, "Oxford Flowers": 17, "Oxford Flowers 102": 102,
    "Oxford IIIT Pets": 37, "PACS": 7, "PPMI": 24, "Pascal 2005": 4, "Pascal 2006": 10, "Pascal 2007": 20,
    "Pascal 2012": 20, "PatchCamelyon": 2, "Path MNIST": 8, "Pneumonia Chest X-ray": 2, "STL10": 10, "SUN 397": 397,
    "SUN Attribute": 102, "SVHN": 10, "Semeion": 10, "ShanghaiTech": 10, "Stanford Cars": 196, "Stanford Dogs": 120,
    "Synthetic COVID-19 Chest X-ray Dataset": 2, "TID2008": 5, "TID2013": 5, "Tiny Imagenet": 200, "Trancos": 10,
    "Tubercolosis": 2, "UIUC cars": 2, "UIUC texture": 25, "UMD": 25, "UMIST": 20, "USPS": 10, "VOC Actions": 11,
    "VisTex": 19, "Wikipaintings": 27, "covid-19 x-ray": 4, "sketch dataset": 250,
}
"""Number of classes; of a multi-label data set, of labels. A few leave numbers unused that are counted here."""
# fmt: on

STREAMS: Mapping[str, Years] = {"full": FULL, "short": SHORT, "tiny": TINY, "debug": DEBUG}


def data_sets(variant: Variant = "full", stop_year: int | None = None, shuffle_seed: int | None = None) -> list[str]:
    """The data sets of a stream in the order of the years in which papers used them; some come twice.

    Args:
        variant: ``"full"``, ``"short"``, ``"tiny"`` or ``"debug"``.
        stop_year: The first year that is left out; 2020 is the development stream of the paper, ``None`` takes all.
        shuffle_seed: Shuffle within each year, as dm_nevis does with this seed; ``None`` keeps the order of the lists.

    Raises:
        ValueError: If an argument is out of its range; the message names it.

    Example:
        >>> data_sets("tiny", stop_year=2018)
        ['MNIST', 'Caltech 101', 'Pascal 2012']
        >>> len(data_sets()), len(data_sets(stop_year=2020))
        (106, 92)
    """
    if variant not in STREAMS:
        raise ValueError(f"`data_sets` must be a list or one of {', '.join(STREAMS)}, got {variant!r}.")
    stream = STREAMS[variant]
    if stop_year is not None and stop_year <= min(stream):
        raise ValueError(f"`stop_year` must be {min(stream) + 1} or more, got {stop_year}: nothing is left.")
    if shuffle_seed is not None:
        stream = shuffle_within_years(stream, shuffle_seed)
    return [name for year, names in stream.items() if stop_year is None or year < stop_year for name in names]


def shuffle_within_years(stream: Years, seed: int) -> Years:
    """Shuffle the data sets of each year; years and what is in them stay.

    Raises:
        ValueError: If ``seed`` is negative.

    Example:
        >>> list(shuffle_within_years({2001: ["a"], 2002: ["b", "c", "d", "e"]}, seed=0).values())
        [['a'], ['d', 'b', 'c', 'e']]
    """
    if seed < 0:
        raise ValueError(f"`shuffle_seed` must be 0 or more, got {seed}.")
    generator = np.random.default_rng(seed)
    shuffled = {year: list(stream[year]) for year in sorted(stream)}
    for names in shuffled.values():
        generator.shuffle(names)
    return shuffled


def nevis_batch_size(num_train: int) -> int:
    """The batch size of NEVIS'22: the power of two at or below a 400th of the training samples, in [16, 512].

    Example:
        >>> [nevis_batch_size(n) for n in (1_000, 12_800, 60_000, 1_281_167)]
        [16, 32, 128, 512]
    """
    return min(512, max(16, 1 << (num_train // 400).bit_length() >> 1))
