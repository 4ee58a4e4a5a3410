import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import rotate

from lightning_cl.pixels import (
    PixelMap,
    draw_angles,
    draw_permutations,
    move_pixels,
    permutation_map,
    rotation_map,
)
from lightning_cl.samples import MapData, TensorData, in_memory, joined
from lightning_cl.utilities import isolated_rng, seed_generators

ANGLES = [0.0, 1.0, 30.0, 45.0, 89.5, 90.0, 135.0, 180.0, 270.0, 360.0, -90.0, -17.0, 725.0]
ANGLES += np.random.RandomState(0).uniform(-720, 720, 60).tolist() + [float(a) for a in range(-180, 181, 7)]


def noise(*shape: int) -> Tensor:
    return torch.randint(1, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.parametrize(("height", "width"), [(28, 28), (8, 8), (9, 5)])
def test_rotation_is_that_of_the_libraries_to_the_pixel(height: int, width: int) -> None:
    image = noise(1, height, width)
    pil = Image.fromarray(image[0].numpy())
    for angle in ANGLES:
        moved = move_pixels(image, rotation_map(height, width, angle))
        assert np.array_equal(moved[0], np.asarray(pil.rotate(angle)))
        assert np.array_equal(moved[0], np.asarray(rotate(pil, angle)))
        as_tensor = move_pixels(image, rotation_map(height, width, angle, "tensor"))
        assert torch.equal(as_tensor, rotate(image, angle))
        assert torch.equal(as_tensor / 255, rotate(image / 255, angle))


def test_the_two_rotations_of_torchvision_are_not_the_same() -> None:
    maps = [[rotation_map(28, 28, float(angle), backend) for backend in ("pil", "tensor")] for angle in range(180)]
    assert 0 < sum(not torch.equal(one, other) for one, other in maps) < 40


@pytest.mark.parametrize("backend", ["pil", "tensor"])
def test_right_angles(backend: Any) -> None:
    image = noise(3, 28, 28)
    for quarters in range(-4, 5):
        assert torch.equal(
            move_pixels(image, rotation_map(28, 28, 90.0 * quarters, backend)), image.rot90(quarters, (1, 2))
        )


@pytest.mark.parametrize("padding", [0, 2])
def test_inverse_permutation_recovers_the_padded_image_bit_for_bit(padding: int) -> None:
    image = noise(2, 3, 6, 5)
    padded = F.pad(image, [padding] * 4)
    height, width = padded.shape[2:]
    (permutation,) = draw_permutations(height * width, 1, "mammoth", 3)
    moved = move_pixels(image, permutation_map(6, 5, permutation, padding))
    assert moved.shape == padded.shape
    assert not torch.equal(moved, padded)
    assert torch.equal(moved.flatten(2), padded.flatten(2)[..., permutation])
    assert torch.equal(move_pixels(moved, permutation_map(height, width, permutation.argsort())), padded)


@pytest.mark.parametrize("convention", ["mammoth", "van_de_ven", "avalanche"])
@pytest.mark.parametrize("seed", [0, 5])
def test_permutations_of_numpy_are_those_of_its_global_generator(convention: Any, seed: int) -> None:
    with isolated_rng():
        np.random.seed(seed)
        expected = [np.random.permutation(784) for _ in range(3)]
    assert np.array_equal(torch.stack(draw_permutations(784, 3, convention, seed)), expected)
    first, *rest = draw_permutations(784, 4, convention, seed, permute_first=False)
    assert torch.equal(first, torch.arange(784))
    assert np.array_equal(torch.stack(rest), expected)


def test_permutations_of_gem_are_those_of_pytorchs_global_generator() -> None:
    with isolated_rng():
        torch.manual_seed(5)
        expected = [torch.randperm(784) for _ in range(3)]
    assert torch.equal(torch.stack(draw_permutations(784, 3, "gem", 5)), torch.stack(expected))
    _, *rest = draw_permutations(784, 4, "gem", 5, permute_first=False)
    assert torch.equal(torch.stack(rest), torch.stack(expected))


def test_angles_are_drawn_as_in_the_code_bases() -> None:
    with isolated_rng():
        np.random.seed(5)
        mammoth = [np.random.uniform(0, 180) for _ in range(20)]
        random.seed(5)
        gem = [random.random() * 9 + 9 * t for t in range(20)]
    legacy = np.random.RandomState(5)
    assert draw_angles(20, "mammoth", 5) == mammoth
    assert draw_angles(20, "gem", 5) == pytest.approx(gem, abs=1e-12)
    assert draw_angles(2000, "avalanche", 5) == [legacy.randint(-180, 181) for _ in range(2000)]


def test_each_angle_of_gem_is_in_its_bin() -> None:
    angles = torch.tensor([draw_angles(20, "gem", seed) for seed in range(50)])
    assert torch.equal((angles / 9).floor(), torch.arange(20.0).expand(50, 20))
    assert (angles % 9).std() == pytest.approx(9 / 12**0.5, rel=0.1)


@pytest.mark.parametrize("convention", ["mammoth", "gem", "avalanche"])
def test_draws_neither_touch_nor_follow_the_global_generators(convention: Any) -> None:
    def drawn() -> list[Any]:
        return [draw_angles(3, convention), torch.stack(draw_permutations(9, 3, convention)).tolist()]

    before = drawn()
    with isolated_rng():
        seed_generators(1)
        assert drawn() == before
        found = random.random(), np.random.rand(), torch.rand(1)
        seed_generators(1)
        assert found == (random.random(), np.random.rand(), torch.rand(1))


@pytest.mark.parametrize("seed", [-1, 2**32])
@pytest.mark.parametrize("convention", ["mammoth", "gem"])
def test_seeds_are_those_of_numpy(seed: int, convention: Any) -> None:
    with pytest.raises(ValueError, match=rf"`permutation_seed` must be in \[0, 2\*\*32\), got {seed}"):
        draw_permutations(4, 1, convention, seed)
    with pytest.raises(ValueError, match=rf"`angle_seed` must be in \[0, 2\*\*32\), got {seed}"):
        draw_angles(1, convention, seed)


def test_unknown_conventions_are_named() -> None:
    bad: Any = "van_de_ven"
    with pytest.raises(
        ValueError, match=r"`convention` must be one of \['mammoth', 'gem', 'avalanche'\], got 'van_de_ven'"
    ):
        draw_angles(1, bad)
    bad = "gemm"
    with pytest.raises(
        ValueError, match=r"`convention` must be one of \['mammoth', 'gem', 'van_de_ven', 'avalanche'\]"
    ):
        draw_permutations(4, 1, bad)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_batch_has_its_pixels_moved_and_its_labels_kept(dtype: torch.dtype) -> None:
    images, labels = noise(10, 3, 4, 4).to(dtype), torch.arange(10) % 3
    pixels = torch.tensor([[5, -1, 0], [15, 15, 3]])
    part = PixelMap.of(TensorData(images.clone(), labels, torch.tensor([7, 2, 9])), pixels).with_task(4)
    x, y, task = part.subset(torch.tensor([1, 2])).batch(torch.tensor([1, 0]))
    assert x.dtype == dtype
    for row, source in zip(x, images[[9, 2]], strict=True):
        flat = source.flatten(1)
        assert torch.equal(
            row, torch.stack([flat[:, 5], flat[:, 0] * 0, flat[:, 0], *flat[:, [15, 15, 3]].T], 1).view(3, 2, 3)
        )
    assert (y.tolist(), task.tolist()) == ([0, 2], [4, 4])
    assert torch.equal(part.inputs, images)


def test_parts_with_other_maps_are_joined_each_with_its_own() -> None:
    data = TensorData(noise(4, 1, 2, 2), torch.arange(4))
    plain, turned = (PixelMap.of(data, rotation_map(2, 2, angle)) for angle in (0, 180))
    assert not plain.shares_storage(turned)
    x, y = joined([plain, turned]).batch(torch.tensor([5, 1]))
    assert torch.equal(x, torch.stack([data.inputs[1].flip(1, 2), data.inputs[1]]))
    assert y.tolist() == [1, 1]


def test_images_in_files_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"`data_set` must be one whose images lie in memory .* this one's are MapData"
    ):
        in_memory(MapData([(torch.zeros(1, 2, 2), 0)]))
