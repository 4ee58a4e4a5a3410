import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from torch import Generator, Tensor

from lightning_cl.augment import CropFlip, jitter_brightness, random_crop, random_flip
from lightning_cl.datamodules import SplitDigits

DEVICES = ["meta", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]
FUNCTIONS: list[Callable[..., Tensor]] = [
    lambda x, g=None: random_crop(x, 2, g),
    lambda x, g=None: random_flip(x, 0.5, g),
    lambda x, g=None: jitter_brightness(x, 0.7, g),
]


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def pictures(count: int, seed: int = 0) -> Tensor:
    """Images ``(count, 2, 4, 5)`` without a zero."""
    return torch.randint(1, 256, (count, 2, 4, 5), generator=seeded(seed), dtype=torch.uint8)


def crops(image: Tensor, padding: int) -> Tensor:
    """All that can be cut out of one padded image, row by row."""
    _, height, width = image.shape
    padded = np.pad(image.numpy(), ((0, 0), (padding, padding), (padding, padding)))
    places = range(2 * padding + 1)
    return torch.stack([torch.from_numpy(padded[:, i : i + height, j : j + width]) for i in places for j in places])


def assert_uniform(counts: Tensor) -> None:
    """No count is five standard deviations off."""
    n, p = counts.sum(), 1 / len(counts)
    assert (counts - n * p).abs().max() < 5 * (n * p * (1 - p)) ** 0.5


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("padding", [1, 3])
def test_each_image_becomes_one_of_its_own_crops(padding: int, dtype: torch.dtype) -> None:
    x = pictures(200).to(dtype)
    out = random_crop(x, padding, seeded())
    assert (out.dtype, out.shape) == (dtype, x.shape)
    for image, cropped in zip(x, out, strict=True):
        assert (crops(image, padding) == cropped).flatten(1).all(1).sum() == 1


def test_crops_are_uniform_over_all_places_and_independent_between_images() -> None:
    image = pictures(1)
    out = random_crop(image.expand(6000, -1, -1, -1), 1, seeded())
    at = (out[:, None] == crops(image[0], 1)).flatten(2).all(2).int().argmax(1)
    assert_uniform(torch.bincount(at, minlength=9))
    assert_uniform(torch.bincount(9 * at[:-1] + at[1:], minlength=81))


@pytest.mark.parametrize("p", [0.25, 0.5])
def test_flips_are_as_frequent_as_asked_for_and_independent_between_images(p: float) -> None:
    x = pictures(6000)
    out = random_flip(x, p, seeded())
    mirrored = (out == x.flip(3)).flatten(1).all(1)
    assert torch.equal(out, torch.where(mirrored.view(-1, 1, 1, 1), x.flip(3), x))
    for flags, expected in ((mirrored, p), (mirrored[1:] & mirrored[:-1], p * p)):
        assert abs(flags.double().mean() - expected) < 5 * (expected * (1 - expected) / 6000) ** 0.5


@pytest.mark.parametrize("amount", [63 / 255, 1.5])
def test_brightness_factors_are_uniform_and_different(amount: float) -> None:
    low, high = max(0.0, 1 - amount), 1 + amount
    factors = jitter_brightness(torch.full((6000, 1, 1, 1), 0.1), amount, seeded()).flatten() / 0.1
    cell = ((factors - low) / (high - low) * 8).long()
    assert_uniform(torch.bincount(cell, minlength=8))
    cell = cell.clamp(0, 7)
    assert_uniform(torch.bincount(8 * cell[1:] + cell[:-1], minlength=64))


@pytest.mark.parametrize("scale", [1, 255])
def test_brightness_is_torchvisions(scale: int) -> None:
    from torchvision.transforms.functional import adjust_brightness

    x = torch.randint(256, (40, 3, 4, 5), dtype=torch.uint8, generator=seeded())
    x = x if scale == 255 else x / 255
    factors = jitter_brightness(torch.full((40, 1, 1, 1), 0.25), 0.9, seeded(1)).flatten() / 0.25
    out = jitter_brightness(x, 0.9, seeded(1))
    expected = torch.stack([adjust_brightness(image, f.item()) for image, f in zip(x, factors, strict=True)])
    assert (out.dtype, out.max().item()) == (x.dtype, scale)
    assert torch.equal(out, expected)


def test_same_distribution_as_the_pipeline_of_torchvision() -> None:
    """First and second moments of every pixel, also of products of neighbours."""
    from torchvision import transforms as T

    image = torch.randint(256, (3, 4, 5), dtype=torch.uint8, generator=seeded())
    steps = [T.ToPILImage(), T.RandomCrop((4, 5), padding=2), T.RandomHorizontalFlip(), T.ColorJitter(brightness=0.6)]
    theirs = T.Compose([*steps, T.PILToTensor()])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        samples = [torch.stack([theirs(image) for _ in range(2000)])]
        samples.append(CropFlip(2, brightness=0.6)(image.expand(2000, -1, -1, -1)))
    flat = [sample.double().flatten(1) for sample in samples]
    one, two = (torch.cat([x, x * x, x * x.roll(1, 1), x * x.roll(5, 1)], 1) for x in flat)
    deviation = ((one.var(0) + two.var(0)) / 2000) ** 0.5
    assert ((one.mean(0) - two.mean(0)).abs() < 5 * deviation).all()


def test_nothing_to_do_is_the_same_batch() -> None:
    x = pictures(5)
    assert all(out is x for out in (random_crop(x, 0), random_flip(x, 0), jitter_brightness(x, 0)))
    assert torch.equal(random_flip(x, 1), x.flip(3))
    assert CropFlip(0, 0, 0)(x) is x


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_generator_is_the_only_source(function: Callable[..., Tensor]) -> None:
    x, before, copy = pictures(50), torch.get_rng_state(), pictures(50)
    one, same, other = (function(x, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(x, copy)


def test_crop_flip_draws_from_the_global_generator() -> None:
    """In the order of the three functions."""
    x = pictures(50)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        one = CropFlip(2, 0.3, 0.4)(x)
    g = seeded(3)
    assert torch.equal(one, jitter_brightness(random_flip(random_crop(x, 2, g), 0.3, g), 0.4, g))


@pytest.mark.parametrize("function", [*FUNCTIONS, CropFlip(2, 0.5, 0.3)])
def test_an_empty_batch_and_one_that_is_not_contiguous(function: Callable[..., Tensor]) -> None:
    assert function(pictures(0)).shape == (0, 2, 4, 5)
    x = pictures(30)
    with torch.random.fork_rng():
        outs = [(torch.manual_seed(0), function(y))[1] for y in (x, x.to(memory_format=torch.channels_last))]
    assert torch.equal(*outs)


@pytest.mark.parametrize("device", DEVICES)
def test_all_happens_on_the_device_of_the_batch(device: str) -> None:
    x = pictures(3).to(device)
    out = CropFlip(2, 0.5, 0.3)(x)
    assert (out.device, out.dtype, out.shape) == (x.device, x.dtype, x.shape)


def test_crop_flip_is_a_value_and_can_be_pickled() -> None:
    assert pickle.loads(pickle.dumps(CropFlip(2, 0.1, 0.3))) == CropFlip(2, 0.1, 0.3) != CropFlip(2, 0.1)
    assert repr(CropFlip()) == "CropFlip(padding=4, flip=0.5, brightness=0.0)"


def test_a_stream_takes_it_from_a_config() -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(SplitDigits, "data")
    augment = {"class_path": "lightning_cl.augment.CropFlip", "init_args": {"padding": 2}}
    stream = parser.instantiate_classes(parser.parse_object({"data": {"augment": augment}})).data
    assert stream.augment == CropFlip(2)
    batch = next(iter(stream.train_dataloader()))
    plain, augmented = (stream.transform_batch(batch, augment=augment)[0] for augment in (False, True))
    assert augmented.shape == plain.shape
    assert not torch.equal(augmented, plain)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: random_crop(x, -1), r"^`padding` must be 0 or more, got -1\.$"),
        (lambda x: random_flip(x, 1.5), r"^`p` must be in \[0, 1\], got 1\.5\.$"),
        (lambda x: jitter_brightness(x, float("nan")), r"^`amount` must be 0 or more, got nan\.$"),
        (lambda _: CropFlip(padding=-2), r"^`padding` must be 0 or more, got -2\.$"),
        (lambda _: CropFlip(flip=-0.1), r"^`flip` must be in \[0, 1\], got -0\.1\.$"),
        (lambda _: CropFlip(brightness=-1), r"^`brightness` must be 0 or more, got -1\.$"),
    ],
)
def test_settings_out_of_range_are_refused(call: Callable[[Tensor], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(pictures(2))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_one_image_is_no_batch(function: Callable[..., Tensor]) -> None:
    with pytest.raises(ValueError, match=r"^`x` must be .* \(B, C, H, W\), got the shape \(2, 4, 5\)\.$"):
        function(pictures(1)[0])
