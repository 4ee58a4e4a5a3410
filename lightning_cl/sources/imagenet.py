"""ImageNet (ILSVRC 2012), whole or one of the subsets of 100 classes."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_cl.samples import ImageFiles
from lightning_cl.sources.base import Source
from lightning_cl.sources.image_folder import expect_classes, find_folder, image_files, image_shape, read_list, scan
from lightning_cl.spelling import nearest
from lightning_cl.splits import class_order

SUBSETS = ("pycil", "podnet", "as_is")
"""Names of what :class:`ImageNet` calls a subset."""


class ImageNet(Source):
    """ImageNet (Deng et al., CVPR 2009; Russakovsky et al., IJCV 2015): 1 000 classes, tested on its validation images.

    Images are read one by one; to train a random part of at least 8 % is cropped and perhaps mirrored, to test the
    middle, as by PyCIL. Mean and standard deviation are the usual ones.

    The files are ``{train,val}/<WordNet id>/*`` in ``root`` or ``root/imagenet``, and labels follow the WordNet ids in
    alphabetical order; or, as for FACIL, ``train.txt`` and ``test.txt`` there with lines of a path (relative to the
    lists) and a label. If both are there the lists count.

    Args:
        root: Folder of the data.
        download: Changes the message about missing files only: ImageNet has to be asked for.
        subset: Which classes. Figures on different subsets cannot be compared.

            - ``None``: all 1 000.
            - ``"pycil"``: the first 100 of the seed-1993 order of all (iCaRL's and LUCIR's ImageNet-Subset; FOSTER,
              PyCIL).
            - ``"podnet"``: the first 100 in alphabetical order (BiC, PODNet, DER of Yan et al.).
            - ``"as_is"``: the 100 classes that are there, of a folder or of lists that somebody has cut.
            - a file with a WordNet id at the start of each line.

            The chosen classes are numbered anew, in alphabetical order, as if the others were not there.
        image_size: Height and width.

    Raises:
        ValueError: If an argument is out of its range; the message names it.
    """

    name = "ImageNet"
    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)
    remedy = "Get ILSVRC 2012 from https://www.image-net.org and sort its validation images into folders as well."

    def __init__(
        self, root: str = "data", download: bool = True, subset: str | None = None, image_size: int = 224
    ) -> None:
        super().__init__(root, download)
        self.subset = subset
        self.wnids = None if subset is None or subset in SUBSETS else _read_wnids(Path(subset).expanduser())
        self.num_classes = 1000 if subset is None else 100 if self.wnids is None else len(self.wnids)
        self.input_shape = image_shape(image_size)

    @override
    def shape(self) -> dict[str, Any]:
        return {**super().shape(), "subset": self.wnids or self.subset}  # a file with the classes may move

    @override
    def missing(self) -> list[str]:
        return [] if self._lists() else [name for name in ("train", "val") if not (self._folder() / name).is_dir()]

    @override
    def load(self, train: bool) -> ImageFiles:
        paths, labels = self._listed(train) if self._lists() else self._scanned(train)
        return image_files(paths, labels, self.input_shape[1], scale=(0.08, 1.0))

    def _folder(self) -> Path:
        return find_folder(self.root, "imagenet", "train")

    def _lists(self) -> list[Path]:
        """The lists of training and test images, if both are there."""
        for folder in (self.root, self.root / "imagenet"):
            lists = [folder / "train.txt", folder / "test.txt"]
            if all(path.is_file() for path in lists):
                return lists
        return []

    def _scanned(self, train: bool) -> tuple[list[str], Tensor]:
        folder, names = self._folder(), self.wnids
        if names is None:
            names = expect_classes(folder / "train", 100 if self.subset == "as_is" else 1000)
        if self.subset in ("pycil", "podnet"):
            names = [names[c] for c in subset_classes(self.subset)]
        return scan(folder / ("train" if train else "val"), names)

    def _listed(self, train: bool) -> tuple[list[str], Tensor]:
        path = self._lists()[not train]
        paths, labels = read_list(path, path.parent)
        if self.wnids is not None:
            raise ValueError(f"`subset` {self.subset!r} names WordNet ids, and {str(path)!r} has only numbers.")
        if self.subset not in ("pycil", "podnet"):
            return paths, labels
        if (count := int(labels.max()) + 1) != 1000:
            raise ValueError(
                f"`subset` {self.subset!r} chooses among 1000 classes, and {str(path)!r} lists {count}: "
                "set `subset` to 'as_is'."
            )
        classes = torch.tensor(subset_classes(self.subset))
        chosen = torch.isin(labels, classes).nonzero().flatten()
        return [paths[i] for i in chosen.tolist()], torch.searchsorted(classes, labels[chosen])


def subset_classes(subset: str) -> list[int]:
    """The 100 classes of ``"pycil"`` or ``"podnet"`` among the 1 000 in alphabetical order, ascending.

    Example:
        >>> subset_classes("pycil")[:9]
        [7, 11, 14, 44, 54, 62, 75, 77, 85]
    """
    return sorted(class_order(1000, 1993 if subset == "pycil" else None)[:100])


def _read_wnids(path: Path) -> list[str]:
    if not path.is_file():
        raise ValueError(
            f"`subset` must be one of {', '.join(map(repr, SUBSETS))} or a file of WordNet ids, and there is no file "
            f"{str(path)!r}. {nearest(str(path), SUBSETS)}"
        )
    wnids = sorted({line.split()[0] for line in path.read_text().splitlines() if line.strip()})
    if not wnids:
        raise ValueError(f"`subset` must name a file with a WordNet id a line, and {str(path)!r} is empty.")
    return wnids
