"""CUB-200-2011: photographs of birds of 200 species."""

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from typing_extensions import override

from lightning_cl.samples import ImageFiles
from lightning_cl.sources.base import Downloadable
from lightning_cl.sources.image_folder import check_listed, expect_classes, find_folder, image_files, image_shape, scan

LISTS = ("images.txt", "image_class_labels.txt", "train_test_split.txt")


class CUB200(Downloadable):
    """CUB-200-2011 (Wah et al., technical report 2011): 200 species of birds, 11 788 photographs.

    Images are read one by one and cropped as by LAMDA-PILOT. Labels follow the numbers of the species. Mean and
    standard deviation are those that mammoth normalises with; LAMDA-PILOT does not normalise (mean 0, deviation 1).

    Args:
        root: Folder of the data.
        download: Download missing files; only those of the official split can be.
        split: Which images are for testing. Figures on different splits cannot be compared.

            - ``"official"``: the published files in ``root/CUB_200_2011``; 5 994 to train, 5 794 to test.
            - ``"pilot"``: LAMDA-PILOT's ``root/cub/{train,test}/<class>/*``; 9 430 to train, 2 358 to test.
        image_size: Height and width.

    Raises:
        ValueError: If an argument is out of its range; the message names it.
    """

    name = "CUB-200-2011"
    options = ("split",)
    num_classes = 200
    mean = (0.4856, 0.4994, 0.4324)
    std = (0.2272, 0.2226, 0.2613)
    remedy = (
        "For the split 'official' unpack CUB_200_2011.tgz from https://data.caltech.edu/records/65de6-vp158 into "
        "`root`; for 'pilot' the archive that the README of LAMDA-PILOT links to."
    )

    def __init__(
        self,
        root: str = "data",
        download: bool = True,
        split: Literal["official", "pilot"] = "official",
        image_size: int = 224,
    ) -> None:
        super().__init__(root, download)
        if split not in ("official", "pilot"):
            raise ValueError(f"`split` must be 'official' or 'pilot', got {split!r}.")
        self.split = split
        self.input_shape = image_shape(image_size)

    @override
    def missing(self) -> list[str]:
        name, parts = ("cub", ("train", "test")) if self.split == "pilot" else ("CUB_200_2011", (*LISTS, "images"))
        return [f"{name}/{part}" for part in parts if not (self._folder() / part).exists()]

    @override
    def fetch(self, folder: Path) -> None:
        from torchvision.datasets.utils import download_and_extract_archive

        if self.split == "pilot":
            raise RuntimeError("the split 'pilot' can only be had by hand")
        url = "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz"
        download_and_extract_archive(url, str(folder), md5="97eceeb196236b17998738112f37df78", remove_finished=True)

    @override
    def load(self, train: bool) -> ImageFiles:
        if self.split == "official":
            paths, labels = _listed(self._folder(), train)
        else:
            classes = expect_classes(self._folder() / "train", self.num_classes)
            paths, labels = scan(self._folder() / ("train" if train else "test"), classes)
        return image_files(paths, labels, self.input_shape[1])

    def _folder(self) -> Path:
        if self.split == "pilot":
            return find_folder(self.root, "cub", "train")
        return find_folder(self.root, "CUB_200_2011", LISTS[0])


def _listed(folder: Path, train: bool) -> tuple[list[str], Tensor]:
    """The images of the training or test part, by the three lists."""
    names, species, in_train = (_column(folder / name) for name in LISTS)
    if not names.keys() == species.keys() == in_train.keys():
        raise ValueError(f"The lists {', '.join(LISTS)} in {str(folder)!r} are not of the same images: get them again.")
    chosen = [i for i in names if in_train[i] == str(int(train))]
    paths = [str(folder / "images" / names[i]) for i in chosen]
    check_listed(paths, folder / LISTS[0])
    return paths, torch.tensor([int(species[i]) - 1 for i in chosen])


def _column(path: Path) -> dict[str, str]:
    """The second column of a list by the first, the number of the image."""
    lines = [line.split() for line in path.read_text().splitlines()]
    if wrong := [number for number, line in enumerate(lines, start=1) if len(line) != 2]:
        raise ValueError(f"{str(path)!r} should hold two columns, and line {wrong[0]} does not: get it again.")
    return {line[0]: line[1] for line in lines}
