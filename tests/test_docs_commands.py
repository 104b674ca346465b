"""Every command on a page of the documentation is one that the command line takes, and its recipe resolves."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from medzoo.cli.main import main
from medzoo.cli.recipe_options import resolve
from medzoo.training.recipe_files import list_recipes

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += sorted((ROOT / "docs" / "recipes").glob("*.md"))
BLOCK = re.compile(r"^ *```(?:text|sh|bash|console)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


def commands_of(page: Path) -> list[str]:
    """Return the medzoo commands of a page, continued lines joined, without comments."""
    blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
    lines = [line for block in blocks for line in re.sub(r"\\\n\s*", " ", block).splitlines()]
    return [shlex.join(shlex.split(line, comments=True)[1:]) for line in lines if line.strip().startswith("medzoo ")]


COMMANDS = [(page.name, command) for page in PAGES for command in commands_of(page)]


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=[f"{page}: {command[:60]}" for page, command in COMMANDS])
def test_a_command_of_a_page_can_be_given(page: str, command: str) -> None:
    words = shlex.split(command)
    context = click.Context(main, **main.context_settings)  # click keeps the help option of the first context
    name, found, rest = main.resolve_command(context, words)
    while isinstance(found, click.Group) and rest:
        inner = found.make_context(name, [], parent=context, resilient_parsing=True)
        name, found, rest = found.resolve_command(inner, rest)
    assert found is not None, page
    given = found.make_context(name, list(rest), parent=context)  # raises for an option that there is not
    recipe = given.params.get("recipe")
    if isinstance(recipe, str) and recipe in list_recipes() and "settings" in given.params:
        resolve(recipe, given.params)  # raises for a field or a value that the recipe does not have


def test_there_are_commands_to_check() -> None:
    assert len(COMMANDS) >= 15
