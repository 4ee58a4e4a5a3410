"""Image corruptions of Hendrycks and Dietterich, and the orders in which test-time adaptation meets them."""

import io
import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_cl.spelling import nearest
from lightning_cl.utilities import default_seed, derive_seed

if TYPE_CHECKING:
    from PIL.Image import Image

CORRUPTIONS = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
"""The 15 common corruptions, in the order in which CoTTA (Wang et al., CVPR 2022) presents them."""


class Segment(NamedTuple):
    """A stretch of a corruption stream: the whole test set under one corruption.

    Attributes:
        corruption: One of :data:`CORRUPTIONS`.
        severity: 1 to 5.
    """

    corruption: str
    severity: int


def standard_schedule(corruptions: Sequence[str] = CORRUPTIONS, severity: int = 5) -> list[Segment]:
    """Each corruption once, at one severity.

    Example:
        >>> standard_schedule(["fog", "snow"])
        [Segment(corruption='fog', severity=5), Segment(corruption='snow', severity=5)]
    """
    for name in corruptions:
        _check_kind(name, severity)
    return [Segment(name, severity) for name in corruptions]


def gradual_schedule(corruptions: Sequence[str] = CORRUPTIONS) -> list[Segment]:
    """Severities that rise and fall: 5 to 1 for the first corruption, 1 to 5 to 1 for each later one.

    All 15 give the 131 segments of CoTTA's gradual benchmark (Wang et al., CVPR 2022).

    Example:
        >>> [segment.severity for segment in gradual_schedule(["fog", "snow"])]
        [5, 4, 3, 2, 1, 1, 2, 3, 4, 5, 4, 3, 2, 1]
    """
    falling, rising = (5, 4, 3, 2, 1), (1, 2, 3, 4)
    for name in corruptions:
        _check_kind(name, 5)
    waves = [(name, rising + falling if at else falling) for at, name in enumerate(corruptions)]
    return [Segment(name, severity) for name, wave in waves for severity in wave]


def cotta_order(number: int) -> tuple[str, ...]:
    """One of the ten orders over which CoTTA averages its gradual CIFAR-10-C and its ImageNet-C results.

    Args:
        number: 0 to 9, as in the names of the config files of the published code.

    Example:
        >>> cotta_order(0)[:3]
        ('brightness', 'pixelate', 'gaussian_noise')
    """
    if number not in range(len(_COTTA_ORDERS)):
        raise ValueError(f"`number` must be 0 to 9, got {number}.")
    return tuple(CORRUPTIONS[at] for at in _COTTA_ORDERS[number])


def corrupt(images: Tensor, name: str, severity: int, seed: int, index: Tensor | None = None) -> Tensor:
    """Corrupt images as in Hendrycks and Dietterich, ICLR 2019.

    What becomes of an image depends on its pixels, ``name``, ``severity``, ``seed`` and its number in ``index`` only:
    not on the batch that it comes in, not on the device and not on the global generators, which stay as they were.

    Operations and parameters are those of the authors' scripts for CIFAR-10-C (here where the shorter side has fewer
    than 48 pixels), Tiny-ImageNet-C (fewer than 128) and ImageNet-C; lengths are in pixels, those of
    ``elastic_transform`` in parts of the shorter side. The random numbers are ours, so no image is that of the
    published files. Besides:

    - ``frost``: photographs of ice are replaced by a ridged plasma fractal of their mean, spread and tint. This is our
      own and not comparable with the published files.
    - Results are rounded to the nearest grey level, where the scripts round down; flakes of ``snow`` are not rounded.
    - With one channel, ``brightness`` shifts the grey level and ``frost`` has no tint.

    On average over the pixels, distortion grows with severity, except where it does not in the published files either:
    ``elastic_transform`` changes its kind, in ``frost`` the image fades while ice comes, and ``glass_blur`` and
    ``motion_blur`` are equally wide at several severities.

    Args:
        images: ``uint8`` ``(N, C, H, W)``, ``C`` 1 or 3, ``H`` and ``W`` 8 or more; the operations are made for 32 to
            224.
        name: One of :data:`CORRUPTIONS`.
        severity: 1 to 5.
        seed: 0 or more.
        index: Numbers of the images in their data set ``(N,)``; ``None`` is 0 to ``N - 1``.

    Returns:
        ``uint8`` ``(N, C, H, W)``.

    Raises:
        ValueError: If an argument is none of these.

    Example:
        >>> images = torch.full((4, 1, 28, 28), 100, dtype=torch.uint8)
        >>> corrupt(images, "brightness", 2, seed=0)[0, 0, 0, 0]  # 100 + 0.1 * 255
        tensor(126, dtype=torch.uint8)
        >>> part = corrupt(images[2:], "snow", 5, seed=0, index=torch.tensor([2, 3]))
        >>> torch.equal(part, corrupt(images, "snow", 5, seed=0)[2:])
        True
    """
    _check_kind(name, severity)
    _check_images(images)
    keys = _keys(_numbers(index, len(images)), name, severity, default_seed(seed))
    operation, parameters = _published(name, severity, min(images.shape[-2:]))
    source, result = images.cpu().contiguous(), torch.empty(images.shape, dtype=torch.uint8)
    share = max(1, _VALUES_AT_ONCE // math.prod(images.shape[1:]))
    for start in range(0, len(images), share):
        part = slice(start, start + share)
        result[part] = _rounded(operation(source[part].float(), _Draws(keys[part]), *parameters))
    return result.to(images.device)


_VALUES_AT_ONCE = 2**19  # floats of 2 MiB: what an operation makes of them stays in the cache

_COTTA_ORDERS = (
    (10, 13, 0, 5, 6, 4, 2, 14, 3, 12, 1, 8, 7, 9, 11),
    (14, 1, 6, 8, 11, 9, 3, 12, 0, 10, 4, 2, 13, 7, 5),
    (11, 3, 0, 1, 7, 8, 4, 6, 12, 14, 13, 10, 2, 5, 9),
    (1, 9, 4, 13, 7, 12, 10, 2, 3, 8, 11, 0, 5, 14, 6),
    (13, 4, 6, 7, 9, 2, 10, 5, 8, 14, 0, 1, 11, 3, 12),
    (5, 7, 9, 1, 3, 11, 6, 10, 8, 12, 4, 0, 13, 14, 2),
    (8, 2, 14, 11, 6, 4, 13, 7, 3, 5, 10, 12, 1, 9, 0),
    (4, 6, 2, 9, 7, 14, 0, 8, 1, 10, 11, 5, 13, 3, 12),
    (3, 5, 6, 1, 0, 4, 14, 9, 11, 13, 8, 7, 10, 12, 2),
    (11, 0, 3, 6, 8, 4, 14, 9, 13, 12, 1, 2, 7, 5, 10),
)


# -- arguments --------------------------------------------------------------------------------------------------


def _check_kind(name: str, severity: int) -> None:
    if name not in CORRUPTIONS:
        raise ValueError(f"There is no corruption {name!r}. {nearest(name, CORRUPTIONS)}")
    if severity not in range(1, 6):
        raise ValueError(f"`severity` must be 1 to 5, got {severity}; for no corruption use the images as they are.")


def _check_images(images: Tensor) -> None:
    fits = images.dtype == torch.uint8 and images.ndim == 4 and images.shape[1] in (1, 3)
    if not fits or min(images.shape[-2:]) < 8:
        raise ValueError(
            "`images` must be uint8 (N, C, H, W) with 1 or 3 channels and 8 pixels or more a side, got "
            f"{str(images.dtype).removeprefix('torch.')} {tuple(images.shape)}."
        )


def _numbers(index: Tensor | None, count: int) -> Tensor:
    if index is None:
        return torch.arange(count)
    if index.shape != (count,) or index.is_floating_point():
        got = f"{str(index.dtype).removeprefix('torch.')} {tuple(index.shape)}"
        raise ValueError(f"`index` must hold one integer for each of the {count} images, got {got}.")
    return index.cpu().long()


def _published(name: str, severity: int, side: int) -> "tuple[_Operation, tuple[float, ...]]":
    operation, *tables = _PUBLISHED[name]
    chosen = tables[0 if side < 48 else 1 if side < 128 else 2][severity - 1]
    return operation, chosen if isinstance(chosen, tuple) else (chosen,)


# -- random numbers of an image: a hash of (key, position), so that all images of a batch are drawn at once ------


def _keys(index: Tensor, name: str, severity: int, seed: int) -> Tensor:
    return _mixed(index * _GOLDEN + derive_seed(seed, CORRUPTIONS.index(name), severity))


# SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) in arithmetic modulo 2 ** 64; the constants as signed numbers.
_GOLDEN, _FIRST, _SECOND = (c - 2**64 for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _mixed(z: Tensor) -> Tensor:
    z = (z ^ _shifted(z, 30)) * _FIRST
    z = (z ^ _shifted(z, 27)) * _SECOND
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, by: int) -> Tensor:
    return torch.bitwise_and(z >> by, 2 ** (64 - by) - 1)  # without copies of the sign


class _Draws:
    """Draws of a batch of images. Each image has its own, in a fixed order; 16 bits are enough for 8-bit pixels."""

    def __init__(self, keys: Tensor) -> None:
        self._keys = keys
        self._used = 0

    def bits(self, *shape: int) -> Tensor:
        """Uniform on 0 to 65535, ``(n, *shape)`` of ``int32``."""
        count = math.prod(shape)
        words = torch.arange(self._used, self._used + -(-count // 4))
        self._used += len(words)
        random = _mixed(words * _GOLDEN + self._keys[:, None]).view(torch.int16)
        return random[:, :count].int().bitwise_and(0xFFFF).view(-1, *shape)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return (self.bits(*shape) + 0.5) * ((high - low) / 2**16) + low

    def normal(self, *shape: int) -> Tensor:
        return _normal_quantiles()[self.bits(*shape)]


@cache
def _normal_quantiles() -> Tensor:
    quantiles: Tensor = torch.special.ndtri((torch.arange(2**16, dtype=torch.float64) + 0.5) / 2**16)
    return quantiles.float()


# -- noise. From here on x is float (n, C, H, W) in grey levels, 0 to 255 ----------------------------------------
#
# Only operations on single elements, gathers and sums of exact integers: convolutions and matrix products round
# differently in batches of different sizes.


def _gaussian_noise(x: Tensor, draws: _Draws, scale: float) -> Tensor:
    return x + draws.normal(*x.shape[1:]) * (255 * scale)


def _shot_noise(x: Tensor, draws: _Draws, photons: float) -> Tensor:
    """Inverse distribution function: one search in the tables of all 256 levels, laid end to end."""
    table, length = _poisson_tables(photons)
    level = x.int()
    found = torch.searchsorted(table, level * 2**16 + draws.bits(*x.shape[1:]), right=True, out_int32=True)
    return (found - level * length) * (255 / photons)


@cache
def _poisson_tables(photons: float) -> tuple[Tensor, int]:
    """Cumulative probabilities in units of 2 ** -16, offset by the level, of the means ``photons * level / 255``."""
    counts = torch.arange(1, int(photons + 6 * photons**0.5) + 10, dtype=torch.float64)
    levels = torch.arange(256, dtype=torch.float64)[:, None]
    cumulative = torch.special.gammaincc(counts, levels * (photons / 255))
    return ((cumulative + levels) * 2**16).round().int().flatten(), len(counts)


def _impulse_noise(x: Tensor, draws: _Draws, amount: float) -> Tensor:
    bits, half = draws.bits(*x.shape[1:]), round(amount * 2**15)
    return x.masked_fill(bits < half, 0).masked_fill(bits >= 2**16 - half, 255)


# -- blur -------------------------------------------------------------------------------------------------------


def _defocus_blur(x: Tensor, draws: _Draws, radius: float, alias: float) -> Tensor:
    kernel = _disk(radius, alias)
    padded = _padded(x, len(kernel) // 2, "mirror")
    height, width = x.shape[-2:]
    blurred = torch.zeros_like(x)
    for row, column in kernel.nonzero().tolist():
        blurred += padded[..., row : row + height, column : column + width] * kernel[row, column].item()
    return blurred


def _disk(radius: float, alias: float) -> Tensor:
    """A disk with soft edges, of sum 1; weights that no grey level can show are 0."""
    reach = max(8, int(radius))
    square = torch.arange(-reach, reach + 1).square()
    disk = (square[:, None] + square <= radius**2).double()
    disk = _blurred(disk[None, None] / disk.sum(), _gaussian(1 if radius <= 8 else 2, alias), "mirror")[0, 0]
    return disk.where(disk > 1e-5, 0)


def _glass_blur(x: Tensor, draws: _Draws, sigma: float, reach: int, rounds: int) -> Tensor:
    kernel = _gaussian(int(4 * sigma + 0.5), sigma)
    x = _blurred(x, kernel, "edge").round()
    for _ in range(rounds):
        x = _displaced(x, draws, reach)
    return _blurred(x, kernel, "edge")


def _displaced(x: Tensor, draws: _Draws, reach: int) -> Tensor:
    """Give each inner pixel, from last to first, the value of one ``-reach`` to ``reach - 1`` rows and columns away.

    The published code means to swap the two, but swaps views of one array, which only copies.
    """
    height, width = x.shape[-2:]
    rows, columns = ((draws.bits(2, height, width) * (2 * reach) >> 16) - reach).unbind(1)
    inner = torch.zeros(height, width, dtype=torch.bool)
    inner[reach + 1 : height - reach + 1, reach + 1 : width - reach + 1] = True
    pixel, inner = torch.arange(height * width), inner.flatten()
    source = pixel + (rows * width + columns).flatten(1) * inner
    replaced = (source > pixel) & inner[source]  # the source has got its own new value before: ask where that is from
    while replaced.any():
        source, replaced = (
            torch.where(replaced, source.gather(1, source), source),
            replaced & replaced.gather(1, source),
        )
    return _gathered(x, source.view(-1, height, width))


def _motion_blur(x: Tensor, draws: _Draws, radius: int, sigma: float) -> Tensor:
    return _moved(x, radius, sigma, draws.uniform(-45, 45))


def _moved(x: Tensor, radius: int, sigma: float, degrees: Tensor) -> Tensor:
    """Blur each image along its own direction ``(n,)``: half a Gaussian, from the pixel onwards."""
    steps = torch.arange(2 * radius + 1, dtype=torch.float64)
    weights = torch.exp(-steps.square() / (2 * sigma**2))
    angle = degrees.double().deg2rad()[:, None]
    rows, columns = ((steps * part - 0.5).ceil().long() for part in (angle.sin(), angle.cos()))
    padded = _padded(x, reach := len(steps), "edge")
    width = padded.shape[-1]
    index = torch.arange(padded[0, 0].numel()).view(-1, width)[reach:-reach, reach:-reach]
    blurred = torch.zeros_like(x)
    for step, weight in enumerate((weights / weights.sum()).tolist()):
        offset = rows[:, step] * width + columns[:, step]
        blurred += _gathered(padded, index + offset[:, None, None]) * weight
    return blurred


def _zoom_blur(x: Tensor, draws: _Draws, stop: float, step: float) -> Tensor:
    factors = np.arange(1, stop, step).tolist()  # floating-point steps: may or may not reach the stop, as published
    total = x.clone()
    for factor in factors:
        total += _zoomed(x, factor)
    return total / (len(factors) + 1)


def _zoomed(x: Tensor, factor: float) -> Tensor:
    """Enlarge the middle to the size of the whole; whole pixels are cut out and trimmed off, as published."""
    for dim in (-2, -1):
        size = x.shape[dim]
        cropped = math.ceil(size / factor)
        zoomed = round(cropped * factor)
        at = torch.arange(size, dtype=torch.float64) + (zoomed - size) // 2
        at = at * ((cropped - 1) / (zoomed - 1)) + (size - cropped) // 2
        below = at.long().clamp(max=size - 2)
        above_share = (at - below).float().view(-1, *[1] * (-1 - dim))
        x = x.index_select(dim, below) * (1 - above_share) + x.index_select(dim, below + 1) * above_share
    return x


# -- weather ----------------------------------------------------------------------------------------------------


def _snow(
    x: Tensor,
    draws: _Draws,
    mean: float,
    scale: float,
    zoom: float,
    threshold: float,
    radius: int,
    sigma: float,
    share: float,
) -> Tensor:
    flakes = _zoomed(draws.normal(1, *x.shape[-2:]) * scale + mean, zoom)
    flakes = flakes.where(flakes >= threshold, 0).clamp(0, 1) * 255
    flakes = _moved(flakes, radius, sigma, draws.uniform(-135, -45))
    whitened = torch.maximum(x, _grey(x) * 1.5 + 127.5)
    return x * share + whitened * (1 - share) + flakes + flakes.flip(-2, -1)


def _grey(x: Tensor) -> Tensor:
    if x.shape[1] == 1:
        return x
    return x[:, :1] * 0.299 + x[:, 1:2] * 0.587 + x[:, 2:] * 0.114


def _frost(x: Tensor, draws: _Draws, image_share: float, frost_share: float) -> Tensor:
    """Mix in a texture whose brightness, contrast and tint are like those of the published photographs of ice."""
    level = draws.uniform(90, 210, 1, 1, 1)
    ridges = (_plasma(x, draws, 1.5) * 2 - 1).abs()
    tint = torch.tensor([-18.0, 3.0, 15.0] if x.shape[1] == 3 else [0.0]).view(-1, 1, 1)
    ice = level + (0.5 - ridges) * 80 + tint
    return x * image_share + ice * frost_share


def _fog(x: Tensor, draws: _Draws, thickness: float, decay: float) -> Tensor:
    brightest = x.amax((1, 2, 3), keepdim=True)
    fog = _plasma(x, draws, decay) * (255 * thickness)
    return (x + fog) * (brightest / (brightest + 255 * thickness))


def _plasma(x: Tensor, draws: _Draws, decay: float) -> Tensor:
    """Height maps ``(n, 1, H, W)`` by the diamond-square algorithm on a torus, of range 0 to 1 before the crop."""
    size = 1 << (max(x.shape[-2:]) - 1).bit_length()
    noise = draws.uniform(-1, 1, size, size)
    area = torch.zeros_like(noise)
    step, wibble = size, 100.0
    while step >= 2:
        half = step // 2
        every, between = slice(0, None, step), slice(half, None, step)
        corners, right = area[:, every, every], area[:, every, every].roll(-1, 2)
        centres = (corners + right + corners.roll(-1, 1) + right.roll(-1, 1)) / 4
        area[:, between, between] = centres = centres + noise[:, between, between] * wibble**2
        top = (corners + right + centres + centres.roll(1, 1)) / 4
        area[:, every, between] = top + noise[:, every, between] * wibble**2
        left = (corners + corners.roll(-1, 1) + centres + centres.roll(1, 2)) / 4
        area[:, between, every] = left + noise[:, between, every] * wibble**2
        step, wibble = half, wibble / decay
    area -= area.amin((1, 2), keepdim=True)
    area /= area.amax((1, 2), keepdim=True)
    return area[:, None, : x.shape[-2], : x.shape[-1]]


# -- digital ----------------------------------------------------------------------------------------------------


def _brightness(x: Tensor, draws: _Draws, shift: float) -> Tensor:
    """Raise the value V of HSV. At fixed hue and saturation all channels are proportional to it."""
    value = x.amax(1, keepdim=True)
    raised = (value + 255 * shift).clamp(max=255)
    return torch.where(value > 0, x * (raised / value), raised)


def _contrast(x: Tensor, draws: _Draws, factor: float) -> Tensor:
    mean = (x.sum((-2, -1), keepdim=True, dtype=torch.float64) / x[0, 0].numel()).float()
    return (x - mean) * factor + mean


def _elastic_transform(x: Tensor, draws: _Draws, strength: float, smoothness: float, jitter: float) -> Tensor:
    height, width = x.shape[-2:]
    side = min(height, width)
    x = _sampled(x, *_affine_grid(height, width, draws.uniform(-jitter * side, jitter * side, 3, 2)), "mirror")
    if not strength:
        return x
    sigma = smoothness * side
    field = _blurred(draws.uniform(-1, 1, 2, height, width), _gaussian(int(3 * sigma + 0.5), sigma), "reflect")
    down, right = (field * (strength * side)).unbind(1)
    return _sampled(x, torch.arange(height)[:, None] + down, torch.arange(width) + right, "reflect")


def _affine_grid(height: int, width: int, moves: Tensor) -> tuple[Tensor, Tensor]:
    """Where pixels come from, ``(n, H, W)`` rows and columns, when three corners of a middle square are moved.

    Args:
        height: Rows.
        width: Columns.
        moves: Steps ``(n, 3, 2)`` (right, down) of the lower right, the upper right and the upper left corner.
    """
    reach = min(height, width) // 3
    start = torch.tensor([width // 2, height // 2]) + reach
    to = moves.double() + reach * torch.tensor([[0.0, 0.0], [0.0, -2.0], [-2.0, -2.0]])
    (first_x, first_y), (second_x, second_y) = ((to[:, at] - to[:, 0]).T[:, :, None, None] for at in (1, 2))
    x = torch.arange(width) - start[0] - to[:, 0, 0, None, None]
    y = torch.arange(height)[:, None] - start[1] - to[:, 0, 1, None, None]
    area = first_x * second_y - second_x * first_y
    area = area.where(area != 0, torch.inf)  # moved onto one line: all pixels come from one corner, as in OpenCV
    along_first, along_second = (x * second_y - y * second_x) / area, (y * first_x - x * first_y) / area
    rows = start[1] - 2 * reach * (along_first + along_second)
    return rows.float(), (start[0] - 2 * reach * along_second).float()


def _pixelate(x: Tensor, draws: _Draws, factor: float) -> Tensor:
    from PIL.Image import Resampling

    height, width = x.shape[-2:]
    small = (int(width * factor), int(height * factor))
    return _each(x, lambda image: image.resize(small, Resampling.BOX).resize((width, height), Resampling.BOX))


def _jpeg_compression(x: Tensor, draws: _Draws, quality: int) -> Tensor:
    from PIL.Image import open as read

    def compressed(image: "Image") -> "Image":
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return read(file)

    return _each(x, compressed)


def _each(x: Tensor, change: "Callable[[Image], Image]") -> Tensor:
    from PIL.Image import fromarray

    pixels = x.to(torch.uint8).permute(0, 2, 3, 1).numpy()
    pixels = pixels[..., 0] if x.shape[1] == 1 else pixels
    changed = np.stack([np.asarray(change(fromarray(image))) for image in pixels])
    return torch.from_numpy(changed).view(len(x), *x.shape[-2:], -1).permute(0, 3, 1, 2)


# -- what they share --------------------------------------------------------------------------------------------


def _rounded(x: Tensor) -> Tensor:
    return x.clamp(0, 255).round().to(torch.uint8)


def _gaussian(reach: int, sigma: float) -> Tensor:
    at = torch.arange(-reach, reach + 1, dtype=torch.float64)
    weights = torch.exp(-at.square() / (2 * sigma**2))
    return weights / weights.sum()


def _blurred(x: Tensor, kernel: Tensor, border: str) -> Tensor:
    """Correlate rows and columns with a kernel ``(2 * reach + 1,)``."""
    padded = _padded(x, len(kernel) // 2, border)
    for dim in (-2, -1):
        size = x.shape[dim]
        padded = sum(
            (padded.narrow(dim, at, size) * weight for at, weight in enumerate(kernel.tolist())),
            start=x.new_zeros(()),
        )
    return padded


def _padded(x: Tensor, by: int, border: str) -> Tensor:
    for dim in (-2, -1):
        x = x.index_select(dim, _inside(torch.arange(-by, x.shape[dim] + by), x.shape[dim], border))
    return x


def _inside(at: Tensor, size: int, border: str) -> Tensor:
    """Map positions beyond the border, however far, to the pixel that stands for them.

    Args:
        at: Positions, integers.
        size: Pixels of the side.
        border: ``edge`` (aaa|abc|ccc), ``reflect`` (cba|abc|cba) or ``mirror`` (cb|abc|ba).
    """
    if border == "edge":
        return at.clamp(0, size - 1)
    period, twice = (2 * size, 1) if border == "reflect" else (2 * size - 2, 0)
    at = at % period
    return torch.minimum(at, period - twice - at)


def _gathered(x: Tensor, index: Tensor) -> Tensor:
    """Take pixels ``index`` ``(n, H, W)`` of the flattened images, the same of all channels."""
    channels = x.shape[1]
    taken = x.flatten(2).gather(2, index.flatten(1)[:, None].expand(-1, channels, -1))
    return taken.view(-1, channels, *index.shape[1:])


def _sampled(x: Tensor, rows: Tensor, columns: Tensor, border: str) -> Tensor:
    """Sample bilinearly at ``(n, H, W)`` rows and columns."""
    height, width = x.shape[-2:]
    result = torch.zeros_like(x)
    for row, row_share in _neighbours(rows):
        for column, column_share in _neighbours(columns):
            index = _inside(row, height, border) * width + _inside(column, width, border)
            result += _gathered(x, index) * (row_share * column_share)[:, None]
    return result


def _neighbours(at: Tensor) -> list[tuple[Tensor, Tensor]]:
    below = at.floor()
    share = at - below
    return [(below.long(), 1 - share), (below.long() + 1, share)]


# -- the published parameters: CIFAR-10-C, Tiny-ImageNet-C, ImageNet-C; severities 1 to 5 each ---------------------

_Operation = Callable[..., Tensor]
_Table = Sequence[float | tuple[float, ...]]

_ZOOMS = ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01))
_WIDE = 244 / 224  # ImageNet-C's elastic transform computes with 244 pixels a side

_PUBLISHED: dict[str, tuple[_Operation, _Table, _Table, _Table]] = {
    "gaussian_noise": (
        _gaussian_noise,
        (0.04, 0.06, 0.08, 0.09, 0.10),
        (0.04, 0.08, 0.12, 0.15, 0.18),
        (0.08, 0.12, 0.18, 0.26, 0.38),
    ),
    "shot_noise": (_shot_noise, (500, 250, 100, 75, 50), (250, 100, 50, 30, 15), (60, 25, 12, 5, 3)),
    "impulse_noise": (
        _impulse_noise,
        (0.01, 0.02, 0.03, 0.05, 0.07),
        (0.01, 0.02, 0.05, 0.08, 0.14),
        (0.03, 0.06, 0.09, 0.17, 0.27),
    ),
    "defocus_blur": (
        _defocus_blur,
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        ((0.5, 0.6), (1, 0.1), (1.5, 0.1), (2.5, 0.01), (3, 0.1)),
        ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    ),
    "glass_blur": (
        _glass_blur,
        ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        ((0.1, 1, 1), (0.5, 1, 1), (0.6, 1, 2), (0.7, 2, 1), (0.9, 2, 2)),
        ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    ),
    "motion_blur": (
        _motion_blur,
        ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        ((10, 1), (10, 1.5), (10, 2), (10, 2.5), (12, 3)),
        ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    ),
    "zoom_blur": (
        _zoom_blur,
        _ZOOMS,
        _ZOOMS,
        ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    ),
    "snow": (
        _snow,
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.8),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.8),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.7),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.65),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.6),
        ),
        (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
    ),
    "frost": (
        _frost,
        ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
        ((1, 0.3), (0.9, 0.4), (0.8, 0.45), (0.75, 0.5), (0.7, 0.55)),
        ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
    ),
    "fog": (
        _fog,
        ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
        ((0.4, 3), (0.7, 3), (1, 2.5), (1.5, 2), (2, 1.75)),
        ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    ),
    "brightness": (_brightness, (0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5), (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": (_contrast, (0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05), (0.4, 0.3, 0.2, 0.1, 0.05)),
    "elastic_transform": (
        _elastic_transform,
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
        ((0, 0, 0.08), (0.05, 0.3, 0.06), (0.1, 0.08, 0.06), (0.1, 0.03, 0.03), (0.16, 0.03, 0.02)),
        (
            (2 * _WIDE, 0.7 * _WIDE, 0.1 * _WIDE),
            (2 * _WIDE, 0.08 * _WIDE, 0.2 * _WIDE),
            (0.05 * _WIDE, 0.01 * _WIDE, 0.02 * _WIDE),
            (0.07 * _WIDE, 0.01 * _WIDE, 0.02 * _WIDE),
            (0.12 * _WIDE, 0.01 * _WIDE, 0.02 * _WIDE),
        ),
    ),
    "pixelate": (_pixelate, (0.95, 0.9, 0.85, 0.75, 0.65), (0.9, 0.8, 0.7, 0.6, 0.5), (0.6, 0.5, 0.4, 0.3, 0.25)),
    "jpeg_compression": (_jpeg_compression, (80, 65, 58, 50, 40), (65, 58, 50, 40, 25), (25, 18, 15, 10, 7)),
}
