from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lightning_cl.datamodules.mnist360 import MNIST360, full_turns, turning_pairs
from lightning_cl.idx import read_idx
from tests.helpers.fakes import mnist360

LABELS = torch.from_numpy(np.random.RandomState(0).randint(0, 10, 2000))


def published_phases(labels: Tensor) -> list[tuple[set[int], set[int]]]:
    """The samples of each pair, as mammoth deals them: six parts of each digit, the last one first."""
    stacks = []
    for digit in range(9):
        mine = [i for i, label in enumerate(labels.tolist()) if label == digit]
        size = len(mine) // 6 + 1
        stacks.append([mine[k * size : (k + 1) * size] for k in range(6)])
    phases, pair = [], [0, 1]
    for _ in range(27):
        phases.append((set(stacks[pair[0]].pop()), set(stacks[pair[1]].pop())))
        pair = [(digit + 1) % 9 for digit in pair]
    assert not any(map(len, stacks))
    return phases


def test_pairs_come_in_the_published_order() -> None:
    index, _ = turning_pairs(LABELS, seed=0)
    stream = index.tolist()
    for one, other in published_phases(LABELS):
        phase = [stream.pop(0) for _ in range(len(one) + len(other))]
        assert set(phase) == one | other
        for start in range(0, len(phase) - 15, 5):
            share = len(one.intersection(phase[start : start + 16]))
            assert abs(share - 16 * len(one) / len(phase)) <= 1
    assert not stream


def test_every_digit_but_nine_is_shown_once() -> None:
    index, degrees = turning_pairs(LABELS, seed=0)
    assert index.sort().values.tolist() == (LABELS != 9).nonzero().flatten().tolist()
    assert len(degrees) == len(index)


def test_each_digit_turns_once_around() -> None:
    """As a counter that goes on with each sample of the digit."""
    index, degrees = turning_pairs(LABELS, seed=0)
    for digit in range(9):
        mine = degrees[LABELS[index] == digit].tolist()
        step = 360.0 / len(mine)
        assert mine == [(i * step + (digit - 1) * 60) % 360 for i in range(len(mine))]


def test_seed_shuffles_within_the_parts() -> None:
    one, same, other = (turning_pairs(LABELS, seed)[0] for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(LABELS[one], LABELS[other])


def test_fewer_samples_than_parts() -> None:
    """The empty parts come first: the zeros are in their last three pairs, the eight in the very last."""
    index, degrees = turning_pairs(torch.tensor([0, 0, 0, 8]), seed=0)
    assert index.tolist() == [2, 1, 3, 0]
    assert degrees.tolist() == [300, 60, 60, 180]


def test_images_are_turned_as_pillow_does(tmp_path: Path) -> None:
    stream = MNIST360(**mnist360.write(tmp_path), seed=3)
    for part, name in (("train", "train"), ("test", "t10k")):
        images, labels = (read_idx(next(tmp_path.rglob(f"{name}-{kind}*"))) for kind in ("images", "labels"))
        index, degrees = turning_pairs(labels, 3) if part == "train" else full_turns(labels)
        data = stream.part(0, part)
        x, y = data.batch(torch.arange(len(data)))
        turned = [Image.fromarray(images[i].numpy()).rotate(d) for i, d in zip(index, degrees.tolist(), strict=True)]
        assert np.array_equal(x[:, 0], np.stack([np.asarray(image) for image in turned]))
        assert torch.equal(y, labels[index].long())


def test_test_set_is_in_the_order_of_the_data_set_and_turns_digit_by_digit() -> None:
    index, degrees = full_turns(LABELS)
    assert LABELS[index].tolist() == sorted(c for c in LABELS.tolist() if c < 9)
    for digit in range(9):
        mine = LABELS[index] == digit
        assert torch.equal(index[mine], index[mine].sort().values)
        assert degrees[mine].tolist() == [i * (360.0 / int(mine.sum())) for i in range(int(mine.sum()))]


@pytest.mark.parametrize("world_size", [1, 2])
def test_batches_follow_the_stream(world_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = MNIST360(data_set="digits", seed=0)
    assert (len(stream), stream.batch_size, stream.classes) == (1, 16, [tuple(range(9))])
    expected = stream.part(0, "train").inputs
    seen = []
    for rank in range(world_size):
        monkeypatch.setattr(MNIST360, "_rank", (rank, world_size))
        seen.append(torch.cat([x for x, _ in stream.train_dataloader()]))
    assert all(torch.equal(mine, expected[rank::world_size]) for rank, mine in enumerate(seen))


def test_validation_part_leaves_the_order_and_the_angles_of_the_rest() -> None:
    """What is held out is missing from the stream; nothing else changes."""
    whole, cut = (MNIST360(data_set="digits", seed=0, val_fraction=fraction) for fraction in (0.0, 0.25))
    images = whole.part(0, "train").inputs.unbind()
    kept, held_out = (cut.part(0, name) for name in ("train", "val"))
    assert len(held_out) == len(images) // 4
    stream = iter(images)
    assert all(any(torch.equal(x, image) for image in stream) for x in kept.batch(torch.arange(len(kept)))[0])


def test_nothing_is_normalised_unless_asked_for() -> None:
    x = torch.tensor([[[[0, 255]]]], dtype=torch.uint8)
    assert MNIST360(data_set="digits").transform_batch([x])[0].flatten().tolist() == [0, 1]


def test_another_data_set_is_another_stream_to_a_checkpoint(tmp_path: Path) -> None:
    made: dict[str, Any] = mnist360.write(tmp_path)
    assert MNIST360(data_set="digits").shape()["data_set"] != MNIST360(**made).shape()["data_set"]
