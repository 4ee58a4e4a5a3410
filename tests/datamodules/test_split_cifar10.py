from pathlib import Path

import torch

from lightning_cl.datamodules.split_cifar10 import SplitCIFAR10
from tests.helpers.fakes import split_cifar10
from tests.helpers.fakes._images import distinct_images


def test_two_classes_at_a_time(tmp_path: Path) -> None:
    stream = SplitCIFAR10(**split_cifar10.write(tmp_path))
    stream.prepare_data()
    assert [(e.classes, e.num_train, e.num_test) for e in stream.experiences] == [
        ((k, k + 1), 20, 4) for k in range(0, 10, 2)
    ]
    x, y = stream.part(1, "train").batch(torch.arange(20))
    where = [i for i in range(100) if (i // 20 + i % 20) % 10 in (2, 3)]  # of data_batch_1 to 5, in this order
    assert y.tolist() == [(i // 20 + i % 20) % 10 for i in where]
    assert torch.equal(x, torch.from_numpy(distinct_images(100, 3, 32)[where]))


def test_order_1993() -> None:
    assert SplitCIFAR10(class_order=1993).classes == [(4, 2), (7, 6), (0, 3), (5, 8), (9, 1)]


def test_normalisation_is_that_of_mammoth() -> None:
    (normal,) = SplitCIFAR10().transform_batch([torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)])
    expected = torch.tensor([(1 - 0.4914) / 0.2470, (1 - 0.4822) / 0.2435, (1 - 0.4465) / 0.2615])
    torch.testing.assert_close(normal.flatten(), expected)
