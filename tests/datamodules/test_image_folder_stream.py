from pathlib import Path

import pytest
import torch

from lightning_cl.datamodules import ImageFolderStream
from lightning_cl.samples import ImageFiles
from tests.helpers.fakes._files import colours, write_images
from tests.helpers.fakes.image_folder_stream import write


def test_small_images_lie_in_memory(tmp_path: Path) -> None:
    stream = ImageFolderStream(**write(tmp_path))
    assert [(e.classes, e.num_train, e.num_test) for e in stream.experiences] == [((0, 1), 16, 4), ((2, 3), 16, 4)]
    x, y = next(iter(stream.test_dataloader().loaders[1]))
    assert (x.shape, x.dtype, y.tolist()) == ((4, 3, 8, 8), torch.uint8, [2, 2, 3, 3])


def test_large_images_are_read_by_workers_and_cropped_for_training(tmp_path: Path) -> None:
    for part, count in (("train", 4), ("val", 2)):
        for name in ("bee", "cat"):
            write_images(tmp_path / part / name, [f"{k}.png" for k in range(count)], colours(), (90, 80))
    stream = ImageFolderStream(str(tmp_path), 1, image_size=70)
    assert isinstance(stream.part(0, "train"), ImageFiles)
    assert [(e.num_train, e.num_test) for e in stream.experiences] == [(8, 4)]
    x, _ = next(iter(stream.train_dataloader()))
    assert x.shape == (8, 3, 70, 70)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"looked for a folder in `root` '.*none', .*`root` must hold train"):
        ImageFolderStream(str(tmp_path / "none"), 2)
