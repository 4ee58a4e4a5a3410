import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_cl.corruptions import CORRUPTIONS, cotta_order
from lightning_cl.samples import TensorData
from lightning_cl.segments import CorruptedFiles, SegmentStream, load_rows
from lightning_cl.sources.cifar import CIFAR10
from tests.helpers.fakes._corrupted import write_arrays


class Segments(SegmentStream):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(2, (1,), **kwargs)

    def dataset(self, experience: int, train: bool) -> TensorData:
        return TensorData(torch.full((4, 1), experience), torch.tensor([0, 1, 0, 1]))


class Files(CorruptedFiles):
    folder, clean, test_only = "CIFAR-10-C", CIFAR10, "nothing to train on"

    def __init__(self, root: Path, **kwargs: Any) -> None:
        super().__init__(str(root), **kwargs)


def test_standard_schedule_is_one_segment_for_each_corruption() -> None:
    stream = Segments()
    assert [stream.name_of(i) for i in range(len(stream))] == [f"{name}, severity 5" for name in CORRUPTIONS]
    assert len(stream.test_dataloader().loaders) == 15
    assert [int(x[0, 0]) for x, _ in stream.test_dataloader()] == list(range(15))


def test_one_corruption_may_be_named_by_itself() -> None:
    assert Segments(corruptions="fog", severity=2).segments == [("fog", 2)]


def test_gradual_schedule_is_in_the_state_that_a_resume_must_agree_with() -> None:
    stream = Segments(schedule="gradual", corruptions=3)
    assert len(stream) == 131
    assert stream.segments[5:14] == [(cotta_order(3)[1], s) for s in (1, 2, 3, 4, 5, 4, 3, 2, 1)]
    assert stream.shape() != Segments(schedule="gradual", corruptions=4).shape()


def test_files_give_the_rows_of_each_severity(tmp_path: Path) -> None:
    """A pixel of the fake tells the corruption, the severity and the number of the image."""
    write_arrays(tmp_path, "CIFAR-10-C", 10)
    for severity in (1, 4, 5):
        stream = Files(tmp_path, severity=severity, eval_batch_size=8)
        stream.prepare_data()
        for number, loader in enumerate(stream.test_dataloader().loaders):
            x, y = (torch.cat(columns) for columns in zip(*loader, strict=True))
            assert (x.shape, x.dtype) == ((20, 3, 32, 32), torch.uint8)
            assert x[:, 0].unique().tolist() == [number]
            assert x[:, 1].unique().tolist() == [severity]
            assert x[:, 2, 0, 0].tolist() == list(range(20))
            assert y.tolist() == [*range(10)] * 2
            assert len(loader) == 3


def test_batches_of_a_segment_are_as_many_as_published(tmp_path: Path) -> None:
    class Published(Files):
        def dataset(self, experience: int, train: bool) -> TensorData:
            return TensorData(torch.empty(50000, 1), torch.zeros(50000), torch.arange(10000))

    assert len(Published(tmp_path, eval_batch_size=200).test_dataloader()) == 15 * 50


def test_labels_of_another_data_set_are_refused(tmp_path: Path) -> None:
    write_arrays(tmp_path, "CIFAR-10-C", 100, each=1)
    with pytest.raises(ValueError, match=r"Labels must be in \[0, 10\) \(`num_classes`\), got \[10, 11"):
        Files(tmp_path).part(0, "test")


def test_folder_itself_is_a_root_too(tmp_path: Path) -> None:
    write_arrays(tmp_path, "CIFAR-10-C", 10)
    assert len(Files(tmp_path / "CIFAR-10-C").part(0, "test")) == 20


def test_there_is_nothing_to_train_on(tmp_path: Path) -> None:
    write_arrays(tmp_path, "CIFAR-10-C", 10)
    stream = Files(tmp_path)
    assert [(e.num_train, e.num_test) for e in stream.experiences] == [(0, 20)] * 15
    with pytest.raises(ValueError, match=r"^nothing to train on$"):
        stream.setup("fit")
    stream.setup("test")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"schedule": "sudden"}, "`schedule` must be 'standard' or 'gradual', got 'sudden'"),
        ({"severity": 6}, "severity"),
        ({"corruptions": []}, "`corruptions` must name at least one corruption"),
        ({"corruptions": ["fogg"]}, "fog"),
        ({"corruptions": 10}, "`corruptions` must be names or one of the orders 0 to 9, got 10"),
        ({"corruptions": True}, "`corruptions` must be names or one of the orders 0 to 9, got True"),
        ({"schedule": "gradual", "severity": 3}, "`severity` is for the standard `schedule`"),
    ],
)
def test_bad_arguments_are_named(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Segments(**arguments)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    write_arrays(tmp_path, "CIFAR-10-C", 10)
    path = tmp_path / "CIFAR-10-C" / "fog.npy"
    whole = path.read_bytes()
    stream = Files(tmp_path, corruptions=["fog"])
    for content, message in ((whole[:-1], "fog.npy' is damaged or not downloaded whole"), (b"", "fog.npy' is damaged")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=re.escape(message)):
            stream.part(0, "test")
    np.save(path, np.zeros((100, 32, 32), np.uint8))
    with pytest.raises(ValueError, match=r"fog.npy' should hold uint8 \(5 N, 32, 32, 3\) with as many labels"):
        stream.part(0, "test")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"CIFAR-10-C is missing: looked for fog\.npy in `root` .* from Zenodo"):
        stream.part(0, "test")


# -- at the edges -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "dtype", "labels"), [(7, np.uint8, 7), (0, np.uint8, 0), (10, np.float32, 10), (10, np.uint8, 5)]
)
def test_arrays_of_another_form_are_named(count: int, dtype: Any, labels: int, tmp_path: Path) -> None:
    np.save(tmp_path / "fog.npy", np.zeros((count, 32, 32, 3), dtype))
    np.save(tmp_path / "labels.npy", np.zeros(labels, np.int64))
    with pytest.raises(ValueError, match=r"fog.npy' should hold uint8 \(5 N, 32, 32, 3\) with as many labels"):
        Files(tmp_path, corruptions="fog").part(0, "test")


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{tmp_path.name}' is damaged or not downloaded whole"):
        load_rows(tmp_path)


def test_files_are_mapped_and_never_written_to(tmp_path: Path) -> None:
    write_arrays(tmp_path, "CIFAR-10-C", 10)
    path = tmp_path / "CIFAR-10-C" / "fog.npy"
    rows = load_rows(path)
    assert isinstance(rows, np.memmap)
    before = path.read_bytes()
    rows[:] = 0
    rows.flush()
    assert path.read_bytes() == before


def test_missing_files_are_listed_the_labels_too(tmp_path: Path) -> None:
    write_arrays(tmp_path, "CIFAR-10-C", 10)
    (tmp_path / "CIFAR-10-C" / "labels.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"looked for labels\.npy in `root`"):
        Files(tmp_path).prepare_data()
    with pytest.raises(FileNotFoundError, match="looked for " + ", ".join(f"{n}.npy" for n in CORRUPTIONS[:4]) + " in"):
        Files(tmp_path / "none").prepare_data()


def test_defaults_are_those_of_the_published_protocol_and_the_clean_data_set(tmp_path: Path) -> None:
    stream = Files(tmp_path)
    assert stream.eval_batch_size == 200
    (x,) = stream.transform_batch([torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)])
    expected = [(1 - mean) / std for mean, std in zip(CIFAR10.mean, CIFAR10.std, strict=True)]
    torch.testing.assert_close(x[0, :, 0, 0], torch.tensor(expected))
    with pytest.raises(ValueError, match=r"^nothing to train on$"):
        stream.dataset(0, train=True)
