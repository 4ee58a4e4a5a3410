from pathlib import Path

from lightning_cl.datamodules import SplitKMNIST
from tests.helpers.fakes import split_kmnist
from tests.helpers.published import check_idx_stream


def test_files_become_experiences_of_two_classes(tmp_path: Path) -> None:
    check_idx_stream(SplitKMNIST, split_kmnist.write(tmp_path), mean=0.1918, std=0.3483)
