from pathlib import Path

import pytest

from lightning_cl.datamodules.split_imagenet import SplitImageNet
from tests.helpers.fakes import split_imagenet


def test_classes_of_a_file(tmp_path: Path) -> None:
    stream = SplitImageNet(**split_imagenet.write(tmp_path), num_experiences=5)
    assert [(e.classes, e.num_train, e.num_test) for e in stream.experiences] == [
        ((2 * t, 2 * t + 1), 8, 4) for t in range(5)
    ]
    assert stream.shape()["subset"] == [f"n{number:08d}" for number in range(10)]


def test_ten_experiences_of_a_hundred_classes() -> None:
    stream = SplitImageNet(class_order=1993)
    assert [len(group) for group in stream.classes] == [100] * 10
    assert stream.classes[0][:10] == (54, 7, 894, 512, 126, 337, 988, 11, 284, 493)
    assert stream.input_shape == (3, 224, 224)


def test_missing_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"looked for train, val in `root` '{tmp_path}'"):
        SplitImageNet(str(tmp_path)).setup("fit")
