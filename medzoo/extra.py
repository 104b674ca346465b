"""The optional packages that training, evaluation and export need."""

from __future__ import annotations

from importlib.util import find_spec

from medzoo.errors import ConfigError

__all__ = ["require_export_extra", "require_train_extra"]

PACKAGES = ("lightning", "sklearn", "scipy", "pandas", "pydantic", "yaml", "matplotlib")
EXPORT_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def require_train_extra() -> None:
    """Check that the packages of ``pip install 'medzoo[train]'`` can be imported; none of them is.

    Raises:
        ConfigError: some are not installed; names them.
    """
    _require("training and evaluation need", PACKAGES, "train")


def require_export_extra() -> None:
    """Check that the packages of ``pip install 'medzoo[export]'`` can be imported; none of them is.

    Raises:
        ConfigError: some are not installed; names them.
    """
    _require("an export to ONNX needs", EXPORT_PACKAGES, "export")


def _require(who: str, packages: tuple[str, ...], extra: str) -> None:
    absent = [name for name in packages if not _is_installed(name)]
    if absent:
        raise ConfigError(
            f"{who} packages that are not installed ({', '.join(absent)}). Run: pip install 'medzoo[{extra}]'"
        )


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except (ValueError, ImportError):  # a module set to None, or without a spec, in sys.modules
        return False
