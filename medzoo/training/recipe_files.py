"""Recipe files: a closed part of YAML, without tags, anchors and aliases, and the recipes in the package.

Scalars are those of YAML 1.2: only ``true`` and ``false`` are truth values, so that ``no`` may be a label; ``1e-4`` is
a number, and what starts with 0, such as ``007``, is a text.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from medzoo.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from medzoo.training.recipe import Recipe

__all__ = ["copy_recipe", "list_recipes", "parse_value", "read_recipe", "recipe_text", "write_new", "write_recipe"]

MOST_BYTES = 1 << 20
MOST_DEPTH = 12

SCALARS = (
    ("tag:yaml.org,2002:null", re.compile(r"^(?:null|~|)$"), ["n", "~", ""]),
    ("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$"), list("tf")),
    ("tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9]*)$"), list("-+0123456789")),
    (
        "tag:yaml.org,2002:float",
        re.compile(r"^(?:[-+]?(?:0|[1-9][0-9]*)?(?:\.[0-9]+|(?<=[0-9])\.|(?<=[0-9])(?=[eE]))(?:[eE][-+]?[0-9]+)?)$"),
        list("-+0123456789."),
    ),
)


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # yaml has no types
    """The values of a recipe: mappings of texts to lists, mappings and scalars."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012  # as in PyYAML

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping whose keys are texts and occur once."""
        keys = [key.value for key, _ in node.value]
        for (key, _), text in zip(node.value, keys, strict=True):
            if not isinstance(key, yaml.ScalarNode) or keys.count(text) > 1:
                what = f"the key {text!r} occurs twice" if isinstance(key, yaml.ScalarNode) else "a key is no text"
                raise yaml.MarkedYAMLError(problem=what, problem_mark=key.start_mark)
        return {key.value: self.construct_object(value, deep=True) for key, value in node.value}


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Quotes every text that YAML 1.1 or this module would not read as a text."""

    yaml_implicit_resolvers = {key: list(value) for key, value in yaml.SafeDumper.yaml_implicit_resolvers.items()}  # noqa: RUF012

    def represent_text(self, text: str) -> Any:
        """Write a text; PyYAML folds some characters of Unicode that break lines, unless they are escaped."""
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')

    def represent_flow_list(self, values: list[Any]) -> Any:
        """Write a list in one line."""
        return self.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=True)


for _tag, _pattern, _first in SCALARS:
    _Loader.add_implicit_resolver(_tag, _pattern, _first)
    if _tag.endswith("float"):
        _Dumper.add_implicit_resolver(_tag, _pattern, _first)
_Dumper.add_representer(list, _Dumper.represent_flow_list)
_Dumper.add_representer(str, _Dumper.represent_text)
_Loader.add_constructor("tag:yaml.org,2002:map", lambda loader, node: loader.construct_mapping(node))


def list_recipes() -> dict[str, str]:
    """Return the description of each recipe in the package, by name.

    >>> list_recipes()["table"]
    'any model on images of your own'
    """
    return {name: str(_values(recipe_text(name), name).get("description", "")) for name in sorted(_packaged())}


def recipe_text(name: str) -> str:
    """Return the file of a recipe in the package, comments included.

    Raises:
        ConfigError: no such recipe.
    """
    known = _packaged()
    if name not in known:
        near = did_you_mean(name, known)
        raise ConfigError(
            f"no recipe {name!r}.{near} The package has {', '.join(sorted(known))}; a file is given by its path, such "
            "as mine.yaml or ./mine."
        )
    return known[name].read_text("utf-8")


def copy_recipe(name: str, path: str | os.PathLike[str]) -> Path:
    """Write the file of a recipe in the package to a new file, to edit it.

    Raises:
        ConfigError: no such recipe, or the file exists or cannot be written.
    """
    text, to = recipe_text(name), Path(path)
    if to.suffix not in (".yaml", ".yml"):
        script = " --as script writes a .py file." if to.suffix == ".py" else ""
        raise ConfigError(f"{to}: expected a file name ending in .yaml. Write {to.with_suffix('.yaml')}.{script}")
    return write_new(to, text)


def write_new(to: Path, text: str) -> Path:
    """Write a text to a file that does not exist, and return the file.

    Raises:
        ConfigError: it exists, or cannot be written.
    """
    try:
        with to.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(f"{to} exists, and is not overwritten. Choose another name.") from None
    except OSError as error:
        raise ConfigError(f"{to} cannot be written ({error.strerror or error}). Choose another place.") from error
    return to


def read_recipe(source: str | os.PathLike[str]) -> tuple[dict[str, Any], str]:
    """Return the values of a recipe, not yet checked against the schema, and how to call it in messages.

    Args:
        source: a name in the package, or a path: any ``Path``, or a text with a suffix or a separator.

    Raises:
        ConfigError: no such recipe or file, or no YAML of the kind that a recipe may hold.
    """
    text = os.fspath(source)
    if isinstance(source, str) and not text.endswith((".yaml", ".yml")) and os.sep not in text:
        return _values(recipe_text(text), text), f"recipe {text}"
    path = Path(text)
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        name = path.stem
        known = f" The package has a recipe {name!r}: give its name alone." if name in _packaged() else _near(path)
        raise ConfigError(f"{path}: the recipe cannot be read ({error.strerror or error}).{known}") from error
    if len(data) > MOST_BYTES:
        raise ConfigError(f"{path}: expected a recipe of at most 1 MiB, got more. Is it another file?")
    try:
        return _values(data.decode("utf-8-sig"), str(path)), str(path)
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: expected a text file in UTF-8, got other bytes. Is it another file?") from None


def write_recipe(recipe: Recipe) -> str:
    """Return a recipe as YAML with every field."""
    values = recipe.model_dump(mode="json")
    head = [
        f"# medzoo recipe {recipe.name}: every field with its value.",
        "# medzoo train THIS.yaml --data DATA --to RUN",
    ]
    body = yaml.dump(values, Dumper=_Dumper, sort_keys=False, default_flow_style=False, allow_unicode=True, width=120)
    return "\n".join([*head, body])


def parse_value(text: str, who: str) -> Any:
    """Return the value that a text is in a recipe, such as 3, 1e-4, true or [x, y]; what is none of these is a text.

    >>> parse_value("1e-4", "lr"), parse_value("[x, y]", "flip"), parse_value("no", "label")
    (0.0001, ['x', 'y'], 'no')
    """
    return text if text.strip() in ("|", ">") else _plain(text, who)  # of YAML, these begin a block


def _near(path: Path) -> str:
    """Return the nearest name beside a file that does not exist."""
    if path.exists() or not path.parent.is_dir():
        return ""
    return did_you_mean(path.name, (file.name for file in path.parent.glob("*.y*ml")))


def _packaged() -> dict[str, Any]:
    folder = files("medzoo.training") / "recipes"
    return {file.name.removesuffix(".yaml"): file for file in folder.iterdir() if file.name.endswith(".yaml")}


def _values(text: str, who: str) -> dict[str, Any]:
    values = _plain(text, who)
    if not isinstance(values, dict):
        got = "nothing" if values is None else f"a {type(values).__name__}"
        raise ConfigError(f"{who}: expected fields such as 'model: {{name: xray_cnn}}', got {got}.")
    return values


def _plain(text: str, who: str) -> Any:
    """Parse YAML in two passes: the first refuses what no recipe needs before anything is built from it."""
    try:
        refused = next(_refused(text), None)
        if refused is None:
            return yaml.load(text, Loader=_Loader)  # a SafeLoader that reads less
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{who}, line {line}: {error.problem or error.context}. Correct the YAML there.") from None
    except yaml.YAMLError as error:  # a character that YAML does not allow
        raise ConfigError(f"{who}: {str(error).splitlines()[0]}. Is it another file?") from None
    except ValueError:
        raise ConfigError(f"{who}: expected numbers of fewer digits. Correct the YAML.") from None
    raise ConfigError(f"{who}, line {refused[0]}: {refused[1]}. A recipe holds plain values, and no code.")


def _refused(text: str) -> Iterator[tuple[int, str]]:
    """Yield the line of each tag, anchor, alias and too deep nesting."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            yield line, f"expected no alias, got *{event.anchor}"
        elif getattr(event, "anchor", None):
            yield line, f"expected no anchor, got &{event.anchor}"
        elif getattr(event, "tag", None):
            yield line, f"expected no tag, got {event.tag.replace('tag:yaml.org,2002:', '!!')}"
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MOST_DEPTH:
            yield line, f"expected at most {MOST_DEPTH} levels, got more"
