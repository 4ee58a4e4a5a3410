from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_cl.sources.cub200 import CUB200
from tests.helpers.fakes._files import colours, write_images

LISTS = {
    "images.txt": "1 001.Auk/a.jpg\n2 001.Auk/b.jpg\n4 002.Bee_Eater/c.jpg\n3 002.Bee_Eater/d.jpg\n",
    "image_class_labels.txt": "1 1\n2 1\n3 2\n4 2\n",
    "train_test_split.txt": "1 1\n2 0\n3 1\n4 0\n",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two species; the images are not in the order of their numbers."""
    folder, palette = tmp_path / "CUB_200_2011", colours()
    write_images(folder / "images" / "001.Auk", ["a.jpg", "b.jpg"], palette)
    write_images(folder / "images" / "002.Bee_Eater", ["c.jpg", "d.jpg"], palette)
    for name, content in LISTS.items():
        (folder / name).write_text(content)
    return tmp_path


def contents(data: Any) -> list[tuple[str, int]]:
    return [(Path(path).name, int(label)) for path, label in zip(data.paths, data.labels, strict=True)]


@pytest.mark.parametrize("inner", ["", "CUB_200_2011"])
def test_official_split(inner: str, root: Path) -> None:
    source = CUB200(str(root / inner), download=False, image_size=8)
    assert contents(source.read(train=True)) == [("a.jpg", 0), ("d.jpg", 1)]
    assert contents(source.read(train=False)) == [("b.jpg", 0), ("c.jpg", 1)]
    x, y = source.read(train=True)[1]
    assert (x.shape, y.item()) == ((3, 8, 8), 1)
    assert (x - torch.tensor([63, 0, 0]).view(3, 1, 1)).abs().max() <= 2  # the fourth colour


def test_pilot_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CUB200, "num_classes", 2)
    for part, name in (("train", "a.jpg"), ("test", "b.jpg")):
        for label, species in enumerate(("001.Auk", "002.Bee_Eater")):
            write_images(tmp_path / "cub" / part / species, [f"{label}{name}"], colours())
    source = CUB200(str(tmp_path), False, "pilot")
    assert source.input_shape == (3, 224, 224)
    assert contents(source.read(train=True)) == [("0a.jpg", 0), ("1a.jpg", 1)]
    assert contents(source.read(train=False)) == [("0b.jpg", 0), ("1b.jpg", 1)]


def test_pilot_split_of_other_classes(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_images(tmp_path / "cub" / part / "001.Auk", ["a.jpg"], colours())
    with pytest.raises(ValueError, match=r"cub/train' should hold 200 folders, one for each class, and holds 1"):
        CUB200(str(tmp_path), False, "pilot").read(train=True)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("images.txt", "1 a b\n", r"images.txt' should hold two columns, and line 1 does not"),
        ("image_class_labels.txt", "1 1\n2 1\n3 2\n", r"The lists images.txt, .* in '.*' are not of the same images"),
        ("train_test_split.txt", "1 1\n2 1\n3 1\n", r"are not of the same images: get them again"),
        ("images.txt", LISTS["images.txt"].replace("a.jpg", "x.jpg"), r"lists 1 files that are not there, .*x\.jpg'"),
    ],
)
def test_lists_that_disagree(file: str, content: str, message: str, root: Path) -> None:
    (root / "CUB_200_2011" / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        CUB200(str(root), download=False).read(train=True)


@pytest.mark.parametrize(
    ("split", "looked"), [("official", "CUB_200_2011/images.txt"), ("pilot", "cub/train, cub/test")]
)
def test_missing_files_are_named(split: Any, looked: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"looked for {looked}.* in `root` '.*', and `download` is off\. For"):
        CUB200(str(tmp_path), False, split).prepare()


def test_download(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(url: str, folder: str, md5: str, remove_finished: bool) -> None:
        assert url.endswith("CUB_200_2011.tgz")
        (root / "CUB_200_2011").rename(Path(folder) / "CUB_200_2011")

    monkeypatch.setattr("torchvision.datasets.utils.download_and_extract_archive", download)
    assert len(CUB200(str(tmp_path / "new")).read(train=True)) == 2
    with pytest.raises(FileNotFoundError, match="the split 'pilot' can only be had by hand"):
        CUB200(str(tmp_path), split="pilot").prepare()


def test_bad_arguments() -> None:
    split: Any = "mammoth"
    with pytest.raises(ValueError, match="`split` must be 'official' or 'pilot', got 'mammoth'"):
        CUB200(split=split)
    with pytest.raises(ValueError, match="`image_size` must be 1 or more, got -1"):
        CUB200(image_size=-1)
