"""Writers of image files that lists name, and of the lists."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.helpers.fakes._files import Colour, write_images


def write_listed(paths: Iterable[Path], palette: Iterator[Colour], side: int) -> None:
    """Write square images of one colour each, in the next colours."""
    for path in paths:
        write_images(path.parent, [path.name], palette, (side, side))


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a text file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
