"""SVHN: colour images of house numbers, in MATLAB files."""

from pathlib import Path

import numpy as np
import torch
from typing_extensions import override

from lightning_cl.samples import TensorData
from lightning_cl.sources.base import Downloadable


class SVHN(Downloadable):
    """Street View House Numbers (Netzer et al., NIPS workshop 2011), cropped digits: 73 257 to train, 26 032 to test.

    Images are ``(3, 32, 32)``, uint8. The files give the digit 0 the label 10; here it is 0. Mean and standard
    deviation are the widely published ones of the training set. The files ``train_32x32.mat`` and ``test_32x32.mat``
    lie in ``root``, where torchvision puts them; they are read by SciPy, which comes with scikit-learn.
    """

    name = "SVHN"
    num_classes = 10
    input_shape = (3, 32, 32)
    mean = (0.4377, 0.4438, 0.4728)
    std = (0.1980, 0.2010, 0.1970)
    remedy = "Put both files of http://ufldl.stanford.edu/housenumbers, format 2 (cropped digits), into `root`."

    @override
    def missing(self) -> list[str]:
        return [path.name for path in map(self._path, (True, False)) if not path.is_file()]

    @override
    def fetch(self, folder: Path) -> None:
        from torchvision.datasets import SVHN

        for split in ("train", "test"):
            SVHN(str(folder), split=split, download=True)

    @override
    def checksums(self) -> dict[str, str]:
        from torchvision.datasets import SVHN

        return {name: md5 for _, name, md5 in SVHN.split_list.values()}

    @override
    def load(self, train: bool) -> TensorData:
        from scipy.io import loadmat

        with (path := self.verified(self._path(train))).open("rb") as file:
            try:
                content = loadmat(file, variable_names=["X", "y"])
                images, labels = content["X"], content["y"].astype(np.int64).ravel()
            except Exception as error:  # from bytes that are no such file anything may come
                reason = f"{type(error).__name__}: {error}"
                raise ValueError(f"{str(path)!r} is no file of SVHN, or damaged ({reason}): get it again.") from error
        if images.dtype != np.uint8 or images.shape != (32, 32, 3, *labels.shape):
            raise ValueError(
                f"{str(path)!r} should hold 'X', uint8 (32, 32, 3, N), and N labels 'y', and holds {images.dtype} "
                f"{images.shape} and {labels.shape}: get it again."
            )
        inputs = np.ascontiguousarray(images.transpose(3, 2, 0, 1))
        return TensorData(torch.from_numpy(inputs), torch.from_numpy(np.where(labels == 10, 0, labels)))

    def _path(self, train: bool) -> Path:
        return self.root / f"{'train' if train else 'test'}_32x32.mat"
