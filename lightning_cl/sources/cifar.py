"""CIFAR-10 and CIFAR-100: colour images of 32x32 pixels, in pickles."""

import codecs
import pickle
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from typing_extensions import override

from lightning_cl.samples import TensorData
from lightning_cl.sources.base import Downloadable


class CIFARSource(Downloadable):
    """Images and labels in pickles of dictionaries, in ``root/<folder>``; ``root`` may also be that folder itself."""

    input_shape = (3, 32, 32)
    folder: ClassVar[str]
    """The published folder."""
    train_files: ClassVar[tuple[str, ...]]
    """The training files in it, whose samples follow each other."""
    test_file: ClassVar[str]
    """The test file in it."""
    key: str
    """The labels' key in the dictionary."""

    @override
    def missing(self) -> list[str]:
        paths = self._paths(train=True) + self._paths(train=False)
        return [str(path.relative_to(self.root)) for path in paths if not path.is_file()]

    @override
    def fetch(self, folder: Path) -> None:
        from torchvision import datasets

        getattr(datasets, type(self).__name__)(str(folder), download=True)

    @override
    def checksums(self) -> dict[str, str]:
        from torchvision import datasets

        published = getattr(datasets, type(self).__name__)
        return dict([*published.train_list, *published.test_list])

    @override
    def load(self, train: bool) -> TensorData:
        data, labels = zip(*[_read(self.verified(path), self.key) for path in self._paths(train)], strict=True)
        inputs = np.concatenate(data).reshape(-1, *self.input_shape)
        return TensorData(torch.from_numpy(inputs), torch.from_numpy(np.concatenate(labels)))

    def _paths(self, train: bool) -> list[Path]:
        inner = self.root / self.folder
        folder = self.root if self.root.name == self.folder and not inner.is_dir() else inner
        return [folder / name for name in (self.train_files if train else (self.test_file,))]


class CIFAR10(CIFARSource):
    """CIFAR-10 (Krizhevsky, technical report 2009): 10 classes, 5 000 images each to train and 1 000 to test.

    Images are ``(3, 32, 32)``, uint8. Mean and standard deviation are those that mammoth normalises with.
    """

    name = "CIFAR-10"
    num_classes = 10
    mean = (0.4914, 0.4822, 0.4465)
    std = (0.2470, 0.2435, 0.2615)
    folder = "cifar-10-batches-py"
    train_files = tuple(f"data_batch_{number}" for number in range(1, 6))
    test_file = "test_batch"
    key = "labels"
    remedy = "Unpack cifar-10-python.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html into `root`."


class CIFAR100(CIFARSource):
    """CIFAR-100 (Krizhevsky, technical report 2009): 100 classes, 500 images each to train and 100 to test.

    Images are ``(3, 32, 32)``, uint8. Mean and standard deviation are those that PyCIL and mammoth normalise with.

    Args:
        root: Folder of the data.
        download: Download missing files.
        labels: The 100 ``"fine"`` classes, or the 20 ``"coarse"`` ones, of five fine ones each.

    Raises:
        ValueError: If there are no such labels.
    """

    name = "CIFAR-100"
    options = ("labels",)
    num_classes = 100
    mean = (0.5071, 0.4867, 0.4408)
    std = (0.2675, 0.2565, 0.2761)
    folder = "cifar-100-python"
    train_files = ("train",)
    test_file = "test"
    remedy = "Unpack cifar-100-python.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html into `root`."

    def __init__(self, root: str = "data", download: bool = True, labels: Literal["fine", "coarse"] = "fine") -> None:
        if labels not in ("fine", "coarse"):
            raise ValueError(f"`labels` must be 'fine' or 'coarse', got {labels!r}.")
        super().__init__(root, download)
        self.labels = labels
        if labels == "coarse":
            self.num_classes = 20
        self.key = f"{labels}_labels"


class _ArraysOnly(pickle.Unpickler):
    """Makes NumPy arrays and plain values. A pickle may name any function to call, and these come from anywhere."""

    made_by: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy", "_reconstruct"): np.empty(0).__reduce__()[0],  # its module depends on NumPy's version
        ("numpy", "_frombuffer"): np.empty(0).__reduce_ex__(5)[0],
        ("_codecs", "encode"): codecs.encode,  # bytes, where Python 3 wrote them for Python 2
    }

    @override
    def find_class(self, module_name: str, global_name: str) -> Any:
        try:
            return self.made_by[module_name.split(".")[0], global_name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}") from None


def _read(path: Path, key: str) -> tuple[Any, Any]:
    """The images ``(N, 3072)`` and labels ``(N,)`` of one file; its keys are text, or bytes if Python 2 wrote them."""
    with path.open("rb") as file:
        try:
            content = _ArraysOnly(file, encoding="bytes").load()
            content = {name.decode() if isinstance(name, bytes) else name: value for name, value in content.items()}
            data, labels = content["data"], np.asarray(content[key])
            found = f"{data.dtype} {data.shape} and {labels.dtype} {labels.shape}"
        except Exception as error:  # from bytes that are no pickle anything may come
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(
                f"{str(path)!r} is no file of CIFAR with {key!r}, or damaged ({reason}): get it again."
            ) from error
    if data.dtype != np.uint8 or labels.dtype.kind not in "iu" or data.shape != (*labels.shape, 3072):
        raise ValueError(
            f"{str(path)!r} should hold 'data', uint8 (N, 3072), and N {key!r}, and holds {found}: get it again."
        )
    return data, labels
