"""The version of medzoo."""

__version__ = "0.1.0"
