"""Blurry streams: classes that come again, so that experiences have no sharp border."""

import json
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Generator, Tensor

from lightning_cl.utilities import derive_seed, permutation


class BlurrySplit(NamedTuple):
    """A blurry stream.

    Attributes:
        indices: Training samples of each experience, in the order of the stream.
        homes: Classes that were dealt to each experience, before samples moved to others.
    """

    indices: list[Tensor]
    homes: list[list[int]]


def si_blurry(
    labels: Tensor,
    num_classes: int,
    num_experiences: int,
    disjoint: int = 50,
    blurry: int = 10,
    form: Literal["fixed", "stochastic"] = "stochastic",
    seed: int = 0,
) -> BlurrySplit:
    """Deal classes to experiences, then let samples of some of the classes change places.

    Si-Blurry of Moon et al., "Online Class Incremental Learning on Stochastic Blurry Task Boundary via Mask and Visual
    Prompt Tuning", ICCV 2023. With the same seed the lists are those of its code base (KHU-AGI/Si-Blurry), sample for
    sample. The generalised class-incremental streams of GACL (G-ACIL; Zhuang et al., NeurIPS 2024) are the stochastic
    form, ``disjoint`` being its :math:`r_D` and ``blurry`` its :math:`r_B`.

    Of ``C`` classes in random order the first ``D = C * disjoint // 100 // T * T`` are disjoint: their samples stay in
    their experience. The next ``(C - D) // T * T`` are blurry; what remains of the classes is left out of the stream.
    Of the blurry samples of each experience those of lowest index go into a pool, which is shuffled and dealt again:

    - ``"fixed"``: each experience has as many classes of either kind as the others, gives ``blurry`` percent of its
      blurry samples, and gets an equal share of the pool; fewer than ``T`` samples are left over and lost.
    - ``"stochastic"``: random cuts say how many classes of either kind an experience has, and how many of ``blurry``
      percent of all blurry samples it gives and gets. An experience may have no class of a kind, or none at all.

    Args:
        labels: Labels of the training samples, ``(N,)``, in ``[0, C)``.
        num_classes: Number of classes ``C``.
        num_experiences: Number of experiences ``T``, at most ``C``.
        disjoint: Percentage of classes that occur in one experience only.
        blurry: Percentage of samples of the other classes that change places.
        form: ``"fixed"`` or ``"stochastic"``.
        seed: Fixes all of it.

    Returns:
        Samples and classes of each experience.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> labels = torch.arange(10).repeat(20)
        >>> split = si_blurry(labels, num_classes=10, num_experiences=5, form="fixed")
        >>> [len(index) for index in split.indices], [len(home) for home in split.homes]
        ([40, 40, 40, 40, 40], [2, 2, 2, 2, 2])
    """
    _check(labels, num_classes, num_experiences, disjoint, blurry, form)
    generator = Generator().manual_seed(seed)
    order = torch.randperm(num_classes, generator=generator)
    first = num_classes * disjoint // 100 // num_experiences * num_experiences
    second = (num_classes - first) // num_experiences * num_experiences
    # The order of the draws is that of the code base: it makes the lists equal.
    apart = torch.split(order[:first], _shares(first, num_experiences, form, generator))
    shared = torch.split(order[first : first + second], _shares(second, num_experiences, form, generator))
    moved = _exchanged(_samples_of(shared, labels, num_classes), blurry, form, generator)
    indices = [torch.cat(both) for both in zip(_samples_of(apart, labels, num_classes), moved, strict=True)]
    indices = [index[torch.randperm(len(index), generator=generator)] for index in indices]
    return BlurrySplit(indices, [torch.cat(both).tolist() for both in zip(apart, shared, strict=True)])


def i_blurry(
    labels: Tensor, num_classes: int, num_experiences: int, disjoint: int = 50, blurry: int = 10, seed: int = 0
) -> BlurrySplit:
    """Make a new split by the rule of the published i-Blurry lists; for those themselves see :func:`read_i_blurry`.

    i-Blurry-N-M of Koh et al., "Online Continual Learning on Class Incremental Blurry Task Configuration with Anytime
    Inference", ICLR 2022. Its code base has the lists but not what made them. The rule was found from those of
    CIFAR-10, CIFAR-100 and Tiny-ImageNet: it is the ``"fixed"`` form of :func:`si_blurry`, but the samples that change
    places are a random ``blurry`` percent of each experience's, not those of the lowest index.

    Args:
        labels: As for :func:`si_blurry`, likewise the others.
        num_classes: Number of classes.
        num_experiences: Number of experiences.
        disjoint: The N of the name.
        blurry: The M of the name.
        seed: Fixes all of it.

    Returns:
        Samples and classes of each experience.

    Example:
        >>> split = i_blurry(torch.arange(4).repeat_interleave(100), num_classes=4, num_experiences=2, blurry=20)
        >>> [len(index) for index in split.indices], sorted(split.homes[0] + split.homes[1])
        ([200, 200], [0, 1, 2, 3])
    """
    order = permutation(len(labels), derive_seed(seed, 1))
    split = si_blurry(labels[order], num_classes, num_experiences, disjoint, blurry, "fixed", seed)
    return BlurrySplit([order[index] for index in split.indices], split.homes)


def read_i_blurry(
    folder: str | Path,
    dataset: str,
    num_experiences: int,
    disjoint: int,
    blurry: int,
    seed: int,
    files: Sequence[str],
) -> list[Tensor]:
    """Read a published i-Blurry split (``collections/`` of the code base naver-ai/i-Blurry; see :func:`i_blurry`).

    Reads ``<dataset>_split<T>_n<N>_m<M>_rand<seed>_task<t>.json``, each a list of ``{klass, file_name, label}`` (some
    have ``filepath`` for ``file_name``) in the order of the stream. The number in ``label`` is not used: it differs
    between the splits of a data set.

    Args:
        folder: Where the lists are.
        dataset: ``"cifar10"``, ``"cifar100"`` or ``"tinyimagenet"``.
        num_experiences: The ``T`` of the name.
        disjoint: The ``N`` of the name.
        blurry: The ``M`` of the name.
        seed: The number after ``rand``.
        files: Name of each training sample as the lists have it, such as ``"train/deer/1743.png"``.

    Returns:
        Indices into ``files``, one list per experience.

    Raises:
        FileNotFoundError: If a list is missing.
        ValueError: If a file is no such list, or the lists together are not the training samples, each once.
    """
    stem = f"{dataset}_split{num_experiences}_n{disjoint}_m{blurry}_rand{seed}_task"
    paths = [Path(folder, f"{stem}{task}.json") for task in range(num_experiences)]
    if missing := [path.name for path in paths if not path.is_file()]:
        raise FileNotFoundError(
            f"{folder} lacks {', '.join(missing)}: copy the folder collections/{dataset} of the code base "
            "naver-ai/i-Blurry there, or choose a split that it has."
        )
    lists = [read_names(path) for path in paths]
    _check_names(lists, files, folder)
    position = {name: index for index, name in enumerate(files)}
    return [torch.tensor([position[name] for name in names]) for names in lists]


def density(labels: Tensor, lists: Sequence[Tensor], num_classes: int, bins: int) -> Tensor:
    """Count the classes along a stream.

    Args:
        labels: Labels of the samples, ``(N,)``, in ``[0, C)``.
        lists: Samples of each experience, in the order of the stream.
        num_classes: Number of classes ``C``.
        bins: Number of equally long parts into which the stream is cut, over the borders of experiences.

    Returns:
        Counts ``(C, bins)``.

    Raises:
        ValueError: If there are no bins.

    Example:
        >>> density(torch.tensor([0, 0, 1, 1]), [torch.tensor([0, 2]), torch.tensor([1, 3])], num_classes=2, bins=2)
        tensor([[1, 1],
                [1, 1]])
    """
    if bins < 1:
        raise ValueError(f"`bins` must be 1 or more, got {bins}.")
    stream = labels[torch.cat(list(lists))].long()
    part = torch.arange(len(stream)) * bins // max(len(stream), 1)
    return torch.bincount(stream * bins + part, minlength=num_classes * bins).view(num_classes, bins)


def _check(labels: Tensor, num_classes: int, num_experiences: int, disjoint: int, blurry: int, form: str) -> None:
    if form not in ("fixed", "stochastic"):
        raise ValueError(f"`form` must be 'fixed' or 'stochastic', got {form!r}.")
    for name, value in (("disjoint", disjoint), ("blurry", blurry)):
        if not 0 <= value <= 100:
            raise ValueError(f"`{name}` must be a percentage in [0, 100], got {value}.")
    if not 1 <= num_experiences <= num_classes:
        raise ValueError(f"`num_experiences` must be in [1, {num_classes}] (`num_classes`), got {num_experiences}.")
    if len(out := labels[(labels < 0) | (labels >= num_classes)]):
        raise ValueError(f"`labels` must be in [0, {num_classes}) (`num_classes`), got {out[0]}.")


def _shares(total: int, count: int, form: str, generator: Generator) -> list[int]:
    """Cut ``total`` things into ``count`` shares, equal ones (what is left over is lost) or random ones."""
    if form == "fixed" or not total:
        return [total // count] * count
    cuts = torch.randint(total, (count - 1,), generator=generator).sort().values.tolist()
    return [end - start for start, end in pairwise([0, *cuts, total])]


def _samples_of(groups: Sequence[Tensor], labels: Tensor, num_classes: int) -> list[Tensor]:
    """The samples of each group of classes, by index."""
    group_of = torch.full((num_classes,), len(groups))
    for number, classes in enumerate(groups):
        group_of[classes] = number
    of_sample = group_of[labels.long()]
    counts = of_sample.bincount(minlength=len(groups) + 1).tolist()
    return list(torch.split(of_sample.argsort(stable=True), counts))[:-1]  # the last are of no group


def _exchanged(own: Sequence[Tensor], percent: int, form: str, generator: Generator) -> list[Tensor]:
    """Take some samples of each experience, shuffle them all and deal them again."""
    count = len(own)
    if form == "fixed":
        given = [len(samples) * percent // 100 for samples in own]
        taken = _shares(sum(given), count, form, generator)
    else:
        given = taken = _shares(sum(map(len, own)) * percent // 100, count, form, generator)
    pool = torch.cat([samples[:n] for samples, n in zip(own, given, strict=True)])
    pool = pool[torch.randperm(len(pool), generator=generator)]
    # An experience may have fewer samples than its random share: then the pool is short, and the last ones get less.
    dealt = [pool[start:end] for start, end in pairwise(accumulate(taken, initial=0))]
    return [torch.cat([samples[n:], new]) for samples, n, new in zip(own, given, dealt, strict=True)]


def read_names(path: Path) -> list[str]:
    """Return the names of the files in one list of naver-ai/i-Blurry, in its order.

    Raises:
        ValueError: If it is no such list.
    """
    try:
        records = json.loads(path.read_text())
        return [record["file_name"] if "file_name" in record else record["filepath"] for record in records]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} is no JSON list of samples with a `file_name` or `filepath`: copy it again from the code base "
            "naver-ai/i-Blurry."
        ) from error


def _check_names(lists: Sequence[Sequence[str]], files: Sequence[str], folder: str | Path) -> None:
    listed, known = Counter(name for names in lists for name in names), set(files)
    wrong = {
        "listed more than once": [name for name, times in listed.items() if times > 1],
        "not in the data set": sorted(listed.keys() - known),
        "in no list": sorted(known - listed.keys()),
    }
    for what, names in wrong.items():
        if names:
            raise ValueError(
                f"The lists in {folder} must hold each of the {len(files)} training files once, and {len(names)} "
                f"are {what}, such as {names[0]!r}: check that the data set is complete and the lists are for it."
            )
