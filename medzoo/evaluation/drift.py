"""``Drift``: how the data that a model is evaluated on differs from what it was trained on.

Differences are in units of the spread within the data, so that they do not grow with the number of rows: of means,
``d = (m1 - m2) / sqrt((s1² + s2²) / 2)``, of proportions the same with ``s² = p (1 - p)`` (Austin, Balance diagnostics
for comparing the distribution of baseline covariates between treatment groups, Statistics in Medicine 28 (2009)
3083-3107). Of a column of few values, half the sum of the absolute differences of the shares: the total variation.

A large one has ``|d| > 0.5``, Cohen's medium effect (Statistical Power Analysis, 1988): a shift by half of what images
of one data set differ by among each other. A proportion of a half that moves by a quarter has d = 0.5, hence 0.25 for
the total variation. What is expected by chance, from the numbers of patients, is added to both bounds.

Axes: n rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medzoo.data.table import Table
from medzoo.evaluation.columns import (
    OTHER,
    FewValues,
    few_values,
    kind_of_column,
    numbers,
    patients_of_each,
    without_blanks,
)
from medzoo.evaluation.estimate import LEAST_PATIENTS
from medzoo.evaluation.pixel_summary import CONTRAST, PixelSummary, summarise_pixels
from medzoo.evaluation.run_record import OWN_PREFIX
from medzoo.evaluation.scores import Scores
from medzoo.evaluation.suppression import hide_small

__all__ = ["LARGE", "Drift", "DriftRow", "PixelSummary", "compare_data", "describe_data", "summarise_pixels"]

LARGE, LARGE_VARIATION = 0.5, 0.25
# A spread below this share of the contrast within images is taken for it: z-scored images all have a mean of 0.
_LEAST_SPREAD = 0.02


@dataclass(frozen=True)
class DriftRow:
    """A figure of both data sets.

    Attributes:
        what: the figure, such as ``"prevalence of mass"``.
        training, here: as text; empty where it is not known.
        difference: standardised, or the total variation; ``None`` where it cannot be computed.
        large: whether it is beyond the bounds of :mod:`medzoo.evaluation.drift`.
    """

    what: str
    training: str
    here: str
    difference: float | None
    large: bool


@dataclass(frozen=True)
class Drift:
    """How the data here differs from the training data.

    Attributes:
        rows: the figures that both have.
        notes: what cannot be compared, and what the differences mean.
    """

    rows: tuple[DriftRow, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return {"rows": [asdict(row) for row in self.rows], "notes": list(self.notes)}


def describe_data(data: Table | Scores, pixels: PixelSummary | None = None) -> dict[str, Any]:
    """Return the figures of some data that :func:`compare_data` compares, as JSON holds them.

    Columns that name patients are left out, and values of under 10 patients are one. Those of columns are of the rows
    with a known label.

    Args:
        data: the rows.
        pixels: of the same rows.
    """
    known, clusters = ~np.isnan(data.targets), _clusters(data)
    found: dict[str, Any] = {
        "rows": len(data),
        "patients": None if data.patients is None else len(np.unique(clusters)),
        "positives": dict(zip(data.labels, np.nansum(data.targets, 0).astype(int).tolist(), strict=True)),
        "known": dict(zip(data.labels, known.sum(0).tolist(), strict=True)),
        "groups": _describe_groups(data, clusters),
    }
    return found if pixels is None else {**found, "pixels": pixels.to_dict()}


def _clusters(data: Table | Scores) -> NDArray[np.int64]:
    """Return the patient of each row as a number; each row is its own where no patients are known."""
    names = np.arange(len(data)) if data.patients is None else data.patients
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


def _describe_groups(data: Table | Scores, clusters: NDArray[np.int64]) -> dict[str, Any]:
    """Return the shares of the columns of few values, and the middle of those of numbers; nothing of other columns."""
    found: dict[str, Any] = {}
    evaluated = ~np.isnan(data.targets).all(1)  # as in the other tables of a report
    clusters = clusters[evaluated]
    for name, column_of_all in data.groups.items():
        values = column_of_all[evaluated]
        if name.startswith(OWN_PREFIX) or not any(without_blanks(values) != ""):
            continue
        found[name] = {}  # it is there, even if there is nothing to compare
        kind = kind_of_column(values, None if data.patients is None else clusters)
        if kind == "few":
            found[name] = {"shares": _describe_few(few_values(values, clusters), clusters)}
        elif kind == "numbers":
            column = numbers(values)
            stated = ~np.isnan(column)
            if len(np.unique(clusters[stated])) >= LEAST_PATIENTS:
                found |= _describe_numbers(name, column[stated])
    return found


def _describe_numbers(name: str, column: NDArray[np.float64]) -> dict[str, Any]:
    """Return the figures of a column by its name; none where they are beyond the range of float64."""
    with np.errstate(over="ignore", invalid="ignore"):
        low, middle, high = np.percentile(column, [25, 50, 75]).tolist()
        about = {"median": middle, "quartiles": [low, high], "mean": float(column.mean()), "sd": float(column.std())}
    return {name: about} if np.isfinite([low, middle, high, about["mean"], about["sd"]]).all() else {}


def _describe_few(few: FewValues, clusters: NDArray[np.int64]) -> dict[str, float]:
    """Return the share of each value that is shown."""
    rows = np.bincount(few.codes, minlength=len(few.names))
    patients = patients_of_each(few.codes, clusters, len(few.names))
    small, also = hide_small(patients, rows, few.names, first=few.others)
    return {few.names[i]: round(float(rows[i]) / len(few.codes), 6) for i in np.flatnonzero(~(small | also))}


def compare_data(training: Mapping[str, Any], here: Mapping[str, Any]) -> Drift:
    """Return how two data sets differ.

    Args:
        training: ``data/fingerprint.json`` of a run, or what :func:`describe_data` returned.
        here: likewise.
    """
    a, b = _side(training), _side(here)
    units = sum(1 / int(side.get("patients") or side.get("rows") or 1) for side in (a, b))
    chance = 2 * math.sqrt(units)
    rows = [
        DriftRow(name, f"{a[name]:,}", f"{b[name]:,}", None, False)
        for name in ("rows", "patients") if all(isinstance(side.get(name), int) for side in (a, b))
    ]  # fmt: skip
    shared = [label for label in a.get("known", {}) if label in b.get("known", {})]
    rows += [_prevalence(label, a, b, chance) for label in shared]
    groups = [side.get("groups", {}) for side in (a, b)]
    for name in groups[0]:
        first, second = (each.get(name, {}) for each in groups)
        if "shares" in first and "shares" in second:
            rows.append(_shares(name, first["shares"], second["shares"], units))
        elif "median" in first and "median" in second:
            rows.append(_number(name, first, second, chance))
    rows += _pixels(a.get("pixels"), b.get("pixels"))
    return Drift(tuple(rows), tuple(_notes(a, b, rows)))


def _side(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the training part of a fingerprint, or the description as it is."""
    if "parts" not in data:
        return data
    own = {name: data[name] for name in ("groups", "pixels") if name in data}
    return {**data["parts"].get("train", {}), **own}


def _standardised(first: tuple[float, float], second: tuple[float, float], least: float = 0.0) -> float | None:
    """Return the difference, here minus training, of two (mean, SD); ``None`` if nothing varies."""
    spread = max(math.sqrt((first[1] ** 2 + second[1] ** 2) / 2), least)
    if spread == 0:
        return 0.0 if first[0] == second[0] else None
    return (second[0] - first[0]) / spread


def _row(what: str, texts: tuple[str, str], d: float | None, chance: float = 0.0) -> DriftRow:
    """Return the row of a standardised difference; one that is ``None`` is of two constants that differ."""
    return DriftRow(what, *texts, d, d is None or abs(d) > LARGE + chance)


def _prevalence(label: str, a: Mapping[str, Any], b: Mapping[str, Any], chance: float) -> DriftRow:
    counts = [(int(side["positives"].get(label, 0)), int(side["known"][label])) for side in (a, b)]
    texts = tuple(f"{n / known:.1%} ({n:,} of {known:,})" if known else "" for n, known in counts)
    what = f"prevalence of {label}"
    if not all(texts):
        return DriftRow(what, texts[0], texts[1], None, False)
    first, second = ((p, math.sqrt(p * (1 - p))) for p in (n / known for n, known in counts))
    return _row(what, (texts[0], texts[1]), _standardised(first, second), chance)


def _shares(name: str, first: Mapping[str, float], second: Mapping[str, float], units: float) -> DriftRow:
    """Return the row of a column of few values, with the least difference that the values listed allow.

    A value that one side does not list may be among its others.
    """
    listed = [{value: share for value, share in side.items() if value != OTHER} for side in (first, second)]
    rest = [max(0.0, 1 - sum(side.values())) for side in listed]
    alone = [sum(share for value, share in a.items() if value not in b) for a, b in (listed, listed[::-1])]
    among = [min(alone[1], rest[0]), min(alone[0], rest[1])]
    both = [value for value in listed[0] if value in listed[1]]
    p = np.array([*(listed[0][value] for value in both), alone[0], among[0], rest[0] - among[0]])
    q = np.array([*(listed[1][value] for value in both), among[1], alone[1], rest[1] - among[1]])
    variation = float(np.abs(p - q).sum() / 2)
    mean = (p + q) / 2
    expected = float(np.sqrt(2 / math.pi * mean * (1 - mean) * units).sum() / 2)
    texts = [", ".join(f"{value} {share:.0%}" for value, share in shares.items()) for shares in (first, second)]
    return DriftRow(name, texts[0], texts[1], variation, variation > LARGE_VARIATION + expected)


def _number(name: str, first: Mapping[str, Any], second: Mapping[str, Any], chance: float) -> DriftRow:
    texts = [
        f"{each['median']:.4g} ({each['quartiles'][0]:.4g} to {each['quartiles'][1]:.4g})" for each in (first, second)
    ]  # fmt: skip
    moments = [(float(each["mean"]), float(each["sd"])) for each in (first, second)]
    return _row(f"{name}, median (IQR)", (texts[0], texts[1]), _standardised(moments[0], moments[1]), chance)


def _pixels(first: Any, second: Any) -> list[DriftRow]:
    if not first or not second:
        return []
    a, b = PixelSummary.from_dict(first), PixelSummary.from_dict(second)
    contrast = max((side.figures[CONTRAST][0] for side in (a, b) if CONTRAST in side.figures), default=0.0)
    chance = 2 * math.sqrt(1 / max(1, a.images) + 1 / max(1, b.images))
    rows = []
    for name in a.figures:
        if name in b.figures:
            pair = (a.figures[name], b.figures[name])
            texts = [f"{mean:.3g} ± {sd:.2g}" for mean, sd in pair]
            least = _LEAST_SPREAD * (contrast if name != "share of zeros" else 1.0)
            rows.append(_row(f"pixels: {name}", (texts[0], texts[1]), _standardised(pair[0], pair[1], least), chance))
    return rows


def _notes(a: Mapping[str, Any], b: Mapping[str, Any], rows: list[DriftRow]) -> list[str]:
    notes = []
    for what in ("groups", "pixels"):
        absent = [name for name, side in (("the training data", a), ("this data", b)) if what not in side]
        if absent:
            named = {"groups": "columns", "pixels": "pixels"}[what]
            notes.append(f"the {named} are not compared: there are no figures of those of {' or '.join(absent)}")
    columns = [set(side.get("groups", {})) for side in (a, b)]
    shown = {row.what.removesuffix(", median (IQR)") for row in rows}
    # A column without figures on either side, such as one of file names, is not worth a note.
    other = [n for n in sorted(columns[0] & columns[1] - shown) if any(side["groups"][n] for side in (a, b))]
    if other:
        notes.append(
            f"not compared, as the columns hold few values in one and numbers in the other, or too many values or too "
            f"few patients: {', '.join(other)}"
        )
    known = [{name for name, figures in side.get("groups", {}).items() if figures} for side in (a, b)]
    for missing, where in ((known[0] - columns[1], "the training data"), (known[1] - columns[0], "this data")):
        if missing and all("groups" in side for side in (a, b)):
            notes.append(f"columns that {where} alone has: {', '.join(sorted(missing))}")
    large = [row.what for row in rows if row.large]
    if large:
        notes.append(f"large differences: {', '.join(large)}; figures of the training data may not hold here")
    return notes
