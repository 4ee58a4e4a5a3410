"""The examples in the docstrings do what they show."""

import doctest
import importlib
import pkgutil

import pytest
import torch
from torch import nn

import lightning_cl
from lightning_cl.shipped import plugins

OURS = [lightning_cl, *(package for package in plugins() if package.__name__.startswith("lightning_cl."))]
MODULES = sorted({m.name for package in OURS for m in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")})


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    module = importlib.import_module(name)
    globals_ = {"torch": torch, "nn": nn}
    failed, _ = doctest.testmod(module, extraglobs=globals_, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert not failed  # the difference is in the captured output


def test_examples_of_every_folder_were_found() -> None:
    finder = doctest.DocTestFinder()
    found = {name: sum(len(test.examples) for test in finder.find(importlib.import_module(name))) for name in MODULES}
    assert sum(found.values()) > 50
    for folder in ("callbacks.", "datamodules.", "methods.", "samples", "sources"):
        assert any(count for name, count in found.items() if name.startswith(f"lightning_cl.{folder}"))
