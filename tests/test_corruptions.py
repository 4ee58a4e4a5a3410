import colorsys
import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage, stats
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lightning_cl import corruptions
from lightning_cl.corruptions import (
    CORRUPTIONS,
    Segment,
    corrupt,
    cotta_order,
    gradual_schedule,
    standard_schedule,
)

RANDOM = [name for name in CORRUPTIONS if name.split("_")[-1] in ("noise", "snow", "frost", "fog", "transform")]
RANDOM += ["glass_blur", "motion_blur"]


def smooth_images(count: int, channels: int = 3, height: int = 32, width: int = 32) -> Tensor:
    """Waves of random direction and length, far from black and white."""
    rng = np.random.RandomState(0)
    rows, columns = np.mgrid[:height, :width]
    a, b, phase = rng.uniform(-0.4, 0.4, (3, count, channels, 1, 1))
    waves = 127 + 60 * np.sin(a * rows + b * columns + 16 * phase) + 20 * np.sin(b * rows - a * columns)
    return torch.from_numpy(waves.round().astype(np.uint8))


def grey(value: int, size: int = 32, count: int = 20, channels: int = 1) -> Tensor:
    return torch.full((count, channels, size, size), value, dtype=torch.uint8)


def distortion(images: Tensor, name: str, severity: int) -> float:
    return (corrupt(images, name, severity, seed=0).float() - images).abs().mean().item()


def float_images(*shape: int) -> Tensor:
    return torch.from_numpy(np.random.RandomState(0).uniform(0, 255, shape)).float()


def draws(count: int = 3) -> Any:
    return corruptions._Draws(torch.arange(count) * 7919)


def assert_normal(values: Tensor, mean: float, deviation: float) -> None:
    values, deviation = values.double(), (deviation**2 + 1 / 12) ** 0.5  # with the rounding to grey levels
    assert values.mean().item() == pytest.approx(mean, abs=5 * deviation / values.numel() ** 0.5)
    assert values.std().item() == pytest.approx(deviation, rel=5 / (2 * values.numel()) ** 0.5)


# -- schedules ----------------------------------------------------------------------------------------------------


def test_standard_schedule_is_each_corruption_once_at_one_severity() -> None:
    assert [segment.corruption for segment in standard_schedule()] == list(CORRUPTIONS)
    assert {segment.severity for segment in standard_schedule()} == {5}
    assert standard_schedule(["fog"], severity=2) == [Segment("fog", 2)]


def test_gradual_schedule_has_131_segments_and_switches_at_severity_1() -> None:
    schedule = gradual_schedule()
    assert len(schedule) == 131
    for one, other in itertools.pairwise(schedule):
        if one.corruption == other.corruption:
            assert abs(one.severity - other.severity) == 1
        else:
            assert (one.severity, other.severity) == (1, 1)


def test_gradual_schedule_meets_severity_5_once_and_the_others_twice() -> None:
    count = Counter(gradual_schedule(cotta_order(3)))
    for at, name in enumerate(cotta_order(3)):
        assert [count[Segment(name, severity)] for severity in range(1, 6)] == ([1] * 5 if at == 0 else [2] * 4 + [1])


def test_cotta_orders_are_ten_different_permutations() -> None:
    orders = [cotta_order(number) for number in range(10)]
    assert all(sorted(order) == sorted(CORRUPTIONS) for order in orders)
    assert len({*orders, CORRUPTIONS}) == 11
    assert [order[0] for order in orders[:4]] == ["brightness", "jpeg_compression", "contrast", "shot_noise"]
    assert [order[-1] for order in orders[6:]] == ["gaussian_noise", "elastic_transform", "impulse_noise", "brightness"]


# -- what the result depends on -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("shape", [(1, 8, 13), (3, 30, 28), (3, 50, 64)])
def test_result_is_the_same_in_any_batch(name: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    images, order = smooth_images(7, *shape), torch.tensor([4, 0, 6, 1, 5, 3, 2])
    whole = corrupt(images, name, 4, seed=1)
    assert whole.shape == images.shape
    assert whole.dtype == torch.uint8
    assert torch.equal(corrupt(images[order], name, 4, seed=1, index=order), whole[order])
    monkeypatch.setattr(corruptions, "_VALUES_AT_ONCE", 1)
    assert torch.equal(corrupt(images, name, 4, seed=1), whole)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_global_generators_are_neither_used_nor_moved(name: str) -> None:
    images = smooth_images(2)
    torch.manual_seed(0)
    np.random.seed(0)
    first, expected = corrupt(images, name, 3, seed=0), (torch.rand(1), np.random.rand())
    torch.manual_seed(0)
    np.random.seed(0)
    assert (torch.rand(1), np.random.rand()) == expected
    assert torch.equal(corrupt(images, name, 3, seed=0), first)


@pytest.mark.parametrize("name", RANDOM)
def test_draws_differ_between_images_seeds_and_severities(name: str) -> None:
    image = smooth_images(1)
    one = corrupt(image, name, 4, seed=0)
    assert not torch.equal(corrupt(image, name, 4, seed=1), one)
    assert not torch.equal(corrupt(image, name, 4, seed=0, index=torch.tensor([1])), one)


def test_severities_have_draws_of_their_own() -> None:
    residuals = [corrupt(grey(127), "gaussian_noise", severity, seed=0).float() - 127 for severity in (4, 5)]
    correlation = torch.corrcoef(torch.stack(residuals).flatten(1))[0, 1]
    assert abs(correlation) < 5 / residuals[0].numel() ** 0.5


@pytest.mark.parametrize("name", sorted({*CORRUPTIONS} - {"pixelate", "jpeg_compression"}))  # Pillow goes one by one
def test_work_is_done_for_all_images_at_once(name: str) -> None:
    class Count(TorchFunctionMode):
        calls = 0

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.calls += 1
            return func(*args, **(kwargs or {}))

    corrupt(smooth_images(1, 1, 28, 28), name, 5, seed=0)  # fills the caches of tables
    counts = []
    for images in (smooth_images(2, 1, 28, 28), smooth_images(300, 1, 28, 28)):
        with Count() as count:
            corrupt(images, name, 5, seed=0)
        counts.append(count.calls)
    assert counts[0] == counts[1] > 0


def test_no_images_give_no_images() -> None:
    assert corrupt(grey(0, count=0), "fog", 1, seed=0).shape == (0, 1, 32, 32)


# -- severities ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted({*CORRUPTIONS} - {"motion_blur", "glass_blur", "frost", "elastic_transform"}))
@pytest.mark.parametrize("size", [28, 64])
def test_distortion_grows_with_each_severity(name: str, size: int) -> None:
    images = smooth_images(12, 3, size, size)
    values = [distortion(images, name, severity) for severity in range(1, 6)]
    assert values[0] > 0
    assert values == sorted(values)


@pytest.mark.parametrize("name", ["motion_blur", "glass_blur", "frost"])
def test_distortion_is_larger_at_severity_5_than_at_1(name: str) -> None:
    images = smooth_images(12)
    assert 0 < distortion(images, name, 1) < distortion(images, name, 5)


@pytest.mark.parametrize("severity", range(1, 6))
def test_elastic_transform_bends_images(severity: int) -> None:
    assert distortion(smooth_images(4), "elastic_transform", severity) > 1


@pytest.mark.parametrize(("size", "scale"), [(47, 0.06), (48, 0.08), (127, 0.08), (128, 0.12)])
def test_parameters_follow_the_size_of_the_images(size: int, scale: float) -> None:
    assert_normal(corrupt(grey(127, size, 4), "gaussian_noise", 2, seed=0), 127, 255 * scale)


# -- noise --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("severity", "scale"), [(1, 0.04), (5, 0.10)])
def test_gaussian_noise_has_the_published_deviation(severity: int, scale: float) -> None:
    assert_normal(corrupt(grey(127), "gaussian_noise", severity, seed=0), 127, 255 * scale)


@pytest.mark.parametrize("level", [0, 3, 50, 100])
def test_shot_noise_keeps_the_mean_and_is_poisson(level: int) -> None:
    values = corrupt(grey(level, count=100), "shot_noise", 5, seed=0).double()
    counts, mean = (values * (50 / 255)).round().flatten(), 50 * level / 255
    share = torch.bincount(counts.long(), minlength=51) / len(counts)
    expected = torch.from_numpy(stats.poisson.pmf(np.arange(51), mean))
    assert ((share - expected).abs() <= 5 * (expected / len(counts)).sqrt() + 2**-16).all()
    assert counts.mean().item() == pytest.approx(mean, abs=5 * (mean / len(counts)) ** 0.5)


def test_impulse_noise_blackens_and_whitens_equally_many_values() -> None:
    values = corrupt(grey(127, channels=3), "impulse_noise", 5, seed=0)
    five_sigma = 5 * (0.035 / values.numel()) ** 0.5
    for impulse in (0, 255):
        assert (values == impulse).double().mean().item() == pytest.approx(0.07 / 2, abs=five_sigma)
    assert set(values.flatten().tolist()) == {0, 127, 255}


def test_draws_are_independent_of_their_neighbours_and_of_the_next_draw() -> None:
    source = draws(50)
    values, others = source.normal(64, 64).double(), source.normal(64, 64).double()
    for other in (values.roll(1, 0), values.roll(1, 1), values.roll(1, 2), others):
        assert abs((values * other).mean().item()) < 5 / values.numel() ** 0.5
    assert values.square().mean().item() == pytest.approx(1, abs=5 * (2 / values.numel()) ** 0.5)


# -- blur -----------------------------------------------------------------------------------------------------------

FLAT = ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "elastic_transform", "contrast", "pixelate"]


@pytest.mark.parametrize("name", FLAT)
@pytest.mark.parametrize("size", [8, 32, 64])
def test_flat_images_stay_as_they_are(name: str, size: int) -> None:
    images = torch.cat([grey(value, size, 1, channels=3) for value in (0, 77, 255)])
    assert torch.equal(corrupt(images, name, 5, seed=0), images)


@pytest.mark.parametrize("border", [("edge", "nearest"), ("reflect", "reflect"), ("mirror", "mirror")])
@pytest.mark.parametrize(("sigma", "truncate"), [(0.4, 4), (6.0, 3)])
def test_gaussian_blur_is_that_of_scipy(border: tuple[str, str], sigma: float, truncate: float) -> None:
    x, (ours, theirs) = float_images(2, 1, 9, 12), border
    blurred = corruptions._blurred(x, corruptions._gaussian(int(truncate * sigma + 0.5), sigma), ours)
    expected = ndimage.gaussian_filter(x.numpy(), (0, 0, sigma, sigma), mode=theirs, truncate=truncate)
    torch.testing.assert_close(blurred, torch.from_numpy(expected), rtol=0, atol=1e-3)


@pytest.mark.parametrize("factor", [1.0, 1.07, 1.25, 2.25, 4.5])
def test_zoom_is_that_of_scipy_around_the_middle(factor: float) -> None:
    x = float_images(1, 1, 32, 32)
    cropped = int(np.ceil(32 / factor))
    top = (32 - cropped) // 2
    zoomed = ndimage.zoom(x[0, 0, top : top + cropped, top : top + cropped].numpy(), factor, order=1)
    trim = (len(zoomed) - 32) // 2
    expected = torch.from_numpy(zoomed[trim : trim + 32, trim : trim + 32])
    torch.testing.assert_close(corruptions._zoomed(x, factor)[0, 0], expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("degrees", [0.0, 30.0, -100.0])
def test_motion_blur_is_half_a_gaussian_along_the_angle(degrees: float) -> None:
    x, radius, sigma = float_images(1, 1, 16, 20), 3, 2.0
    weights = np.exp(-(np.arange(7) ** 2) / (2 * sigma**2))
    expected = np.zeros((16, 20))
    for step, weight in enumerate(weights / weights.sum()):
        down, right = (int(np.ceil(step * f(np.deg2rad(degrees)) - 0.5)) for f in (np.sin, np.cos))
        rows, columns = np.clip(np.arange(16) + down, 0, 15), np.clip(np.arange(20) + right, 0, 19)
        expected += weight * x[0, 0].numpy()[np.ix_(rows, columns)]
    blurred = corruptions._moved(x, radius, sigma, torch.tensor([degrees]))
    torch.testing.assert_close(blurred[0, 0].double(), torch.from_numpy(expected), rtol=0, atol=1e-3)


def test_defocus_blur_is_the_mean_over_a_disk() -> None:
    image = smooth_images(1, 1, 64, 70)
    rows, columns = np.mgrid[-3:4, -3:4]
    disk = (rows**2 + columns**2 <= 9) / 29  # radius 3 at severity 5
    expected = torch.from_numpy(ndimage.correlate(image[0, 0].double().numpy(), disk, mode="mirror"))
    torch.testing.assert_close(corrupt(image, "defocus_blur", 5, seed=0)[0, 0].double(), expected, rtol=0, atol=0.51)


def test_glass_blur_takes_values_from_up_and_left_and_leaves_the_edge() -> None:
    image = smooth_images(1, 1)
    result = corrupt(image, "glass_blur", 1, seed=0)  # sigma 0.05 blurs nothing, reach 1
    same = [result == image.roll((down, right), (2, 3)) for down in (0, 1) for right in (0, 1)]
    assert torch.stack(same).any(0).all()
    assert torch.equal(result[..., :2, :], image[..., :2, :])
    assert torch.equal(result[..., :2], image[..., :2])
    assert 0.6 < (result != image)[..., 2:, 2:].double().mean() < 0.8  # three of four, some of equal value


def test_glass_blur_moves_pixels_one_after_another() -> None:
    x, reach = float_images(3, 2, 15, 12), 3
    moves = (draws().bits(2, 15, 12) * (2 * reach) >> 16) - reach
    expected = x.clone()
    for row in range(15 - reach, reach, -1):
        for column in range(12 - reach, reach, -1):
            for n in range(3):
                down, right = moves[n, :, row, column].tolist()
                expected[n, :, row, column] = expected[n, :, row + down, column + right]
    assert torch.equal(corruptions._displaced(x, draws(), reach), expected)


def test_zoom_blur_is_the_mean_over_seven_factors_and_the_image() -> None:
    image = smooth_images(1)
    zooms = [corruptions._zoomed(image.float(), 1 + step / 100) for step in range(7)]  # 1.06 is reached, by rounding
    expected = (sum(zooms) + image) / 8
    torch.testing.assert_close(corrupt(image, "zoom_blur", 1, seed=0).float(), expected, rtol=0, atol=0.51)


# -- weather --------------------------------------------------------------------------------------------------------


def test_frost_mixes_the_image_with_a_texture_that_does_not_depend_on_it() -> None:
    dark, bright = (corrupt(grey(value, count=4, channels=3), "frost", 5, seed=0).float() for value in (40, 120))
    torch.testing.assert_close(bright - dark, torch.full_like(dark, 0.75 * 80), rtol=0, atol=1)
    ice = (dark - 0.75 * 40) / 0.45
    assert 90 < ice.mean() < 210
    assert ice.std((2, 3)).min() > 5
    assert ice[:, 0].mean() < ice[:, 1].mean() < ice[:, 2].mean()  # bluish


def test_fog_never_outshines_the_image_and_leaves_black_black() -> None:
    images = smooth_images(5)
    assert (corrupt(images, "fog", 5, seed=0).amax((1, 2, 3)) <= images.amax((1, 2, 3))).all()
    assert not corrupt(grey(0), "fog", 5, seed=0).any()


def test_fog_is_a_map_of_diamonds_and_squares() -> None:
    noise = draws(1).uniform(-1, 1, 8, 8)[0].double().numpy()
    expected = np.zeros((8, 8))

    def fill(rows: range, columns: range, half: int, neighbours: list[tuple[int, int]], wibble: float) -> None:
        for row, column in itertools.product(rows, columns):
            around = [expected[(row + half * down) % 8, (column + half * right) % 8] for down, right in neighbours]
            expected[row, column] = sum(around) / 4 + wibble**2 * noise[row, column]

    for step, wibble in ((8, 100), (4, 50), (2, 25)):
        half, cross = step // 2, [(-1, 0), (1, 0), (0, -1), (0, 1)]
        fill(range(half, 8, step), range(half, 8, step), half, [(-1, -1), (-1, 1), (1, -1), (1, 1)], wibble)
        fill(range(0, 8, step), range(half, 8, step), half, cross, wibble)
        fill(range(half, 8, step), range(0, 8, step), half, cross, wibble)
    expected = (expected - expected.min()) / (expected.max() - expected.min())
    height = corruptions._plasma(torch.zeros(1, 3, 7, 8), draws(1), decay=2)
    torch.testing.assert_close(height[0, 0].double(), torch.from_numpy(expected[:7]), rtol=0, atol=1e-5)


def test_snow_whitens_where_no_flake_is() -> None:
    snow = corrupt(grey(100), "snow", 1, seed=0)
    white = round(0.95 * 100 + 0.05 * (1.5 * 100 + 127.5))
    assert snow.min() == white == snow.flatten().mode().values


def test_snow_falls_twice_nearer_to_vertical_than_to_horizontal() -> None:
    snow = corrupt(grey(0, count=50), "snow", 5, seed=0).double()
    assert torch.equal(snow, snow.flip(-2, -1))  # the layer, and again turned by 180 degrees
    across, along = ((snow - snow.roll(1, dim)).square().mean() for dim in (3, 2))
    assert along < across


# -- digital --------------------------------------------------------------------------------------------------------


def test_brightness_raises_the_value_and_keeps_hue_and_saturation() -> None:
    image = torch.tensor([[10, 60, 30], [0, 0, 0], [250, 200, 5], [90, 90, 90]], dtype=torch.uint8)
    result = corrupt(image.T.reshape(1, 3, 4, 1).repeat(1, 1, 2, 8), "brightness", 5, seed=0)[0, :, :4, 0].T
    for before, after in zip(image.tolist(), result.tolist(), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in before))
        expected = colorsys.hsv_to_rgb(hue, saturation, min(value + 0.3, 1))
        assert after == pytest.approx([255 * channel for channel in expected], abs=0.51)


def test_brightness_shifts_grey_levels() -> None:
    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    expected = (values + 0.1 * 255).clamp(max=255)
    torch.testing.assert_close(corrupt(values, "brightness", 2, seed=0).float(), expected, rtol=0, atol=0.51)


@pytest.mark.parametrize(("severity", "factor"), [(1, 0.75), (5, 0.15)])
def test_contrast_shrinks_the_deviation_from_the_mean_of_each_channel(severity: int, factor: float) -> None:
    images = smooth_images(3)
    mean = images.double().mean((2, 3), keepdim=True)
    result = corrupt(images, "contrast", severity, seed=0)
    torch.testing.assert_close(result - mean, (images - mean) * factor, rtol=0, atol=0.5 + 1e-4)


def test_pixelate_halves_the_resolution() -> None:
    images = smooth_images(2, 3, 64, 64)
    result = corrupt(images, "pixelate", 5, seed=0).float()  # factor 0.5
    blocks = torch.nn.functional.avg_pool2d(images.float(), 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(result, blocks, rtol=0, atol=1.01)  # Pillow rounds rows, then columns


def test_jpeg_rounds_cosine_coefficients_to_the_steps_of_quality_40() -> None:
    pixels = corrupt(smooth_images(1, 1), "jpeg_compression", 5, seed=0)[0, 0].double().numpy() - 128
    at = np.arange(8)
    waves = np.cos(np.pi / 8 * np.outer(at, at + 0.5)) * np.where(at, 0.5, 8**-0.5)[:, None]
    blocks = pixels.reshape(4, 8, 4, 8).swapaxes(1, 2)
    coefficients = waves @ blocks @ waves.T
    for row, column, step in ((0, 0, 20), (0, 1, 14), (1, 1, 15)):  # 16, 11 and 12 of the standard's table, times 1.25
        multiple = coefficients[..., row, column] / step
        assert abs(multiple - multiple.round()).max() < 0.1  # pixels are rounded
        assert abs(multiple).max() > 1


def test_elastic_transform_carries_the_corners_of_its_square_to_where_they_are_moved() -> None:
    moves = torch.tensor([[[3.0, -2.0], [1.0, 4.0], [-5.0, 2.0]]])  # right, down
    rows, columns = corruptions._affine_grid(30, 36, moves)
    corners = [(28, 25), (28, 5), (8, 5)]  # 10 to the right and below (18, 15), and so on: (column, row)
    for (column, row), (right, down) in zip(corners, moves[0].long().tolist(), strict=True):
        at = 0, row + down, column + right
        assert (columns[at].item(), rows[at].item()) == pytest.approx((column, row), abs=1e-4)


def test_elastic_transform_survives_corners_on_one_line() -> None:
    rows, columns = corruptions._affine_grid(9, 9, torch.tensor([[[0.0, 0.0], [0.0, 6.0], [6.0, 6.0]]]))
    assert rows.isfinite().all()
    assert columns.isfinite().all()


@pytest.mark.parametrize(("border", "mode"), [("edge", "nearest"), ("reflect", "reflect"), ("mirror", "mirror")])
def test_sampling_is_that_of_scipy(border: str, mode: str) -> None:
    x = float_images(1, 1, 9, 12)
    rows, columns = (float_images(1, 9, 12) / 255 * 40 - 15 for _ in range(2))
    expected = ndimage.map_coordinates(x[0, 0].numpy(), [rows[0].numpy(), columns[0].numpy()], order=1, mode=mode)
    sampled = corruptions._sampled(x, rows, columns, border)[0, 0]
    torch.testing.assert_close(sampled, torch.from_numpy(expected), rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["defocus_blur", "zoom_blur", "fog", "brightness", "contrast", "pixelate", "snow"])
def test_grey_is_the_same_as_one_channel_and_as_three(name: str) -> None:
    images = smooth_images(3, 1)
    one, three = corrupt(images, name, 4, seed=0), corrupt(images.repeat(1, 3, 1, 1), name, 4, seed=0)
    torch.testing.assert_close(three.int(), one.repeat(1, 3, 1, 1).int(), rtol=0, atol=1)


# -- bad input ------------------------------------------------------------------------------------------------------


def test_unknown_corruption_names_the_nearest() -> None:
    message = r"There is no corruption 'gausian_noise'\. Did you mean 'gaussian_noise'"
    with pytest.raises(ValueError, match=message):
        corrupt(grey(0), "gausian_noise", 1, seed=0)
    for schedule in (standard_schedule, gradual_schedule):
        with pytest.raises(ValueError, match=message):
            schedule(["fog", "gausian_noise"])


@pytest.mark.parametrize("severity", [0, 6, -1])
def test_severity_must_be_1_to_5(severity: int) -> None:
    message = f"`severity` must be 1 to 5, got {severity}; for no corruption use the images as they are"
    with pytest.raises(ValueError, match=message):
        corrupt(grey(0), "fog", severity, seed=0)
    with pytest.raises(ValueError, match=message):
        standard_schedule(severity=severity)


@pytest.mark.parametrize(
    ("images", "got"),
    [
        (torch.zeros(1, 3, 32, 32), r"float32 \(1, 3, 32, 32\)"),
        (grey(0)[0], r"uint8 \(1, 32, 32\)"),
        (grey(0, count=1, channels=2), r"uint8 \(1, 2, 32, 32\)"),
        (grey(0, size=7, count=1), r"uint8 \(1, 1, 7, 7\)"),
    ],
)
def test_images_must_be_bytes_of_one_or_three_channels(images: Tensor, got: str) -> None:
    with pytest.raises(ValueError, match=rf"`images` must be uint8 \(N, C, H, W\) with 1 or 3 channels .* got {got}\."):
        corrupt(images, "fog", 1, seed=0)


@pytest.mark.parametrize(("index", "got"), [(torch.arange(3), r"int64 \(3,\)"), (torch.rand(20), r"float32 \(20,\)")])
def test_index_must_be_one_integer_an_image(index: Tensor, got: str) -> None:
    with pytest.raises(ValueError, match=f"`index` must hold one integer for each of the 20 images, got {got}"):
        corrupt(grey(0), "fog", 1, seed=0, index=index)


def test_seed_must_not_be_negative() -> None:
    with pytest.raises(ValueError, match="`seed` must be 0 or more, got -1"):
        corrupt(grey(0), "fog", 1, seed=-1)


@pytest.mark.parametrize("number", [-1, 10])
def test_cotta_order_must_be_0_to_9(number: int) -> None:
    with pytest.raises(ValueError, match=f"`number` must be 0 to 9, got {number}"):
        cotta_order(number)
