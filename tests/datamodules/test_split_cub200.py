from pathlib import Path

import pytest

from lightning_cl.datamodules.split_cub200 import SplitCUB200
from tests.helpers.fakes import split_cub200


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cub")
    split_cub200.write(root)
    return root


def test_ten_experiences_of_twenty_species(root: Path) -> None:
    stream = SplitCUB200(str(root), image_size=8, download=False)
    assert [e.classes for e in stream.experiences] == [tuple(range(20 * t, 20 * t + 20)) for t in range(10)]
    assert {(e.num_train, e.num_test) for e in stream.experiences} == {(80, 40)}
    assert {*stream.part(1, "test").labels.tolist()} == {*range(20, 40)}


def test_species_of_the_seed_1993() -> None:
    assert SplitCUB200(class_order=1993).classes[0][:5] == (168, 136, 51, 9, 183)


def test_checkpoints_know_the_split(root: Path) -> None:
    stream = SplitCUB200(str(root), image_size=8)
    assert (stream.shape()["split"], stream.shape()["input_shape"]) == ("official", [3, 8, 8])
    with pytest.raises(FileNotFoundError, match="looked for cub/train, cub/test"):
        SplitCUB200(str(root), split="pilot", download=False).prepare_data()
