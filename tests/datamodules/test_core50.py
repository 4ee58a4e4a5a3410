from pathlib import Path

from lightning_cl.datamodules import CORe50
from tests.helpers.fakes import core50


def test_classes_come_in_batches_and_all_are_tested_at_once(tmp_path: Path) -> None:
    stream = CORe50(**core50.write(tmp_path))
    assert stream.classes == [tuple(range(10)), *(tuple(range(k, k + 5)) for k in range(10, 50, 5))]
    assert [(e.num_train, e.num_test) for e in stream.experiences] == [(40, 100), *[(20, 100)] * 8]
    assert [stream.test_of(e) for e in range(9)] == [0] * 9
    assert all(stream.part(e, "test").labels.bincount().tolist() == [2] * 50 for e in range(9))


def test_objects_go_by_their_own_images(tmp_path: Path) -> None:
    """Label 10 is object 1 (counted from 0), the fifth to eighth image that the fake writes."""
    images, labels = zip(*CORe50(**core50.write(tmp_path)).part(1, "train"), strict=True)
    assert [int(label) for label in labels] == [10] * 4 + [11] * 4 + [12] * 4 + [13] * 4 + [14] * 4
    assert [int(image[0, 0, 0]) // 21 for image in images[:4]] == [4, 5, 6, 7]


def test_what_was_cut_is_in_the_shape(tmp_path: Path) -> None:
    arguments = core50.write(tmp_path)
    shape = CORe50(**arguments, labels="category").shape()
    assert (shape["scenario"], shape["run"], shape["labels"]) == ("nc", 0, "category")
    assert shape != CORe50(**arguments).shape()
