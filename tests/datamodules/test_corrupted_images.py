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
