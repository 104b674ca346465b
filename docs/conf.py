"""Sphinx settings. The build needs no network."""

import medzoo

project = "medzoo"
copyright = "the medzoo authors"  # noqa: A001
version = release = medzoo.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_enable_extensions = ["colon_fence"]
html_theme = "furo"
html_title = f"medzoo {version}"
autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_google_docstring = True
napoleon_use_ivar = True
exclude_patterns = ["_build"]
nitpicky = False
