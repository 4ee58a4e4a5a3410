import os
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision

from lightning_cl.sources.cifar import CIFAR10, CIFAR100, CIFARSource
from tests.helpers.fakes import split_cifar10, split_cifar100
from tests.helpers.fakes._images import distinct_images

BATCHES = [f"data_batch_{number}" for number in range(1, 6)]


@pytest.fixture(autouse=True)
def no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here may reach for the network."""

    def refuse(root: str, download: bool) -> None:
        raise RuntimeError("tried to download")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", refuse)
    monkeypatch.setattr(torchvision.datasets, "CIFAR100", refuse)


def test_batches_follow_each_other(tmp_path: Path) -> None:
    split_cifar10.write(tmp_path)
    images = distinct_images(120, 3, 32)
    for train, part, first in ((True, images[:100], 0), (False, images[100:], 5)):
        x, y = CIFAR10(str(tmp_path)).load(train).batch(torch.arange(len(part)))
        assert (x.shape[1:], x.dtype, y.dtype) == ((3, 32, 32), torch.uint8, torch.int64)
        assert np.array_equal(x, part)
        assert y.tolist() == [(first + i // 20 + i % 20) % 10 for i in range(len(part))]


def test_pixels_are_planes_of_rows(tmp_path: Path) -> None:
    """Red, green, blue; in each row after row."""
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    data = (np.arange(3072) // 1024 * 64 + np.arange(3072) % 1024 // 32).astype(np.uint8)[None]
    (folder / "train").write_bytes(pickle.dumps({"data": data, "fine_labels": [7]}))
    (image,) = CIFAR100(str(tmp_path)).load(train=True).inputs
    assert image[:, :, 0].tolist() == [[64 * channel + row for row in range(32)] for channel in range(3)]
    assert torch.equal(image, image[:, :, :1].expand(-1, -1, 32))


@pytest.mark.parametrize(("labels", "num_classes", "size"), [("fine", 100, 1), ("coarse", 20, 5)])
def test_fine_and_coarse_labels(labels: Any, num_classes: int, size: int, tmp_path: Path) -> None:
    split_cifar100.write(tmp_path)
    source = CIFAR100(str(tmp_path), download=False, labels=labels)
    assert source.num_classes == num_classes
    assert source.read(train=True).labels.tolist() == [i % 100 // size for i in range(400)]
    assert len(source.read(train=False)) == 200


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("key", [str, str.encode], ids=["text", "bytes"])
@pytest.mark.parametrize("labels", [list, np.array], ids=["list", "array"])
def test_pickles_of_python_3(protocol: int, key: Any, labels: Any, tmp_path: Path) -> None:
    """As people write them who cut or join the files."""
    content = {key("data"): distinct_images(2, 3, 32).reshape(2, 3072), key("fine_labels"): labels([5, 99])}
    (tmp_path / "cifar-100-python").mkdir()
    (tmp_path / "cifar-100-python" / "test").write_bytes(pickle.dumps(content, protocol=protocol))
    x, y = CIFAR100(str(tmp_path)).load(train=False).batch(torch.arange(2))
    assert np.array_equal(x, distinct_images(2, 3, 32))
    assert y.tolist() == [5, 99]


@pytest.mark.parametrize("source", [CIFAR10, CIFAR100])
def test_root_may_be_the_published_folder(source: type[CIFARSource], tmp_path: Path) -> None:
    {CIFAR10: split_cifar10, CIFAR100: split_cifar100}[source].write(tmp_path)
    assert len(source(str(tmp_path / source.folder), download=False).read(train=True)) in (100, 400)


def test_missing_files_are_named(tmp_path: Path) -> None:
    source = CIFAR10(str(tmp_path), download=False)
    assert source.missing() == [f"cifar-10-batches-py/{name}" for name in [*BATCHES, "test_batch"]]
    split_cifar10.write(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").unlink()
    message = f"CIFAR-10 is missing: looked for cifar-10-batches-py/data_batch_3 in `root` {str(tmp_path)!r}, "
    with pytest.raises(FileNotFoundError, match=re.escape(f"{message}and `download` is off. Unpack cifar-10-python")):
        source.read(train=False)


@pytest.mark.parametrize("source", [CIFAR10, CIFAR100])
def test_missing_files_are_downloaded(
    source: type[CIFARSource], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(root: str, download: bool) -> None:
        assert download
        {CIFAR10: split_cifar10, CIFAR100: split_cifar100}[source].write(Path(root))

    with pytest.raises(FileNotFoundError, match=r"the download failed \(RuntimeError: tried to download\)\. Unpack"):
        source(str(tmp_path)).prepare()
    monkeypatch.setattr(torchvision.datasets, source.__name__, download)
    assert len(source(str(tmp_path)).read(train=True)) in (100, 400)
    assert [path.name for path in tmp_path.iterdir()] == [source.folder]
    assert len(source(str(tmp_path / "other" / source.folder)).read(train=True)) in (100, 400)


class Call:
    """What an attacker puts into a pickle."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.made_by = function, arguments

    def __reduce__(self) -> Any:
        return self.made_by


@pytest.mark.parametrize(("function", "name"), [(os.mkdir, "posix.mkdir"), (eval, "eval"), (np.load, "numpy.load")])
@pytest.mark.parametrize("protocol", [2, 5])
def test_pickles_run_no_code(function: Any, name: str, protocol: int, tmp_path: Path) -> None:
    (tmp_path / "cifar-100-python").mkdir()
    attack = {"data": Call(function, str(tmp_path / "made")), "fine_labels": []}
    (tmp_path / "cifar-100-python" / "train").write_bytes(pickle.dumps(attack, protocol=protocol))
    with pytest.raises(ValueError, match=rf"train' is no file of CIFAR .* \(UnpicklingError: it asks for \S*{name}\)"):
        CIFAR100(str(tmp_path)).load(train=True)
    assert not (tmp_path / "made").exists()


GOOD = {"data": np.zeros((3, 3072), dtype=np.uint8), "labels": [0, 1, 2]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no file of CIFAR with 'labels', or damaged .EOFError"),
        (pickle.dumps(GOOD)[:-9], r"or damaged \(\w+: .*\): get it again"),
        (b"\x1f\x8b nothing of that kind", r"or damaged \(\w+: .*\): get it again"),
        (pickle.dumps([1, 2]), "or damaged .AttributeError"),
        (pickle.dumps({"data": GOOD["data"], "fine_labels": [0, 1, 2]}), r"or damaged \(KeyError: 'labels'\)"),
        (pickle.dumps({**GOOD, "labels": [0, 1]}), r"and holds uint8 \(3, 3072\) and int64 \(2,\): get it again"),
        (pickle.dumps({**GOOD, "labels": [0.0, 1, 2]}), r"and holds uint8 \(3, 3072\) and float64 \(3,\)"),
        (pickle.dumps({**GOOD, "data": np.zeros((3, 3072))}), r"and holds float64 \(3, 3072\) and int64 \(3,\)"),
        (pickle.dumps({**GOOD, "data": np.zeros((3, 1024), dtype=np.uint8)}), r"and holds uint8 \(3, 1024\)"),
        (pickle.dumps({**GOOD, "data": [1, 2, 3]}), "or damaged .AttributeError"),
    ],
    ids=["empty", "cut", "zip", "no dict", "no labels", "few labels", "float labels", "float", "small", "no array"],
)
def test_damaged_files_are_named(content: bytes, message: str, tmp_path: Path) -> None:
    split_cifar10.write(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(content)
    source = CIFAR10(str(tmp_path), download=False)
    assert len(source.read(train=True)) == 100
    with pytest.raises(ValueError, match=rf"cifar-10-batches-py/test_batch' .*{message}"):
        source.read(train=False)


def test_unknown_labels() -> None:
    with pytest.raises(ValueError, match="`labels` must be 'fine' or 'coarse', got 'super'"):
        CIFAR100(labels="super")  # type: ignore[arg-type]
