"""The results of :func:`medzoo.predict`: one prediction per image, and a list of predictions that can be saved."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, SupportsIndex, overload

from medzoo.atomic import write_atomically
from medzoo.errors import ConfigError, DataError
from medzoo.warn import deprecated_alias

__all__ = ["Prediction", "Predictions", "rows_to_csv"]


@dataclass(frozen=True)
class Prediction:
    """The prediction of a model for one image, or the error that prevented it.

    Attributes:
        source: the file, the first file of a series, or the index of an array in the list.
        probabilities: label to probability, in [0, 1].
        positive: label to whether its probability reaches the threshold, ``None`` for an output without a threshold,
            which is called neither; for a multiclass model, whether it is the largest.
        logits: label to logit.
        untrained: labels whose outputs were never trained; their values are meaningless.
        steps: the preprocessing steps, as text.
        identity: what the file says about itself: UIDs, view, and the patient id as a hash only; ``stack`` is what
            distinguishes the image from others of its series or file.
        provenance: model, weights, digest and the version of medzoo; of an exported model, also the engine that ran it.
        point: centre of the patch in mm, in the caller's frame, for a patch model.
        warning: what is known against the image, such as implausible values, or what could not be checked, and the
            caution of a model whose outputs say nothing about new patients; empty if there is nothing.
        error: why there is no prediction; the mappings above are then empty.
        mismatch: why the image is of another kind than the model is for, where ``allow_mismatch=True`` let it run: its
            values mean nothing then. Part of ``warning``.
        reason: what kind of error it is, such as ``"wrong modality"``; :meth:`Predictions.counts` counts by it.
    """

    source: str
    probabilities: Mapping[str, float] = field(default_factory=dict)
    positive: Mapping[str, bool | None] = field(default_factory=dict)
    logits: Mapping[str, float] = field(default_factory=dict)
    untrained: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()
    identity: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, str] = field(default_factory=dict)
    point: tuple[float, float, float] | None = None
    warning: str = ""
    error: str = ""
    mismatch: str = ""
    reason: str = ""

    doubt = deprecated_alias("doubt", "warning", removed_in="0.2.0")

    @property
    def name(self) -> str:
        """The source, with the stack of its series and the point if there are several images of it."""
        stack = f" ({self.identity['stack']})" if "stack" in self.identity else ""
        return self.source + stack + (f" at {self.point}" if self.point else "")

    @property
    def trained(self) -> bool:
        """Whether every output was trained."""
        return not self.untrained and not self.error

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain dicts, lists and numbers.

        The key ``doubt`` is deprecated: it repeats ``warning``, and will be removed in medzoo 0.2.0.
        """
        return {
            "source": self.source,
            "error": self.error,
            "reason": self.reason,
            "mismatch": self.mismatch,
            "warning": self.warning,
            "doubt": self.warning,
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
        """Return the prediction as JSON, and write it to ``path`` if given."""
        return _write(_to_json(self.to_dict()), path)

    def to_csv(self, path: str | os.PathLike[str] | None = None) -> str:
        """Return the prediction as CSV with one row, and write it to ``path`` if given."""
        return Predictions([self], {}).to_csv(path)

    def to_frame(self) -> Any:
        """Return the prediction as a pandas DataFrame with one row."""
        return Predictions([self], {}).to_frame()


class Predictions(list[Prediction]):
    """Predictions in the order of their sources, including those that failed.

    Attributes:
        skipped: path to the reason why it was skipped: objects that are not images, views that the weights exclude,
            files beside the slices of a series that cannot be read.
    """

    def __init__(
        self, predictions: list[Prediction], skipped: Mapping[str, str], categories: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(predictions)
        self.skipped = dict(skipped)
        # What a reason that names details of its file is counted as.
        self._categories = dict(categories or {})

    @overload
    def __getitem__(self, index: SupportsIndex) -> Prediction: ...
    @overload
    def __getitem__(self, index: slice) -> Predictions: ...
    def __getitem__(self, index: SupportsIndex | slice) -> Prediction | Predictions:
        found = super().__getitem__(index)
        return Predictions(found, self.skipped, self._categories) if isinstance(found, list) else found

    @property
    def failed(self) -> list[Prediction]:
        """The predictions that have an error instead of probabilities."""
        return [p for p in self if p.error]

    @property
    def errors(self) -> dict[str, str]:
        """The error of each image that failed, by its name."""
        return {p.name: p.error for p in self.failed}

    def counts(self) -> dict[str, Any]:
        """Return how many images were predicted, and how many failed or were skipped for each reason.

        >>> Predictions([Prediction("a.png"), Prediction("b.png", error="...", reason="wrong modality")], {}).counts()
        {'predicted': 1, 'with_warning': 0, 'mismatched': 0, 'failed': {'wrong modality': 1}, 'skipped': {}}
        """
        good = [p for p in self if not p.error]
        failed = Counter(p.reason or DataError.reason for p in self.failed)
        skipped = Counter(
            self._categories.get(path) or _without_details(reason) for path, reason in self.skipped.items()
        )
        return {
            "predicted": len(good),
            "with_warning": sum(bool(p.warning) for p in good),
            "mismatched": sum(bool(p.mismatch) for p in good),
            "failed": dict(failed.most_common()),
            "skipped": dict(skipped.most_common()),
        }

    def summary(self) -> str:
        """Return the counts in one line.

        >>> found = [Prediction("a.png"), Prediction("b.png", error="...", reason="wrong modality")]
        >>> Predictions(found, {"c.txt": "not an image file", "d.txt": "not an image file"}).summary()
        '1 predicted; 1 failed: 1 wrong modality; 2 skipped: 2 not an image file'
        """
        counts = self.counts()
        marks = [(counts["with_warning"], "with a warning"), (counts["mismatched"], "of another kind than the model's")]
        marked = ", ".join(f"{n} {what}" for n, what in marks if n)
        parts = [f"{counts['predicted']} predicted" + (f" ({marked})" if marked else "")]
        for name in ("failed", "skipped"):
            if by_reason := counts[name]:
                reasons = ", ".join(f"{n} {reason}" for reason, n in by_reason.items())
                parts.append(f"{sum(by_reason.values())} {name}: {reasons}")
        return "; ".join(parts)

    def rows(self) -> list[dict[str, Any]]:
        """Return one flat row per prediction.

        Columns: source, error, reason, mismatch, warning, x y z of the point, UIDs and stack, ``probability:LABEL``
        and ``positive:LABEL`` for each label (empty for an output without a threshold), untrained labels, steps, and
        provenance; ``engine`` is empty for PyTorch. The column ``doubt`` is deprecated: it repeats ``warning``.
        """
        labels = list(dict.fromkeys(label for p in self for label in p.probabilities))
        rows = []
        for p in self:
            row: dict[str, Any] = {"source": p.source, "error": p.error, "reason": p.reason, "mismatch": p.mismatch}
            row |= {"warning": p.warning, "doubt": p.warning}
            row |= zip("xyz", p.point or ("", "", ""), strict=True)
            row |= {key: p.identity.get(key, "") for key in ("study", "series", "stack", "sop", "patient")}
            for label in labels:
                row[f"probability:{label}"] = p.probabilities.get(label, "")
                called = p.positive.get(label)
                row[f"positive:{label}"] = "" if called is None else called
            row["untrained"] = "; ".join(p.untrained)
            row["steps"] = "; ".join(p.steps)
            row |= {key: p.provenance.get(key, "") for key in ("model", "weights", "digest", "medzoo", "engine")}
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
                "Predictions.to_frame: expected pandas, which is not installed. Install it with "
                "pip install 'medzoo[train]', or use to_csv."
            ) from error
        return pd.DataFrame(self.rows())

    def to_csv(self, path: str | os.PathLike[str] | None = None) -> str:
        """Return the rows as CSV, and write them to ``path`` if given."""
        return _write(rows_to_csv(self.rows()), path)

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """Return the predictions, what was skipped and the counts as JSON, and write it to ``path`` if given."""
        saved = {"predictions": [p.to_dict() for p in self], "skipped": self.skipped, "counts": self.counts()}
        return _write(_to_json(saved), path)


def _without_details(reason: str) -> str:
    """Return why a file is skipped without the number or the name that it starts or ends with.

    >>> _without_details("no point is given for '1.2.3'"), _without_details("2 points of a scan that was not given")
    ('no point is given', 'points of a scan that was not given')
    """
    return re.sub(r"^\d+ | for '.*'$", "", reason)


def rows_to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows with the same keys as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else ["source", "error"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _to_json(value: Any) -> str:
    """Return standard JSON: values that are not finite become null."""
    finite = json.loads(json.dumps(value), parse_constant=lambda _: None)
    return json.dumps(finite, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _write(text: str, path: str | os.PathLike[str] | None) -> str:
    """Return ``text`` after writing it atomically; file names that are not UTF-8 keep their bytes."""
    if path is not None:
        try:
            write_atomically(Path(path), text.encode("utf-8", errors="surrogateescape"))
        except OSError as error:
            raise ConfigError(
                f"{path}: the results cannot be written ({error.strerror or error}). Give a file in an existing folder."
            ) from error
    return text
