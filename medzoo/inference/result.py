"""What :func:`medzoo.predict` gives: one prediction an image, and a list of them that can be saved."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, SupportsIndex, overload

from medzoo.atomic import write_atomically
from medzoo.errors import ConfigError

__all__ = ["Prediction", "Predictions"]


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image, or why it says nothing.

    Attributes:
        source: the file, the first file of a series, or the place of an array in the list.
        probabilities: label to probability, in [0, 1].
        positive: label to whether its probability reaches the threshold; for a multiclass model, the largest.
        logits: label to logit.
        untrained: labels whose outputs were never trained: their numbers mean nothing.
        steps: how the image was prepared, in words.
        identity: what the file says of itself; UIDs, and a patient only hashed.
        provenance: model, weights, digest and the version of medzoo.
        point: centre of the patch in mm, as it was given, for a patch model.
        doubt: why its values cannot be what the model expects; empty when they can.
        error: what is wrong with the file; the numbers are then empty.
    """

    source: str
    probabilities: Mapping[str, float] = field(default_factory=dict)
    positive: Mapping[str, bool] = field(default_factory=dict)
    logits: Mapping[str, float] = field(default_factory=dict)
    untrained: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()
    identity: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, str] = field(default_factory=dict)
    point: tuple[float, float, float] | None = None
    doubt: str = ""
    error: str = ""

    @property
    def trained(self) -> bool:
        """Whether every output was trained."""
        return not self.untrained and not self.error

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain dicts, lists and numbers."""
        return {
            "source": self.source,
            "error": self.error,
            "doubt": self.doubt,
            "point": list(self.point) if self.point else None,
            "probabilities": dict(self.probabilities),
            "positive": dict(self.positive),
            "logits": dict(self.logits),
            "untrained": list(self.untrained),
            "steps": list(self.steps),
            "identity": dict(self.identity),
            "provenance": dict(self.provenance),
        }

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """Return the prediction as JSON, and write it to ``path`` if there is one."""
        return _written(_json(self.to_dict()), path)

    def to_csv(self, path: str | os.PathLike[str] | None = None) -> str:
        """Return the prediction as CSV of one row, and write it to ``path`` if there is one."""
        return Predictions([self], {}).to_csv(path)

    def to_frame(self) -> Any:
        """Return the prediction as a pandas DataFrame of one row."""
        return Predictions([self], {}).to_frame()


class Predictions(list[Prediction]):
    """Predictions in the order of their sources, failures among them.

    Attributes:
        skipped: what was passed over, and why, by path: objects that are no image, views that the weights exclude.
    """

    def __init__(self, predictions: list[Prediction], skipped: Mapping[str, str]) -> None:
        super().__init__(predictions)
        self.skipped = dict(skipped)

    @overload
    def __getitem__(self, index: SupportsIndex) -> Prediction: ...
    @overload
    def __getitem__(self, index: slice) -> Predictions: ...
    def __getitem__(self, index: SupportsIndex | slice) -> Prediction | Predictions:
        found = super().__getitem__(index)
        return Predictions(found, self.skipped) if isinstance(found, list) else found

    @property
    def failed(self) -> list[Prediction]:
        """The predictions that have an error instead of numbers."""
        return [p for p in self if p.error]

    @property
    def errors(self) -> dict[str, str]:
        """What is wrong with each source that failed; a patch is named by its point too."""
        return {p.source + (f" at {p.point}" if p.point else ""): p.error for p in self.failed}

    def rows(self) -> list[dict[str, Any]]:
        """Return one flat row a prediction.

        Columns: source, error, doubt, x y z of the point, UIDs, ``probability:LABEL`` and ``positive:LABEL`` for each
        label, untrained labels, steps, and provenance.
        """
        labels = list(dict.fromkeys(label for p in self for label in p.probabilities))
        rows = []
        for p in self:
            x, y, z = p.point or ("", "", "")
            row: dict[str, Any] = {"source": p.source, "error": p.error, "doubt": p.doubt, "x": x, "y": y, "z": z}
            row |= {key: p.identity.get(key, "") for key in ("study", "series", "sop", "patient")}
            for label in labels:
                row[f"probability:{label}"] = p.probabilities.get(label, "")
                row[f"positive:{label}"] = p.positive.get(label, "")
            row["untrained"] = "; ".join(p.untrained)
            row["steps"] = "; ".join(p.steps)
            row |= {key: p.provenance.get(key, "") for key in ("model", "weights", "digest", "medzoo")}
            rows.append(row)
        return rows

    def to_frame(self) -> Any:
        """Return the rows as a pandas DataFrame.

        Raises:
            ConfigError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ConfigError(
                "Predictions.to_frame: expected pandas, which is not installed. Get it with "
                "pip install 'medzoo[train]', or use to_csv."
            ) from error
        return pd.DataFrame(self.rows())

    def to_csv(self, path: str | os.PathLike[str] | None = None) -> str:
        """Return the rows as CSV, and write them to ``path`` if there is one."""
        text = io.StringIO()
        rows = self.rows()
        writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else ["source", "error"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return _written(text.getvalue(), path)

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """Return predictions and what was skipped as JSON, and write it to ``path`` if there is one."""
        return _written(_json({"predictions": [p.to_dict() for p in self], "skipped": self.skipped}), path)


def _json(value: Any) -> str:
    """Write JSON that strict readers take: a point that is not finite is null."""
    return json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _written(text: str, path: str | os.PathLike[str] | None) -> str:
    """Write a file whole or not at all; names of files that are no UTF-8 keep their bytes."""
    if path is not None:
        try:
            write_atomically(Path(path), text.encode("utf-8", errors="surrogateescape"))
        except OSError as error:
            raise ConfigError(
                f"{path}: the results cannot be written ({error.strerror or error}). Give a file in a folder that is "
                "there."
            ) from error
    return text
