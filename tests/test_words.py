"""Plain, current technical English: words that an earlier version used in a sense of its own do not come back."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WORDS = r"""
    told|tells|telling|mend\w*|heal(s|ed|ing)?|anew|afresh|patiently|bent|bends|held\ to|holds\ (it|them)\ to|says\ so
    |promis(e|es|ed|ing)|nursery|worklist|stir|stirred
"""
PATTERN = re.compile(rf"(?<![\w-])({WORDS})(?![\w-])", re.IGNORECASE | re.VERBOSE)
FILES = [
    path
    for folder, pattern in (("medzoo", "**/*.py"), ("tests", "*.py"), ("benchmarks", "**/*.py"), ("docs", "**/*.md"))
    for path in sorted((ROOT / folder).glob(pattern))
    if path.name != "test_words.py"
] + [ROOT / name for name in ("README.md", "CONTRIBUTING.md")]


@pytest.mark.parametrize("folder", ["medzoo", "tests", "benchmarks", "docs", "."])
def test_words_are_those_of_the_field(folder):
    inside = [
        path for path in FILES if path.relative_to(ROOT).parts[0] == folder or (folder == "." and path.parent == ROOT)
    ]
    assert inside
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match[0]}"
        for path in inside
        for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1)
        for match in PATTERN.finditer(line)
    ]
    assert found == []
