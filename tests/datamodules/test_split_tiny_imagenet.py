from pathlib import Path

import pytest
import torch

from lightning_cl.datamodules.split_tiny_imagenet import SplitTinyImageNet
from tests.helpers.fakes import split_tiny_imagenet


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tiny")
    split_tiny_imagenet.write(root)
    return root


def test_ten_experiences_of_twenty_classes(root: Path) -> None:
    stream = SplitTinyImageNet(str(root), download=False)
    assert [e.classes for e in stream.experiences] == [tuple(range(20 * t, 20 * t + 20)) for t in range(10)]
    assert {(e.num_train, e.num_test) for e in stream.experiences} == {(80, 40)}
    x, y = stream.part(3, "test").batch(torch.arange(40))
    assert (x.shape, x.dtype, {*y.tolist()}) == ((40, 3, 64, 64), torch.uint8, {*range(60, 80)})


def test_order_of_seed_1993_with_a_large_first_experience() -> None:
    stream = SplitTinyImageNet(class_order=1993, base_classes=100, increment=20)
    assert stream.classes[0][:10] == (168, 136, 51, 9, 183, 101, 171, 99, 42, 159)
    assert [len(group) for group in stream.classes] == [100, 20, 20, 20, 20, 20]


def test_normalised_as_by_mammoth() -> None:
    black = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    (x,) = SplitTinyImageNet().transform_batch([black])
    expected = torch.tensor([-0.4802 / 0.2770, -0.4480 / 0.2691, -0.3975 / 0.2821])
    torch.testing.assert_close(x[0, :, 0, 0], expected)
