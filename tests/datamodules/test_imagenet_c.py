import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_cl.datamodules import ImageNetC
from tests.helpers.fakes.imagenet_c import CLASSES, write


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write(tmp_path_factory.mktemp("imagenet_c"))


def test_images_are_found_in_either_layout(arguments: dict[str, Any]) -> None:
    stream = ImageNetC(**arguments)
    stream.prepare_data()
    for i, folder in enumerate(("noise/gaussian_noise", "fog")):
        part = stream.part(i, "test")
        root = Path(arguments["root"]) / "ImageNet-C" / folder / "5"
        expected = [root / wnid / f"ILSVRC2012_val_0000000{k}.JPEG" for wnid in CLASSES for k in (0, 1)]
        assert part.paths == [*map(str, expected)]
        assert part.labels.tolist() == [label for label in range(1000) for _ in (0, 1)]
        assert part[0][0].shape == (3, 8, 8)
    assert stream.name_of(0) == "gaussian_noise, severity 5"


def test_only_listed_images_are_used(arguments: dict[str, Any], tmp_path: Path) -> None:
    """Lines as RobustBench has them, and with the label that follows."""
    lines = [f"val/{CLASSES[700]}/ILSVRC2012_val_00000001.JPEG 393", "", f"{CLASSES[3]}/ILSVRC2012_val_00000000.JPEG"]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    part = ImageNetC(**arguments, image_list=str(tmp_path / "list.txt")).part(1, "test")
    assert [Path(path).name for path in part.paths] == [f"ILSVRC2012_val_0000000{k}.JPEG" for k in (1, 0)]
    assert part.labels.tolist() == [700, 3]


def test_segments_that_come_again_are_read_once(arguments: dict[str, Any]) -> None:
    stream = ImageNetC(**{**arguments, "corruptions": ["fog", "fog"]})
    assert stream.part(0, "test")._paths is stream.part(1, "test")._paths


def test_folders_that_are_not_all_there_are_refused(tmp_path: Path) -> None:
    """Labels are positions among the folders: of a few they would be others."""
    arguments = write(tmp_path)
    shutil.rmtree(tmp_path / "ImageNet-C/fog/5" / CLASSES[500])
    with pytest.raises(ValueError, match=r"fog/5' should hold 1000 folders, one for each class, and holds 999"):
        ImageNetC(**arguments).part(1, "test")


def test_what_is_missing_is_named(arguments: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="ImageNet-C is missing: looked for fog/4 in `root`"):
        ImageNetC(**{**arguments, "corruptions": ["fog"], "severity": 4}).prepare_data()
    (tmp_path / "list.txt").write_text(f"{CLASSES[0]}/none.JPEG\n")
    with pytest.raises(ValueError, match=r"list.txt' lists 1 files that are not there, the first is .*none.JPEG"):
        ImageNetC(**arguments, image_list=str(tmp_path / "list.txt")).part(1, "test")
    with pytest.raises(FileNotFoundError, match=r"`image_list` .* is no file"):
        ImageNetC(**arguments, image_list=str(tmp_path / "none.txt")).part(1, "test")
    with pytest.raises(ValueError, match=r"ImageNet-C has test images only: .*pretrained true"):
        ImageNetC(**arguments).setup("fit")


def test_folder_itself_is_a_root_too(arguments: dict[str, Any]) -> None:
    inner = ImageNetC(**{**arguments, "root": str(Path(arguments["root"]) / "ImageNet-C")})
    assert inner.part(1, "test").paths == ImageNetC(**arguments).part(1, "test").paths


def test_every_segment_is_looked_for_and_none_is_trained_on(arguments: dict[str, Any]) -> None:
    stream = ImageNetC(**{**arguments, "corruptions": ["fog", "snow"]})
    with pytest.raises(FileNotFoundError, match="ImageNet-C is missing: looked for snow/5 in `root`"):
        stream.prepare_data()
    with pytest.raises(ValueError, match="ImageNet-C has test images only"):
        stream.dataset(0, train=True)


def test_pixels_are_normalised_as_those_of_imagenet(arguments: dict[str, Any]) -> None:
    (x,) = ImageNetC(**arguments).transform_batch([torch.zeros(1, 3, 1, 1, dtype=torch.uint8)])
    torch.testing.assert_close(x.flatten(), torch.tensor([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225]))
