"""The optional packages that training and evaluation need."""

from __future__ import annotations

from importlib.util import find_spec

from medzoo.errors import ConfigError

__all__ = ["require_train_extra"]

PACKAGES = ("lightning", "sklearn", "scipy", "pandas", "pydantic", "yaml", "matplotlib")


def require_train_extra() -> None:
    """Check that the packages of ``pip install 'medzoo[train]'`` can be imported; none of them is.

    Raises:
        ConfigError: some are not installed; names them.
    """
    absent = [name for name in PACKAGES if not _is_installed(name)]
    if absent:
        raise ConfigError(
            f"training and evaluation need packages that are not installed ({', '.join(absent)}). Run: "
            "pip install 'medzoo[train]'"
        )


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except (ValueError, ImportError):  # a module set to None, or without a spec, in sys.modules
        return False
