from pathlib import Path

from lightning_cl.datamodules import SplitMNIST
from tests.helpers.fakes import split_mnist
from tests.helpers.published import check_idx_stream


def test_files_become_experiences_of_two_classes(tmp_path: Path) -> None:
    check_idx_stream(SplitMNIST, split_mnist.write(tmp_path), mean=0.1307, std=0.3081)
