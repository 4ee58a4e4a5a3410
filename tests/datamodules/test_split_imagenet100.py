from pathlib import Path

import pytest

from lightning_cl.datamodules.split_imagenet100 import SplitImageNet100
from tests.helpers.fakes import split_imagenet100


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("imagenet100")
    split_imagenet100.write(root)
    return root


def test_ten_experiences_of_ten_classes(root: Path) -> None:
    """The order of the 100, whichever they are among the 1 000."""
    stream = SplitImageNet100(str(root), subset="as_is", image_size=8, class_order=1993)
    assert stream.classes[0] == (68, 56, 78, 8, 23, 84, 90, 65, 74, 76)
    assert {(e.num_train, e.num_test) for e in stream.experiences} == {(40, 20)}
    part = stream.part(0, "test")
    folders = {Path(path).parent.name for path in part.paths}
    assert folders == {f"n{label:08d}" for label in stream.classes[0]}


def test_checkpoints_know_the_subset(root: Path) -> None:
    assert SplitImageNet100(str(root), subset="as_is", image_size=8).shape()["subset"] == "as_is"
    assert SplitImageNet100().source.shape()["subset"] == "pycil"


@pytest.mark.parametrize("subset", ["pycil", "podnet"])
def test_a_folder_that_is_cut_already_is_not_cut_again(subset: str, root: Path) -> None:
    with pytest.raises(ValueError, match=r"train' should hold 1000 folders, one for each class, and holds 100"):
        SplitImageNet100(str(root), subset=subset).setup("fit")
