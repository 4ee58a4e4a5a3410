"""CLEAR: photographs of the years 2004 to 2014, in buckets by time."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from typing_extensions import override

from lightning_cl.listed import FileList, ListedSource
from lightning_cl.samples import ImageFiles
from lightning_cl.sources.image_folder import check_listed, read_list

CLASSES = {"clear10": 11, "clear100": 100}
"""Number of classes; clear10 has one for the background besides its ten."""


class CLEAR(ListedSource):
    """CLEAR (Lin et al., NeurIPS 2021 Datasets and Benchmarks).

    Args:
        root: Folder with ``train`` and ``test``, or with ``training_folder`` (the older release), or the one that holds
            it as ``clear10`` or ``clear100``.
        data_set: Which.
        protocol: ``"iid"`` or ``"streaming"``.
        split_seed: Which of the five splits of the older release, 0 to 4, for ``"iid"``; ``None`` is 0.
        buckets: Which, by number, in this order; ``None`` is 1 to 10.
        image_size: Height and width.

    Raises:
        ValueError: If an argument is out of its range.
    """

    name = "CLEAR"
    options = ("folder", "protocol", "split_seed", "buckets")
    remedy = (
        "Get clear10-train.zip and clear10-test.zip, or those of clear100, by way of clear-benchmark.github.io and "
        "unpack them there."
    )

    def __init__(
        self,
        root: str = "data",
        data_set: Literal["clear10", "clear100"] = "clear10",
        protocol: Literal["iid", "streaming"] = "iid",
        split_seed: int | None = None,
        buckets: Sequence[int] | None = None,
        image_size: int = 224,
    ) -> None:
        if data_set not in CLASSES:
            raise ValueError(f"`data_set` must be one of {list(CLASSES)}, got {data_set!r}.")
        if protocol not in ("iid", "streaming"):
            raise ValueError(f"`protocol` must be 'iid' or 'streaming', got {protocol!r}.")
        if split_seed is not None and (protocol == "streaming" or split_seed not in range(5)):
            raise ValueError(f"`split_seed` must be in [0, 4], and None for `protocol` 'streaming', got {split_seed}.")
        super().__init__(root, data_set, image_size)
        self.protocol = protocol
        self.split_seed = split_seed
        self.buckets = list(range(1, 11) if buckets is None else buckets)
        if len({*self.buckets}) < len(self.buckets) or len(self.buckets) < 1 + (protocol == "streaming"):
            raise ValueError(f"`buckets` must be numbers, each once, two or more to stream, got {self.buckets}.")
        self.num_classes = CLASSES[data_set]

    @property
    def num_experiences(self) -> int:
        """One for each bucket; of a streaming protocol, the last is for testing only."""
        return len(self.buckets) - (self.protocol == "streaming")

    @override
    def missing(self) -> list[str]:
        if self._older:
            parts = ("train", "test") if self.protocol == "iid" else ("all",)
            lists = [self._list(bucket, part) for bucket in self.buckets for part in parts]
            return self.absent([self.place / "class_names.txt", *lists])
        names = ("class_names.txt", "labeled_metadata.json")
        return self.absent([self.place / part / name for part in ("train", "test") for name in names])

    @override
    def lists(self, train: bool) -> list[FileList]:
        if self.protocol == "iid":
            return [self._bucket(bucket, "train" if train else "test") for bucket in self.buckets]
        return [self._bucket(bucket, "all") for bucket in (self.buckets[:-1] if train else self.buckets[1:])]

    @override
    def files(self, paths: Sequence[str], targets: Tensor) -> ImageFiles:
        from torchvision.transforms import v2

        size = self.input_shape[1]
        crops = [v2.Compose([v2.Resize(size), crop(size), v2.PILToTensor()]) for crop in (v2.CenterCrop, v2.RandomCrop)]
        return ImageFiles(paths, targets, *crops)

    @property
    def _older(self) -> bool:
        return (self.place / "training_folder").is_dir()

    def _bucket(self, bucket: int, part: str) -> FileList:
        if self._older:
            self._class_names(self.place)
            return read_list(self._list(bucket, part), self.place)
        if self.split_seed is not None:
            raise ValueError(
                f"`split_seed` is for the older release, and {str(self.place)!r} is the newer, which has one split: "
                "leave it out."
            )
        found = [self._labeled(bucket, self.place / name) for name in (("train", "test") if part == "all" else (part,))]
        return [path for paths, _ in found for path in paths], torch.cat([labels for _, labels in found])

    def _list(self, bucket: int, part: str) -> Path:
        """A list of the older release."""
        split = "filelists" if part == "all" else f"testset_ratio_0.3/split_{self.split_seed or 0}"
        return self.place / "training_folder" / split / str(bucket) / f"{part}.txt"

    def _labeled(self, bucket: int, folder: Path) -> FileList:
        """The images of a bucket in ``train`` or ``test`` of the newer release."""
        file = folder / "labeled_metadata.json"
        buckets = _read_json(file)
        if not isinstance(files := buckets.get(str(bucket)), dict):
            raise ValueError(f"`buckets` must be among those of {str(file)!r}, {[*buckets]}, got {bucket}.")
        paths: list[str] = []
        labels: list[int] = []
        for label, name in enumerate(self._class_names(folder)):
            if name in files:  # a class may have no image in a bucket
                images = _image_paths(folder / files[name])
                paths += [f"{folder}/{image}" for image in images]
                labels += [label] * len(images)
        check_listed(paths, file)
        return paths, torch.tensor(labels, dtype=torch.long)

    def _class_names(self, folder: Path) -> list[str]:
        file = folder / "class_names.txt"
        names = [line.strip() for line in file.read_text().splitlines() if line.strip()]
        if len(names) != self.num_classes:
            raise ValueError(
                f"{str(file)!r} should name the {self.num_classes} classes of {self.folder}, and names {len(names)}."
            )
        return names


def _image_paths(path: Path) -> list[str]:
    try:
        return [record["IMG_PATH"] for record in _read_json(path).values()]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{str(path)!r} should have an `IMG_PATH` for each image: get it again.") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{str(path)!r} is no JSON dictionary or incomplete ({error}): get it again.") from error
