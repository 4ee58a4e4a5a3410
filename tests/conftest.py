"""What holds for every test."""

import os

import pytest
import torch

torch.set_num_threads(1)  # the tests share the machine, and tensors are small
os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of what Lightning's CLI calls


@pytest.fixture(autouse=True)
def _no_seed_of_an_earlier_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """``seed_everything`` leaves its seed in the environment, where callbacks and streams look for one."""
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
