from pathlib import Path

from lightning_cl.datamodules import CIFAR100C
from tests.helpers.published import check_corrupted_files


def test_published_files_are_read_and_only_tested_on(tmp_path: Path) -> None:
    check_corrupted_files(CIFAR100C, tmp_path, 100, mean=0.5071, std=0.2675)
