import os
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.progress import Progress

from lightning_cl.samples import ImageFiles, TensorData
from lightning_cl.sources import image_folder
from lightning_cl.sources.image_folder import (
    ImageFolder,
    class_folders,
    decode_all,
    find_folder,
    image_files,
    read_list,
    scan,
)
from lightning_cl.utilities import isolated_rng
from tests.helpers.fakes._files import colours, write_images


def paint(folder: Path, count: int, size: tuple[int, int] = (8, 8)) -> list[str]:
    """Lossless images of one colour each."""
    names = [f"{k:02d}.png" for k in range(count)]
    write_images(folder, names, colours(), size)
    return [str(folder / name) for name in names]


def colour_of(images: torch.Tensor) -> list[tuple[int, ...]]:
    assert (images == images[..., :1, :1]).all()
    return [tuple(image[:, 0, 0].tolist()) for image in images]


# -- folders and lists -------------------------------------------------------------------------------------------------


def test_order_is_that_of_torchvision(tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder as Reference

    for name in (
        "b/2.JPEG",
        "b/10.jpg",
        "b/sub/1.png",
        "b/Z.webp",
        "a/x.bmp",
        "B/.hidden.tif",
        "a/.c/1.ppm",
        "b/a.PgM",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b" / "boxes.txt").touch()
    paths, labels = scan(tmp_path, class_folders(tmp_path))
    assert class_folders(tmp_path) == ["B", "a", "b"]
    assert [*zip(paths, labels.tolist(), strict=True)] == Reference(tmp_path).samples


def test_hidden_folders_are_no_classes(tmp_path: Path) -> None:
    (tmp_path / ".download-x").mkdir()
    with pytest.raises(ValueError, match=r"must hold one folder of images for each class, and holds no folder"):
        class_folders(tmp_path)


def test_a_class_without_images_is_named(tmp_path: Path) -> None:
    paint(tmp_path / "a", 1)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "page.html").touch()
    with pytest.raises(ValueError, match=r"holds no image of 2 of 3 classes, the first is 'b': get it again\. .*\.jpg"):
        scan(tmp_path, ["a", "b", "c"])


def test_lists_hold_relative_and_absolute_paths(tmp_path: Path) -> None:
    first, second = paint(tmp_path / "a folder", 2)
    (tmp_path / "list.txt").write_text(f"a folder/00.png 3\n\n{second}\t12\n")
    paths, labels = read_list(tmp_path / "list.txt", tmp_path)
    assert (paths, labels.tolist()) == ([first, second], [3, 12])


@pytest.mark.parametrize("line", ["a/00.png", "a/00.png x", "a/00.png -1", "7"])
def test_a_line_without_a_label_is_named(line: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"\n{line}\n")
    with pytest.raises(ValueError, match=rf"list.txt', line 2, should be a path and a label, and is '{line}'"):
        read_list(tmp_path / "list.txt", tmp_path)


def test_listed_files_that_are_missing_are_counted(tmp_path: Path) -> None:
    paint(tmp_path / "a", 1)
    (tmp_path / "list.txt").write_text("a/00.png 0\na/01.png 0\nb/00.png 1\n")
    with pytest.raises(ValueError, match=r"list.txt' lists 2 files that are not there, the first is '.*a/01.png': get"):
        read_list(tmp_path / "list.txt", tmp_path)


@pytest.mark.parametrize(
    ("there", "expected"), [([], "name"), (["name/x"], "name"), (["x"], ""), (["x", "name/x"], "name")]
)
def test_published_folder_or_the_one_above(there: list[str], expected: str, tmp_path: Path) -> None:
    for name in there:
        (tmp_path / name).mkdir(parents=True)
    assert find_folder(tmp_path, "name", "x") == tmp_path / expected


# -- decoding ----------------------------------------------------------------------------------------------------------


def test_decoded_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_folder, "CHUNK", 3)
    images = decode_all(paint(tmp_path, 10), 8)
    assert (images.shape, images.dtype) == ((10, 3, 8, 8), torch.uint8)
    assert colour_of(images) == [next_ for next_, _ in zip(colours(), range(10), strict=False)]


def test_grey_and_oblong_images(tmp_path: Path) -> None:
    """Twice as wide as high: the middle square, in three equal channels."""
    image = Image.new("L", (32, 16), 0)
    image.paste(200, (8, 0, 24, 16))
    image.save(tmp_path / "a.png")
    (middle,) = decode_all([str(tmp_path / "a.png")], 16)
    assert (middle == 200).all()


def no_reading(path: str) -> Any:
    raise AssertionError(f"read {path}")


def test_cache_is_mapped_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = paint(tmp_path / "a", 3)
    images = decode_all(paths, 8, tmp_path)
    (cache,) = tmp_path.glob(".8px-*")
    with monkeypatch.context() as patch:
        patch.setattr(image_folder, "read_image", no_reading)
        again = decode_all(paths, 8, tmp_path)
        assert torch.equal(again, images)
        again[0] = 9  # of this process only
        assert torch.equal(decode_all(paths, 8, tmp_path), images)
        moved = tmp_path.rename(tmp_path.with_name("moved"))
        assert torch.equal(decode_all([str(moved / "a" / os.path.basename(path)) for path in paths], 8, moved), images)
    for other, size in ((paths[:2], 8), (paths, 4)):
        files = [str(moved / "a" / os.path.basename(path)) for path in other]
        assert decode_all(files, size, moved).shape == (len(files), 3, size, size)
    Path(files[0]).write_bytes(Path(files[0]).read_bytes() + b"\0")
    decode_all(files, 8, moved)
    assert len([*moved.glob(".*")]) == 4
    assert cache.name in os.listdir(moved)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"PK", None], ids=["empty", "cut", "other", "short"])
def test_damaged_cache_is_replaced(content: bytes | None, tmp_path: Path) -> None:
    paths = paint(tmp_path / "a", 3)
    images = decode_all(paths, 8, tmp_path).clone()  # what it returns is mapped to the file
    (cache,) = tmp_path.glob(".8px-*")
    whole = cache.read_bytes()
    cache.write_bytes(whole[:-1] if content is None else content)
    assert torch.equal(decode_all(paths, 8, tmp_path), images)
    assert cache.read_bytes() == whole


def test_without_a_place_for_the_cache(tmp_path: Path) -> None:
    paths = paint(tmp_path / "a", 3)
    assert torch.equal(decode_all(paths, 8, tmp_path / "none"), decode_all(paths, 8))
    assert os.listdir(tmp_path) == ["a"]


def test_damaged_image_is_named_and_leaves_no_cache(tmp_path: Path) -> None:
    paths = paint(tmp_path / "a", 3)
    Path(paths[1]).write_bytes(Path(paths[1]).read_bytes()[:40])
    with pytest.raises(ValueError, match=r"01\.png' is no image or not downloaded whole .*: get it again"):
        decode_all(paths, 8, tmp_path)
    assert os.listdir(tmp_path) == ["a"]


def test_progress_beside_another_bar() -> None:
    with Progress() as progress:
        progress.add_task("training")
        assert [*image_folder._shown(iter([None] * 25), 25)] == [None] * 25


def test_crops_of_files(tmp_path: Path) -> None:
    """Of 64 by 32 pixels the middle 28 of 32 rows and columns remain, in training a part that differs."""
    image = Image.new("RGB", (64, 32), (255, 0, 0))
    image.paste((0, 0, 255), (18, 2, 46, 30))
    image.save(tmp_path / "a.png")
    files = image_files([str(tmp_path / "a.png")], torch.tensor([5]), 28)
    x, y = files[0]
    assert (x.shape, x.dtype, y.item()) == ((3, 28, 28), torch.uint8, 5)
    assert colour_of(x[None]) == [(0, 0, 255)]
    with isolated_rng():
        torch.manual_seed(0)
        crops = [files.for_training()[0][0] for _ in range(20)]
    assert {crop.shape for crop in crops} == {x.shape}
    assert not all(torch.equal(crop, x) for crop in crops)


# -- any folder --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("test", ["test", "val"])
def test_train_and_test_folders(test: str, tmp_path: Path) -> None:
    for name, count in (("ant", 3), ("bee", 2)):
        paint(tmp_path / "train" / name, count)
        paint(tmp_path / test / name, count - 1)
    source = ImageFolder(str(tmp_path), image_size=8)
    assert (source.num_classes, source.classes, source.input_shape) == (2, ["ant", "bee"], (3, 8, 8))
    assert source.read(train=True).labels.tolist() == [0, 0, 0, 1, 1]
    assert source.read(train=False).labels.tolist() == [0, 0, 1]
    assert len([*tmp_path.glob(".8px-*.npy")]) == 2


def test_test_comes_before_val(tmp_path: Path) -> None:
    for part, count in {"train": 3, "test": 2, "val": 1}.items():
        paint(tmp_path / part / "a", count)
    assert len(ImageFolder(str(tmp_path)).read(train=False)) == 2


def test_a_part_of_each_class_is_cut_off(tmp_path: Path) -> None:
    """A fifth of ten and of five."""
    paths = paint(tmp_path / "a", 10) + paint(tmp_path / "b", 5)
    source = ImageFolder(str(tmp_path), image_size=65, test_fraction=0.2)
    train, test = source.read(train=True), source.read(train=False)
    assert isinstance(train, ImageFiles)
    assert isinstance(test, ImageFiles)
    assert test.labels.tolist() == [0, 0, 1]
    assert [Path(path).parent.name for path in test.paths] == ["a", "a", "b"]
    assert sorted([*train.paths, *test.paths]) == paths


def test_small_images_are_in_memory(tmp_path: Path) -> None:
    paint(tmp_path / "a", 5)
    assert isinstance(ImageFolder(str(tmp_path), image_size=64).read(train=True), TensorData)
    assert isinstance(ImageFolder(str(tmp_path), image_size=65).read(train=True), ImageFiles)


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"looked for a folder in `root` '.*/none', .* must hold train/<class>/\*"
    ):
        ImageFolder(str(tmp_path / "none"))
    paint(tmp_path / "val" / "a", 1)
    with pytest.raises(FileNotFoundError, match="looked for train in `root`"):
        ImageFolder(str(tmp_path))
    paint(tmp_path / "train" / "b", 1)
    with pytest.raises(ValueError, match=r"/val' holds classes without training images: \['a'\]"):
        ImageFolder(str(tmp_path)).read(train=False)
    with pytest.raises(ValueError, match="`image_size` must be 1 or more, got 0"):
        ImageFolder(str(tmp_path), image_size=0)


def test_a_class_without_test_images(tmp_path: Path) -> None:
    paint(tmp_path / "train" / "a", 1)
    with pytest.raises(FileNotFoundError, match="looked for test or val in `root`"):
        ImageFolder(str(tmp_path))
    paint(tmp_path / "train" / "b", 1)
    paint(tmp_path / "test" / "a", 1)
    with pytest.raises(ValueError, match=r"/test' holds no image of 1 of 2 classes, the first is 'b'"):
        ImageFolder(str(tmp_path)).read(train=False)
