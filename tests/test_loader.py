import os
from itertools import product
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from lightning_cl.loader import ChainLoader, StreamLoader, ordered_batches, sharded_batches
from lightning_cl.samples import TensorData
from lightning_cl.utilities import permutation


def test_a_given_order_is_kept_on_every_rank() -> None:
    """Ranks take turns in a prefix of the stream, and what is left over for fewer than all joins the last batch."""
    order = permutation(23, seed=1)
    ranks = [torch.cat(ordered_batches(order, 2, rank, 3)) for rank in range(3)]
    place = order.argsort()
    assert all((place[mine].diff() > 0).all() for mine in ranks)
    assert torch.equal(torch.cat(ranks).sort().values, torch.arange(23))
    prefix = torch.stack([mine[:7] for mine in ranks], dim=1).flatten()
    assert torch.equal(prefix, order[:21])


def test_a_resumed_order_has_the_same_rest() -> None:
    batches = ordered_batches(permutation(40, 3), 4)
    loader = StreamLoader(TensorData(torch.arange(40), torch.arange(40)), lambda _: batches, len(batches))
    loader.load_state_dict({"position": 6})
    assert torch.equal(torch.cat([x for x, _ in loader]), permutation(40, 3)[24:])


def test_iterators_that_nobody_used_consume_nothing() -> None:
    calls: list[str] = []
    loader = StreamLoader(
        TensorData(torch.arange(6), torch.arange(6)),
        lambda epoch: ordered_batches(permutation(6, epoch), 2),
        3,
        before_first=lambda: calls.append("first"),
    )
    loader.load_state_dict({"position": 1})
    unused = [iter(loader), iter(loader)]
    assert (calls, loader.state_dict()) == ([], {"position": 1})
    assert [x.tolist() for x, _ in iter(loader)] == [b.tolist() for b in ordered_batches(permutation(6, 0), 2)][1:]
    assert (calls, len(unused), loader.state_dict()) == (["first"], 2, {"position": 3})


@pytest.mark.parametrize("drop_last", [False, True])
def test_batches_of_all_ranks_are_those_of_one_process(drop_last: bool) -> None:
    for count, size, world in product((5, 6, 7, 8, 11, 12, 13, 16), (1, 2, 4), (1, 2, 3, 5)):
        one = [b.tolist() for b in ordered_batches(permutation(count, 3), size * world, drop_last=drop_last)]
        if len(one) > 1 and len(one[-1]) < world:  # too few for all ranks
            one[-2:] = [one[-2] + one[-1]]
        ranks = [ordered_batches(permutation(count, 3), size, rank, world, drop_last) for rank in range(world)]
        assert {len(batches) for batches in ranks} == {len(one)}
        for k, (whole, *parts) in enumerate(zip(one, *ranks, strict=True)):
            assert sorted(torch.cat(parts).tolist()) == sorted(whole)
            assert all(1 <= len(part) <= size + (k == len(one) - 1) for part in parts)
        kept = [i for batches in ranks for batch in batches for i in batch.tolist()]
        assert len(set(kept)) == len(kept)
        assert drop_last or len(kept) == count


def test_evaluation_has_every_sample_once_and_as_many_batches_on_each_rank() -> None:
    for count, size, world in product(range(1, 20), (1, 2, 3, 8), (1, 2, 3, 4)):
        ranks = [sharded_batches(count, size, rank, world) for rank in range(world)]
        assert sorted(i for batches in ranks for b in batches for i in b.tolist()) == list(range(count))
        lengths = [len(b) for batches in ranks for b in batches]
        assert min(lengths) >= 1
        assert max(lengths) <= (size if size > 1 or world == 1 else 2)
        if count >= world:
            assert len({len(batches) for batches in ranks}) == 1


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_workers_are_processes_of_their_own() -> None:
    class Where(Dataset[Any]):
        def __getitem__(self, index: int) -> int:
            return os.getpid()

    pids = [int(*StreamLoader(Where(), lambda _: [torch.tensor([0])], 1, num_workers=n)) for n in (0, 1)]
    assert pids[0] == os.getpid() != pids[1]


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_loaders_in_a_chain_share_their_workers() -> None:
    class Here(Dataset[Any]):
        def __init__(self, first: int) -> None:
            self.first = first

        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> tuple[int, int]:
            return self.first + index, os.getpid()

    batches = [torch.tensor([2, 0]), torch.tensor([1])]
    chain = ChainLoader([StreamLoader(Here(n), lambda _: batches, 2, num_workers=1) for n in (0, 10)], [3, 5])
    found, pids = zip(*chain, strict=True)
    assert [x.tolist() for x in found] == [[2, 0], [1], [12, 10], [11]]
    assert chain.experience_of_batch == [3, 3, 5, 5]
    assert len(torch.cat(pids).unique()) == 1
    assert os.getpid() not in torch.cat(pids)
