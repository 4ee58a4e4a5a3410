"""A source: one labelled image data set, where it lies and how it is read."""

import hashlib
import os
import tempfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import override

from lightning_cl.samples import Samples


class Source(ABC):
    """A data set with a training and a test part, from files in their published layout.

    A concrete source states the class attributes and implements :meth:`missing` and :meth:`load`. One that can be
    downloaded is :class:`Downloadable`.

    Args:
        root: Folder of the data.
        download: Download missing files, where that is possible.
    """

    name: str
    """The data set's name in messages."""
    num_classes: int
    """Labels are in ``[0, num_classes)``."""
    input_shape: tuple[int, ...]
    """Shape of one sample, ``(C, H, W)``."""
    mean: tuple[float, ...]
    """Mean of the training images in ``[0, 1]``, per channel."""
    std: tuple[float, ...]
    """Their standard deviation."""
    remedy: ClassVar[str]
    """Where the files come from, as a sentence that ends the message when they are missing."""
    options: ClassVar[tuple[str, ...]] = ()
    """The attributes that say which form of the data set it is: a checkpoint must agree with them."""

    def __init__(self, root: str = "data", download: bool = True) -> None:
        self.root = Path(root).expanduser()  # as torchvision does
        self.download = download

    @abstractmethod
    def missing(self) -> list[str]:
        """The files (paths or patterns) that were looked for and are not there; empty if the data set is complete."""

    @abstractmethod
    def load(self, train: bool) -> Samples:
        """Read the training or the test part.

        Raises:
            ValueError: If a file is damaged or not of the published layout.
        """

    def shape(self) -> dict[str, Any]:
        """What the data set is, in plain values: part of what a checkpoint must agree with."""
        return {"data_set": self.name, **{option: getattr(self, option) for option in self.options}}

    def checksums(self) -> dict[str, str]:
        """MD5 of published files by name, for :meth:`verified`."""
        return {}

    def verified(self, path: Path) -> Path:
        """``path``, if it is what was published.

        Raises:
            ValueError: If its checksum is another.
        """
        if (expected := self.checksums().get(path.name)) is not None:
            found = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
            if found != expected:
                raise ValueError(
                    f"{str(path)!r} has the MD5 checksum {found} and should have {expected}: get it again."
                )
        return path

    def prepare(self) -> None:
        """Make sure that the files are there: download them if need be.

        Raises:
            FileNotFoundError: If files are missing and cannot be had; says what, where, why and how to get them.
        """
        if missing := self.missing():
            raise self._error(
                missing, "it cannot be downloaded automatically" if self.download else "`download` is off"
            )

    def read(self, train: bool) -> Samples:
        """:meth:`load` after :meth:`prepare`, for whoever did not prepare."""
        self.prepare()
        return self.load(train)

    def _error(self, missing: list[str], why: str) -> FileNotFoundError:
        looked = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
        return FileNotFoundError(
            f"{self.name} is missing: looked for {looked} in `root` {str(self.root)!r}, and {why}. {self.remedy}"
        )


class Downloadable(Source):
    """A source whose files can be downloaded: a concrete one implements :meth:`fetch` too.

    A download lands beside the data and is moved into place file by file when it is whole. If that is cut short it is
    known the next time, and done anew.
    """

    @abstractmethod
    def fetch(self, folder: Path) -> None:
        """Download everything into ``folder``, laid out as in ``root``."""

    @override
    def prepare(self) -> None:
        moving = self.root / f".{type(self).__name__}.moving"
        if moving.exists():
            missing = [f"the rest of a download that was cut short (if all is there, delete {moving.name})"]
        else:
            missing = self.missing()
        if missing and not self.download:
            raise self._error(missing, "`download` is off")
        if missing:
            try:
                self._download(moving)
            except Exception as error:
                reason = next(iter(str(error).splitlines()), "")
                raise self._error(missing, f"the download failed ({type(error).__name__}: {reason})") from error
            if missing := self.missing():
                raise self._error(missing, "the download did not bring them")

    def _download(self, moving: Path) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.root, prefix=".download-") as folder:
            self.fetch(Path(folder))
            moving.touch()
            move_into(Path(folder), self.root)
            moving.unlink(missing_ok=True)  # another process may have done the same


def move_into(folder: Path, root: Path) -> None:
    """Move every file under ``folder`` to the same place under ``root``; each arrives at once and whole."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            target = root / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
