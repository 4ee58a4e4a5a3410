"""Images whose pixels change places: permuted, rotated, padded, each as one table of where every pixel comes from."""

import random
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from lightning_cl.samples import Samples, TensorData, in_memory

PermutationConvention = Literal["mammoth", "gem", "van_de_ven", "avalanche"]
"""Whose code draws the permutations; see :func:`draw_permutations`."""
RotationConvention = Literal["mammoth", "gem", "avalanche"]
"""Whose code draws the angles; see :func:`draw_angles`."""


def draw_permutations(
    num_pixels: int,
    count: int,
    convention: PermutationConvention,
    permutation_seed: int = 0,
    permute_first: bool = True,
) -> list[Tensor]:
    """Draw permutations of pixels, one after another from one generator, as a published code base does.

    Args:
        num_pixels: Pixels of an image (with its padding).
        count: Number of permutations.
        convention: ``"gem"`` (Lopez-Paz & Ranzato, NeurIPS 2017) draws with ``torch.randperm``. The others draw with
            ``permutation`` of NumPy's legacy generator: ``"mammoth"`` (Buzzega et al., NeurIPS 2020) with the global
            one, between whatever else draws from it, ``"van_de_ven"`` (van de Ven et al., Nature Machine Intelligence
            2022) with the global one right after seeding it, ``"avalanche"`` (Lomonaco et al., CVPR Workshops 2021)
            with ``RandomState(seed)``.
        permutation_seed: Seed of that generator, in ``[0, 2**32)``.
        permute_first: ``False``: the first is the identity, and nothing is drawn for it. So it is in van de Ven's code
            when its seed is 0.

    Returns:
        Permutations ``(num_pixels,)``: pixel ``i`` of the result is pixel ``permutation[i]`` of the image.

    Raises:
        ValueError: If ``convention`` or ``permutation_seed`` is out of its range.

    Example:
        >>> draw_permutations(4, 2, "gem", permute_first=False)
        [tensor([0, 1, 2, 3]), tensor([0, 1, 3, 2])]
    """
    _check_draw(convention, PermutationConvention, "permutation_seed", permutation_seed)
    first = [] if permute_first else [torch.arange(num_pixels)]
    if convention == "gem":
        generator = torch.Generator().manual_seed(permutation_seed)
        return first + [torch.randperm(num_pixels, generator=generator) for _ in range(count - len(first))]
    legacy = np.random.RandomState(permutation_seed)
    return first + [torch.from_numpy(legacy.permutation(num_pixels)) for _ in range(count - len(first))]


def draw_angles(count: int, convention: RotationConvention, angle_seed: int = 0) -> list[float]:
    """Draw angles of rotation, one after another from one generator, as a published code base does.

    Args:
        count: Number of angles.
        convention: ``"mammoth"`` (Buzzega et al., NeurIPS 2020): uniform in [0, 180), by NumPy's legacy generator
            (there the global one, between whatever else draws from it). ``"gem"`` (Lopez-Paz & Ranzato, NeurIPS 2017):
            one in each of ``count`` equal parts of [0, 180], by Python's ``random`` (not seeded there; here it is).
            ``"avalanche"`` (Lomonaco et al., CVPR Workshops 2021): whole numbers in [-180, 180], by NumPy's
            ``RandomState(seed)``.
        angle_seed: Seed of that generator, in ``[0, 2**32)``.

    Returns:
        Angles in degrees, counter-clockwise.

    Raises:
        ValueError: If ``convention`` or ``angle_seed`` is out of its range.

    Example:
        >>> draw_angles(3, "avalanche")
        [-8.0, -133.0, -63.0]
    """
    _check_draw(convention, RotationConvention, "angle_seed", angle_seed)
    if convention == "gem":
        python = random.Random(angle_seed)
        parts = [(t / count * 180.0, (t + 1) / count * 180.0) for t in range(count)]
        return [python.random() * (high - low) + low for low, high in parts]
    legacy = np.random.RandomState(angle_seed)
    if convention == "mammoth":
        return [legacy.uniform(0, 180) for _ in range(count)]
    return [float(legacy.randint(-180, 181)) for _ in range(count)]


def permutation_map(height: int, width: int, permutation: Tensor, padding: int = 0) -> Tensor:
    """Where each pixel comes from in an image that is padded with zeros and then permuted.

    Args:
        height: Height of the image.
        width: Width of the image.
        permutation: Of the pixels of the padded image ``(H' * W',)``, row by row; ``H' = height + 2 * padding``.
        padding: Pixels added on each side.

    Returns:
        Positions ``(H', W')`` in ``[0, height * width)``, row by row; -1 is a zero.

    Example:
        >>> permutation_map(1, 2, torch.tensor([1, 0]))
        tensor([[1, 0]])
    """
    padded = F.pad(torch.arange(height * width).view(height, width), [padding] * 4, value=-1)
    return padded.flatten()[permutation].view(padded.shape)


def rotation_map(height: int, width: int, degrees: float, backend: Literal["pil", "tensor"] = "pil") -> Tensor:
    """Where each pixel comes from in an image that is rotated about its centre, to the nearest pixel.

    A rotated picture of the positions themselves: exactly what the library does, whose two ways round differently at
    about one angle in ten.

    Args:
        height: Height of the image.
        width: Width of the image.
        degrees: Angle, counter-clockwise.
        backend: As ``rotate`` of Pillow and of torchvision treat a ``"pil"`` image, or as torchvision treats a
            ``"tensor"``.

    Returns:
        Positions ``(height, width)`` in ``[0, height * width)``, row by row; -1 is a zero, from outside of the image.

    Example:
        >>> rotation_map(2, 2, 90)
        tensor([[1, 3],
                [0, 2]])
    """
    one_up = torch.arange(1, height * width + 1).view(1, height, width)  # what comes from outside is 0
    if backend == "pil":
        from PIL import Image

        return torch.from_numpy(np.array(Image.fromarray(one_up[0].int().numpy()).rotate(degrees))).long() - 1
    from torchvision.transforms.functional import rotate

    rotated: Tensor = rotate(one_up.float(), degrees)
    return rotated[0].long() - 1


def move_pixels(x: Tensor, pixels: Tensor) -> Tensor:
    """Give each pixel of the result the value that the image has at another place, in every channel alike.

    Args:
        x: Images ``(*, H, W)`` on the CPU, of any type.
        pixels: Positions ``(H', W')`` in ``[0, H * W)``, row by row; -1 is a zero.

    Returns:
        ``(*, H', W')``.

    Example:
        >>> move_pixels(torch.tensor([[7, 8]]), torch.tensor([[1, 0, -1]]))
        tensor([[8, 7, 0]])
    """
    # Several times faster than `index_select` along the last dimension; "clip" takes -1 for 0.
    moved = torch.from_numpy(x.flatten(-2).numpy().take(pixels.flatten().numpy(), axis=-1, mode="clip"))
    return moved.view(*x.shape[:-2], *pixels.shape).mul_(pixels >= 0)


class PixelMap(TensorData):
    """Samples in memory whose pixels change places when they become a batch: the storage is that of the images.

    Args:
        inputs: All images ``(N, C, H, W)``. Shared, never copied.
        targets: Labels ``(N,)``.
        pixels: Where each pixel comes from, ``(H', W')``; see :func:`move_pixels`.
        indices: The samples that belong to this part, ``(n,)``; ``None`` is all.

    Example:
        >>> images = torch.tensor([[[[1, 2]]], [[[3, 4]]]])
        >>> PixelMap(images, torch.tensor([0, 1]), torch.tensor([[1, 0]])).batch(torch.tensor([1]))
        [tensor([[[[4, 3]]]]), tensor([1])]
    """

    def __init__(self, inputs: Tensor, targets: Tensor, pixels: Tensor, indices: Tensor | None = None) -> None:
        super().__init__(inputs, targets, indices)
        self.pixels = pixels

    @classmethod
    def of(cls, data: Samples, pixels: Tensor) -> "PixelMap":
        """The same samples with their pixels moved.

        Raises:
            ValueError: If the images do not lie in memory.
        """
        data = in_memory(data)
        return cls(data.inputs, data.targets, pixels, data.indices)

    @override
    def batch(self, index: Tensor) -> list[Tensor]:
        x, *labels = super().batch(index)
        return [move_pixels(x, self.pixels), *labels]


def _check_draw(convention: str, known: Any, name: str, seed: int) -> None:
    if convention not in get_args(known):
        raise ValueError(f"`convention` must be one of {list(get_args(known))}, got {convention!r}.")
    if not 0 <= seed < 2**32:
        raise ValueError(f"`{name}` must be in [0, 2**32), got {seed}.")
