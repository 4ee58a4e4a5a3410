"""A folder of images as a stream."""

from typing import Any

from lightning_cl.scenarios import SourceStream
from lightning_cl.sources.image_folder import ImageFolder


class ImageFolderStream(SourceStream):
    """Images in folders that are named after their classes, cut by class.

    Args:
        root: Folder with ``{train,test}/<class>/*`` (or ``val`` for ``test``), or with ``<class>/*``, of which
            ``test_fraction`` are cut off for testing. Classes are numbered in alphabetical order.
        num_experiences: Length of the stream; divides the number of classes unless ``convention`` is ``"facil"``.
        image_size: Height and width in pixels. Up to 64 all images are read once and kept in memory as ``uint8``, and
            in a hidden file in ``root`` for the next time; larger ones are read one by one, by ``num_workers``
            processes.
        test_fraction: Part of each class that is for testing, where there are no folders for it.
        **kwargs: As for :class:`lightning_cl.SourceStream`.

    Raises:
        FileNotFoundError: If there are no such folders.
    """

    def __init__(
        self,
        root: str,
        num_experiences: int | None = None,
        *,
        image_size: int = 224,
        test_fraction: float = 0.2,
        **kwargs: Any,
    ) -> None:
        source = ImageFolder(root, image_size=image_size, test_fraction=test_fraction)
        super().__init__(source, num_experiences, **kwargs)
