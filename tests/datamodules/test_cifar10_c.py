from pathlib import Path

from lightning_cl.datamodules import CIFAR10C
from tests.helpers.published import check_corrupted_files


def test_published_files_are_read_and_only_tested_on(tmp_path: Path) -> None:
    check_corrupted_files(CIFAR10C, tmp_path, 10, mean=0.4914, std=0.2470)
