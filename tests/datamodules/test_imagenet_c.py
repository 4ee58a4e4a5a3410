from pathlib import Path

import pytest

from lightning_cl.datamodules import ImageNetC
from tests.helpers.fakes.imagenet_c import write


def test_images_are_found_in_either_layout(tmp_path: Path) -> None:
    stream = ImageNetC(**write(tmp_path))
    stream.prepare_data()
    for i, folder in enumerate(("noise/gaussian_noise", "fog")):
        part = stream.part(i, "test")
        assert [Path(path).relative_to(tmp_path / "ImageNet-C" / folder / "5").as_posix() for path in part.paths] == [
            f"{wnid}/ILSVRC2012_val_0000000{k}.JPEG" for wnid in ("n01440764", "n01443537") for k in (0, 1)
        ]
        assert part.labels.tolist() == [0, 0, 1, 1]
        assert part[0][0].shape == (3, 32, 32)
    assert ImageNetC(**{**write(tmp_path / "other"), "severity": 1}).name_of(0) == "gaussian_noise, severity 1"


def test_only_listed_images_are_used(tmp_path: Path) -> None:
    """Lines as RobustBench has them, and with the label that follows."""
    arguments = write(tmp_path)
    (tmp_path / "list.txt").write_text(
        "val/n01443537/ILSVRC2012_val_00000001.JPEG 393\n\nn01440764/ILSVRC2012_val_00000000.JPEG\n"
    )
    part = ImageNetC(**arguments, image_list=str(tmp_path / "list.txt")).part(1, "test")
    assert [Path(path).name for path in part.paths] == [f"ILSVRC2012_val_0000000{k}.JPEG" for k in (1, 0)]
    assert part.labels.tolist() == [1, 0]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    arguments = write(tmp_path)
    with pytest.raises(FileNotFoundError, match="ImageNet-C is missing: looked for fog/4 in `root`"):
        ImageNetC(**{**arguments, "corruptions": ["fog"], "severity": 4}).prepare_data()
    (tmp_path / "list.txt").write_text("n01443537/none.JPEG\n")
    with pytest.raises(FileNotFoundError, match=r"1 images of `image_list` are not in .*, the first is 'n0144"):
        ImageNetC(**arguments, image_list=str(tmp_path / "list.txt")).part(1, "test")
    with pytest.raises(FileNotFoundError, match=r"`image_list` .* is no file"):
        ImageNetC(**arguments, image_list=str(tmp_path / "none.txt")).part(1, "test")
    with pytest.raises(ValueError, match=r"ImageNet-C has test images only: .*pretrained true"):
        ImageNetC(**arguments).setup("fit")
