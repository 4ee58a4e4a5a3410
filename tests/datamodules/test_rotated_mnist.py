import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import rotate

from lightning_cl.datamodules.rotated_mnist import RotatedMNIST
from lightning_cl.idx import read_idx
from lightning_cl.pixels import draw_angles
from tests.helpers.fakes import rotated_mnist


@pytest.mark.parametrize(("part", "name"), [("train", "train"), ("test", "t10k")])
@pytest.mark.parametrize("convention", ["mammoth", "gem", "avalanche"])
def test_images_are_those_of_the_files_rotated(convention: Any, part: str, name: str, tmp_path: Path) -> None:
    """By Pillow, except for Avalanche, which has tensors: at 135 degrees another picture."""
    stream = RotatedMNIST(**rotated_mnist.write(tmp_path), convention=convention, angles=[135, 12.5])
    images, labels = (read_idx(next(tmp_path.rglob(f"{name}-{kind}*"))) for kind in ("images", "labels"))
    for experience, angle in enumerate(stream.angles):
        samples = stream.part(experience, part)
        x, y = samples.batch(torch.arange(len(samples)))
        rotated = (np.asarray(Image.fromarray(image.numpy()).rotate(angle)) for image in images)
        expected = rotate(images, angle).numpy() if convention == "avalanche" else np.stack(list(rotated))
        assert np.array_equal(x[:, 0], expected)
        assert torch.equal(y, labels.long())


@pytest.mark.parametrize(("convention", "length"), [("mammoth", 20), ("gem", 20), ("avalanche", 10)])
def test_length_of_each_convention(convention: Any, length: int) -> None:
    stream = RotatedMNIST(data_set="digits", convention=convention, angle_seed=5)
    assert len(stream) == length
    assert stream.angles == draw_angles(length, convention, 5)
    assert stream.classes == [tuple(range(10))] * length


def test_given_angles_are_taken() -> None:
    stream = RotatedMNIST(data_set="digits", angles=[0, 90, 180])
    assert stream.angles == [0.0, 90.0, 180.0]
    plain, quarter, half = (stream.part(i, "test").batch(torch.arange(355))[0] for i in range(3))
    assert torch.equal(quarter, plain.rot90(1, (2, 3)))
    assert torch.equal(half, plain.rot90(2, (2, 3)))


def test_angles_depend_on_their_own_seed_only_and_checkpoints_know_them() -> None:
    one, other = (RotatedMNIST(data_set="digits", num_experiences=2, seed=seed) for seed in (0, 1))
    assert one.angles == other.angles
    changes: list[dict[str, Any]] = [{"angle_seed": 1}, {"angles": [3, 4]}, {"convention": "gem"}]
    for change in changes:
        changed = RotatedMNIST(data_set="digits", num_experiences=2, seed=0, **change)
        assert changed.shape()["rotations"] != one.shape()["rotations"]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"convention": "van_de_ven"}, "`convention` must be one of"),
        ({"angle_seed": -1}, "`angle_seed` must be in"),
        ({"num_experiences": 0, "convention": "gem"}, "`num_experiences` must be 1 or more, got 0"),
        ({"angles": []}, "`num_experiences` must be 1 or more, got 0"),
        ({"angles": [1, 2], "num_experiences": 3}, r"`angles` must be 3 finite numbers .*, got \[1, 2\]"),
        ({"angles": [1, math.nan]}, r"`angles` must be 2 finite numbers .*, got \[1, nan\]"),
    ],
)
def test_bad_arguments_are_named(argument: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RotatedMNIST(**{"data_set": "digits", **argument})


def test_experiences_are_named_after_their_angles() -> None:
    stream = RotatedMNIST(data_set="digits", angles=[0, 12.34])
    assert [stream.name_of(i) for i in (0, 1)] == ["rotated by 0.0 degrees", "rotated by 12.3 degrees"]
