"""Split Fashion-MNIST: 70 000 images of clothes, 28x28 pixels, cut by class."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from typing_extensions import override

from lightning_cl.stream import ClassStream


class SplitFashionMNIST(ClassStream):
    """Fashion-MNIST (Xiao et al., 2017) in experiences of new classes.

    Images are ``(1, 28, 28)``, uint8, 60 000 to train and 10 000 to test. The default mean and standard deviation are
    those of the training set.

    Args:
        root: Folder of the data: either one that torchvision uses (``root/FashionMNIST/raw``; downloaded there if
            missing), or the folder of the four IDX files themselves, plain or gzip (Debian's package
            dataset-fashion-mnist puts them into ``/usr/share/datasets/fashion-mnist``).
        num_experiences: Length of the stream; divides the 10 classes.
        class_order: Permutation of 0 to 9; ``None`` is the numeric order.
        download: Let torchvision download missing files.
        mean: Mean that is subtracted from pixels in ``[0, 1]``.
        std: Standard deviation that is divided by.
        **kwargs: As for :class:`lightning_cl.StreamDataModule`.

    Raises:
        FileNotFoundError: If files are missing and ``download`` is off, or the download failed.
    """

    def __init__(
        self,
        root: str = "data",
        num_experiences: int = 5,
        class_order: Sequence[int] | None = None,
        download: bool = True,
        mean: Sequence[float] = (0.2860,),
        std: Sequence[float] = (0.3530,),
        **kwargs: Any,
    ) -> None:
        super().__init__(10, (1, 28, 28), num_experiences, class_order, mean=mean, std=std, **kwargs)
        self.root = root
        self.download = download

    @override
    def prepare_data(self) -> None:
        if self._files(train=True) is None or self._files(train=False) is None:
            self._download()

    @override
    def load(self, train: bool) -> tuple[Tensor, Tensor]:
        from lightning_cl.idx import read_idx

        files = self._files(train)
        if files is None:
            self._download()
            files = self._files(train)
            assert files is not None
        images, labels = map(read_idx, files)
        return images.unsqueeze(1), labels.long()

    def _files(self, train: bool) -> tuple[Path, Path] | None:
        """The images and labels, where they lie: in ``root`` itself or in torchvision's folder under it."""
        part = "train" if train else "t10k"
        for folder in self._folders():
            images, labels = (
                [path for ending in ("", ".gz") if (path := folder / f"{part}-{kind}-ubyte{ending}").is_file()]
                for kind in ("images-idx3", "labels-idx1")
            )
            if images and labels:
                return images[0], labels[0]
        return None

    def _folders(self) -> tuple[Path, Path]:
        root = Path(self.root).expanduser()  # as torchvision does
        return root, root / "FashionMNIST" / "raw"

    def _download(self) -> None:
        why = "`download` is off"
        if self.download:
            from torchvision.datasets import FashionMNIST  # type: ignore[import-untyped]

            try:
                FashionMNIST(self.root, download=True)
                return
            except Exception as error:
                why = (
                    f"the download failed ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
                )
        raise FileNotFoundError(
            "Fashion-MNIST is missing: looked for {train,t10k}-images-idx3-ubyte and -labels-idx1-ubyte, plain or .gz, "
            f"in `root` {self.root!r} and in {str(self._folders()[1])!r}, and {why}. Put the four files there, or "
            "install Debian's package dataset-fashion-mnist and set `root` to its folder "
            "/usr/share/datasets/fashion-mnist."
        )
