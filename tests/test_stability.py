"""What docs/stability.md states of the public API and of deprecations."""

from __future__ import annotations

import ast
import re
import warnings
from pathlib import Path

import pytest
from package_source import PATHS, ROOT, tree

import medzoo
from medzoo.warn import deprecated_alias, warn_deprecated


def removed_in():
    """List the versions that deprecations name."""
    return [
        keyword.value
        for path in PATHS
        if path != "warn.py"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("deprecated_alias", "warn_deprecated")
        for keyword in node.keywords
        if keyword.arg == "removed_in"
    ]


def inside(code):
    """Run code as a module of medzoo, and return what it calls ``last``."""
    names = {"__name__": "medzoo.inside", "warn_deprecated": warn_deprecated}
    exec(code, names)
    return names["last"]


def user(call, module="user"):
    """Call something at line 3 of a user's file."""
    exec(compile("\n\ncall()", "user.py", "exec"), {"__name__": module, "call": call})


ONE = "def last():\n    warn_deprecated('old()', 'new()', removed_in='9.1.0')"
TWO = f"{ONE.replace('last', 'inner')}\ndef last():\n    inner()"
METHOD = f"{TWO.replace('last', 'middle')}\nclass A:\n    def __call__(self):\n        middle()\nlast = A()"


# Called through PyTorch, as the forward of a model is.
FORWARD = f"{ONE.replace('last', 'inner')}\nfrom torch import nn\nlast = nn.Module()\nlast.forward = inner"


@pytest.mark.parametrize(
    "code", [ONE, TWO, METHOD, FORWARD], ids=["one frame", "two frames", "three frames", "a forward pass"]
)
def test_the_warning_is_at_the_callers_line(code):
    message = r"^old\(\) is deprecated and will be removed in medzoo 9\.1\.0; use new\(\)$"
    with pytest.warns(DeprecationWarning, match=message) as caught:
        user(inside(code))
    assert [(one.filename, one.lineno) for one in caught] == [("user.py", 3)]


def test_an_alias_reads_the_new_name_and_warns_at_the_line_that_reads_it():
    class Result:
        fresh = 3
        stale = deprecated_alias("stale", "fresh", removed_in="9.1.0")

    result = Result()
    with pytest.warns(DeprecationWarning, match=r"^Result\.stale is deprecated .*; use Result\.fresh$") as caught:
        assert result.stale == 3
    assert [one.filename for one in caught] == [__file__]
    with pytest.raises(AttributeError):
        result.stale = 4


def test_pythons_default_filters_show_it_to_a_script_and_a_notebook_alone():
    with warnings.catch_warnings(record=True) as caught:
        warnings.resetwarnings()
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("default", category=DeprecationWarning, module="__main__")
        for module in ("__main__", "another_library"):
            user(inside(TWO), module)
    assert [(one.filename, one.lineno) for one in caught] == [("user.py", 3)]


def test_what_is_deprecated_is_gone_in_the_version_it_names():
    """From that version on this test fails until the code is deleted."""
    for value in map(ast.literal_eval, removed_in()):
        removed, now = [tuple(map(int, re.findall(r"\d+", v)[:3])) for v in (value, medzoo.__version__)]
        assert now < removed, value
        assert removed[2] == 0, f"{value}: a patch release removes nothing"


def test_every_deprecation_names_a_version():
    """None goes around the helper, whose message always has one."""
    sources = {path: path.read_text("utf-8") for path in ROOT.rglob("*.py") if path.name != "warn.py"}
    assert [str(path) for path, source in sources.items() if "DeprecationWarning" in source] == []
    assert len(removed_in()) == sum(source.count("removed_in=") for source in sources.values())


def test_the_api_page_lists_every_public_name():
    """What a user reads as the public API is what ``medzoo/__init__.pyi`` exports."""
    page = (Path(__file__).parents[1] / "docs" / "api.md").read_text("utf-8")
    listed = set(re.findall(r"^\.\. auto\w+:: medzoo\.(\w+)$", page, re.MULTILINE))
    assert set(medzoo.__all__) - listed == {"__version__"}
    assert not listed - set(medzoo.__all__)
