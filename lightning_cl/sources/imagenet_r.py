"""ImageNet-R: renditions (paintings, toys, tattoos, ...) of 200 ImageNet classes."""

import hashlib
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor
from typing_extensions import override

from lightning_cl.samples import ImageFiles
from lightning_cl.sources.base import Downloadable
from lightning_cl.sources.image_folder import check_listed, expect_classes, find_folder, image_files, image_shape, scan
from lightning_cl.spelling import nearest
from lightning_cl.utilities import permutation

FIRST = "n01443537"
"""The first folder of the published images, by which they are recognised."""
Split = Literal["l2p", "pilot", "mammoth", "l2p_pytorch"]


class ImageNetR(Downloadable):
    """ImageNet-R (Hendrycks et al., ICCV 2021): 30 000 renditions of 200 ImageNet classes.

    The data set has no training part of its own: every code base cuts it in its own way, and figures on different
    splits cannot be compared. Images are read one by one and cropped as by LAMDA-PILOT. They are not normalised
    (mean 0, standard deviation 1), as in all four code bases.

    Args:
        root: Folder of the data: the published ``root/imagenet-r/<WordNet id>/*``, or that folder itself.
        download: Download missing images; lists and folders of others cannot be downloaded.
        split: Which images are for testing; always 24 000 to train and 6 000 to test. The default is LAMDA-PILOT's.

            - ``"pilot"``: LAMDA-PILOT's folders ``imagenet-r/{train,test}/<WordNet id>/*`` (or such as any other code
              has cut and stored).
            - ``"l2p"``: of L2P and DualPrompt: the first 80 % and last 20 % in the order of TensorFlow Datasets, which
              sorts by a hash of the names.
            - ``"mammoth"``: the lists ``imagenet-r_{train,test}.yaml`` of mammoth (and CODA-Prompt), in ``root`` or
              ``imagenet-r``. Labels are those of the lists, whose classes are in no particular order.
            - ``"l2p_pytorch"``: the random 80 % and 20 % that l2p-pytorch draws with its default seed 42.

            But for mammoth's, labels follow the WordNet ids in alphabetical order.
        image_size: Height and width.

    Raises:
        ValueError: If an argument is out of its range; the message names it.
    """

    name = "ImageNet-R"
    options = ("split",)
    num_classes = 200
    mean = (0.0, 0.0, 0.0)
    std = (1.0, 1.0, 1.0)
    remedy = (
        "Unpack https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar into `root`; for `split` 'pilot' the "
        "archive that LAMDA-PILOT's README links to; for 'mammoth' add the lists of its datasets/imagenet_r_utils."
    )

    def __init__(
        self, root: str = "data", download: bool = True, split: Split = "pilot", image_size: int = 224
    ) -> None:
        super().__init__(root, download)
        if split not in get_args(Split):
            raise ValueError(f"`split`: there is no split {split!r}. {nearest(split, get_args(Split))}")
        self.split = split
        self.input_shape = image_shape(image_size)

    @override
    def missing(self) -> list[str]:
        inside = ["train", "test"] if self.split == "pilot" else [FIRST]
        lists = [f"imagenet-r_{part}.yaml" for part in ("train", "test") if self.split == "mammoth"]
        gone = [f"imagenet-r/{name}" for name in inside if not (self._folder() / name).is_dir()]
        return gone + [name for name in lists if not self._list(name).is_file()]

    @override
    def fetch(self, folder: Path) -> None:
        from torchvision.datasets.utils import download_and_extract_archive

        if self.split == "pilot" or (self._folder() / FIRST).is_dir():
            raise RuntimeError("only the images can be downloaded")
        url = "https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar"
        download_and_extract_archive(url, str(folder), remove_finished=True)

    @override
    def load(self, train: bool) -> ImageFiles:
        match self.split:
            case "pilot":
                classes = expect_classes(self._folder() / "train", self.num_classes)
                paths, labels = scan(self._folder() / ("train" if train else "test"), classes)
            case "mammoth":
                paths, labels = self._listed(train)
            case _:
                paths, labels = self._cut(train)
        return image_files(paths, labels, self.input_shape[1])

    def _folder(self) -> Path:
        return find_folder(self.root, "imagenet-r", "train" if self.split == "pilot" else FIRST)

    def _cut(self, train: bool) -> tuple[list[str], Tensor]:
        """The first 80 % or the last 20 % of all images in an order of their own."""
        paths, labels = scan(self._folder(), expect_classes(self._folder(), self.num_classes))
        order = tfds_order(paths) if self.split == "l2p" else permutation(len(paths), 42)
        start = len(paths) * 4 // 5
        index = order[:start] if train else order[start:]
        return [paths[i] for i in index.tolist()], labels[index]

    def _list(self, name: str) -> Path:
        return self.root / name if (self.root / name).is_file() else self._folder() / name

    def _listed(self, train: bool) -> tuple[list[str], Tensor]:
        """The images in one of mammoth's lists; a path counts from its last folder on."""
        import yaml

        path = self._list(f"imagenet-r_{'train' if train else 'test'}.yaml")
        # the parser in C, where there is one: in Python 24 000 lines take several seconds
        content = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        match content:
            case {"data": [*names], "targets": [*labels]} if len(names) == len(labels):
                paths = [str(self._folder().joinpath(*name.split("/")[-2:])) for name in names]
                check_listed(paths, path)
                return paths, torch.tensor(labels)
        raise ValueError(f"{str(path)!r} should hold `data` and `targets` of one length: get it again.")


def tfds_order(paths: list[str]) -> Tensor:
    """The order in which TensorFlow Datasets stores the images: by the MD5 of the split ``test`` and a key.

    The key is ``<WordNet id>_<name>``, as in its builder ``imagenet_r`` 0.2.0.

    Args:
        paths: The files, ``.../<WordNet id>/<name>``.

    Returns:
        A permutation ``(N,)``.

    Example:
        >>> tfds_order([f"n01443537/art_{k}.jpg" for k in range(5)])
        tensor([0, 1, 4, 2, 3])
    """
    keys = ["_".join(Path(path).parts[-2:]) for path in paths]
    hashes = [hashlib.md5(f"test{key}".encode(), usedforsecurity=False).digest() for key in keys]
    return torch.tensor(sorted(range(len(paths)), key=hashes.__getitem__))
