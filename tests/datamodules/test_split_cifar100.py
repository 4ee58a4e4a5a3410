from pathlib import Path

import torch

from lightning_cl.datamodules.split_cifar100 import SplitCIFAR100
from tests.helpers.fakes import split_cifar100
from tests.helpers.fakes._images import distinct_images


def test_ten_classes_at_a_time(tmp_path: Path) -> None:
    stream = SplitCIFAR100(**split_cifar100.write(tmp_path))
    stream.prepare_data()
    assert [(e.classes, e.num_train, e.num_test) for e in stream.experiences] == [
        (tuple(range(k, k + 10)), 40, 20) for k in range(0, 100, 10)
    ]
    x, y = stream.part(3, "test").batch(torch.arange(20))
    where = [*range(30, 40), *range(130, 140)]
    assert y.tolist() == [i % 100 for i in where]
    assert torch.equal(x, torch.from_numpy(distinct_images(200, 3, 32, first=401)[where]))


def test_first_experience_of_pycil() -> None:
    """B0 Inc10 with the seed 1993."""
    stream = SplitCIFAR100(class_order=1993)
    assert set(stream.classes[0]) == {68, 56, 78, 8, 23, 84, 90, 65, 74, 76}


def test_b50() -> None:
    for increment, length in ((10, 6), (5, 11), (2, 26)):
        groups = SplitCIFAR100(base_classes=50, increment=increment).classes
        assert [len(group) for group in groups] == [50] + [increment] * (length - 1)


def test_coarse_labels(tmp_path: Path) -> None:
    """Two of the 20 superclasses at a time, of five classes of 4 samples each."""
    stream = SplitCIFAR100(**split_cifar100.write(tmp_path), labels="coarse")
    assert [(e.classes, e.num_train) for e in stream.experiences] == [((k, k + 1), 40) for k in range(0, 20, 2)]
    assert stream.num_classes == 20


def test_normalisation_is_that_of_pycil() -> None:
    (normal,) = SplitCIFAR100().transform_batch([torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)])
    expected = torch.tensor([(1 - 0.5071) / 0.2675, (1 - 0.4867) / 0.2565, (1 - 0.4408) / 0.2761])
    torch.testing.assert_close(normal.flatten(), expected)
