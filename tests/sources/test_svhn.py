import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from scipy.io import savemat

from lightning_cl.sources.svhn import SVHN
from tests.helpers.fakes import split_svhn
from tests.helpers.fakes._images import distinct_images


@pytest.fixture(autouse=True)
def no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here may reach for the network."""

    def refuse(root: str, split: str, download: bool) -> None:
        raise RuntimeError("tried to download")

    monkeypatch.setattr(torchvision.datasets, "SVHN", refuse)


def test_files_are_read(tmp_path: Path) -> None:
    """The file's label of the digit 0 is 10."""
    source = SVHN(**split_svhn.write(tmp_path))
    for train, first, count in ((True, 1, 40), (False, 41, 20)):
        data = source.load(train)
        x, y = data.batch(torch.arange(count))
        assert (x.shape[1:], x.dtype, y.dtype) == ((3, 32, 32), torch.uint8, torch.int64)
        assert np.array_equal(x, distinct_images(count, 3, 32, first))
        assert y.tolist() == [i % 10 for i in range(count)]
        assert data.inputs.is_contiguous()


def test_axes_are_row_column_channel_image(tmp_path: Path) -> None:
    images = np.zeros((32, 32, 3, 2), dtype=np.uint8)
    images[4, 5, 2, 1] = 9
    savemat(tmp_path / "train_32x32.mat", {"X": images, "y": np.array([[1], [10]], dtype=np.uint8)})
    data = SVHN(str(tmp_path)).load(train=True)
    assert data.inputs.nonzero().tolist() == [[1, 2, 4, 5]]
    assert data.labels.tolist() == [1, 0]


def test_missing_files_are_named(tmp_path: Path) -> None:
    source = SVHN(**split_svhn.write(tmp_path))
    (tmp_path / "test_32x32.mat").unlink()
    message = f"SVHN is missing: looked for test_32x32.mat in `root` {str(tmp_path)!r}, and `download` is off. Put both"
    with pytest.raises(FileNotFoundError, match=re.escape(message)):
        source.read(train=True)


def test_missing_files_are_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(root: str, split: str, download: bool) -> None:
        assert download
        (Path(root) / f"{split}_32x32.mat").write_bytes((published / f"{split}_32x32.mat").read_bytes())

    split_svhn.write(published := tmp_path / "published")
    with pytest.raises(FileNotFoundError, match=r"the download failed \(RuntimeError: tried to download\)\. Put"):
        SVHN(str(tmp_path)).prepare()
    monkeypatch.setattr(torchvision.datasets, "SVHN", download)
    assert [len(SVHN(str(tmp_path / "data")).read(train)) for train in (True, False)] == [40, 20]


@pytest.mark.parametrize("change", [lambda b: b[:200], lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"?" * 400])
def test_damaged_files_are_named(change: Any, tmp_path: Path) -> None:
    source = SVHN(**split_svhn.write(tmp_path))
    path = tmp_path / "train_32x32.mat"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=r"train_32x32.mat' is no file of SVHN, or damaged \(\w+: .*\): get it again"):
        source.read(train=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"X": np.zeros((32, 32, 3, 4), dtype=np.uint8)}, r"is no file of SVHN, or damaged \(KeyError: 'y'\)"),
        ({"X": np.zeros((32, 32, 3, 4)), "y": np.ones(4)}, r"and holds float64 \(32, 32, 3, 4\) and \(4,\): get it"),
        ({"X": np.zeros((32, 32, 3, 4), dtype=np.uint8), "y": np.ones(3)}, r"\(32, 32, 3, 4\) and \(3,\): get it"),
        ({"X": np.zeros((4, 3, 32, 32), dtype=np.uint8), "y": np.ones(4)}, r"\(4, 3, 32, 32\) and \(4,\): get it"),
    ],
    ids=["no labels", "float", "few labels", "axes"],
)
def test_other_contents_are_named(content: dict[str, Any], message: str, tmp_path: Path) -> None:
    savemat(tmp_path / "test_32x32.mat", content)
    with pytest.raises(ValueError, match=rf"test_32x32.mat' .*{message}"):
        SVHN(str(tmp_path)).load(train=False)
