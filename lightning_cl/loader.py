"""Loaders whose order is a pure function and whose position can be saved."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_cl.samples import Batched, joined
from lightning_cl.utilities import derive_seed, isolated_rng, seed_generators


def ordered_batches(
    order: Tensor, batch_size: int, rank: int = 0, world_size: int = 1, drop_last: bool = False
) -> list[Tensor]:
    """Cut samples that come in a given order into batches for one rank.

    The ``k``-th batches of all ranks together are the ``k``-th batch of one process with ``world_size`` times the batch
    size, and a rank keeps the order. Every rank gets as many batches, none of them empty, and no sample comes twice (it
    would be twice in a replay memory): what is left over for fewer than all ranks joins the last batch.

    Args:
        order: The samples in their order, at least ``world_size``.
        batch_size: Samples per batch and rank.
        rank: Number of this process.
        world_size: Number of processes.
        drop_last: Leave out a last batch that is not full, unless it is the only one.

    Returns:
        Index tensors ``(b,)``, ``b <= batch_size``, or one more in the last.

    Example:
        >>> [ordered_batches(torch.arange(7), 2, rank, 2) for rank in (0, 1)]
        [[tensor([0, 2]), tensor([4, 6])], [tensor([1, 3]), tensor([5])]]
    """
    parts = list(torch.split(order, batch_size * world_size))
    if drop_last and len(parts) > 1 and len(parts[-1]) < batch_size * world_size:
        parts.pop()
    if len(parts) > 1 and len(parts[-1]) < world_size:
        parts[-2:] = [torch.cat(parts[-2:])]
    return [part[rank::world_size] for part in parts]


def sharded_batches(count: int, batch_size: int, rank: int = 0, world_size: int = 1) -> list[Tensor]:
    """Cut ``range(count)`` into batches for one rank, every index on exactly one rank (no padding).

    If there is a sample for each rank, all get equally many batches, so that nobody waits for one that does not come;
    their sizes differ by at most one. (With several ranks and ``batch_size`` 1, one batch of a rank may have to be 2.)

    Example:
        >>> [[b.tolist() for b in sharded_batches(5, 2, rank, 2)] for rank in (0, 1)]
        [[[0, 2], [4]], [[1], [3]]]
    """
    shard = torch.arange(count)[rank::world_size]
    batches = min(math.ceil(math.ceil(count / world_size) / batch_size), count // world_size)
    return [part for part in shard.tensor_split(max(batches, 1)) if len(part)]


class _SeededFetch(Dataset[Any]):
    """Fetch whole batches of an ordinary data set, each under its own seed, wherever it is fetched.

    The random transforms of a sample so depend on the batch's place in the stream alone: not on the number of
    workers, not on where an interrupted epoch goes on.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitems__(self, seed_and_index: tuple[int, list[int]]) -> list[Any]:
        seed, index = seed_and_index
        with isolated_rng():
            seed_generators(seed)
            return [self.dataset[i] for i in index]


class StreamLoader:
    """A loader whose order is a pure function and whose position can be saved.

    Lightning asks a loader for ``state_dict`` in each checkpoint and gives it back on resume, so that an interrupted
    epoch goes on with the batch that comes next.

    Args:
        dataset: Any map-style data set. One that is :class:`~lightning_cl.samples.Batched` is asked for whole batches.
        batches: Function of the epoch that returns the batches as index tensors.
        length: Number of batches.
        epoch: Function that tells the epoch; asked when the first batch is fetched.
        seed: Seed of random per-sample transforms; mixed with the epoch and the number of the batch.
        num_workers: Worker processes; not used where whole batches are asked for.
        before_first: Called right before the first batch is fetched.
    """

    def __init__(
        self,
        dataset: Any,
        batches: Callable[[int], Sequence[Tensor]],
        length: int,
        epoch: Callable[[], int] = lambda: 0,
        seed: int = 0,
        num_workers: int = 0,
        before_first: Callable[[], None] | None = None,
    ) -> None:
        self.dataset = dataset
        self.batches = batches
        self.length = length
        self.epoch = epoch
        self.seed = seed
        self.num_workers = num_workers
        self.before_first = before_first
        self.position = 0
        self._resume_at = 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Any]:
        # A generator: nothing happens before the first batch is asked for (Lightning calls `iter` more than once).
        start, self._resume_at = self._resume_at, 0
        self.position = start
        epoch = self.epoch()
        batches = self.batches(epoch)[start:]
        if self.before_first is not None:
            self.before_first()
        for batch in self._fetch(batches, epoch, start):
            self.position += 1
            yield batch

    def _fetch(self, batches: Sequence[Tensor], epoch: int, start: int) -> Iterator[Any]:
        if isinstance(self.dataset, Batched):
            return map(self.dataset.batch, batches)
        seeded = [(derive_seed(self.seed, epoch, start + i), index.tolist()) for i, index in enumerate(batches)]
        loader = DataLoader(
            _SeededFetch(self.dataset),
            batch_sampler=cast(Any, seeded),
            num_workers=self.num_workers,
            generator=torch.Generator().manual_seed(self.seed),  # else it draws from the global one
            pin_memory=torch.cuda.is_available(),
        )
        return iter(loader)

    def state_dict(self) -> dict[str, int]:
        """The number of batches handed out in this epoch."""
        return {"position": self.position}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Let the next pass begin after the batches that were handed out."""
        self.position = self._resume_at = state_dict["position"]


class ChainLoader:
    """Loaders one after another, as one loader, so that a ``test_step(batch, batch_idx)`` can stay as it is.

    Args:
        loaders: One per experience.
        experiences: The index of the experience of each.
    """

    def __init__(self, loaders: Sequence[StreamLoader], experiences: Sequence[int]) -> None:
        self.loaders = loaders
        self.experience_of_batch = [
            j for j, loader in zip(experiences, loaders, strict=True) for _ in range(len(loader))
        ]

    def __len__(self) -> int:
        return len(self.experience_of_batch)

    def __iter__(self) -> Iterator[Any]:
        if not all(isinstance(loader.dataset, Batched) for loader in self.loaders):
            yield from self._at_once()
        else:
            for loader in self.loaders:
                yield from loader

    def _at_once(self) -> StreamLoader:
        """The same batches from one loader: workers start once, and random transforms are those of their place."""
        batches, start = [], 0
        for loader in self.loaders:
            batches += [batch + start for batch in loader.batches(0)]
            start += len(loader.dataset)
        data = joined([loader.dataset for loader in self.loaders])
        return StreamLoader(data, lambda _: batches, len(batches), num_workers=self.loaders[0].num_workers)
