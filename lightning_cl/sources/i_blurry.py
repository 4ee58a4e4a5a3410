"""The published i-Blurry streams: CIFAR-10, CIFAR-100 and Tiny-ImageNet in files, divided by lists."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from lightning_cl.blurry import read_i_blurry, read_names
from lightning_cl.listed import FileList, ListedSource
from lightning_cl.sources.image_folder import check_listed, expect_classes, scan
from lightning_cl.splits import label_map


class _Facts(NamedTuple):
    num_classes: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


FACTS = {
    "cifar10": _Facts(10, 32, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": _Facts(100, 32, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "tinyimagenet": _Facts(200, 64, (0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
}
"""Mean and standard deviation are those of the authors' code base."""


class IBlurry(ListedSource):
    """A data set in files, ``{train,test}/<class>/*``, with the lists of i-Blurry (Koh et al., ICLR 2022).

    Args:
        root: Folder with ``train``, or the one that holds it under the name of the data set.
        lists: Folder of the lists, or the one that holds it under that name; ``None`` is ``root/collections``.
        data_set: ``"cifar10"``, ``"cifar100"`` or ``"tinyimagenet"``.
        num_experiences: Which lists, by the numbers in their names; likewise the others.
        disjoint_percent: N.
        blurry_percent: M.
        split_seed: The number after ``rand``.

    Raises:
        ValueError: If an argument is out of its range.
    """

    name = "i-Blurry"
    options = ("folder", "split")
    remedy = (
        "The images come as the scripts in the folder dataset of the code base naver-ai/i-Blurry lay them out, the "
        "lists from its folder collections."
    )

    def __init__(
        self,
        root: str = "data",
        lists: str | None = None,
        data_set: Literal["cifar10", "cifar100", "tinyimagenet"] = "cifar10",
        num_experiences: int = 5,
        disjoint_percent: int = 50,
        blurry_percent: int = 10,
        split_seed: int = 1,
    ) -> None:
        if data_set not in FACTS:
            raise ValueError(f"`data_set` must be one of {list(FACTS)}, got {data_set!r}.")
        for argument, percent in {"disjoint_percent": disjoint_percent, "blurry_percent": blurry_percent}.items():
            if not 0 <= percent <= 100:
                raise ValueError(f"`{argument}` must be in [0, 100], got {percent}.")
        if split_seed < 0:
            raise ValueError(f"`split_seed` must be 0 or more, got {split_seed}.")
        facts = FACTS[data_set]
        super().__init__(root, data_set, facts.image_size)
        self.num_classes, self.mean, self.std = facts.num_classes, facts.mean, facts.std
        apart = blurry_percent == 0 or disjoint_percent == 100  # the authors have one list for all that is not blurry
        self.split = (num_experiences, *((100, 0) if apart else (disjoint_percent, blurry_percent)), split_seed)
        self._given = self.root / "collections" if lists is None else Path(lists).expanduser()

    @override
    def missing(self) -> list[str]:
        return self.absent([self.place / "train", self._val])

    @override
    def lists(self, train: bool) -> list[FileList]:
        parts, paths, labels, label_of = self._training()
        if train:
            return [_chosen(paths, labels, part) for part in parts]
        counts = torch.stack([labels[part].bincount(minlength=self.num_classes) for part in parts])
        tested, test_labels = self._testing(label_of)
        at = counts.argmax(0)[test_labels]  # where most of the class is
        return [_chosen(tested, test_labels, (at == home).nonzero().flatten()) for home in range(len(parts))]

    @property
    def _collection(self) -> Path:
        inner = self._given / self.folder
        return inner if inner.is_dir() else self._given

    @property
    def _val(self) -> Path:
        return self._collection / f"{self.folder}_val.json"

    def _training(self) -> tuple[list[Tensor], list[str], Tensor, dict[str, int]]:
        """The samples of each experience, the paths and labels of all, and the label of each class by its folder."""
        classes = expect_classes(self.place / "train", self.num_classes)
        paths, folders = scan(self.place / "train", classes)
        names = [Path(path).relative_to(self.place).as_posix() for path in paths]
        parts = read_i_blurry(self._collection, self.folder, *self.split, files=names)
        new = label_map(list(dict.fromkeys(folders[torch.cat(parts)].tolist())), "pycil")
        return parts, paths, torch.tensor(new)[folders], dict(zip(classes, new, strict=True))

    def _testing(self, label_of: dict[str, int]) -> FileList:
        """The paths and labels of all test samples; their classes are the names of their folders."""
        paths = [f"{self.place}/{name}" for name in read_names(self._val)]
        check_listed(paths, self._val)
        classes = [Path(path).parent.name for path in paths]
        if unknown := {*classes} - label_of.keys():
            raise ValueError(f"{str(self._val)!r} lists classes that are not trained on: {sorted(unknown)[:4]}.")
        return paths, torch.tensor([label_of[name] for name in classes])


def _chosen(paths: Sequence[str], labels: Tensor, index: Tensor) -> FileList:
    return [paths[i] for i in index.tolist()], labels[index]
