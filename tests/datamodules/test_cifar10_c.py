from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_cl.datamodules import CIFAR10C, CIFAR100C
from tests.helpers.fakes._corrupted import write_arrays


@pytest.mark.parametrize(
    ("cls", "folder", "classes", "mean", "std"),
    [
        (CIFAR10C, "CIFAR-10-C", 10, 0.4914, 0.2470),
        (CIFAR100C, "CIFAR-100-C", 100, 0.5071, 0.2675),
    ],
)
def test_published_files_are_read(cls: Any, folder: str, classes: int, mean: float, std: float, tmp_path: Path) -> None:
    write_arrays(tmp_path, folder, classes, each=1)
    stream = cls(str(tmp_path), severity=2)
    assert (stream.num_classes, stream.eval_batch_size) == (classes, 200)
    x, y = stream.part(14, "test").batch(torch.arange(classes))
    assert y.tolist() == list(range(classes))
    assert x[:, :, 5, 5].tolist() == [[14, 2, k] for k in range(classes)]
    (normal,) = stream.transform_batch([x])
    torch.testing.assert_close(normal[0, 0, 0, 0], torch.tensor((14 / 255 - mean) / std))


@pytest.mark.parametrize(("cls", "clean"), [(CIFAR10C, "split_cifar10"), (CIFAR100C, "split_cifar100")])
def test_training_is_refused_with_the_way_to_do_it(cls: Any, clean: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"test images only: train with `lightning-cl fit --config streams/{clean} "):
        cls(str(tmp_path)).setup("fit")
