"""Writers of tiny image files of one colour each, no two alike: a crop or a resized image still tells which it is."""

from collections.abc import Iterable, Iterator
from pathlib import Path

Colour = tuple[int, int, int]


def colours() -> Iterator[Colour]:
    """2 197 colours, so far from each other that JPEG, which changes values by one or two, leaves them apart."""
    for i in range(13**3):
        yield i % 13 * 21, i // 13 % 13 * 21, i // 169 * 21


def write_images(folder: Path, names: Iterable[str], palette: Iterator[Colour], size: tuple[int, int] = (8, 8)) -> None:
    """Write images in the next colours; ``size`` is (width, height), and names end with the format."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", size, next(palette)).save(folder / name, quality=95)
