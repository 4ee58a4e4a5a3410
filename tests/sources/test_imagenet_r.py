import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.utils.data import random_split

from lightning_cl.sources.imagenet_r import ImageNetR, tfds_order
from lightning_cl.utilities import isolated_rng

NAMES = [f"{wnid}/{style}_{k}.jpg" for wnid in ("n01443537", "n01484850") for style in ("art", "toy") for k in range(5)]
"""In the order of torchvision's ``ImageFolder``."""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The published images of two classes, ten each."""
    monkeypatch.setattr(ImageNetR, "num_classes", 2)
    for name in NAMES:
        (tmp_path / "imagenet-r" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "imagenet-r" / name).touch()
    (tmp_path / "imagenet-r" / "README.txt").touch()
    return tmp_path


def contents(data: Any) -> list[tuple[str, int]]:
    return [("/".join(Path(path).parts[-2:]), int(label)) for path, label in zip(data.paths, data.labels, strict=True)]


def labelled(names: list[str]) -> list[tuple[str, int]]:
    return [(name, int(name.startswith("n01484850"))) for name in names]


@pytest.mark.parametrize("inner", ["", "imagenet-r"])
def test_l2p(inner: str, root: Path) -> None:
    """Sorted by the 128 bits of the hash as one number, of a hash that the name of the part has started."""

    def number(name: str) -> int:
        hasher = hashlib.md5(b"test")
        hasher.update(name.replace("/", "_").encode())
        return int(hasher.hexdigest(), 16)

    order = sorted(NAMES, key=number)
    source = ImageNetR(str(root / inner), False, "l2p")
    assert contents(source.read(train=True)) == labelled(order[:16])
    assert contents(source.read(train=False)) == labelled(order[16:])


def test_order_of_the_whole_data_set_starts_with() -> None:
    """The three of all 30 000 names that come first."""
    names = ["n01843383/painting_41.jpg", "n02117135/cartoon_12.jpg", "n02951358/videogame_0.jpg"]
    assert tfds_order([f"/data/imagenet-r/{name}" for name in reversed(names)]).tolist() == [2, 1, 0]


def test_l2p_pytorch(root: Path) -> None:
    """The first draw after the seed 42 of its command line."""
    names: Any = NAMES
    with isolated_rng():
        torch.manual_seed(42)
        train, test = ([NAMES[i] for i in part.indices] for part in random_split(names, [16, 4]))
    source = ImageNetR(str(root), False, "l2p_pytorch")
    assert contents(source.read(train=True)) == labelled(train)
    assert contents(source.read(train=False)) == labelled(test)


@pytest.mark.parametrize("place", [".", "imagenet-r"])
def test_mammoth(place: str, root: Path) -> None:
    """Labels are those of the lists."""
    for part, names in (("train", NAMES[3:]), ("test", NAMES[:3])):
        content = {"data": [f"data/imagenet-r/{name}" for name in names], "targets": [7 - len(name) for name in names]}
        (root / place / f"imagenet-r_{part}.yaml").write_text(yaml.safe_dump(content))
    source = ImageNetR(str(root), False, "mammoth")
    assert contents(source.read(train=True)) == [(name, 7 - len(name)) for name in NAMES[3:]]
    assert contents(source.read(train=False)) == [(name, 7 - len(name)) for name in NAMES[:3]]


def test_pilot(root: Path) -> None:
    for part, names in (("train", NAMES[1::2]), ("test", NAMES[::2])):
        for name in names:
            (root / "cut" / "imagenet-r" / part / name).parent.mkdir(parents=True, exist_ok=True)
            (root / "imagenet-r" / name).rename(root / "cut" / "imagenet-r" / part / name)
    source = ImageNetR(str(root / "cut"), False)
    assert source.split == "pilot"
    assert contents(source.read(train=True)) == labelled(NAMES[1::2])
    assert contents(source.read(train=False)) == labelled(NAMES[::2])


@pytest.mark.parametrize("split", ["l2p", "l2p_pytorch"])
def test_parts_are_all_images_and_four_to_one(split: Any, root: Path) -> None:
    source = ImageNetR(str(root), False, split)
    train, test = contents(source.read(train=True)), contents(source.read(train=False))
    assert (len(train), len(test)) == (16, 4)
    assert sorted(train + test) == labelled(NAMES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("data: [a/b.jpg]", "should hold `data` and `targets` of one length"),
        ("data: [a/b.jpg]\ntargets: [1, 2]", "should hold `data` and `targets` of one length"),
        ("just text", "should hold `data` and `targets` of one length: get it again"),
        ("data: [x/n01443537/art_9.jpg]\ntargets: [1]", r"train.yaml' lists 1 files that are not there, .*art_9.jpg'"),
    ],
)
def test_lists_of_another_form(content: str, message: str, root: Path) -> None:
    for part in ("train", "test"):
        (root / f"imagenet-r_{part}.yaml").write_text(content)
    with pytest.raises(ValueError, match=message):
        ImageNetR(str(root), False, "mammoth").read(train=True)


@pytest.mark.parametrize(
    ("split", "looked"),
    [
        ("pilot", "imagenet-r/train, imagenet-r/test"),
        ("l2p", "imagenet-r/n01443537"),
        ("mammoth", "imagenet-r/n01443537, imagenet-r_train.yaml, imagenet-r_test.yaml"),
    ],
)
def test_missing_files_are_named(split: Any, looked: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"looked for {looked} in `root` '.*', and `download` is off\. Unpack"):
        ImageNetR(str(tmp_path), False, split).prepare()


def test_another_number_of_classes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageNetR, "num_classes", 200)
    with pytest.raises(ValueError, match=r"imagenet-r' should hold 200 folders, one for each class, and holds 2"):
        ImageNetR(str(root), False, "l2p").read(train=True)


def test_download(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(url: str, folder: str, remove_finished: bool) -> None:
        assert url.endswith("/imagenet-r.tar")
        (root / "imagenet-r").rename(Path(folder) / "imagenet-r")

    monkeypatch.setattr("torchvision.datasets.utils.download_and_extract_archive", download)
    assert len(ImageNetR(str(tmp_path / "new"), split="l2p").read(train=True)) == 16
    splits: list[Any] = ["pilot", "mammoth"]
    for split in splits:  # the images are there, folders and lists are not
        with pytest.raises(FileNotFoundError, match="only the images can be downloaded"):
            ImageNetR(str(tmp_path / "new"), split=split).prepare()


def test_bad_arguments() -> None:
    split: Any = "l2p-pytorch"
    with pytest.raises(ValueError, match=r"`split`: there is no split 'l2p-pytorch'\. Did you mean 'l2p_pytorch'"):
        ImageNetR(split=split)
    with pytest.raises(ValueError, match="`image_size` must be 1 or more, got 0"):
        ImageNetR(image_size=0)
