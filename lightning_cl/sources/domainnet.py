"""DomainNet: the same 345 classes as clip art, infographics, paintings, quick drawings, photographs and sketches."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from typing_extensions import override

from lightning_cl.listed import FileList, ListedSource
from lightning_cl.samples import ImageFiles
from lightning_cl.sources.image_folder import expect_classes, image_files, read_list, scan

DOMAINS = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
"""In Continuum's order, the alphabetical one."""


class DomainNet(ListedSource):
    """DomainNet (Peng et al., "Moment Matching for Multi-Source Domain Adaptation", ICCV 2019).

    Args:
        root: Folder with a folder for each domain, ``<domain>/<class>/*``, or the one that holds it as ``domainnet``.
        domains: Which, in this order.
        split: ``"official"`` lists, or ``"continuum"``.
        num_classes: Number of classes.
        image_size: Height and width.

    Raises:
        ValueError: If an argument is out of its range.
    """

    name = "DomainNet"
    options = ("domains", "split")
    remedy = (
        "Get the six archives (of clipart and painting the cleaned version) and the lists <domain>_train.txt and "
        "<domain>_test.txt from ai.bu.edu/M3SDA and unpack them there."
    )

    def __init__(
        self,
        root: str = "data",
        domains: Sequence[str] = DOMAINS,
        split: Literal["official", "continuum"] = "official",
        num_classes: int = 345,
        image_size: int = 224,
    ) -> None:
        if not domains or len({*domains}) < len(domains) or not {*domains} <= {*DOMAINS}:
            raise ValueError(f"`domains` must be some of {list(DOMAINS)}, each once, got {list(domains)}.")
        if split not in ("official", "continuum"):
            raise ValueError(f"`split` must be 'official' or 'continuum', got {split!r}.")
        if num_classes < 1:
            raise ValueError(f"`num_classes` must be 1 or more, got {num_classes}.")
        super().__init__(root, "domainnet", image_size)
        self.domains = list(domains)
        self.split = split
        self.num_classes = num_classes

    @override
    def missing(self) -> list[str]:
        parts = ("train", "test") if self.split == "official" else ()
        lists = [self.place / f"{domain}_{part}.txt" for domain in self.domains for part in parts]
        return self.absent([*(self.place / domain for domain in self.domains), *lists])

    @override
    def lists(self, train: bool) -> list[FileList]:
        if self.split == "official":
            part = "train" if train else "test"
            return [read_list(self.place / f"{domain}_{part}.txt", self.place) for domain in self.domains]
        return [self._cut(domain, train) for domain in self.domains]

    @override
    def files(self, paths: Sequence[str], targets: Tensor) -> ImageFiles:
        return image_files(paths, targets, self.input_shape[1])

    def _cut(self, domain: str, train: bool) -> FileList:
        from sklearn.model_selection import train_test_split

        classes = expect_classes(self.place / self.domains[0], self.num_classes)
        if (found := expect_classes(self.place / domain, self.num_classes)) != classes:
            others = sorted({*found} ^ {*classes})[:4]
            raise ValueError(f"{self.domains[0]} and {domain} must have the same classes, and differ in {others}.")
        paths, labels = scan(self.place / domain, classes)
        kept, held_out = train_test_split(range(len(paths)), test_size=0.2, random_state=1)
        chosen = kept if train else held_out
        return [paths[i] for i in chosen], labels[torch.tensor(chosen)]
