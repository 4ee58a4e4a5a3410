from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_cl.sources.tiny_imagenet import TinyImageNet
from tests.helpers.fakes._files import colours, write_images


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two classes, of which the second comes first in the alphabet."""
    monkeypatch.setattr(TinyImageNet, "num_classes", 2)
    folder, palette, size = tmp_path / "tiny-imagenet-200", colours(), (64, 64)
    write_images(folder / "train" / "n2" / "images", ["n2_0.JPEG", "n2_1.JPEG"], palette, size)
    write_images(folder / "train" / "n1" / "images", ["n1_0.JPEG", "n1_1.JPEG"], palette, size)
    write_images(folder / "val" / "images", ["val_0.JPEG", "val_1.JPEG"], palette, size)
    (folder / "val" / "val_annotations.txt").write_text("val_1.JPEG\tn1\t0\t0\t1\t1\nval_0.JPEG\tn2\t0\t0\t1\t1\n")
    (folder / "wnids.txt").write_text("n2\nn1\n")
    return tmp_path


def write_processed(folder: Path, dtype: str = "float32") -> None:
    """Mammoth's files: image ``k`` of a part has the value ``k`` in its second row, third column, first channel.

    The values are a little smaller: some numbers ``k`` are no longer integers after a division and a product.
    """
    folder.mkdir(parents=True)
    for part, each in (("train", 2), ("val", 1)):
        for k in range(20):
            x = np.zeros((each, 64, 64, 3), dtype)
            x[:, 1, 2, 0] = np.nextafter((np.arange(each) + each * k) / 255, 0, dtype=dtype)
            np.save(folder / f"x_{part}_{k + 1:02d}.npy", x)
            np.save(folder / f"y_{part}_{k + 1:02d}.npy", np.arange(each) + k)


def test_labels_follow_the_published_list(root: Path) -> None:
    """Not the alphabet; test images in the order of their list."""
    source = TinyImageNet(str(root), download=False)
    train, test = source.load(train=True), source.load(train=False)
    assert (train.inputs.shape, train.inputs.dtype) == ((4, 3, 64, 64), torch.uint8)
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 0, 1, 1], [1, 0])
    for data, expected in ((train, [0, 1, 2, 3]), (test, [5, 4])):
        difference = data.inputs - torch.tensor([*colours()])[expected].view(-1, 3, 1, 1)
        assert difference.abs().max() <= 2  # JPEG


def test_a_class_that_lacks_images_is_named(root: Path) -> None:
    (root / "tiny-imagenet-200/train/n1/images/n1_0.JPEG").unlink()
    with pytest.raises(
        ValueError, match=r"train' should hold equally many images of each class, and holds 1 of 'n1' and"
    ):
        TinyImageNet(str(root)).load(train=True)


def test_root_may_be_the_published_folder(root: Path) -> None:
    for path in (root, root / "tiny-imagenet-200"):
        assert TinyImageNet(str(path), download=False).read(train=False).labels.tolist() == [1, 0]


def test_images_are_decoded_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = TinyImageNet(str(root)).load(train=True).inputs
    monkeypatch.setattr("lightning_cl.sources.image_folder.read_image", None)
    assert torch.equal(TinyImageNet(str(root)).load(train=True).inputs, first)


@pytest.mark.parametrize("folder", ["processed", "TINYIMG/processed"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_files_of_mammoth(folder: str, dtype: str, tmp_path: Path) -> None:
    write_processed(tmp_path / folder, dtype)
    source = TinyImageNet(str(tmp_path), download=False)
    for train, count in ((True, 40), (False, 20)):
        data = source.load(train)
        assert (data.inputs.shape, data.inputs.dtype) == ((count, 3, 64, 64), torch.uint8)
        assert data.inputs[:, 0, 1, 2].tolist() == [*range(count)]
        assert data.inputs.sum() == count * (count - 1) // 2
    assert source.read(train=True).labels.tolist() == [k + i for k in range(20) for i in range(2)]


def test_published_files_come_before_those_of_mammoth(root: Path) -> None:
    write_processed(root / "processed")
    assert len(TinyImageNet(str(root)).read(train=True)) == 4


@pytest.mark.parametrize("gone", ["wnids.txt", "val/val_annotations.txt"])
def test_missing_files_are_named(gone: str, root: Path) -> None:
    (root / "tiny-imagenet-200" / gone).unlink()
    with pytest.raises(FileNotFoundError, match=rf"is missing: looked for tiny-imagenet-200/{gone} in .*zip"):
        TinyImageNet(str(root), download=False).prepare()


def test_missing_files_of_mammoth_are_named(tmp_path: Path) -> None:
    write_processed(tmp_path / "processed")
    (tmp_path / "processed" / "y_val_20.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"looked for processed/y_val_20\.npy in `root`"):
        TinyImageNet(str(tmp_path), download=False).prepare()


def test_download(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(url: str, folder: str, md5: str, remove_finished: bool) -> None:
        assert url == "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
        assert remove_finished
        (root / "tiny-imagenet-200").rename(Path(folder) / "tiny-imagenet-200")

    monkeypatch.setattr("torchvision.datasets.utils.download_and_extract_archive", download)
    assert len(TinyImageNet(str(tmp_path / "new")).read(train=False)) == 2
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["tiny-imagenet-200"]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("wnids.txt", "n1\nn1\n", r"wnids.txt' should name 2 classes and names 1: get it again"),
        (
            "val/val_annotations.txt",
            "val_0.JPEG\tn3\t0\n",
            r"line 1, should name an image and its class, and is 'val_0",
        ),
        ("val/val_annotations.txt", "val_0.JPEG\tn1\nval_1.JPEG n1\n", r"line 2, should name an image and its class"),
        ("val/val_annotations.txt", "val_0.JPEG\tn1\nval_9.JPEG\tn1\n", r"lists 1 files that are not there, .*val_9"),
    ],
)
def test_lists_of_another_form(file: str, content: str, message: str, root: Path) -> None:
    (root / "tiny-imagenet-200" / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        TinyImageNet(str(root), download=False).read(train=False)


def test_files_of_mammoth_that_are_damaged(tmp_path: Path) -> None:
    folder = tmp_path / "processed"
    write_processed(folder)
    source = TinyImageNet(str(tmp_path), download=False)
    np.save(folder / "x_val_01.npy", np.zeros((1, 64, 64, 3), np.uint8))
    with pytest.raises(ValueError, match=r"x_val_01.npy' should hold 1 images \(64, 64, 3\) in \[0, 1\], and"):
        source.read(train=False)
    path = folder / "x_train_03.npy"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"x_train_03.npy' or its labels are damaged \(.*\): get them again"):
        source.read(train=True)
