"""MNIST-360: one long stream of pairs of digits that turn slowly; nobody says where a pair ends."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from lightning_cl.samples import TensorData, check_samples, in_memory
from lightning_cl.scenarios import FromSource
from lightning_cl.sources import make_source
from lightning_cl.utilities import derive_seed, permutation

NUM_DIGITS = 9  # a turned 9 is a 6
ROUNDS = 3


class MNIST360(FromSource):
    """MNIST-360 (Buzzega et al., NeurIPS 2020): the digits 0 to 8 of MNIST (LeCun et al., 1998), slowly turning.

    The stream shows two consecutive digits at a time, (0, 1), (1, 2), ..., (8, 0), and goes round three times. Each
    image is turned a little further than the one of its digit before, by 360 degrees over the whole stream; digit ``d``
    starts at ``60 * (d - 1)`` degrees. A digit's images (in the order of the data set) are cut into six parts, one for
    each of its pairs, from the last to the first, and shuffled within a part. Images are ``(1, 28, 28)``, uint8, in
    [0, 1] (no mean is subtracted); 54 051 to train, each shown once, and 8 991 to test: the ``i``-th of the ``n`` of a
    digit turned by ``360 * i / n`` degrees.

    It is one experience without boundaries, one pass (``max_epochs=1``; a further epoch would show the same again), and
    ``seed`` fixes the shuffling. This is what the paper says. The code published with it (mammoth) draws from a part
    with replacement, tests on batches that it draws anew each time (a late version: always on the first images), and
    ends a batch with each pair; here the two digits of a pair alternate in proportion to their numbers, so that batches
    of any size are mixed as there, and one batch holds the end of a pair and the beginning of the next.

    Args:
        root: Folder of the data, as for the stream that cuts it by class.
        data_set: The data set by name; any of small images will do, ``"digits"`` needs no files.
        batch_size: Training samples per batch and process.
        download: Download missing files.
        **kwargs: As for :class:`lightning_cl.StreamDataModule`.

    Example:
        >>> stream = MNIST360(data_set="digits")
        >>> len(stream), stream.num_classes
        (1, 9)
        >>> stream.part(0, "train").labels[:12]
        tensor([0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1])
    """

    def __init__(
        self, root: str = "data", *, data_set: str = "mnist", batch_size: int = 16, download: bool = True, **kwargs: Any
    ) -> None:
        source = make_source(data_set, root, download)
        super().__init__([range(NUM_DIGITS)], NUM_DIGITS, source.input_shape, batch_size=batch_size, **kwargs)
        self.source = source
        self._turned: dict[bool, TensorData] = {}

    @override
    def dataset(self, experience: int, train: bool) -> TensorData:
        return self._data(train)

    @override
    def _data(self, train: bool) -> TensorData:
        if train not in self._turned:
            data = in_memory(self.source.read(train))
            index, degrees = turning_pairs(data.labels, self.seed) if train else full_turns(data.labels)
            turned = TensorData(turn(data.batch(index)[0], degrees), data.labels[index])
            check_samples(turned, self.num_classes, self.input_shape, train)
            self._turned[train] = turned
        return self._turned[train]

    @override
    def _order(self, count: int, seed: int) -> Tensor:
        return torch.arange(count)  # the data set is the stream


def turning_pairs(labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """The training stream: which samples come, in their order, and by how many degrees each is turned.

    Args:
        labels: Labels of the training set ``(N,)``.
        seed: Fixes the order within the parts of a digit.

    Returns:
        Indices and degrees in [0, 360), ``(n,)`` each, ``n`` being the number of digits 0 to 8.

    Example:
        >>> index, degrees = turning_pairs(torch.tensor([0, 1, 8, 1]), seed=0)
        >>> index, degrees
        (tensor([3, 1, 2, 0]), tensor([  0., 180.,  60., 300.], dtype=torch.float64))
    """
    degrees, parts = torch.zeros(len(labels), dtype=torch.float64), []
    for digit in range(NUM_DIGITS):
        mine = _shuffled_parts((labels == digit).nonzero().flatten(), derive_seed(seed, digit))
        sequence = torch.cat(mine)
        degrees[sequence] = (_steps(len(sequence)) + 60 * (digit - 1)) % 360
        parts.append(iter(mine))
    pairs = [(k % NUM_DIGITS, (k + 1) % NUM_DIGITS) for k in range(ROUNDS * NUM_DIGITS)]
    index = torch.cat([_alternating(next(parts[one]), next(parts[other])) for one, other in pairs])
    return index, degrees[index]


def full_turns(labels: Tensor) -> tuple[Tensor, Tensor]:
    """The test set: digit after digit in the order of the data set, each turned evenly over the full circle.

    Args:
        labels: Labels of the test set ``(N,)``.

    Returns:
        Indices and degrees in [0, 360), ``(n,)`` each, ``n`` being the number of digits 0 to 8.

    Example:
        >>> full_turns(torch.tensor([1, 0, 9, 1]))
        (tensor([1, 0, 3]), tensor([  0.,   0., 180.], dtype=torch.float64))
    """
    found = [(labels == digit).nonzero().flatten() for digit in range(NUM_DIGITS)]
    return torch.cat(found), torch.cat([_steps(len(index)) for index in found])


def turn(images: Tensor, degrees: Tensor) -> Tensor:
    """Turn each image ``(N, C, H, W)``, uint8, by its own angle ``(N,)``, to the nearest pixel, as Pillow does."""
    from PIL import Image

    planes = zip(images.flatten(0, 1).numpy(), degrees.repeat_interleave(images.shape[1]).tolist(), strict=True)
    turned = [np.asarray(Image.fromarray(plane).rotate(angle)) for plane, angle in planes]
    return torch.from_numpy(np.stack(turned)).view(images.shape)


def _steps(count: int) -> Tensor:
    return torch.arange(count, dtype=torch.float64) * (360 / max(count, 1))


def _shuffled_parts(index: Tensor, seed: int) -> list[Tensor]:
    """The parts of a digit, one for each pair that it is in, in the order in which they come; a few may be empty."""
    parts = list(torch.split(index, len(index) // (2 * ROUNDS) + 1))
    parts += [index[:0]] * (2 * ROUNDS - len(parts))
    return [part[permutation(len(part), derive_seed(seed, k))] for k, part in enumerate(parts)][::-1]


def _alternating(one: Tensor, other: Tensor) -> Tensor:
    """Merge two sequences so that every stretch holds of each in proportion to its length."""
    place = torch.cat([(torch.arange(len(part)) + 0.5) / len(part) for part in (one, other)])
    return torch.cat([one, other])[place.argsort(stable=True)]
