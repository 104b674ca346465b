"""The modules of medzoo as syntax trees, parsed once in a process, and not while tests are collected."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import medzoo

ROOT = Path(medzoo.__file__).parent
PATHS = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))


@functools.cache
def tree(path: str) -> ast.Module:
    """Return the tree of one of :data:`PATHS`."""
    return ast.parse((ROOT / path).read_text("utf-8"))
