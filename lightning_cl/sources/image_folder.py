"""Images in files: folders of classes, lists, decoding into memory; and any folder of images as a source."""

import hashlib
import os
import uuid
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from typing_extensions import override

from lightning_cl.samples import ImageFiles, Samples, TensorData, center_crop, random_crop, read_image
from lightning_cl.sources.base import Source
from lightning_cl.splits import cut_off

ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Names of images end in these, in upper or lower case, as for torchvision."""
SMALL = 64
"""Images of up to this height and width are kept in memory."""
CHUNK = 256
"""Images that a thread decodes in one go."""


class ImageFolder(Source):
    """Any folder of images that are sorted into folders by class.

    ``root`` holds ``train/<class>/*`` and ``test/<class>/*`` (or, if there is no ``test``, ``val/<class>/*``); or it
    holds ``<class>/*``, of which a part is cut off for testing. Classes are numbered in alphabetical order, as by
    torchvision's ``ImageFolder``.

    Mean and standard deviation are the usual ones of ImageNet.

    Args:
        root: The folder.
        image_size: Height and width. Up to 64 the images are decoded once and kept in memory (:func:`decode_all`);
            larger ones are read one by one (:func:`image_files`).
        test_fraction: Part of each class that is for testing where ``root`` has no ``train``, in ``(0, 1)``.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it holds no class, or an argument is out of its range.
    """

    name = "The image folder"
    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)
    remedy = "`root` must hold train/<class>/* and test/<class>/* (or val), or <class>/*."

    def __init__(self, root: str, image_size: int = 224, test_fraction: float = 0.2) -> None:
        super().__init__(root)
        if not 0 < test_fraction < 1:
            raise ValueError(f"`test_fraction` must be in (0, 1), got {test_fraction}.")
        self.input_shape = image_shape(image_size)
        self.test_fraction = test_fraction
        self.prepare()  # only the folder knows the classes
        self.classes = class_folders(self._folder(train=True))
        self.num_classes = len(self.classes)

    @override
    def missing(self) -> list[str]:
        if not self.root.is_dir():
            return ["a folder"]
        parts = {"train": self._folder(train=True), "test or val": self._folder(train=False)}
        return [name for name, folder in parts.items() if not folder.is_dir()]

    @override
    def load(self, train: bool) -> Samples:
        paths, labels = self._part(train)
        size = self.input_shape[1]
        if size > SMALL:
            return image_files(paths, labels, size)
        return TensorData(decode_all(paths, size, self.root), labels)

    def _part(self, train: bool) -> tuple[list[str], Tensor]:
        folder = self._folder(train)
        if others := sorted({*class_folders(folder)} - {*self.classes}):
            raise ValueError(f"{str(folder)!r} holds classes without training images: {others[:4]}.")
        paths, labels = scan(folder, self.classes)
        if folder == self.root:
            index = cut_off(labels, self.test_fraction)[not train]
            return [paths[i] for i in index.tolist()], labels[index]
        return paths, labels

    def _folder(self, train: bool) -> Path:
        if not any((self.root / name).is_dir() for name in ("train", "test", "val")):
            return self.root
        folders = [self.root / name for name in (["train"] if train else ["test", "val"])]
        return next((folder for folder in folders if folder.is_dir()), folders[0])


def image_shape(size: int) -> tuple[int, int, int]:
    """The shape ``(3, size, size)`` of an image.

    Raises:
        ValueError: If ``size`` is not positive.
    """
    if size < 1:
        raise ValueError(f"`image_size` must be 1 or more, got {size}.")
    return 3, size, size


def image_files(
    paths: Sequence[str], labels: Tensor, size: int, scale: tuple[float, float] = (0.05, 1.0)
) -> ImageFiles:
    """Images that are read one by one and cropped as by LAMDA-PILOT.

    For testing the shorter side becomes ``size * 256 / 224`` and the middle is cut out; for training a random part is
    resized, perhaps mirrored.

    Args:
        paths: The files.
        labels: Their labels ``(N,)``.
        size: Height and width.
        scale: Range of the area of that part, relative to the image's.
    """
    return ImageFiles(paths, labels, center_crop(size, size * 256 // 224), random_crop(size, scale))


def find_folder(root: Path, name: str, inside: str) -> Path:
    """The published folder: ``root / name``, or ``root`` itself if it is the one that holds ``inside``."""
    return root if (root / inside).exists() and not (root / name / inside).exists() else root / name


def class_folders(folder: Path) -> list[str]:
    """Names of the folders in a folder, in alphabetical order; hidden ones are left out.

    Raises:
        ValueError: If there is none.
    """
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise ValueError(f"{str(folder)!r} must hold one folder of images for each class, and holds no folder.")
    return names


def expect_classes(folder: Path, count: int) -> list[str]:
    """:func:`class_folders` of a folder that should have so many.

    Raises:
        ValueError: If it has more or less.
    """
    if len(names := class_folders(folder)) != count:
        raise ValueError(f"{str(folder)!r} should hold {count} folders, one for each class, and holds {len(names)}.")
    return names


def scan(folder: Path, classes: Sequence[str]) -> tuple[list[str], Tensor]:
    """Find the images of each class, also in folders below, in the order of torchvision's ``ImageFolder``.

    Args:
        folder: Holds ``<class>/*``.
        classes: Names of the folders in it; their positions are the labels.

    Returns:
        Paths, and labels ``(N,)``.

    Raises:
        ValueError: If a class has no image.
    """
    files = [_images(folder / name) for name in classes]
    if empty := [name for name, found in zip(classes, files, strict=True) if not found]:
        raise ValueError(
            f"{str(folder)!r} holds no image of {len(empty)} of {len(classes)} classes, the first is {empty[0]!r}: "
            f"get it again. Names of images end in {', '.join(ENDINGS)}."
        )
    labels = torch.repeat_interleave(torch.tensor([len(found) for found in files]))
    return [path for found in files for path in found], labels


def read_list(path: Path, folder: Path) -> tuple[list[str], Tensor]:
    """Read a list of images: lines of a path, a space and a label, as by FACIL.

    Args:
        path: The list.
        folder: What relative paths start from.

    Returns:
        Paths, and labels ``(N,)``.

    Raises:
        ValueError: If a line is of another form, or a file is not there.
    """
    paths, labels = [], []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        match line.rsplit(maxsplit=1):
            case [name, label] if label.isdecimal():
                paths.append(os.path.join(folder, name))
                labels.append(int(label))
            case [_, *_]:
                raise ValueError(f"{str(path)!r}, line {number}, should be a path and a label, and is {line!r}.")
    check_listed(paths, path)
    return paths, torch.tensor(labels)


def check_listed(paths: Iterable[str], source: Path) -> None:
    """Look whether listed files are there; reads each folder once.

    Raises:
        ValueError: If some are not; names the first.
    """
    folders: dict[str, set[str]] = {}
    gone = []
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        if name not in folders[folder]:
            gone.append(path)
    if gone:
        raise ValueError(
            f"{str(source)!r} lists {len(gone)} files that are not there, the first is {gone[0]!r}: get them again."
        )


def decode_all(paths: Sequence[str], size: int, cache: Path | None = None) -> Tensor:
    """Decode images into one tensor, by several threads, with a progress bar if there are thousands.

    Images of another size are resized so that their shorter side is ``size``, and the middle is cut out.

    Args:
        paths: The files.
        size: Height and width.
        cache: Folder where the result is kept (a hidden file) and is memory-mapped the next time, as long as paths,
            sizes and dates of the files are the same. If it cannot be written to there is no cache; ``None`` is none.

    Returns:
        uint8, ``(len(paths), 3, size, size)``.

    Raises:
        ValueError: If a file cannot be read as an image.
    """
    file = None if cache is None else cache / f".{size}px-{_digest(paths, cache)}.npy"
    if file is not None and (cached := _read_cache(file, (len(paths), 3, size, size))) is not None:
        return torch.from_numpy(cached)
    images = np.empty((len(paths), 3, size, size), dtype=np.uint8)
    starts = range(0, len(paths), CHUNK)
    resize = center_crop(size)

    def decode(start: int) -> None:
        for i in range(start, min(start + CHUNK, len(paths))):
            images[i] = resize(read_image(paths[i])).numpy()

    with ThreadPoolExecutor() as pool:
        for _ in _shown(pool.map(decode, starts), len(starts)):
            pass
    if file is not None:
        _write_cache(file, images)
        cached = _read_cache(file, images.shape)  # mapped: pages that are not used can leave memory
        images = images if cached is None else cached
    return torch.from_numpy(images)


def _images(folder: Path) -> list[str]:
    walk = sorted(os.walk(folder, followlinks=True))
    return [os.path.join(at, name) for at, _, names in walk for name in sorted(names) if name.lower().endswith(ENDINGS)]


def _shown(chunks: Iterable[None], count: int) -> Iterable[None]:
    """The chunks, counted by a progress bar if there are many."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)  # of its own: Lightning's may show a bar already, and one console shows one
    return track(chunks, "Decoding images", total=count, console=console, disable=count < 20, transient=True)


def _digest(paths: Sequence[str], folder: Path) -> str:
    """What changes if one of the files is another; the same if the folder has moved."""
    digest = hashlib.sha256()
    for path in paths:
        now = os.stat(path)
        digest.update(os.fsencode(f"{path.removeprefix(str(folder))}\0{now.st_size}\0{now.st_mtime_ns}\0"))
    return digest.hexdigest()[:16]


def _read_cache(file: Path, shape: tuple[int, ...]) -> npt.NDArray[np.uint8] | None:
    try:
        images = np.load(file, mmap_mode="c")  # copy on write: torch wants arrays that can be written to
    except (OSError, ValueError, EOFError):
        return None
    return images if (images.shape, images.dtype) == (shape, np.uint8) else None


def _write_cache(file: Path, images: npt.NDArray[np.uint8]) -> None:
    hidden = file.with_name(f"{file.name}.{uuid.uuid4().hex}")  # several processes may write at once
    with suppress(OSError):
        try:
            with hidden.open("wb") as stream:
                np.save(stream, images)
            os.replace(hidden, file)
        finally:
            hidden.unlink(missing_ok=True)
