"""The library logs to ``medzoo`` and prints nothing; progress bars appear in a terminal only, and can be hidden."""

from __future__ import annotations

import ast
import logging
import subprocess
import sys

import package_source
import pytest
from click.testing import CliRunner
from package_source import PATHS
from rich.progress import MofNCompleteColumn

from medzoo.cli.main import main
from medzoo.errors import ConfigError
from medzoo.progress import hide_hub_progress, progress_bar, shows_progress, track


def calls(tree):
    return {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}


def pretend_terminal(monkeypatch):
    """Make stderr a terminal, from within the test: pytest replaces it between a fixture and a test."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("MEDZOO_PROGRESS", raising=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)


def draw():
    """Draw both kinds of bar to the end."""
    with progress_bar(MofNCompleteColumn()) as bar:
        task = bar.add_task("a task", total=2)
        bar.update(task, completed=2)
    assert list(track([1, 2], "a task")) == [1, 2]


def test_bars_are_shown_in_a_terminal(monkeypatch, capsys):
    pretend_terminal(monkeypatch)
    draw()
    text = capsys.readouterr()
    assert "a task" in text.err
    assert "2/2" in text.err
    assert text.out == ""


def test_bars_are_hidden_without_a_terminal(monkeypatch, capsys):
    monkeypatch.delenv("MEDZOO_PROGRESS", raising=False)
    draw()
    assert capsys.readouterr() == ("", "")


def test_bars_are_hidden_by_the_environment(monkeypatch, capsys):
    pretend_terminal(monkeypatch)
    monkeypatch.setenv("MEDZOO_PROGRESS", "0")
    draw()
    assert capsys.readouterr() == ("", "")


def test_bars_are_hidden_without_stderr(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert not shows_progress()


def test_another_value_is_an_error(monkeypatch):
    monkeypatch.setenv("MEDZOO_PROGRESS", "off")
    with pytest.raises(
        ConfigError, match=r"MEDZOO_PROGRESS: expected 0 or 1, got 'off'\. Unset it, or set it to 0 or 1"
    ):
        shows_progress()


@pytest.mark.parametrize(("given", "hidden"), [("0", True), ("1", False)])
def test_the_bars_of_the_hub_client_follow(monkeypatch, given, hidden):
    from huggingface_hub import constants
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", None)
    for module in (m for name, m in sys.modules.items() if name.startswith("huggingface_hub.utils")):
        if hasattr(module, "HF_HUB_DISABLE_PROGRESS_BARS"):
            monkeypatch.setattr(module, "HF_HUB_DISABLE_PROGRESS_BARS", None)
    enable_progress_bars()
    monkeypatch.setenv("MEDZOO_PROGRESS", given)
    try:
        hide_hub_progress()
        assert are_progress_bars_disabled() == hidden
    finally:
        enable_progress_bars()


def test_no_bar_is_made_elsewhere():
    """Columns may be imported from rich.progress, bars may not, but for their types."""
    for name in PATHS:
        tree = package_source.tree(name)
        typed = {
            inner
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            for inner in ast.walk(node)
        }
        taken = {
            alias.name
            for node in ast.walk(tree)
            if node not in typed and isinstance(node, ast.ImportFrom) and node.module == "rich.progress"
            for alias in node.names
        }
        assert name == "progress.py" or all(each.endswith("Column") for each in taken), name


def test_the_library_logs_to_its_own_logger():
    for name in PATHS:
        tree = package_source.tree(name)
        found = {call for call in calls(tree) if call.startswith("logging.") or call in ("print", "getLogger")}
        allowed = {"logging.getLogger"}
        if name == "__init__.py":
            allowed |= {"logging.getLogger(__name__).addHandler", "logging.NullHandler"}
        if name == "io/tiff.py":  # leaves out what tifffile logs of a file that a reader has open
            allowed |= {"logging.getLogger('tifffile').addFilter"}
        allowed |= {"print"} if name == "io/dicom/decoder.py" else set()  # to the pipe of its own process
        assert found <= allowed, name
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "logging.getLogger":
                named = {"__init__.py": "__name__", "io/tiff.py": "'tifffile'", "training/quiet.py": "name"}
                named = named.get(name, "'medzoo'")
                assert ast.unparse(node.args[0]) in ("'medzoo'", named), name


def test_a_program_without_logging_sees_no_log_line():
    code = "import medzoo, logging; logging.getLogger('medzoo').warning('a warning')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_a_program_with_logging_sees_it():
    code = "import medzoo, logging; logging.basicConfig(); logging.getLogger('medzoo').warning('a warning')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "WARNING:medzoo:a warning\n"


def test_the_command_line_prints_log_lines(monkeypatch):
    def fetch(*arguments):
        logging.getLogger("medzoo").warning("%s was changed", "a file")
        return []

    monkeypatch.setattr("medzoo.weights.verify.find_records", fetch)
    handlers = list(logging.getLogger("medzoo").handlers)
    result = CliRunner().invoke(main, ["fetch", "--all"])
    assert result.stderr == "warning: a file was changed\n"
    assert logging.getLogger("medzoo").handlers == handlers
