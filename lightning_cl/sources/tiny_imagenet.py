"""Tiny ImageNet: colour images of 64x64 pixels in 200 classes."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from lightning_cl.samples import TensorData
from lightning_cl.sources.base import Downloadable
from lightning_cl.sources.image_folder import check_listed, decode_all, find_folder, scan


class TinyImageNet(Downloadable):
    """Tiny ImageNet (Le & Yang, CS 231N 2015): 200 classes, 500 images each to train and 50 to test.

    Images are ``(3, 64, 64)``, uint8, decoded once and kept in memory. One tests on the published validation images:
    the published test images have no labels.

    Labels follow ``wnids.txt``, as in mammoth. Code that scans folders with torchvision's ``ImageFolder`` numbers the
    classes in alphabetical order instead, so that the same class order gives other experiences there.

    The files are the published ones, in ``root/tiny-imagenet-200`` or ``root`` itself; or mammoth's
    ``{x,y}_{train,val}_{01..20}.npy`` in ``root/processed`` or ``root/TINYIMG/processed``, whose values in ``[0, 1]``
    are rounded to pixels.

    Mean and standard deviation are those that mammoth normalises with.
    """

    name = "Tiny ImageNet"
    num_classes = 200
    input_shape = (3, 64, 64)
    mean = (0.4802, 0.4480, 0.3975)
    std = (0.2770, 0.2691, 0.2821)
    remedy = "Unpack http://cs231n.stanford.edu/tiny-imagenet-200.zip into `root`."

    @override
    def missing(self) -> list[str]:
        if processed := self._processed():
            pairs = [*_processed_files(processed, train=True), *_processed_files(processed, train=False)]
            return [str(path.relative_to(self.root)) for pair in pairs for path in pair if not path.is_file()]
        names = ("wnids.txt", "train", "val/images", "val/val_annotations.txt")
        return [f"tiny-imagenet-200/{name}" for name in names if not (self._folder() / name).exists()]

    @override
    def fetch(self, folder: Path) -> None:
        from torchvision.datasets.utils import download_and_extract_archive

        url, md5 = "http://cs231n.stanford.edu/tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de"
        download_and_extract_archive(url, str(folder), md5=md5, remove_finished=True)

    @override
    def load(self, train: bool) -> TensorData:
        if processed := self._processed():
            images, labels = zip(*[_read_processed(*pair) for pair in _processed_files(processed, train)], strict=True)
            return TensorData(torch.cat(images), torch.cat(labels))
        folder = self._folder()
        wnids = (folder / "wnids.txt").read_text().split()
        if (count := len({*wnids})) != self.num_classes:
            path = str(folder / "wnids.txt")
            raise ValueError(f"{path!r} should name {self.num_classes} classes and names {count}: get it again.")
        paths, targets = scan(folder / "train", wnids) if train else _annotated(folder / "val", wnids)
        counts = targets.bincount(minlength=self.num_classes)
        if train and (few := (counts < counts.max()).nonzero().flatten().tolist()):
            raise ValueError(
                f"{str(folder / 'train')!r} should hold equally many images of each class, and holds {counts[few[0]]} "
                f"of {wnids[few[0]]!r} and {counts.max()} of others: get it again."
            )
        return TensorData(decode_all(paths, 64, folder), targets)

    def _folder(self) -> Path:
        return find_folder(self.root, "tiny-imagenet-200", "wnids.txt")

    def _processed(self) -> Path | None:
        """The folder of mammoth's files, if the published ones are not there."""
        folders = [self.root / "processed", self.root / "TINYIMG" / "processed"]
        here = [folder for folder in folders if folder.is_dir() and not (self._folder() / "wnids.txt").exists()]
        return here[0] if here else None


def _annotated(folder: Path, wnids: list[str]) -> tuple[list[str], Tensor]:
    """The images that ``val_annotations.txt`` lists: a name, a class and a box, with tabs between."""
    path = folder / "val_annotations.txt"
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    paths, labels = [], []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        name, wnid = [*line.split("\t"), ""][:2]
        if wnid not in label_of:
            raise ValueError(f"{str(path)!r}, line {number}, should name an image and its class, and is {line!r}.")
        paths.append(str(folder / "images" / name))
        labels.append(label_of[wnid])
    check_listed(paths, path)
    return paths, torch.tensor(labels)


def _processed_files(folder: Path, train: bool) -> list[tuple[Path, Path]]:
    part = "train" if train else "val"
    return [(folder / f"x_{part}_{k:02d}.npy", folder / f"y_{part}_{k:02d}.npy") for k in range(1, 21)]


def _read_processed(images: Path, labels: Path) -> tuple[Tensor, Tensor]:
    """One of mammoth's pieces: images ``(n, 64, 64, 3)`` in ``[0, 1]``, and labels ``(n,)``."""
    try:
        x, y = np.load(images), np.load(labels)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{str(images)!r} or its labels are damaged ({error}): get them again.") from error
    if x.shape != (len(y), 64, 64, 3) or x.dtype.kind != "f":
        raise ValueError(
            f"{str(images)!r} should hold {len(y)} images (64, 64, 3) in [0, 1], and holds {x.dtype} {x.shape}."
        )
    pixels = torch.from_numpy((x * 255).round().astype(np.uint8))
    return pixels.permute(0, 3, 1, 2).contiguous(), torch.from_numpy(y).long()
