from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lightning_cl.datamodules.permuted_mnist import PermutedMNIST
from lightning_cl.idx import read_idx
from tests.helpers.fakes import permuted_mnist, split_cifar10


@pytest.fixture
def fake(tmp_path: Path) -> dict[str, Any]:
    return permuted_mnist.write(tmp_path)


def whole(stream: PermutedMNIST, experience: int, name: str = "train") -> list[torch.Tensor]:
    part = stream.part(experience, name)
    batch: list[torch.Tensor] = part.batch(torch.arange(len(part)))
    return batch


@pytest.mark.parametrize(("part", "name"), [("train", "train"), ("test", "t10k")])
@pytest.mark.parametrize(("convention", "padding"), [("mammoth", 0), ("gem", 0), ("van_de_ven", 2), ("avalanche", 0)])
def test_images_are_those_of_the_files_permuted(
    convention: Any, padding: int, part: str, name: str, fake: dict[str, Any], tmp_path: Path
) -> None:
    images, labels = (read_idx(next(tmp_path.rglob(f"{name}-{kind}*"))) for kind in ("images", "labels"))
    padded = F.pad(images, [padding] * 4)
    stream = PermutedMNIST(**fake, convention=convention, permutation_seed=3)
    assert stream.input_shape == (1, *padded.shape[1:])
    legacy, generator = np.random.RandomState(3), torch.Generator().manual_seed(3)
    for experience in range(2):
        size = padded[0].numel()
        permutation = torch.randperm(size, generator=generator) if convention == "gem" else legacy.permutation(size)
        x, y = whole(stream, experience, part)
        assert torch.equal(x.flatten(1), padded.flatten(1)[:, permutation])
        assert torch.equal(y, labels.long())


def test_pixels_are_permuted_first_and_then_normalised(fake: dict[str, Any]) -> None:
    """What is added around the image is black, not the mean."""
    stream = PermutedMNIST(**fake, convention="van_de_ven", permute_first=False)
    (x,) = stream.transform_batch(whole(stream, 0)[:1])
    border = torch.ones(32, 32, dtype=torch.bool)
    border[2:-2, 2:-2] = False
    torch.testing.assert_close(x[:, 0, border], torch.full((40, 240), -0.1307 / 0.3081))


def test_colours_of_a_pixel_stay_together(tmp_path: Path) -> None:
    made = split_cifar10.write(tmp_path)
    stream = PermutedMNIST(made["root"], 2, data_set="cifar10", download=False)
    plain = PermutedMNIST(made["root"], 1, data_set="cifar10", permute_first=False, download=False)
    expected = whole(plain, 0)[0].flatten(2)[..., stream.permutations[1]]
    assert torch.equal(whole(stream, 1)[0].flatten(2), expected)


@pytest.mark.parametrize(
    ("convention", "length"), [("mammoth", 20), ("gem", 20), ("van_de_ven", 10), ("avalanche", 10)]
)
def test_length_of_each_convention(convention: Any, length: int) -> None:
    stream = PermutedMNIST(data_set="digits", convention=convention)
    assert len(stream) == len(stream.permutations) == length
    assert stream.classes == [tuple(range(10))] * length


def test_permutations_depend_on_their_own_seed_only_and_checkpoints_know_it() -> None:
    one, other = (PermutedMNIST(data_set="digits", num_experiences=2, seed=seed) for seed in (0, 1))
    assert torch.equal(torch.stack(one.permutations), torch.stack(other.permutations))
    changes: list[dict[str, Any]] = [{"permutation_seed": 1}, {"permute_first": False}, {"convention": "gem"}]
    for change in changes:
        changed = PermutedMNIST(data_set="digits", num_experiences=2, seed=0, **change)
        assert changed.shape()["permutations"] != one.shape()["permutations"]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"convention": "gemm"}, "`convention` must be one of"),
        ({"permutation_seed": -1}, "`permutation_seed` must be in"),
        ({"num_experiences": 0}, "`num_experiences` must be 1 or more, got 0"),
        ({"data_set": "digit"}, "`data_set`: there is no data set 'digit'. Did you mean 'digits'?"),
    ],
)
def test_bad_arguments_are_named(argument: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PermutedMNIST(**{"data_set": "digits", **argument})


def test_experiences_are_named_after_their_permutations() -> None:
    assert PermutedMNIST(data_set="digits").name_of(3) == "permutation 3"
