"""Streams of image files that lists divide into experiences: CORe50, CLEAR, DomainNet, i-Blurry."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from lightning_cl.samples import ImageFiles, Samples, TensorData, center_crop
from lightning_cl.scenarios import DomainStream
from lightning_cl.sources.base import Source
from lightning_cl.sources.image_folder import SMALL, decode_all, image_shape

FileList = tuple[Sequence[str], Tensor]
"""The paths of an experience's samples in the order of its list, and their labels ``(n,)``."""


class ListedSource(Source):
    """Image files that lists divide into experiences; nothing of it is downloaded.

    A concrete source states the class attributes and implements :meth:`missing` and :meth:`lists`. Mean and standard
    deviation are those of ImageNet unless it states others.

    Args:
        root: Folder of the data: the one that holds ``folder``, or ``folder`` itself.
        folder: Usual name of the folder of this data set.
        image_size: Height and width. Up to 64 the images are read once and kept in memory; larger ones are read one by
            one.

    Raises:
        ValueError: If ``image_size`` is not positive.
    """

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __init__(self, root: str, folder: str, image_size: int) -> None:
        super().__init__(root)
        self.folder = folder
        self.input_shape = image_shape(image_size)
        self.parts: dict[bool, list[Tensor]] = {}
        """The samples of each experience among those that :meth:`load` gave to train (``True``) and to test."""

    @abstractmethod
    def lists(self, train: bool) -> list[FileList]:
        """Read the lists of all experiences.

        Raises:
            ValueError: If a list is damaged or not of the published layout, or a file that it names is not there.
        """

    @property
    def place(self) -> Path:
        """Where the files are."""
        inner = self.root / self.folder
        return inner if inner.is_dir() else self.root

    def absent(self, paths: Iterable[Path]) -> list[str]:
        """Those of some files and folders that do not exist, for :meth:`missing`."""
        lost = [path for path in paths if not path.exists()]
        return [str(path.relative_to(self.root) if path.is_relative_to(self.root) else path) for path in lost]

    @override
    def load(self, train: bool) -> Samples:
        lists = self.lists(train)
        if empty := [experience for experience, (paths, _) in enumerate(lists) if not paths]:
            raise ValueError(f"{self.name}: the lists of experiences {empty} name no file. Get them again.")
        distinct = {id(one): one for one in lists}  # several experiences may share one
        labels = torch.cat([labels for _, labels in distinct.values()])
        listed = np.concatenate([paths for paths, _ in distinct.values()])
        paths, position = np.unique(listed, return_inverse=True)  # sorted: one cache serves every order of a data set
        at = torch.from_numpy(position)
        targets = torch.empty(len(paths), dtype=torch.long).scatter_(0, at, labels)
        if len(two := (targets[at] != labels).nonzero()):
            raise ValueError(f"{self.name}: the lists give {str(listed[two[0, 0]])!r} two labels. Get them again.")
        parts = torch.split(at, [len(part) for part, _ in distinct.values()])
        of_list = dict(zip(distinct, parts, strict=True))
        self.parts[train] = [of_list[id(one)] for one in lists]
        size, files = self.input_shape[1], paths.tolist()
        return TensorData(decode_all(files, size, self.place), targets) if size <= SMALL else self.files(files, targets)

    def files(self, paths: Sequence[str], targets: Tensor) -> ImageFiles:
        """Samples that are read one by one."""
        return ImageFiles(paths, targets, center_crop(self.input_shape[1]))


class ListedStream(DomainStream):
    """A stream in which each experience has the files of its own list.

    Its classes are the labels of its training list, read when they are first asked for, so that a stream can be made
    without its files.

    Args:
        source: The data set.
        num_experiences: Number of its lists.
        **kwargs: As for :class:`lightning_cl.DomainStream`.
    """

    source: ListedSource

    def __init__(self, source: ListedSource, num_experiences: int, **kwargs: Any) -> None:
        super().__init__(source, num_experiences, None, **kwargs)  # the shape is not for the user to choose

    @override
    def domain(self, experience: int, data: Samples, train: bool) -> Samples:
        return data.subset(self.source.parts[train][experience])

    @cached_property
    @override
    def groups(self) -> list[tuple[int, ...]]:
        self.source.prepare()
        return [tuple(sorted({*labels.tolist()})) for _, labels in self.source.lists(train=True)]
