from pathlib import Path

import pytest
import torch

from lightning_cl.datamodules.split_imagenet_r import SplitImageNetR
from lightning_cl.sources.imagenet_r import ImageNetR
from tests.helpers.fakes import split_imagenet_r
from tests.helpers.fakes._files import colours, write_images


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("imagenet-r")
    split_imagenet_r.write(root)
    return root


def test_ten_experiences_of_twenty_classes(root: Path) -> None:
    stream = SplitImageNetR(str(root), image_size=8, download=False, class_order=1993)
    assert [len(group) for group in stream.classes] == [20] * 10
    assert stream.classes[0][:5] == (168, 136, 51, 9, 183)
    assert {(e.num_train, e.num_test) for e in stream.experiences} == {(80, 40)}
    x, y = stream.part(0, "test")[0]
    assert (x.shape, x.dtype, int(y) in stream.classes[0]) == ((3, 8, 8), torch.uint8, True)


def test_checkpoints_know_the_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes and classes are the same, the images are not."""
    monkeypatch.setattr(ImageNetR, "num_classes", 2)
    for wnid in ("n01443537", "n01484850"):
        write_images(tmp_path / "imagenet-r" / wnid, [f"art_{k}.jpg" for k in range(15)], colours())
    one, other = (SplitImageNetR(str(tmp_path), 1, split=split) for split in ("l2p", "l2p_pytorch"))
    assert {**one.shape(), "split": "l2p_pytorch"} == other.shape()
    assert one.shape()["split"] == "l2p"
    tested = [{*part.paths} for part in (one.part(0, "test"), other.part(0, "test"))]
    assert tested[0] != tested[1]


def test_pixels_are_not_normalised() -> None:
    (x,) = SplitImageNetR().transform_batch([torch.full((1, 3, 2, 2), 51, dtype=torch.uint8)])
    torch.testing.assert_close(x, torch.full((1, 3, 2, 2), 0.2))
