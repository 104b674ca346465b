"""The imports of the package, deferred ones included, run one way; ``TYPE_CHECKING`` blocks do not count."""

from __future__ import annotations

import ast
import functools
from pathlib import PurePosixPath

import pytest
from package_source import PATHS, tree

# What each package or root module may import beside itself. A dotted entry allows that module alone.
ALLOWED = {
    "version": set(),
    "errors": set(),
    "warn": set(),
    "atomic": set(),
    "extra": {"errors"},
    "progress": {"errors"},
    "provenance": {"errors"},
    "contract": {"errors", "provenance"},
    "input_spec": {"errors"},
    "kernels": {"errors", "warn"},
    "nn": {"errors", "kernels.dispatch"},
    "weights": {"atomic", "contract", "input_spec", "errors", "progress", "provenance", "version", "warn"},
    "weights.verify": {
        "assembly",
        "atomic",
        "contract",
        "input_spec",
        "errors",
        "progress",
        "registry",
        "resolve",
        "version",
        "weights",
    },
    "features": {"contract", "input_spec", "errors", "nn", "provenance"},
    "classifier": {"contract", "input_spec", "errors", "features", "nn", "provenance", "weights"},
    "registry": {"contract", "input_spec", "errors", "models", "provenance", "warn", "weights.record"},
    "models": {
        "classifier",
        "contract",
        "input_spec",
        "errors",
        "kernels.dispatch",
        "nn",
        "provenance",
        "registry",
        "weights.record",
    },
    "build_check": {"classifier", "errors", "nn", "registry"},
    "resolve": {"contract", "errors", "registry", "weights"},
    "description": {"classifier", "contract", "errors", "resolve", "weights"},
    "assembly": {"build_check", "classifier", "description", "errors", "resolve", "weights"},
    "factory": {"assembly", "classifier", "contract", "errors", "features", "resolve", "weights"},
    "model_check": {"build_check", "classifier", "errors", "factory", "features", "registry"},
    "conversion": {"assembly", "classifier", "errors", "registry", "resolve", "weights"},
    "io": {"errors", "warn"},
    "transforms": {"contract", "warn", "errors", "io", "provenance"},
    "inference": {
        "atomic",
        "classifier",
        "contract",
        "warn",
        "errors",
        "features",
        "input_spec",
        "io",
        "kernels.cpu.threads",
        "nn",
        "provenance",
        "transforms",
        "version",
    },
    "inference.optimize": {"classifier", "errors", "features", "inference", "kernels", "nn"},
    "inference.fold": {"inference.dense_block", "inference.norms", "kernels", "nn"},
    "inference.dense_block": {"inference.norms"},
    "inference.norms": set(),
    "data": {
        "atomic",
        "contract",
        "errors",
        "io",
        "progress",
        "transforms",
        "version",
        "warn",
        "weights.cache",
        "weights.first_use",
    },
    "visual": {"contract", "data", "errors", "io", "transforms"},
    "interpretation": {
        "atomic",
        "classifier",
        "contract",
        "errors",
        "features",
        "inference",
        "io",
        "nn",
        "progress",
        "registry",
        "transforms",
        "version",
        "visual",
        "warn",
    },
    "deployment": {
        "atomic",
        "classifier",
        "contract",
        "errors",
        "extra",
        "features",
        "inference",
        "input_spec",
        "io.hashing",
        "kernels.dispatch",
        "progress",
        "provenance",
        "version",
        "warn",
        "weights",
    },
    "evaluation": {
        "atomic",
        "classifier",
        "contract",
        "data",
        "errors",
        "extra",
        "factory",
        "inference",
        "interpretation",
        "io",
        "progress",
        "provenance",
        "transforms",
        "version",
        "visual",
        "warn",
        "weights",
    },
    "training": {
        "atomic",
        "classifier",
        "contract",
        "data",
        "errors",
        "evaluation",
        "extra",
        "factory",
        "inference.engine",
        "io.hashing",
        "kernels.dispatch",
        "nn",
        "progress",
        "provenance",
        "registry",
        "transforms",
        "version",
        "visual",
        "warn",
    },
    "cli": {
        "",
        "data",
        "deployment",
        "evaluation",
        "interpretation",
        "training",
        "conversion",
        "errors",
        "extra",
        "features",
        "inference",
        "progress",
        "registry",
        "version",
        "visual",
        "weights",
    },
}
# The registry's first look-up imports the models, which import the registry to register themselves.
ONE_CIRCLE = {("registry", "models")}
HEAVY = {"pandas", "lightning", "sklearn"}


def is_type_checking(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def imports_in(tree):
    """Yield each imported module, and the names taken from it."""
    pending = [tree]
    while pending:
        node = pending.pop()
        if is_type_checking(node):
            pending.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module, [alias.name for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            assert isinstance(node.args[0], ast.Constant), f"what is imported is not written out: {ast.unparse(node)}"
            yield node.args[0].value, []
        pending.extend(ast.iter_child_nodes(node))


def module_name(path):
    parts = PurePosixPath(path).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in PATHS}


def tree_of(name):
    return tree(FILES[name])


def own_imports(tree):
    """Return the modules of the package that a module imports; ``""`` is its face."""
    found = set()
    for module, names in imports_in(tree):
        if module == "medzoo" or module.startswith("medzoo."):
            base = module.removeprefix("medzoo").removeprefix(".")
            inner = {f"{base}.{n}".removeprefix(".") for n in names} & FILES.keys()
            found |= inner | ({base} if len(inner) < len(names) or not names else set())
    return found


@functools.cache
def imports_of(name):
    return own_imports(tree_of(name))


def test_imports_are_found():
    assert "models" in imports_of("registry")
    assert "kernels.cuda.swin_layers" in imports_of("kernels.dispatch"), "a deferred import"
    assert len(FILES) > 50


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("def f():\n    from medzoo import errors, create", {"errors", ""}),
        ("if not TYPE_CHECKING:\n    import medzoo.factory", {"factory"}),
        ("if TYPE_CHECKING:\n    import medzoo.io.read\nelse:\n    import medzoo.factory", {"factory"}),
        ("from medzoo.kernels import dispatch", {"kernels.dispatch"}),
        ("from medzoo.registry import register", {"registry"}),
        ("importlib.import_module('medzoo.models')", {"models"}),
    ],
)
def test_no_import_is_missed(code, found):
    assert own_imports(ast.parse(code)) == found


def test_an_import_by_a_computed_name_is_refused():
    with pytest.raises(AssertionError, match="not written out"):
        own_imports(ast.parse("import_module('medzoo.' + name)"))


@pytest.mark.parametrize("name", sorted(FILES.keys() - {""}))
def test_a_module_imports_what_its_package_may(name):
    package = name.partition(".")[0]
    allowed = ALLOWED.get(name, ALLOWED[package]) | ({package} if name not in ALLOWED or name == package else set())
    for module in imports_of(name):
        parts = module.split(".")
        assert {".".join(parts[:n]) for n in range(1, len(parts) + 1)} & allowed or module in allowed, (
            f"medzoo.{name} imports medzoo.{module}"
        )


def test_there_is_no_circle_but_the_registrys():
    graph = {name: {m for m in imports_of(name) if (name, m) not in ONE_CIRCLE} for name in FILES}
    done, path = set(), []

    def visit(name):
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name in done:
            return
        path.append(name)
        for module in sorted(graph[name] - {""}):
            visit(module)
        done.add(path.pop())

    for name in sorted(graph):
        visit(name)


def test_the_faces_of_packages_are_empty():
    """An import there would hide a module behind a function of its name, or make a light import heavy.

    ``medzoo.nn`` alone has public names, which it imports as lazily as ``medzoo`` does.
    """
    lazy = ["import lazy_loader", "__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)"]
    logger = ["import logging", "logging.getLogger(__name__).addHandler(logging.NullHandler())"]
    assert [ast.unparse(node) for node in tree_of("nn").body[1:]] == lazy
    assert [ast.unparse(node) for node in tree_of("").body[1:-1]] == [logger[0], lazy[0], logger[1], lazy[1]]
    for name, path in FILES.items():
        if path.endswith("__init__.py") and name not in ("", "models", "nn"):
            assert len(tree_of(name).body) == 1, f"{name} holds more than a docstring"


def test_only_training_evaluation_and_tables_import_heavy_libraries():
    for name in FILES:
        found = {module.partition(".")[0] for module, _ in imports_in(tree_of(name))} & HEAVY
        package = name.partition(".")[0]
        if found and package not in ("training", "evaluation") and name != "data.table":
            assert (name, found) == ("inference.result", {"pandas"}), f"medzoo.{name} imports {found}"
            deferred = [node for node in ast.walk(tree_of(name)) if isinstance(node, ast.FunctionDef)]
            assert [f.name for f in deferred if "import pandas" in ast.unparse(f)] == ["to_frame"]


def test_names_of_classes_are_unique():
    homes = {}
    for name in FILES:
        for node in tree_of(name).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(name)
    assert {name: where for name, where in homes.items() if len(where) > 1} == {}
