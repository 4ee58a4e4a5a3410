from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_cl.sources.imagenet import ImageNet, subset_classes
from tests.helpers.fakes.split_imagenet import write_imagenet


def wnid(label: int) -> str:
    return f"n{label:08d}"


@pytest.fixture(scope="module")
def thousand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Names of training files of 1 000 classes, one each, and of test files of the first hundred."""
    root = tmp_path_factory.mktemp("imagenet")
    for part, count in (("train", 1000), ("val", 100)):
        for label in range(count):
            (root / part / wnid(label)).mkdir(parents=True)
            (root / part / wnid(label) / f"{part}_{label}.JPEG").touch()
    return root


@pytest.fixture(scope="module")
def lists(thousand: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The training files as lists of either part, in reverse order."""
    root = tmp_path_factory.mktemp("lists")
    lines = [f"{thousand}/train/{wnid(label)}/train_{label}.JPEG {label}\n" for label in reversed(range(1000))]
    for name in ("train.txt", "test.txt"):
        (root / name).write_text("".join(lines))
    return root


def contents(data: Any) -> list[tuple[str, int]]:
    return [(Path(path).stem, int(label)) for path, label in zip(data.paths, data.labels, strict=True)]


def test_all_classes_in_alphabetical_order(thousand: Path) -> None:
    source = ImageNet(str(thousand), download=False)
    assert (source.num_classes, source.input_shape) == (1000, (3, 224, 224))
    assert contents(source.read(train=True)) == [(f"train_{label}", label) for label in range(1000)]


def test_subset_of_seed_1993() -> None:
    """The small ones are those of FOSTER's published list ``imagenet-sub``."""
    order = np.arange(1000)
    np.random.RandomState(1993).shuffle(order)
    assert subset_classes("pycil") == sorted(order[:100].tolist())
    assert [label for label in subset_classes("pycil") if label < 100] == [7, 11, 14, 44, 54, 62, 75, 77, 85]


@pytest.mark.parametrize("layout", ["thousand", "lists"])
@pytest.mark.parametrize("subset", ["pycil", "podnet"])
def test_subsets_are_numbered_anew(layout: str, subset: str, request: pytest.FixtureRequest) -> None:
    source = ImageNet(str(request.getfixturevalue(layout)), download=False, subset=subset)
    classes = [*range(100)] if subset == "podnet" else sorted(np.random.RandomState(1993).permutation(1000)[:100])
    assert source.num_classes == 100
    expected = {(f"train_{label}", new) for new, label in enumerate(classes)}
    assert {*contents(source.read(train=True))} == expected


def test_classes_in_a_file(thousand: Path, tmp_path: Path) -> None:
    (tmp_path / "some.txt").write_text(f"{wnid(9)} a bird\n\n{wnid(2)}\n{wnid(9)}\n")
    source = ImageNet(str(thousand), subset=str(tmp_path / "some.txt"))
    assert source.num_classes == 2
    assert contents(source.read(train=False)) == [("val_2", 0), ("val_9", 1)]


def test_a_folder_that_is_cut_already(tmp_path: Path) -> None:
    write_imagenet(tmp_path / "imagenet", [wnid(7 * label) for label in range(100)])
    source = ImageNet(str(tmp_path), download=False, subset="as_is", image_size=8)
    assert source.read(train=True).labels.tolist() == [label for label in range(100) for _ in range(4)]
    assert source.read(train=False).labels.tolist() == [label for label in range(100) for _ in range(2)]
    assert source.read(train=False)[0][0].shape == (3, 8, 8)


@pytest.mark.parametrize("inner", ["", "imagenet"])
def test_lists_count_where_there_are_folders_too(inner: str, tmp_path: Path) -> None:
    write_imagenet(tmp_path / inner, ["a", "b"])
    for name in ("train.txt", "test.txt"):
        (tmp_path / inner / name).write_text("train/b/b_0.JPEG 0\ntrain/a/a_3.JPEG 1\n")
    source = ImageNet(str(tmp_path), download=False, subset="as_is")
    assert contents(source.read(train=True)) == contents(source.read(train=False)) == [("b_0", 0), ("a_3", 1)]


@pytest.mark.parametrize(("subset", "count"), [(None, 1000), ("pycil", 1000), ("podnet", 1000), ("as_is", 100)])
def test_folders_of_another_number(subset: str | None, count: int, tmp_path: Path) -> None:
    write_imagenet(tmp_path, ["a", "b"])
    with pytest.raises(ValueError, match=rf"train' should hold {count} folders, one for each class, and holds 2"):
        ImageNet(str(tmp_path), download=False, subset=subset).read(train=True)


def test_lists_that_are_cut_already_are_not_cut_again(tmp_path: Path) -> None:
    write_imagenet(tmp_path, ["a"])
    for name in ("train.txt", "test.txt"):
        (tmp_path / name).write_text("train/a/a_0.JPEG 99\n")
    with pytest.raises(ValueError, match=r"among 1000 classes, and '.*train.txt' lists 100: set `subset` to 'as_is'"):
        ImageNet(str(tmp_path), download=False, subset="pycil").read(train=True)
    (tmp_path / "some.txt").write_text("a\n")
    with pytest.raises(ValueError, match=r"some.txt' names WordNet ids, and '.*train.txt' has only numbers"):
        ImageNet(str(tmp_path), download=False, subset=str(tmp_path / "some.txt")).read(train=True)


def test_classes_in_a_file_that_are_missing(tmp_path: Path) -> None:
    write_imagenet(tmp_path, ["a"])
    (tmp_path / "some.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match=r"train' holds no image of 1 of 2 classes, the first is 'b'"):
        ImageNet(str(tmp_path), download=False, subset=str(tmp_path / "some.txt")).read(train=True)


def test_missing_folders_are_named(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(FileNotFoundError, match=r"looked for val in `root` .*, and it cannot be downloaded auto.*"):
        ImageNet(str(tmp_path)).prepare()


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"one of 'pycil', 'podnet', 'as_is' or a file .* 'pycill'\. Did you mean 'pycil'"
    ):
        ImageNet(subset="pycill")
    (tmp_path / "empty.txt").touch()
    with pytest.raises(ValueError, match=r"`subset` must name a file with a WordNet id a line, and '.*' is empty"):
        ImageNet(subset=str(tmp_path / "empty.txt"))
    with pytest.raises(ValueError, match="`image_size` must be 1 or more, got 0"):
        ImageNet(image_size=0)


def test_training_crops_a_part(tmp_path: Path) -> None:
    write_imagenet(tmp_path, ["a"])
    (tmp_path / "some.txt").write_text("a\n")
    data = ImageNet(str(tmp_path), subset=str(tmp_path / "some.txt"), image_size=4).read(train=True)
    state = torch.get_rng_state()
    assert data[0][0].shape == (3, 4, 4)
    assert torch.equal(torch.get_rng_state(), state)
    assert data.for_training()[0][0].shape == (3, 4, 4)
    assert not torch.equal(torch.get_rng_state(), state)
