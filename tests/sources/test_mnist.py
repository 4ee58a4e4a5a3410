import gzip
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from lightning_cl.sources.mnist import EMNIST, KMNIST, MNIST, FashionMNIST, IDXSource
from tests.helpers.fakes._images import distinct_images, labels_in_turn, write_idx, write_idx_set

FILES = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
DEBIAN = Path(os.environ.get("FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))
SPLITS = {"balanced": 47, "bymerge": 47, "byclass": 62, "letters": 26, "digits": 10, "mnist": 10}


@pytest.fixture(autouse=True)
def no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here may reach for the network."""

    def refuse(root: str, **arguments: object) -> None:
        raise RuntimeError(f"tried to download to {root}\nand more")

    for name in ("MNIST", "FashionMNIST", "KMNIST", "EMNIST"):
        monkeypatch.setattr(torchvision.datasets, name, refuse)


def zip_files(folder: Path, which: str) -> None:
    for path in folder.glob(f"*{which}*"):
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()


@pytest.mark.parametrize("zipped", ["nothing", "ubyte", "images"])
@pytest.mark.parametrize("inner", ["", "raw"])
@pytest.mark.parametrize("source", [MNIST, FashionMNIST, KMNIST])
def test_files_are_found_and_read(source: type[IDXSource], inner: str, zipped: str, tmp_path: Path) -> None:
    folder = tmp_path / source.folder / "raw" if inner else tmp_path
    write_idx_set(folder)
    zip_files(folder, zipped)
    found = source(str(tmp_path), download=False)
    assert found.missing() == []
    for train, first, count in ((True, 1, 40), (False, 41, 20)):
        x, y = found.load(train).batch(torch.arange(count))
        assert (x.shape, x.dtype, y.dtype) == ((count, 1, 28, 28), torch.uint8, torch.int64)
        assert np.array_equal(x, distinct_images(count, 1, 28, first))
        assert y.tolist() == [i % 10 for i in range(count)]


def test_each_takes_its_own_folder_first(tmp_path: Path) -> None:
    """The files of MNIST and its kin have the same names."""
    write_idx_set(tmp_path)
    write_idx_set(tmp_path / "KMNIST" / "raw", num_classes=3)
    assert len(KMNIST(str(tmp_path)).read(train=True)) == 12
    assert len(MNIST(str(tmp_path)).read(train=True)) == 40


def test_all_files_come_from_one_folder(tmp_path: Path) -> None:
    write_idx_set(tmp_path)
    write_idx_set(tmp_path / "MNIST" / "raw", num_classes=3)
    (tmp_path / "MNIST" / "raw" / FILES[2]).unlink()
    assert [len(MNIST(str(tmp_path), download=False).read(train)) for train in (True, False)] == [40, 20]


def test_home_folder_is_that_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torchvision, which would download there, understands it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    write_idx_set(tmp_path / "data" / "MNIST" / "raw")
    assert len(MNIST("~/data").read(train=True)) == 40


@pytest.mark.parametrize("missing", FILES)
def test_a_missing_file_is_downloaded(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_idx_set(tmp_path)
    (tmp_path / missing).unlink()

    def download(root: str, download: bool) -> None:
        assert download
        write_idx_set(Path(root) / "FashionMNIST" / "raw")

    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", download)
    source = FashionMNIST(str(tmp_path))
    assert source.missing() == [missing]
    source.prepare()
    assert len(source.load(train=True)) == 40
    assert (tmp_path / "FashionMNIST" / "raw" / missing).is_file()


@pytest.mark.parametrize(
    ("download", "why"),
    [(False, "`download` is off"), (True, r"the download failed \(RuntimeError: tried to download to [^\n]*\)")],
)
def test_missing_files_are_named(download: bool, why: str, tmp_path: Path) -> None:
    write_idx_set(tmp_path)
    (tmp_path / FILES[3]).unlink()
    place = re.escape(repr(str(tmp_path)))
    message = (
        rf"Fashion-MNIST is missing: looked for {FILES[3]} in `root` {place}, and {why}\. Put .*, plain or \.gz, into"
    )
    with pytest.raises(FileNotFoundError, match=rf"{message} FashionMNIST/raw .* Debian's package"):
        FashionMNIST(str(tmp_path), download).read(train=False)


def test_nothing_there_names_the_folder_of_torchvision(tmp_path: Path) -> None:
    assert KMNIST(str(tmp_path)).missing() == [f"KMNIST/raw/{name}" for name in FILES]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b[:-1], r"should hold 31360 bytes .* and holds 31359: it was not downloaded whole, get it again"),
        (lambda b: b"\0\0\x0d" + b[3:], "train-images-idx3-ubyte' is no IDX file of unsigned bytes"),
    ],
    ids=["truncated", "wrong type"],
)
def test_damaged_files_are_named(change: Callable[[bytes], bytes], message: str, tmp_path: Path) -> None:
    write_idx_set(tmp_path)
    path = tmp_path / FILES[0]
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=message):
        MNIST(str(tmp_path)).load(train=True)


@pytest.mark.parametrize(
    ("other", "shapes"),
    [
        (FILES[2], r"\[20, 28, 28\], and theirs \[40\]"),
        (FILES[1], r"\[40\], and theirs \[40\]"),
    ],
    ids=["of the other part", "labels"],
)
def test_files_that_do_not_fit_together_are_named(other: str, shapes: str, tmp_path: Path) -> None:
    write_idx_set(tmp_path)
    (tmp_path / FILES[0]).write_bytes((tmp_path / other).read_bytes())
    message = rf"{FILES[0]}' should hold an image of 28x28 pixels for each label in '{FILES[1]}': its shape is {shapes}"
    with pytest.raises(ValueError, match=message):
        MNIST(str(tmp_path)).load(train=True)


@pytest.mark.parametrize(("split", "num_classes"), SPLITS.items())
def test_emnist_is_upright_and_counts_from_zero(split: str, num_classes: int, tmp_path: Path) -> None:
    """An image of the file is the transposed one; the labels of letters start at 1 there."""
    labels, images = labels_in_turn(num_classes, 2), distinct_images(2 * num_classes, 1, 28)
    for part in ("train", "test"):
        prefix = tmp_path / "EMNIST" / "raw" / f"emnist-{split}-{part}"
        write_idx(Path(f"{prefix}-images-idx3-ubyte.gz"), np.rot90(images[:, 0], axes=(1, 2))[:, ::-1])
        write_idx(Path(f"{prefix}-labels-idx1-ubyte.gz"), labels + (split == "letters"))
    source = EMNIST(str(tmp_path), download=False, split=split)  # type: ignore[arg-type]
    assert source.num_classes == num_classes
    for train in (True, False):
        x, y = source.load(train).batch(torch.arange(2 * num_classes))
        assert np.array_equal(x, images)
        assert y.tolist() == labels.tolist()


def test_emnist_is_downloaded_by_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(root: str, split: str, download: bool) -> None:
        assert download
        write_idx_set(Path(root) / "EMNIST" / "raw", 26, (f"emnist-{split}-train", f"emnist-{split}-test"), 1)

    monkeypatch.setattr(torchvision.datasets, "EMNIST", download)
    assert sorted(set(EMNIST(str(tmp_path), split="letters").read(train=True).labels.tolist())) == list(range(26))


def test_unknown_split() -> None:
    with pytest.raises(ValueError, match=r"`split` must be one of \['balanced', 'byclass', .*, got 'by_class'"):
        EMNIST(split="by_class")  # type: ignore[arg-type]


@pytest.mark.fashion_mnist
@pytest.mark.skipif(not DEBIAN.is_dir(), reason="needs dataset-fashion-mnist, or its folder in FASHION_MNIST")
def test_real_files_hold_what_their_authors_say() -> None:
    source = FashionMNIST(str(DEBIAN), download=False)
    images, labels = (source.load(train=True).batch(torch.arange(60000))[k] for k in (0, 1))
    assert images.shape == (60000, 1, 28, 28)
    assert images.float().mean().item() / 255 == pytest.approx(*source.mean, abs=5e-5)
    assert images.float().std().item() / 255 == pytest.approx(*source.std, abs=5e-5)
    assert labels.bincount().tolist() == [6000] * 10
    assert source.read(train=False).labels.bincount().tolist() == [1000] * 10


def test_files_of_another_data_set_are_refused(tmp_path: Path) -> None:
    """Their names are the same."""
    write_idx_set(tmp_path)
    labels = [9, 2, 1, 1, 6, 1, 4, 6, 5, 7, *[0] * 10]  # as the test labels of Fashion-MNIST begin
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", np.array(labels))
    assert FashionMNIST(str(tmp_path)).load(train=False).labels.tolist() == labels
    with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte' holds Fashion-MNIST, not MNIST: set `root`"):
        MNIST(str(tmp_path)).load(train=False)
