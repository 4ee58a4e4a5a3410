import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.model_selection import train_test_split

from lightning_cl.samples import ImageFiles
from lightning_cl.sources.domainnet import DomainNet
from tests.helpers.fakes import domainnet
from tests.helpers.fakes._lists import write_lines


def names(paths: Any) -> list[str]:
    return [Path(path).name for path in paths]


def test_official_lists(tmp_path: Path) -> None:
    source = DomainNet(**domainnet.write(tmp_path))
    for train, frames in ((True, range(4)), (False, range(4, 6))):
        for (paths, labels), domain in zip(source.lists(train), ("sketch", "clipart"), strict=True):
            assert names(paths) == [f"{domain}_{c}_{i:06}.jpg" for c in range(3) for i in frames]
            assert labels.tolist() == [c for c in range(3) for _ in frames]


def test_continuum_cuts_each_domain_and_counts_capitals_first(tmp_path: Path) -> None:
    """The Mona Lisa, the tent, the tiger; restated with what Continuum hands to scikit-learn."""
    source = DomainNet(**domainnet.write(tmp_path), split="continuum")
    for k, domain in enumerate(("sketch", "clipart")):
        x = np.array([f"{domain}_{c}_{i:06}.jpg" for c in (1, 0, 2) for i in range(6)])
        y = np.repeat(np.arange(3), 6)
        x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.2, random_state=1)
        for train, expected, targets in ((True, x_train, y_train), (False, x_test, y_test)):
            paths, labels = source.lists(train)[k]
            assert names(paths) == expected.tolist()
            assert labels.tolist() == targets.tolist()
        assert (len(x_train), len(x_test)) == (14, 4)


def test_large_images_are_cropped_at_random_for_training_only(tmp_path: Path) -> None:
    data = DomainNet(**domainnet.write(tmp_path)).read(train=True)
    assert isinstance(data, ImageFiles)
    assert data.for_training().transform is not data.transform
    assert data[0][0].shape == (3, 72, 72)


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        (
            "domains",
            ["real", "photo"],
            r"`domains` must be some of .*, each once, got \['real', 'photo'\]",
        ),
        ("domains", ["real", "real"], "`domains` must be some of .*, each once"),
        ("domains", [], "`domains` must be some of"),
        ("split", "random", "`split` must be 'official' or 'continuum', got 'random'"),
        ("num_classes", 0, "`num_classes` must be 1 or more, got 0"),
    ],
)
def test_arguments_are_checked(argument: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DomainNet(**{argument: value})


def test_missing_files_are_named(tmp_path: Path) -> None:
    arguments = domainnet.write(tmp_path)
    (tmp_path / "clipart_test.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"DomainNet is missing: looked for clipart_test\.txt in .*M3SDA"):
        DomainNet(**arguments).prepare()
    DomainNet(**arguments, split="continuum").prepare()
    shutil.rmtree(tmp_path / "sketch")
    with pytest.raises(FileNotFoundError, match="DomainNet is missing: looked for sketch in"):
        DomainNet(**arguments, split="continuum").prepare()


def test_lists_and_folders_that_do_not_fit_are_named(tmp_path: Path) -> None:
    arguments = domainnet.write(tmp_path)
    write_lines(tmp_path / "sketch_train.txt", ["sketch/tent/lost.jpg 0"])
    with pytest.raises(ValueError, match=r"sketch_train\.txt' lists 1 files that are not there, .*lost\.jpg"):
        DomainNet(**arguments).read(train=True)
    (tmp_path / "clipart" / "tent").rename(tmp_path / "clipart" / "house")
    continuum = {**arguments, "split": "continuum"}
    with pytest.raises(ValueError, match=r"sketch and clipart must have the same classes.*\['house', 'tent'\]"):
        DomainNet(**continuum).read(train=True)
    with pytest.raises(ValueError, match=r"sketch' should hold 345 folders, one for each class, and holds 3"):
        DomainNet(**{**continuum, "num_classes": 345}).read(train=True)
