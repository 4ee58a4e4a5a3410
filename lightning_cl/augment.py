"""Augmentation of whole batches on their device, each image with draws of its own, as torchvision does one by one."""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional as F


def random_crop(x: Tensor, padding: int, generator: Generator | None = None) -> Tensor:
    """Pad each image with zeros on all sides, and cut a piece of the old size out at a place of its own.

    Each of the ``(2 * padding + 1) ** 2`` places is equally likely, as for ``RandomCrop((H, W), padding)`` of
    torchvision.

    Args:
        x: Images ``(B, C, H, W)`` of any type and range.
        padding: Pixels added on each side, 0 or more.
        generator: Source of the draws, on the device of ``x``; ``None`` is the global one.

    Returns:
        As ``x``; ``x`` itself where there is nothing to do.

    Raises:
        ValueError: If ``padding`` is negative, or ``x`` has no four dimensions.

    Example:
        >>> x = torch.arange(1, 5, dtype=torch.uint8).view(1, 1, 2, 2)
        >>> random_crop(x, 1, torch.Generator().manual_seed(0))
        tensor([[[[0, 3],
                  [0, 0]]]], dtype=torch.uint8)
    """
    _check_range("padding", padding)
    _check_images(x)
    if not padding or not len(x):
        return x
    (count, channels, height, width), side = x.shape, 2 * padding + 1
    top, left = torch.randint(side, (2, count), generator=generator, device=x.device).view(2, count, 1, 1)
    padded = F.pad(x, [padding] * 4)
    # A crop is whole stretches of `width` pixels, each copied at once: far faster than an index for each pixel.
    stretches = padded.flatten().unfold(0, width, 1)
    row = torch.arange(count * channels, device=x.device).view(count, channels, 1) * padded.shape[2]
    row = row + top + torch.arange(height, device=x.device)
    return stretches.index_select(0, (row * padded.shape[3] + left).flatten()).view(x.shape)


def random_flip(x: Tensor, p: float = 0.5, generator: Generator | None = None) -> Tensor:
    """Mirror each image left to right with probability ``p``, as ``RandomHorizontalFlip(p)`` of torchvision.

    Args:
        x: Images ``(B, C, H, W)`` of any type and range.
        p: Probability, in [0, 1].
        generator: Source of the draws, on the device of ``x``; ``None`` is the global one.

    Returns:
        As ``x``; ``x`` itself where there is nothing to do.

    Raises:
        ValueError: If ``p`` is out of its range, or ``x`` has no four dimensions.

    Example:
        >>> random_flip(torch.tensor([[[[1, 2, 3]]]]), p=1.0)
        tensor([[[[3, 2, 1]]]])
    """
    _check_range("p", p, 1)
    _check_images(x)
    if not p:
        return x
    mirrored = torch.rand(len(x), generator=generator, device=x.device) < p
    # On a CPU several times faster than `torch.where` and than a mask.
    return torch.cat([x, x.flip(-1)]).index_select(0, torch.arange(len(x), device=x.device) + mirrored * len(x))


def jitter_brightness(x: Tensor, amount: float, generator: Generator | None = None) -> Tensor:
    """Multiply each image by a factor, uniform in ``[max(0, 1 - amount), 1 + amount]``, and clamp.

    As ``ColorJitter(brightness=amount)`` of torchvision: products are cut, not rounded, to integers.

    Args:
        x: Images ``(B, C, H, W)``, ``uint8``, or floating in [0, 1].
        amount: Largest relative change, 0 or more.
        generator: Source of the draws, on the device of ``x``; ``None`` is the global one.

    Returns:
        As ``x``; ``x`` itself where there is nothing to do.

    Raises:
        ValueError: If ``amount`` is negative, or ``x`` has no four dimensions.

    Example:
        >>> jitter_brightness(torch.full((3, 1, 1, 1), 0.5), 0.5, torch.Generator().manual_seed(0)).flatten()
        tensor([0.4981, 0.6341, 0.2942])
    """
    _check_range("amount", amount)
    _check_images(x)
    if not amount:
        return x
    factor = torch.empty(len(x), 1, 1, 1, device=x.device)
    factor.uniform_(max(0.0, 1 - amount), 1 + amount, generator=generator)
    most = 1 if x.is_floating_point() else 255
    # One large temporary instead of the two of `x * factor`: memory that comes and goes costs more than the product.
    return x.to(torch.float32, copy=True).mul_(factor).clamp_(0, most).to(x.dtype)


@dataclass(frozen=True)
class CropFlip:
    """The usual augmentation of small images: :func:`random_crop`, :func:`random_flip`, :func:`jitter_brightness`.

    For the ``augment`` of a stream, which comes before normalisation. The defaults are mammoth's for CIFAR; PyCIL adds
    ``brightness=63 / 255``. The draws come from the global generator of the batch's device, which the run seeds in each
    experience and whose state a checkpoint holds: a run that was killed goes on with the same ones.

    Args:
        padding: Pixels of padding, 0 or more.
        flip: Probability of mirroring, in [0, 1].
        brightness: Largest relative change of brightness, 0 or more.

    Raises:
        ValueError: If an argument is out of its range; the message names it.

    Example:
        >>> CropFlip(brightness=63 / 255)(torch.zeros(8, 3, 32, 32, dtype=torch.uint8)).shape
        torch.Size([8, 3, 32, 32])
    """

    padding: int = 4
    flip: float = 0.5
    brightness: float = 0.0

    def __post_init__(self) -> None:
        _check_range("padding", self.padding)
        _check_range("flip", self.flip, 1)
        _check_range("brightness", self.brightness)

    def __call__(self, x: Tensor) -> Tensor:
        """Augment images ``(B, C, H, W)``."""
        x = random_flip(random_crop(x, self.padding), self.flip)
        return jitter_brightness(x, self.brightness)


def _check_range(name: str, value: float, most: float = math.inf) -> None:
    if not 0 <= value <= most:
        allowed = f"in [0, {most}]" if most < math.inf else "0 or more"
        raise ValueError(f"`{name}` must be {allowed}, got {value}.")


def _check_images(x: Tensor) -> None:
    if x.ndim != 4:
        raise ValueError(f"`x` must be a batch of images (B, C, H, W), got the shape {tuple(x.shape)}.")
