from itertools import combinations
from typing import Any

import pytest
import torch

from lightning_cl.corruptions import corrupt
from lightning_cl.datamodules import CorruptedImages
from lightning_cl.sources.digits import Digits


def columns(loader: Any) -> list[torch.Tensor]:
    return [torch.cat(parts) for parts in zip(*loader, strict=True)]


@pytest.mark.parametrize("in_memory", [True, False])
def test_images_are_those_of_the_data_set_corrupted(in_memory: bool) -> None:
    stream = CorruptedImages("digits", corruptions=["fog", "shot_noise"], severity=3, in_memory=in_memory)
    clean = Digits().load(train=False)
    for i, name in enumerate(["fog", "shot_noise"]):
        x, y = columns(stream.test_dataloader().loaders[i])
        assert torch.equal(x, corrupt(clean.inputs, name, 3, seed=0))
        assert torch.equal(y, clean.targets)
        assert not torch.equal(x, clean.inputs)


def test_training_images_are_corrupted_with_other_draws() -> None:
    stream = CorruptedImages("digits", corruptions=["gaussian_noise"])
    noise = [
        columns(stream._once(stream.part(0, name)))[0][:300].float() - Digits().load(name == "train").inputs[:300]
        for name in ("train", "test")
    ]
    assert not torch.equal(*noise)
    assert all(len(columns(stream._once(stream.part(0, name)))[0]) == n for name, n in (("train", 1442), ("test", 355)))


def test_segments_that_come_again_are_made_once() -> None:
    stream = CorruptedImages("digits", schedule="gradual", corruptions=["fog", "snow"])
    same = [i for i, segment in enumerate(stream.segments) if segment == ("snow", 2)]
    first, second = (stream.part(i, "test") for i in same)
    first.batch(torch.arange(3))
    assert first.kept is second.kept
    assert second.made.tolist() == [True] * 3 + [False] * 352


def test_seed_of_the_corruptions_is_not_that_of_the_order() -> None:
    def noisy(**seeds: int) -> torch.Tensor:
        stream = CorruptedImages("digits", corruptions=["shot_noise"], **seeds)
        return stream.part(0, "test").batch(torch.arange(20))[0]

    assert torch.equal(noisy(seed=1), noisy(seed=2))
    assert not torch.equal(noisy(corruption_seed=1), noisy(corruption_seed=2))


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"`data_set`: there is no data set 'digit'\. Did you mean 'digits'"):
        CorruptedImages("digit")
    with pytest.raises(ValueError, match="`corruption_seed` must be 0 or more, got -1"):
        CorruptedImages("digits", corruption_seed=-1)


def test_the_same_image_is_corrupted_otherwise_to_train_and_to_test(monkeypatch: pytest.MonkeyPatch) -> None:
    data = Digits().load(train=True)
    monkeypatch.setattr(Digits, "load", lambda self, train: data)
    streams = [CorruptedImages("digits", corruptions=["gaussian_noise"], corruption_seed=seed) for seed in (0, 1)]
    noisy = [stream.part(0, name).batch(torch.arange(20))[0] for stream in streams for name in ("train", "test")]
    assert not any(torch.equal(one, other) for one, other in combinations(noisy, 2))
    assert streams[0].shape() != streams[1].shape()


@pytest.mark.parametrize("in_memory", [True, False])
def test_an_image_is_corrupted_alike_in_every_part(in_memory: bool) -> None:
    stream = CorruptedImages("digits", corruptions=["shot_noise"], val_fraction=0.5, in_memory=in_memory)
    whole = corrupt(Digits().load(train=True).inputs, "shot_noise", 5, seed=1)
    part = stream.part(0, "val")
    for index in (torch.tensor([40, 3]), torch.tensor([3, 9, 40])):  # one of them is made already
        assert torch.equal(part.batch(index)[0], whole[part.indices[index]])


def test_what_is_held_out_is_so_in_every_segment() -> None:
    """The same image under another corruption would tell the answer."""
    stream = CorruptedImages("digits", corruptions=["fog", "snow"], val_fraction=0.2, samples_per_experience=100)
    fog, snow = ({name: set(stream.part(i, name).indices.tolist()) for name in ("train", "val")} for i in (0, 1))
    assert fog["val"] == snow["val"]
    assert not fog["val"] & (fog["train"] | snow["train"])
    assert fog["train"] != snow["train"]


def test_pixels_are_normalised_as_told() -> None:
    (x,) = CorruptedImages("digits", mean=[0.0], std=[2.0]).transform_batch([torch.full((1, 1, 8, 8), 255).byte()])
    torch.testing.assert_close(x, torch.full((1, 1, 8, 8), 0.5))
