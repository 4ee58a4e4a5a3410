"""Several data sets one after another, each with its own classes, in the spirit of NEVIS'22."""

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from torch import Tensor
from torch.utils.data import Dataset
from typing_extensions import override

from lightning_cl.nevis22 import CLASSES, Variant
from lightning_cl.nevis22 import data_sets as named_stream
from lightning_cl.samples import ImageFiles, Samples, TensorData, center_crop, check_samples
from lightning_cl.sources import SOURCES, make_source
from lightning_cl.sources.base import Downloadable, Source
from lightning_cl.sources.image_folder import ImageFolder
from lightning_cl.sources.mnist import IDXSource
from lightning_cl.spelling import nearest
from lightning_cl.stream import StreamDataModule


class NevisStream(StreamDataModule):
    """Data sets one after another, each an experience with classes of its own, as in NEVIS'22.

    After Bornschein et al., "NEVIS'22: A stream of 100 tasks sampled from 30 years of computer vision research",
    JMLR 2023, whose streams are there by name. The labels of the data sets are shifted so that none is shared, and it
    is known which data set a sample comes from (``task_labels``, which makes ``fit_stream`` score within the data set).

    A data set that comes again is learned again, with the same samples and labels and the task label of the first time:
    what is predicted for it is what the latest state of the model predicts.

    Images of all data sets become ``uint8`` ``(channels, image_size, image_size)``. Those in memory, such as MNIST's,
    keep their own size there, and each batch is resized; those in files are resized so that they cover the square, and
    the middle is cut out.

    A name is that of a source (:data:`lightning_cl.sources.SOURCES`; case, blanks and punctuation do not count:
    ``"CIFAR 10"`` is ``cifar10``), else of a folder in ``root`` with ``train/<class>/*`` and ``test/<class>/*``, in
    lower case with underscores: ``"Caltech cars, motorbikes"`` is ``caltech_cars_motorbikes``.

    Other than in NEVIS'22: it is tested on the test images, not on those that NEVIS'22 holds back as ``dev_test`` while
    a method is developed, and with ``val_fraction=0.15`` a part like its ``dev`` is held out for validation. Its
    multi-label data sets (Pascal 2007 and 2012, CelebA, VOC Actions, SUN Attribute, IAPRTC-12, AWA2, BIWI, NIH Chest
    X-ray) have one label for each image here, that of the folder. There is no search over hyperparameters.

    Args:
        root: Folder of the data.
        data_sets: Names of the data sets in order; or ``"full"`` (106), ``"short"`` (29), ``"tiny"`` (7) or ``"debug"``
            (2), the streams of NEVIS'22.
        stop_year: Of these, the first year that is left out; from 2020 on they are for the final comparison.
        shuffle_seed: Of these, shuffle the data sets within each year, as the authors' code does with this seed.
        image_size: Height and width.
        channels: 3, or 1 for grey.
        skip_missing: Leave out data sets that are not there and cannot be downloaded, with a warning, instead of
            raising an error. A figure then belongs to the list in ``stream.data_sets``, which is in every checkpoint.
        download: Download missing files where that is possible.
        task_labels: Add the task label as a third column to each batch.
        mean: Mean that is subtracted from pixels in ``[0, 1]``: one, or one per channel.
        std: Standard deviation that is divided by, likewise. The defaults bring pixels to ``[-1, 1]`` as in NEVIS'22.
        **kwargs: As for :class:`lightning_cl.StreamDataModule`.

    Raises:
        ValueError: If an argument is out of its range; the message names it.
        FileNotFoundError: If a folder is missing whose number of classes is not known otherwise.

    Example:
        >>> stream = NevisStream(data_sets=["digits", "Fashion MNIST", "digits"], image_size=28, channels=1)
        >>> [(group[0], group[-1]) for group in stream.classes], stream.num_classes
        ([(0, 9), (10, 19), (0, 9)], 20)
    """

    def __init__(
        self,
        root: str = "data",
        data_sets: Variant | Sequence[str] = "full",
        *,
        stop_year: int | None = None,
        shuffle_seed: int | None = None,
        image_size: int = 64,
        channels: int = 3,
        skip_missing: bool = False,
        download: bool = True,
        task_labels: bool = True,
        mean: Sequence[float] = (0.5,),
        std: Sequence[float] = (0.5,),
        **kwargs: Any,
    ) -> None:
        if image_size < 1:
            raise ValueError(f"`image_size` must be 1 or more, got {image_size}.")
        if channels not in (1, 3):
            raise ValueError(f"`channels` must be 1 or 3, got {channels}.")
        names = _names(data_sets, stop_year, shuffle_seed)
        self.sources: dict[str, Source] = {}
        labels: dict[str, range] = {}
        end = 0
        for name in dict.fromkeys(names):
            if (source := _find(name, root, image_size, download, skip_missing)) is not None:
                self.sources[name] = source
                labels[name] = range(end, end := end + source.num_classes)
        self.data_sets = [name for name in names if name in labels]
        if not labels:
            raise ValueError(f"`data_sets` must name at least one data set that is there, got {data_sets!r}.")
        super().__init__(
            [labels[name] for name in self.data_sets],
            end,
            (channels, image_size, image_size),
            task_labels=task_labels,
            mean=mean,
            std=std,
            **kwargs,
        )
        self._loaded: dict[tuple[int, bool], Samples] = {}

    @override
    def prepare_data(self) -> None:
        errors = {}
        for name, source in self.sources.items():
            try:
                source.prepare()
            except FileNotFoundError as error:
                errors[name] = error
        if errors:
            others = f" Likewise missing: {', '.join([*errors][1:])}." if len(errors) > 1 else ""
            raise FileNotFoundError(f"{next(iter(errors.values()))}{others}")
        self._check_places()

    def _check_places(self) -> None:
        """MNIST and its kin name their files alike: with `root` their very folder, all would be the same images."""
        places: dict[Path, str] = {}
        for name, source in self.sources.items():
            if isinstance(source, IDXSource) and (other := places.setdefault(source.place(), name)) != name:
                raise ValueError(
                    f"`root`: {other!r} and {name!r} would both be read from {str(source.place())!r}: put each into a "
                    "folder of its own, as torchvision does."
                )

    @override
    def dataset(self, experience: int, train: bool) -> Dataset[Any]:
        if (experience, train) not in self._loaded:
            name = self.data_sets[experience]
            source = self.sources[name]
            data = source.read(train)
            try:
                check_samples(data, source.num_classes, source.input_shape, train)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
            self._loaded[experience, train] = fit_images(data, self.input_shape).relabelled(self.groups[experience])
        return self._loaded[experience, train]

    @override
    def first_of(self, experience: int) -> int:
        return self.data_sets.index(self.data_sets[experience])

    @override
    def name_of_group(self, group: int) -> str:
        return self.data_sets[group]

    @override
    def shape(self) -> dict[str, Any]:
        return {**super().shape(), "data_sets": self.data_sets}


def _names(data_sets: Variant | Sequence[str], stop_year: int | None, shuffle_seed: int | None) -> Sequence[str]:
    if isinstance(data_sets, str):
        return named_stream(cast(Variant, data_sets), stop_year, shuffle_seed)
    for name, value in {"stop_year": stop_year, "shuffle_seed": shuffle_seed}.items():
        if value is not None:
            raise ValueError(f"`{name}` is for the streams of NEVIS'22 ('full', ...): leave it out, got {value}.")
    return data_sets


def _find(name: str, root: str, image_size: int, download: bool, skip_missing: bool) -> Source | None:
    """The data set of a name; ``None`` if it is missing, cannot be downloaded and may be skipped."""
    try:
        source = _source(name, root, image_size, download)
        if skip_missing and not (source.download and isinstance(source, Downloadable)):
            source.prepare()
        return source
    except FileNotFoundError as error:
        if not skip_missing:
            raise
        warnings.warn(f"{name!r} is left out of the stream. {error}", stacklevel=3)
        return None


def _source(name: str, root: str, image_size: int, download: bool) -> Source:
    known = {**{_letters(key): key for key in SOURCES}, "emnistbalanced": "emnist"}
    if key := known.get(_letters(name)):
        return make_source(key, root, download)
    folder = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    path = Path(root).expanduser() / folder
    if path.is_dir():
        return ImageFolder(str(path), image_size)
    if name in CLASSES:
        return _Absent(root, folder, name)
    hint = nearest(name, [*SOURCES, *CLASSES])
    raise FileNotFoundError(f"`data_sets`: {name!r} is the name of no data set, and {str(path)!r} no folder. {hint}")


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


class _Absent(Source):
    """A data set of NEVIS'22 that is not there: its classes are known, so that the stream can be looked at."""

    remedy = "Make these folders, and then the stream anew."

    def __init__(self, root: str, folder: str, name: str) -> None:
        super().__init__(root)
        self.name = f"{name} of NEVIS'22"
        self.folder = folder
        self.num_classes = CLASSES[name]

    @override
    def missing(self) -> list[str]:
        return [f"{self.folder}/train/<class>/*", f"{self.folder}/test/<class>/*"]

    @override
    def load(self, train: bool) -> Samples:
        raise self._error(self.missing(), "they were not there when the stream was made")


def fit_images(data: Samples, shape: tuple[int, ...]) -> Samples:
    """The same images, as ``uint8`` of a shape ``(C, H, W)``, with 1 or 3 channels."""
    if isinstance(data, TensorData):
        return _Resized(data, shape)
    assert isinstance(data, ImageFiles)
    from torchvision.transforms.v2 import Compose, Grayscale

    cut = center_crop(shape[1])
    return ImageFiles(data.paths, data.labels, cut if shape[0] == 3 else Compose([cut, Grayscale()]))


class _Resized(TensorData):
    """Images in memory that get their shape ``(C, H, W)`` batch by batch, which is less memory than all at once."""

    def __init__(self, data: TensorData, shape: tuple[int, ...]) -> None:
        super().__init__(data.inputs, data.targets, data.indices)
        self.shape = shape

    @override
    def batch(self, index: Tensor) -> list[Tensor]:
        from torchvision.transforms.v2.functional import resize, rgb_to_grayscale

        x, *rest = super().batch(index)
        channels, *size = self.shape
        if x.shape[1] > channels:
            x = rgb_to_grayscale(x)
        return [resize(x, size, antialias=True).expand(-1, channels, -1, -1), *rest]
