from pathlib import Path

import pytest
import torch

from lightning_cl.datamodules.split_fashion_mnist import SplitFashionMNIST
from tests.helpers.fakes import split_fashion_mnist
from tests.helpers.fakes._images import distinct_images


def test_two_classes_at_a_time(tmp_path: Path) -> None:
    stream = SplitFashionMNIST(**split_fashion_mnist.write(tmp_path))
    stream.prepare_data()
    assert [(e.classes, e.num_train, e.num_test) for e in stream.experiences] == [
        ((k, k + 1), 8, 4) for k in range(0, 10, 2)
    ]
    x, y = stream.part(2, "test").batch(torch.arange(4))
    assert y.tolist() == [4, 5, 4, 5]
    assert torch.equal(x, torch.from_numpy(distinct_images(20, 1, 28, first=41)[[4, 5, 14, 15]]))


def test_default_normalisation_is_that_of_the_training_set() -> None:
    x = torch.tensor([[[[0, 255]]]], dtype=torch.uint8)
    (normal,) = SplitFashionMNIST().transform_batch([x])
    torch.testing.assert_close(normal.flatten(), torch.tensor([-0.2860 / 0.3530, (1 - 0.2860) / 0.3530]))


def test_missing_files_stop_it_before_training(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="looked for FashionMNIST/raw/train-images-idx3-ubyte, "):
        SplitFashionMNIST(str(tmp_path), download=False).prepare_data()
