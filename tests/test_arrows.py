"""The imports of the package, deferred ones included, run one way; ``TYPE_CHECKING`` blocks do not count."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import medzoo

ROOT = Path(medzoo.__file__).parent

# What each package or root module may import beside itself. A dotted entry allows that module alone.
ALLOWED = {
    "version": set(),
    "errors": set(),
    "atomic": set(),
    "contract": {"errors"},
    "kernels": {"errors"},
    "nn": {"errors", "kernels.dispatch"},
    "weights": {"atomic", "contract", "errors", "version"},
    "weights.verify": {"atomic", "contract", "errors", "version", "weights", "registry", "factory"},
    "features": {"contract", "errors"},
    "classifier": {"contract", "errors", "features", "nn", "weights"},
    "registry": {"contract", "errors", "models", "weights.record"},
    "models": {"classifier", "contract", "errors", "kernels.dispatch", "nn", "registry", "weights.record"},
    "factory": {"classifier", "contract", "errors", "features", "registry", "weights"},
    "conversion": {"classifier", "errors", "factory", "weights"},
    "io": {"errors"},
    "transforms": {"contract", "errors", "io"},
    "inference": {"atomic", "classifier", "contract", "errors", "features", "io", "nn", "transforms", "version"},
    "inference.optimize": {"classifier", "errors", "features", "inference", "kernels", "nn"},
    "inference.fold": {"kernels", "nn"},
    "visual": {"errors", "io"},
    "cli": {"", "conversion", "errors", "inference", "registry", "version", "visual", "weights"},
}
# The registry's first look-up imports the models, which import the registry to register themselves.
ONE_CIRCLE = {("registry", "models")}
HEAVY = {"pandas", "lightning", "sklearn"}


def is_type_checking(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports_in(tree):
    """Yield each imported module, and the names taken from it."""
    pending = [tree]
    while pending:
        node = pending.pop()
        if is_type_checking(node):
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module, [alias.name for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from ((value.value, []) for value in node.args if isinstance(value, ast.Constant))
        pending.extend(ast.iter_child_nodes(node))


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in ROOT.rglob("*.py")}
TREES = {name: ast.parse(path.read_text("utf-8")) for name, path in FILES.items()}


def own_imports(name):
    """Return the modules of the package that a module imports."""
    found = set()
    for module, names in imports_in(TREES[name]):
        if module == "medzoo" or module.startswith("medzoo."):
            base = module.removeprefix("medzoo").removeprefix(".")
            inner = {f"{base}.{n}".removeprefix(".") for n in names} & FILES.keys()
            found |= inner or {base}
    return found


IMPORTS = {name: own_imports(name) for name in FILES}


def test_imports_are_found():
    assert "models" in IMPORTS["registry"]
    assert "kernels.cuda.swin_layers" in IMPORTS["kernels.dispatch"], "a deferred import"
    assert len(FILES) > 50


@pytest.mark.parametrize("name", sorted(FILES.keys() - {""}))
def test_a_module_imports_what_its_package_may(name):
    package = name.partition(".")[0]
    allowed = ALLOWED.get(name, ALLOWED[package]) | ({package} if name not in ALLOWED or name == package else set())
    for module in IMPORTS[name]:
        parts = module.split(".")
        assert {".".join(parts[:n]) for n in range(1, len(parts) + 1)} & allowed or module in allowed, (
            f"medzoo.{name} imports medzoo.{module}"
        )


def test_there_is_no_circle_but_the_registrys():
    graph = {name: {m for m in modules if (name, m) not in ONE_CIRCLE} for name, modules in IMPORTS.items()}
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
    """An import there would hide a module behind a function of its name, or make a light import heavy."""
    for name, path in FILES.items():
        if path.name == "__init__.py" and name not in ("", "models"):
            assert len(TREES[name].body) == 1, f"{name} holds more than a docstring"


def test_only_training_evaluation_and_tables_import_heavy_libraries():
    for name, tree in TREES.items():
        found = {module.partition(".")[0] for module, _ in imports_in(tree)} & HEAVY
        package = name.partition(".")[0]
        if found and package not in ("training", "evaluation") and name != "data.table":
            assert (name, found) == ("inference.result", {"pandas"}), f"medzoo.{name} imports {found}"
            deferred = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
            assert [f.name for f in deferred if "import pandas" in ast.unparse(f)] == ["to_frame"]


def test_names_of_classes_are_unique():
    homes = {}
    for name, tree in TREES.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(name)
    assert {name: where for name, where in homes.items() if len(where) > 1} == {}
