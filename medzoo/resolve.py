"""The first step of ``create``: a name, tag, path, folder or Hub repository becomes a model and a record of weights."""

from __future__ import annotations

import os
from pathlib import Path

from medzoo.errors import ConfigError, did_you_mean
from medzoo.registry import ModelSpec, describe
from medzoo.weights.hub import read_repo
from medzoo.weights.record import Weights
from medzoo.weights.safetensors import FOREIGN_SUFFIXES
from medzoo.weights.save import read_folder

__all__ = ["Pretrained", "resolve"]

Pretrained = bool | str | os.PathLike[str]


def resolve(model: str, pretrained: Pretrained) -> tuple[ModelSpec, Weights | None]:
    """Return the registered model, and the weights or ``None``; of a folder and a repository, the config is read.

    Args:
        model: a registered name, ``"local-dir:FOLDER"`` or ``"hf-hub:OWNER/REPO"``.
        pretrained: ``False``, ``True``, a tag or a path, as in :func:`medzoo.create`.

    Raises:
        UnknownModelError: no model of that name.
        ConfigError: no weights of that tag, or no default ones; or a folder with ``pretrained``.
        WeightsUnavailable: the config of a folder or a repository is not available.
    """
    scheme, colon, place = model.partition(":") if isinstance(model, str) else ("", "", "")
    if not colon or scheme not in ("hf-hub", "local-dir"):
        spec = describe(model)
        return spec, _weights_of(spec, pretrained)
    if pretrained is not False:
        raise ConfigError(f"{model}: a folder always loads its own weights. Leave pretrained out.")
    saved = read_repo(place) if scheme == "hf-hub" else read_folder(place)
    return describe(saved.model), saved.weights


def _weights_of(spec: ModelSpec, pretrained: Pretrained) -> Weights | None:
    """Return the record that ``pretrained`` means."""
    if pretrained is False or pretrained is None:
        return None
    if isinstance(pretrained, os.PathLike) or (isinstance(pretrained, str) and _is_path(pretrained)):
        return Weights.of_file(Path(pretrained))
    tags = ", ".join(map(repr, spec.weights)) or "none yet"
    if not isinstance(pretrained, (bool, str)):
        raise ConfigError(f"{spec.name}: expected pretrained to be True, a tag or a path, got {pretrained!r}.")
    if pretrained is True:
        record = spec.default_weights
        if record is None:
            raise ConfigError(
                f"{spec.name}: there are no default weights (tags: {tags}). Use pretrained=False to start from random "
                "numbers, or give the path of a safetensors file."
            )
        return record
    if pretrained not in spec.weights:
        raise ConfigError(
            f"{spec.name}: no weights {pretrained!r}.{did_you_mean(pretrained, spec.weights)} "
            f"Tags: {tags}. A path needs a separator or a suffix such as .safetensors."
        )
    return spec.weights[pretrained]


def _is_path(text: str) -> bool:
    separators = [os.sep, os.altsep] if os.altsep else [os.sep]
    return any(s in text for s in separators) or Path(text).suffix.lower() in FOREIGN_SUFFIXES | {".safetensors"}
