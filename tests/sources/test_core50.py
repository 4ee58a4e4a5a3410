from pathlib import Path
from typing import Any

import pytest

from lightning_cl.sources.core50 import BATCHES, CORe50
from tests.helpers.fakes import core50
from tests.helpers.fakes._files import colours
from tests.helpers.fakes._lists import write_lines, write_listed


def listed(root: Path, scenario: Any, folder: str, batches: int, first: str) -> Any:
    """A source with lists of one image each; the last is another one."""
    write_listed(
        [root / "core50_128x128" / name for name in ("s1/o7/x.png", "s3/o1/y.png", "s11/o50/z.png")], colours(), 8
    )
    for batch in range(batches):
        line = "s11/o50/z.png 49" if batch == batches - 1 else first
        write_lines(root / folder / f"train_batch_{str(batch).zfill(2)}_filelist.txt", [line])
    write_lines(root / folder / "test_filelist.txt", ["s3/o1/y.png 0"])
    return CORe50(str(root), scenario, 4)


@pytest.mark.parametrize(
    ("scenario", "folder", "batches"),
    [
        ("ni", "batches_filelists/NI_inc/run4", 8),
        ("nc", "batches_filelists/NC_inc/run4", 9),
        ("nic", "batches_filelists/NIC_inc/run4", 79),
        ("nicv2_79", "NIC_v2_79/run4", 79),
        ("nicv2_196", "NIC_v2_196/run4", 196),
        ("nicv2_391", "NIC_v2_391/run4", 391),
    ],
)
def test_each_scenario_has_lists_of_its_own(scenario: Any, folder: str, batches: int, tmp_path: Path) -> None:
    source = listed(tmp_path, scenario, folder, batches, "s1/o7/x.png 6")
    source.prepare()
    train, test = source.lists(train=True), source.lists(train=False)
    assert len(train) == len(test) == batches == BATCHES[scenario]
    assert [(paths, labels.tolist()) for paths, labels in train] == [
        ([f"{tmp_path}/core50_128x128/s1/o7/x.png"], [6])
    ] * (batches - 1) + [([f"{tmp_path}/core50_128x128/s11/o50/z.png"], [49])]
    assert {(*paths, *labels.tolist()) for paths, labels in test} == {(f"{tmp_path}/core50_128x128/s3/o1/y.png", 0)}


def test_categories_are_those_of_the_objects_however_they_are_numbered(tmp_path: Path) -> None:
    """In NC label 1 is object 5 (counted from 0), which is of the second category."""
    arguments = core50.write(tmp_path)
    objects, categories = (CORe50(**arguments, labels=labels) for labels in ("object", "category"))  # type: ignore[arg-type]
    assert (objects.num_classes, categories.num_classes) == (50, 10)
    assert [labels.unique().tolist() for _, labels in objects.lists(True)][:2] == [[*range(10)], [*range(10, 15)]]
    for train in (True, False):
        for (paths, labels), (same, of) in zip(objects.lists(train), categories.lists(train), strict=True):
            things = [list(core50.LABEL)[label] for label in labels]
            assert paths == same
            assert of.tolist() == [thing // 5 for thing in things]


@pytest.mark.parametrize(
    ("argument", "value"), [("scenario", "nicv2"), ("run", 10), ("run", -1), ("labels", "objects"), ("size", 64)]
)
def test_arguments_are_checked(argument: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"`{argument}` must be one of .*, got {value!r}"):
        CORe50(**{argument: value})


def test_missing_lists_and_images_are_named(tmp_path: Path) -> None:
    arguments = core50.write(tmp_path)
    (tmp_path / "batches_filelists/NC_inc/run0/train_batch_07_filelist.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"CORe50 is missing: looked for \S*/train_batch_07_filelist\.txt in"):
        CORe50(**arguments).prepare()
    with pytest.raises(FileNotFoundError, match=r"looked for core50_128x128, \S+ in .* vlomonaco\.github\.io/core50"):
        CORe50(**{**arguments, "size": 128}).prepare()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "s1/o1/C_01_01_009.png 0",
            r"lists 1 files that are not there, the first is .*01_009\.png': get them again",
        ),
        ("s1/o1/C_01_01_000.png", "line 1, should be a path and a label, and is 's1/o1/C_01_01_000.png'"),
    ],
)
def test_lists_that_do_not_fit_are_named(line: str, message: str, tmp_path: Path) -> None:
    arguments = core50.write(tmp_path)
    write_lines(tmp_path / "batches_filelists/NC_inc/run0/train_batch_00_filelist.txt", [line])
    with pytest.raises(ValueError, match=message):
        CORe50(**arguments).lists(train=True)


def test_categories_need_folders_of_objects(tmp_path: Path) -> None:
    source = listed(tmp_path, "ni", "batches_filelists/NI_inc/run4", 8, "x.png 6")
    write_listed([tmp_path / "core50_128x128" / "x.png"], colours(), 8)
    source.labels = "category"
    with pytest.raises(ValueError, match=r"should name files such as 's1/o1/C_01_01_000\.png', got '.*x\.png'"):
        source.lists(train=True)
