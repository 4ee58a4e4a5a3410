"""What holds for every test."""

import os

import pytest
import torch

from lightning_cl.sources.base import Source
from lightning_cl.sources.cifar import CIFARSource
from lightning_cl.sources.svhn import SVHN

torch.set_num_threads(1)  # the tests share the machine, and tensors are small
os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of what Lightning's CLI calls


@pytest.fixture(autouse=True)
def _no_seed_of_an_earlier_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """``seed_everything`` leaves its seed in the environment, where callbacks and streams look for one."""
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)


@pytest.fixture(autouse=True)
def _files_of_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny files that tests write cannot have the checksums of the published ones."""
    for source in (CIFARSource, SVHN):
        monkeypatch.setattr(source, "checksums", Source.checksums)
