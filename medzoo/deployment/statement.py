"""What an exported file states about its model: the ``config.json`` beside it, and the metadata inside.

No text names a file or folder of this machine.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medzoo.classifier import Classifier
from medzoo.errors import ConfigError
from medzoo.inference.naming import provenance
from medzoo.version import __version__
from medzoo.weights.cache import digest_of
from medzoo.weights.config import CONFIG_FILE
from medzoo.weights.formats import NOT_STATED, WEIGHTS_FILE
from medzoo.weights.safetensors import parse_json
from medzoo.weights.save import config_file, weight_file

__all__ = ["Statement", "config_beside", "state"]

# Of config.json: what may differ between two exports of one model to one folder, and what a person adds to it.
VERSIONS = frozenset({"medzoo", "torch", "weights"})
ADDED = frozenset({"license", "trained_on", "intended_use", "metrics"})


@dataclass(frozen=True)
class Statement:
    """What a file states.

    Attributes:
        digest: of the weights, as :meth:`medzoo.Classifier.save_pretrained` writes them.
        dtype: of the weights.
        config: ``config.json`` as it writes it; ``None`` if the model has no registered name or no preprocessing.
        license: licence of the weights.
        trained_on: their training data.
    """

    digest: str
    dtype: str
    config: bytes | None
    license: str
    trained_on: str

    def replaces(self, path: Path) -> bool:
        """Return whether the config is to be written to ``path``, where there may be the same one."""
        return self.config is not None and not (path.exists() and path.read_bytes() == self.config)

    def metadata(self, model: Classifier) -> dict[str, str]:
        """Return the metadata of the exported file, texts by name."""
        outputs = model.outputs

        def text(value: Any) -> str:
            return json.dumps(value, ensure_ascii=False)

        stated = {
            "medzoo.model": model.name,
            "medzoo.labels": text(outputs.labels),
            "medzoo.task": outputs.task,
            "medzoo.thresholds": text(outputs.thresholds),
            "medzoo.trained": text(outputs.trained),
            "medzoo.license": self.license,
            "medzoo.trained_on": self.trained_on,
            "medzoo.digest": self.digest,
            "medzoo.version": __version__,
            "medzoo.provenance": text(_without_path(provenance(model), model)),
        }
        return stated if self.config is None else {"medzoo.config": self.config.decode(), **stated}


def _without_path(found: dict[str, str], model: Classifier) -> dict[str, str]:
    """Return a provenance without the path of the user's own weights, which may name a person."""
    source = "" if model.load_report is None else model.load_report.source
    tag = source.removeprefix(f"{model.name}:")
    if ("/" in tag or "\\" in tag) and not tag.startswith("hf-hub:"):
        found["weights"] = found["weights"].replace(source, f"{model.name}: a local file")
    return found


def state(model: Classifier, exported: Classifier, folder: Path, overwrite: bool) -> Statement:
    """Return what an export of a model to a folder is to state.

    Args:
        model: the user's model, whose weights have the digest.
        exported: the view of it that is exported, with the size of its preprocessing.
        folder: of the file.
        overwrite: replace a ``config.json`` of another exported model.

    Raises:
        ConfigError: what the model states cannot be written, or the folder holds another model.
    """
    data, dtype = weight_file(model.state_dict(), model.name)
    digest, own = digest_of(data), exported._saved_config()
    config = own.to_json(dtype=dtype, digest=digest, size=len(data), metrics={})
    if not own.options or own.preprocessing is None:
        return Statement(digest, dtype, None, own.license, own.trained_on)
    try:
        written = config_beside(config_file(config), folder, overwrite)
    except (TypeError, UnicodeEncodeError) as error:
        raise ConfigError(
            f"{model.name}: expected options and statements of plain numbers and texts, got one that JSON cannot hold "
            f"({error}). Convert it, such as with float(...)."
        ) from error
    stated = json.loads(written)
    return Statement(digest, dtype, written, stated.get("license", NOT_STATED), stated.get("trained_on", NOT_STATED))


def config_beside(ours: bytes, folder: Path, overwrite: bool) -> bytes:
    """Return the ``config.json`` for an export to a folder, given our own and what the folder holds.

    A folder of :meth:`medzoo.Classifier.save_pretrained` keeps its config, which may state more, if it holds the same
    weights. Without weights beside it, a config is that of an earlier export.

    Raises:
        ConfigError: the folder holds another model.
    """
    path = folder / CONFIG_FILE
    if not path.exists():
        return ours
    saved = (folder / WEIGHTS_FILE).exists()
    theirs = path.read_bytes()
    try:
        differing = _differing(json.loads(ours), parse_json(theirs), saved)
    except (ValueError, TypeError, AttributeError, RecursionError):
        differing = ["its format"]
    if saved and differing:
        raise ConfigError(
            f"{folder}: expected a new folder or that of the same model, found the saved weights of another: "
            f"{', '.join(differing)} differ. Export to another folder."
        )
    if differing and not overwrite:
        raise ConfigError(
            f"{path}: expected none, or that of the same model, found the config of another model: "
            f"{', '.join(differing)} differ. Export to another folder, or replace it with overwrite=True."
        )
    return theirs if saved else ours


def _differing(ours: dict[str, Any], theirs: dict[str, Any], saved: bool) -> list[str]:
    """Return which fields of two configs are of two different models."""
    passed_over = VERSIONS | ADDED if saved else VERSIONS
    found = [name for name in {**ours, **theirs} if name not in passed_over and ours.get(name) != theirs.get(name)]
    if saved and theirs["weights"]["digest"] != ours["weights"]["digest"]:
        found.append("weights")
    return found
