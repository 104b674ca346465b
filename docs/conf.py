"""Sphinx settings. The build needs no network."""

import json
from pathlib import Path

import medzoo
from medzoo.weights.formats import FORMAT, FORMATS, REQUIRED

project = "medzoo"
copyright = "the medzoo authors"
version = release = medzoo.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_enable_extensions = ["colon_fence"]
html_theme = "furo"
html_title = f"medzoo {version}"
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_type_aliases = {"StrArray": "StrArray"}  # docutils takes numpy.str_ for a reference
napoleon_google_docstring = True
napoleon_use_ivar = True
exclude_patterns = ["_build", "_generated"]
nitpicky = False


def write_models(app):
    """Write the models page from the registry, so that it is always up to date."""
    folder = Path(app.srcdir) / "_generated"
    folder.mkdir(exist_ok=True)
    parts = []
    for name in medzoo.list_models():
        spec = medzoo.describe(name)
        options = ", ".join(f"`{key}={value!r}`" for key, value in spec.options.items())
        parts.append(
            f"## {name}\n\n{spec.summary[0].upper()}{spec.summary[1:]}.\n\n"
            f"- input: {spec.input_spec}; designed for {' × '.join(map(str, spec.input_spec.size))}\n"
            f"- outputs: {spec.outputs.task}: {', '.join(spec.outputs.labels)}\n"
            f"- trainable parameters: {spec.parameters:,}\n"
            f"- made for: {str(spec.intended_use) or 'any image'}\n"
            f"- options: {options}\n"
            f"- activation maps are drawn from `{spec.cam_layer}`\n"
            f"- source: {spec.source}\n"
            f"- cite: {spec.citation}\n"
        )
    (folder / "models.md").write_text("\n".join(parts), encoding="utf-8")


def write_weights(app):
    """Write the table of weights from their records."""
    rows = ["| weights | fills | licence | size | digest | trained on |", "|---|---|---|---|---|---|"]
    for name in medzoo.list_models(pretrained=True):
        for record in medzoo.describe(name).weights.values():
            size = f"{record.size / 1e6:.1f} MB" if record.size is not None else "not known"
            strength = "MD5 (weak)" if record.weak else "SHA-256"
            fills = "model" if record.part == "model" else "encoder only"
            tag = f"`{name}:{record.tag}`" + (" (default)" if record.default else "")
            licence = record.license + (" (non-commercial)" if record.non_commercial else "")
            rows.append(f"| {tag} | {fills} | {licence} | {size} | {strength} | {record.trained_on} |")
    folder = Path(app.srcdir) / "_generated"
    folder.mkdir(exist_ok=True)
    (folder / "weights.md").write_text("\n".join(rows) + "\n", encoding="utf-8")


def write_config_fields(app):
    """Write the fields of ``config.json`` and what a missing one means, from the present format."""
    rows = ["| section | field | if it is missing |", "|---|---|---|"]
    for section, fields in FORMATS[FORMAT].items():
        for name, default in fields.items():
            meaning = "an error" if default is REQUIRED else f"`{json.dumps(default)}`"
            rows.append(f"| {section} | `{name}` | {meaning} |")
    (Path(app.srcdir) / "_generated" / "config.md").write_text("\n".join(rows) + "\n", encoding="utf-8")


def write_changes(app):
    """Write what each recipe changes in its source."""
    from medzoo.training.recipe import Recipe
    from medzoo.training.recipe_files import list_recipes

    folder = Path(app.srcdir) / "_generated"
    folder.mkdir(exist_ok=True)
    for name in list_recipes():
        source = Recipe.load(name).source
        lines = [f"Source: {source.reference}.", "", *(f"- {change}" for change in source.changes)]
        (folder / f"changes_{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def setup(app):
    """Connect to Sphinx."""
    app.connect("builder-inited", write_models)
    app.connect("builder-inited", write_weights)
    app.connect("builder-inited", write_changes)
    app.connect("builder-inited", write_config_fields)
