"""MNIST and the data sets in its form: grey images of 28x28 pixels, in IDX files."""

from pathlib import Path
from typing import ClassVar, Literal, get_args

from typing_extensions import override

from lightning_cl.idx import read_idx
from lightning_cl.samples import TensorData
from lightning_cl.sources.base import Downloadable

EMNISTSplit = Literal["balanced", "byclass", "bymerge", "letters", "digits", "mnist"]
"""The six cuts that the authors of EMNIST publish."""

FIRST_TEST_LABELS = {
    (7, 2, 1, 0, 4, 1, 4, 9, 5, 9): "MNIST",
    (9, 2, 1, 1, 6, 1, 4, 6, 5, 7): "Fashion-MNIST",
}
"""By what data sets are told apart whose files have the same names."""

_PLACES = "Put its four IDX files, plain or .gz, into {}/raw under `root`, or set `root` to their folder"


class IDXSource(Downloadable):
    """Images and labels to train and to test in four IDX files, each plain or gzip.

    All four lie in ``root/<folder>/raw``, where torchvision puts them, or in ``root`` itself. MNIST, Fashion-MNIST and
    KMNIST name theirs alike, so ``root/<folder>/raw`` comes first.
    """

    input_shape = (1, 28, 28)
    folder: ClassVar[str]
    """The folder under ``root``, which is called like torchvision's class."""

    def part(self, train: bool) -> str:
        """How the names of the training or the test files begin."""
        return "train" if train else "t10k"

    @override
    def missing(self) -> list[str]:
        return [str(path.relative_to(self.root)) for path in self._lacking(self.place())]

    @override
    def fetch(self, folder: Path) -> None:
        from torchvision import datasets

        getattr(datasets, self.folder)(str(folder), download=True)

    @override
    def load(self, train: bool) -> TensorData:
        paths = [_plain_or_zipped(path) for path in self._files(self.place(), train)]
        images, labels = map(read_idx, paths)
        if images.shape != (*labels.shape, 28, 28):
            raise ValueError(
                f"{str(paths[0])!r} should hold an image of 28x28 pixels for each label in {paths[1].name!r}: its "
                f"shape is {list(images.shape)}, and theirs {list(labels.shape)}. Get both again."
            )
        found = FIRST_TEST_LABELS.get(tuple(labels[:10].tolist()), self.name)
        if self.part(train) == "t10k" and found != self.name:
            raise ValueError(f"{str(paths[1])!r} holds {found}, not {self.name}: set `root` to another folder.")
        return TensorData(images.unsqueeze(1), labels)

    def place(self) -> Path:
        """The folder of the files; where none has all, the one that lacks the fewest."""
        return min((self.root / self.folder / "raw", self.root), key=lambda folder: len(self._lacking(folder)))

    def _lacking(self, folder: Path) -> list[Path]:
        files = self._files(folder, train=True) + self._files(folder, train=False)
        return [path for path in files if not _plain_or_zipped(path).is_file()]

    def _files(self, folder: Path, train: bool) -> list[Path]:
        return [folder / f"{self.part(train)}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1")]


class MNIST(IDXSource):
    """MNIST (LeCun et al., Proceedings of the IEEE 1998): 10 digits, 60 000 images to train and 10 000 to test.

    Images are ``(1, 28, 28)``, uint8. Mean and standard deviation are the widely published ones of the training set.
    """

    name = folder = "MNIST"
    num_classes = 10
    mean = (0.1307,)
    std = (0.3081,)
    remedy = f"{_PLACES.format(folder)}."


class FashionMNIST(IDXSource):
    """Fashion-MNIST (Xiao et al., arXiv 2017): 10 kinds of clothes in the form of :class:`MNIST`."""

    name = "Fashion-MNIST"
    folder = "FashionMNIST"
    num_classes = 10
    mean = (0.2860,)
    std = (0.3530,)
    remedy = (
        f"{_PLACES.format(folder)}; Debian's package dataset-fashion-mnist has them in "
        "/usr/share/datasets/fashion-mnist."
    )


class KMNIST(IDXSource):
    """Kuzushiji-MNIST (Clanuwat et al., arXiv 2018): 10 hiragana in cursive writing, in the form of :class:`MNIST`."""

    name = folder = "KMNIST"
    num_classes = 10
    mean = (0.1918,)
    std = (0.3483,)
    remedy = f"{_PLACES.format(folder)}; its authors' code base is rois-codh/kmnist."


class EMNIST(IDXSource):
    """EMNIST (Cohen et al., IJCNN 2017): handwritten digits and letters, cut in one of six ways.

    Images are ``(1, 28, 28)``, uint8, and upright: the files hold them transposed, and torchvision leaves them so. Mean
    and standard deviation are those widely used for ``"balanced"``; of the other cuts the third digit is another.

    Args:
        root: Folder of the data.
        download: Download missing files: those of all six cuts.
        split: ``"balanced"`` has 47 classes (2 400 images each to train, 400 to test): digits, capitals, and those
            small letters that look unlike theirs. ``"bymerge"`` has the same classes, ``"byclass"`` all 62, both as
            often as they were written (697 932 and 116 323). ``"letters"`` has 26, whose labels in the files, 1 to 26,
            become 0 to 25 (124 800 and 20 800). ``"digits"`` (240 000 and 40 000) and ``"mnist"`` (60 000 and 10 000)
            have 10.

    Raises:
        ValueError: If there is no such split.
    """

    name = folder = "EMNIST"
    options = ("split",)
    mean = (0.1751,)
    std = (0.3332,)
    remedy = f"{_PLACES.format(folder)}; they are in the archive gzip.zip of NIST's page of the EMNIST data set."

    def __init__(self, root: str = "data", download: bool = True, split: EMNISTSplit = "balanced") -> None:
        if split not in get_args(EMNISTSplit):
            raise ValueError(f"`split` must be one of {list(get_args(EMNISTSplit))}, got {split!r}.")
        super().__init__(root, download)
        self.split = split
        self.num_classes = {"balanced": 47, "bymerge": 47, "byclass": 62, "letters": 26}.get(split, 10)

    @override
    def part(self, train: bool) -> str:
        return f"emnist-{self.split}-{'train' if train else 'test'}"

    @override
    def fetch(self, folder: Path) -> None:
        from torchvision.datasets import EMNIST

        EMNIST(str(folder), split=self.split, download=True)

    @override
    def load(self, train: bool) -> TensorData:
        data = super().load(train)
        first = 1 if self.split == "letters" else 0
        return TensorData(data.inputs.transpose(2, 3).contiguous(), data.labels - first)


def _plain_or_zipped(path: Path) -> Path:
    return path if path.is_file() else path.with_name(f"{path.name}.gz")
