import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lightning_cl.sources.i_blurry import IBlurry
from tests.helpers.fakes import i_blurry


def records(root: Path, name: str) -> Any:
    return json.loads((root / "collections" / "cifar10" / f"cifar10_{name}.json").read_text())


def tail(path: str) -> str:
    return "/".join(path.split("/")[-3:])


def test_lists_hold_the_training_set_once_in_their_order(tmp_path: Path) -> None:
    source = IBlurry(**i_blurry.write(tmp_path))
    listed = [[tail(path) for path in paths] for paths, _ in source.lists(train=True)]
    for t, key in enumerate(("filepath", "file_name")):
        assert listed[t] == [record[key] for record in records(tmp_path, f"split2_n50_m10_rand1_task{t}")]
    images = [tail(str(path)) for path in (tmp_path / "cifar10" / "train").rglob("*.png")]
    assert Counter(listed[0] + listed[1]) == Counter(images)


def test_classes_are_numbered_in_order_of_appearance(tmp_path: Path) -> None:
    source = IBlurry(**i_blurry.write(tmp_path))
    seen: list[str] = []
    for train in (True, False):
        for paths, labels in source.lists(train):
            for path, label in zip(paths, labels.tolist(), strict=True):
                folder = path.split("/")[-2]
                seen += [folder] * (folder not in seen)
                assert seen[label] == folder
    assert seen == ["truck", "ship", "cat", "bird", "automobile", "airplane", "horse", "frog", "dog", "deer"]


def test_each_class_is_tested_where_most_of_it_is(tmp_path: Path) -> None:
    """Ships have 8 and 4 images, trucks 4 and 8."""
    tested = [{path.split("/")[-2] for path in paths} for paths, _ in IBlurry(**i_blurry.write(tmp_path)).lists(False)]
    assert tested == [{"airplane", "automobile", "bird", "cat", "ship"}, {"deer", "dog", "frog", "horse", "truck"}]


@pytest.mark.parametrize(("disjoint", "blurry"), [(100, 10), (50, 0), (100, 0)])
def test_no_blur_has_one_name(disjoint: int, blurry: int, tmp_path: Path) -> None:
    arguments = i_blurry.write(tmp_path)
    collection = tmp_path / "collections" / "cifar10"
    for t in range(2):
        old = collection / f"cifar10_split2_n50_m10_rand1_task{t}.json"
        old.rename(collection / f"cifar10_split2_n100_m0_rand1_task{t}.json")
    assert len(IBlurry(**arguments, disjoint_percent=disjoint, blurry_percent=blurry).lists(train=True)) == 2


@pytest.mark.parametrize("inner", ["", "cifar10"])
def test_lists_may_lie_elsewhere(inner: str, tmp_path: Path) -> None:
    arguments = i_blurry.write(tmp_path)
    elsewhere = tmp_path / "lists" / inner
    elsewhere.parent.mkdir(exist_ok=True)
    (tmp_path / "collections" / "cifar10").rename(elsewhere)
    source = IBlurry(**{**arguments, "root": str(tmp_path / "cifar10")}, lists=str(tmp_path / "lists"))
    source.prepare()
    assert [len(paths) for paths, _ in source.lists(train=True)] == [28, 28]


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("data_set", "imagenet", r"`data_set` must be one of \['cifar10', .*\], got 'imagenet'"),
        ("disjoint_percent", 101, r"`disjoint_percent` must be in \[0, 100\], got 101"),
        ("blurry_percent", -1, r"`blurry_percent` must be in \[0, 100\], got -1"),
        ("split_seed", -1, "`split_seed` must be 0 or more, got -1"),
    ],
)
def test_arguments_are_checked(argument: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        IBlurry(**{argument: value})


def test_missing_files_are_named(tmp_path: Path) -> None:
    arguments = i_blurry.write(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"lacks cifar10_split2_n50_m10_rand7_task0\.json, .*naver-ai/i-Blurry"):
        IBlurry(**arguments, split_seed=7).lists(train=True)
    (tmp_path / "collections/cifar10/cifar10_val.json").unlink()
    (tmp_path / "cifar10" / "train").rename(tmp_path / "cifar10" / "training")
    looked = r"i-Blurry is missing: looked for cifar10/train, collections/cifar10/cifar10_val\.json in"
    with pytest.raises(FileNotFoundError, match=looked):
        IBlurry(**arguments).prepare()


def test_files_that_do_not_fit_the_lists_are_named(tmp_path: Path) -> None:
    arguments = i_blurry.write(tmp_path)
    (tmp_path / "cifar10/test/cat/0001.png").unlink()
    with pytest.raises(ValueError, match=r"cifar10_val\.json' lists 1 files that are not there, .*cat/0001\.png"):
        IBlurry(**arguments).lists(train=False)
    (tmp_path / "cifar10/test/cat").rename(tmp_path / "cifar10/test/lion")
    (tmp_path / "cifar10/test/lion/0000.png").rename(tmp_path / "cifar10/test/lion/0001.png")
    (tmp_path / "collections/cifar10/cifar10_val.json").write_text('[{"file_name": "test/lion/0001.png"}]')
    with pytest.raises(ValueError, match=r"cifar10_val\.json' lists classes that are not trained on: \['lion'\]"):
        IBlurry(**arguments).lists(train=False)
    (tmp_path / "cifar10/train/cat/0001.png").unlink()
    with pytest.raises(ValueError, match=r"must hold each of the 55 training files once, .*'train/cat/0001\.png'"):
        IBlurry(**arguments).lists(train=True)
