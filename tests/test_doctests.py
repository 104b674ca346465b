"""The examples in the docstrings of the installed package."""

from __future__ import annotations

import doctest
import importlib.util
import pkgutil

import pytest

import medzoo

MODULES = sorted(m.name for m in pkgutil.walk_packages(medzoo.__path__, "medzoo."))
if importlib.util.find_spec("triton") is None:  # PyTorch for a CPU alone comes without it
    MODULES = [name for name in MODULES if not name.startswith("medzoo.kernels.cuda.")]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module, extraglobs={"torch": importlib.import_module("torch")})
    assert failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder()
    assert sum(len(t.examples) for name in MODULES for t in finder.find(importlib.import_module(name))) > 20
