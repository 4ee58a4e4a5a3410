from pathlib import Path

import torch

from lightning_cl.datamodules.split_svhn import SplitSVHN
from tests.helpers.fakes import split_svhn
from tests.helpers.fakes._images import distinct_images


def test_two_digits_at_a_time(tmp_path: Path) -> None:
    stream = SplitSVHN(**split_svhn.write(tmp_path))
    stream.prepare_data()
    assert [(e.classes, e.num_train, e.num_test) for e in stream.experiences] == [
        ((k, k + 1), 8, 4) for k in range(0, 10, 2)
    ]
    x, y = stream.part(0, "train").batch(torch.arange(8))
    assert y.tolist() == [0, 1] * 4
    assert torch.equal(x, torch.from_numpy(distinct_images(40, 3, 32)[[0, 1, 10, 11, 20, 21, 30, 31]]))


def test_normalisation() -> None:
    (normal,) = SplitSVHN().transform_batch([torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)])
    expected = torch.tensor([(1 - 0.4377) / 0.1980, (1 - 0.4438) / 0.2010, (1 - 0.4728) / 0.1970])
    torch.testing.assert_close(normal.flatten(), expected)
