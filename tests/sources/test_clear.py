import json
from pathlib import Path
from typing import Any

import pytest

from lightning_cl.samples import ImageFiles
from lightning_cl.sources.clear import CLEAR
from tests.helpers.fakes import clear
from tests.helpers.fakes._files import colours
from tests.helpers.fakes._lists import write_lines, write_listed


def write_older(root: Path) -> dict[str, Any]:
    """The release of 2021: buckets 1 and 2, one image of each class for each list and one more for testing."""
    folder = root / "clear10"
    write_lines(folder / "class_names.txt", clear.NAMES)
    write_lines(folder / "training_folder" / "bucket_indices.json", [json.dumps(["1", "2"])])
    images = []
    for b in (1, 2):
        lines = [f"labeled_images/{b}/{name}/{k}.jpg {c}" for c, name in enumerate(clear.NAMES) for k in range(5)]
        images += [folder / line.split()[0] for line in lines]
        write_lines(folder / "training_folder" / "filelists" / str(b) / "all.txt", lines)
        for seed in range(5):  # image `seed` of each class is for testing
            split = folder / "training_folder" / "testset_ratio_0.3" / f"split_{seed}" / str(b)
            write_lines(split / "train.txt", [line for line in lines if f"/{seed}.jpg" not in line])
            write_lines(split / "test.txt", [line for line in lines if f"/{seed}.jpg" in line])
    write_listed(images, colours(), 8)
    return {"root": str(root), "buckets": [1, 2], "image_size": 32}


def relative(source: CLEAR, train: bool) -> list[list[str]]:
    return [[str(Path(path).relative_to(source.place)) for path in paths] for paths, _ in source.lists(train)]


def test_newer_release_has_one_split(tmp_path: Path) -> None:
    source = CLEAR(**clear.write(tmp_path))
    for train, part, each in ((True, "train", 4), (False, "test", 2)):
        for b, (paths, labels) in zip((1, 2), source.lists(train), strict=True):
            expected = [f"{part}/labeled_images/{b}/{name}/{b}{k}.jpg" for name in clear.NAMES for k in range(each)]
            assert [str(Path(path).relative_to(tmp_path)) for path in paths] == expected
            assert labels.tolist() == [c for c in range(11) for _ in range(each)]


def test_streaming_tests_on_the_whole_next_bucket(tmp_path: Path) -> None:
    source = CLEAR(**clear.write(tmp_path), protocol="streaming")
    assert source.num_experiences == 1
    for train, b in ((True, 1), (False, 2)):
        (paths,) = relative(source, train)
        folders = [f"{part}/labeled_images/{b}" for part in ("train", "test")]
        assert [sum(path.startswith(folder) for path in paths) for folder in folders] == [44, 22]
        assert len(paths) == 66


@pytest.mark.parametrize("seed", [None, 0, 3])
def test_older_release_has_five_splits(seed: int | None, tmp_path: Path) -> None:
    source = CLEAR(**write_older(tmp_path), split_seed=seed)
    source.prepare()
    held_out = seed or 0
    for b, train, test in zip((1, 2), relative(source, True), relative(source, False), strict=True):
        assert test == [f"labeled_images/{b}/{name}/{held_out}.jpg" for name in clear.NAMES]
        assert len({*train} - {*test}) == 44
    assert source.lists(train=False)[1][1].tolist() == [*range(11)]


def test_older_release_streams(tmp_path: Path) -> None:
    arguments = write_older(tmp_path)
    train, test = (relative(CLEAR(**arguments, protocol="streaming"), train) for train in (True, False))
    assert [[path.split("/")[1] for path in paths] for paths in (*train, *test)] == [["1"] * 55, ["2"] * 55]
    backwards = CLEAR(**{**arguments, "buckets": [2, 1]}, protocol="streaming")
    assert (relative(backwards, True), relative(backwards, False)) == (test, train)


def test_large_images_are_cropped_as_by_avalanche(tmp_path: Path) -> None:
    data = CLEAR(**{**clear.write(tmp_path), "image_size": 72}).read(train=True)
    assert isinstance(data, ImageFiles)
    assert data[0][0].shape == data.for_training()[0][0].shape == (3, 72, 72)
    assert "RandomCrop" in str(data.train_transform)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data_set": "clear"}, r"`data_set` must be one of \['clear10', 'clear100'\], got 'clear'"),
        ({"protocol": "online"}, "`protocol` must be 'iid' or 'streaming', got 'online'"),
        ({"split_seed": 5}, r"`split_seed` must be in \[0, 4\]"),
        ({"split_seed": 1, "protocol": "streaming"}, "`split_seed` must be .* None for `protocol` 'streaming', got 1"),
        ({"buckets": [1, 1]}, r"`buckets` must be numbers, each once.*, got \[1, 1\]"),
        ({"buckets": []}, "`buckets` must be numbers"),
        ({"buckets": [1], "protocol": "streaming"}, "`buckets` must be .* two or more to stream"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CLEAR(**arguments)


def test_classes_of_the_two_data_sets(tmp_path: Path) -> None:
    assert (CLEAR().num_classes, CLEAR(data_set="clear100").num_classes) == (11, 100)
    with pytest.raises(ValueError, match=r"class_names\.txt' should name the 100 classes of clear100, and names 11"):
        CLEAR(**clear.write(tmp_path), data_set="clear100").lists(train=True)


def test_a_split_of_the_older_release_is_no_option_of_the_newer(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`split_seed` is for the older release, .* leave it out"):
        CLEAR(**clear.write(tmp_path), split_seed=2).lists(train=True)


def test_missing_files_are_named(tmp_path: Path) -> None:
    newer, older = clear.write(tmp_path / "newer"), write_older(tmp_path / "older")
    (tmp_path / "newer/test/labeled_metadata.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"CLEAR is missing: looked for test/labeled_metadata\.json in"):
        CLEAR(**newer).prepare()
    with pytest.raises(FileNotFoundError, match=r"looked for clear10/training_folder/filelists/3/all\.txt in"):
        CLEAR(**{**older, "buckets": [1, 3]}, protocol="streaming").prepare()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("labeled_metadata.json", '{"2": {}}', r"`buckets` must be among those of '.*', \['2'\], got 1"),
        ("labeled_metadata.json", '{"1": {"bus', r"labeled_metadata\.json' is no JSON dictionary or incomplete"),
        ("labeled_metadata/1/bus.json", "[1]", r"bus\.json' is no JSON dictionary or incomplete"),
        ("labeled_metadata/1/bus.json", '{"7": {}}', r"bus\.json' should have an `IMG_PATH` for each image"),
        (
            "labeled_metadata/1/bus.json",
            '{"7": {"IMG_PATH": "lost.jpg"}}',
            r"lists 1 files that are not .*lost\.jpg",
        ),
    ],
)
def test_damaged_metadata_are_named(file: str, content: str, message: str, tmp_path: Path) -> None:
    arguments = clear.write(tmp_path)
    (tmp_path / "train" / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        CLEAR(**arguments).lists(train=True)
