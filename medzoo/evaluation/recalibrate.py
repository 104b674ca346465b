"""``recalibrate``: a model for a new site, with calibration and thresholds of that site's data, as a saved folder."""

from __future__ import annotations

import copy
import os
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medzoo.classifier import Classifier
from medzoo.contract import Outputs
from medzoo.data.pixels import PixelStore
from medzoo.data.table import Table
from medzoo.errors import ConfigError, DataError
from medzoo.evaluation.calibration import (
    apply_calibration,
    fit_calibration,
    fold_calibration,
    undo_calibration,
)
from medzoo.evaluation.rules import rule_from_text
from medzoo.evaluation.run_record import HasFolder, RunRecord
from medzoo.evaluation.sampled import percent
from medzoo.evaluation.scores import Scores
from medzoo.evaluation.shifts import Prevalence, shares_of, shift_for_loss_weights, shift_for_prevalence, with_shift
from medzoo.evaluation.subjects import load_model, record_of, without_caution
from medzoo.evaluation.thresholds import OPTIMISTIC, choose_thresholds
from medzoo.evaluation.unseen import Seen, find_seen, seen_notes
from medzoo.factory import create
from medzoo.provenance import Calibration
from medzoo.transforms.transform import transform
from medzoo.warn import warn

__all__ = ["recalibrate"]

UNCHANGED = (1.0, 0.0)  # slope and intercept


def recalibrate(
    model: Classifier | HasFolder | str | os.PathLike[str], data: Table | Scores | None = None, *,
    to: str | os.PathLike[str],
    rule: str | float | Mapping[str, str] | None = None, split: str = "", prevalence: Prevalence | None = None,
    from_prevalence: Prevalence | None = None, seen: Seen = "refuse", **options: Any,
) -> Classifier:  # fmt: skip
    """Calibrate a model for a new site, choose its thresholds there, save it as a folder, and return that model.

    The encoder stays as it is. An earlier calibration is undone, a new one is fitted, and thresholds are chosen after
    it; see :func:`~medzoo.evaluation.calibration.fit_calibration` and
    :func:`~medzoo.evaluation.thresholds.choose_thresholds`. An output whose label is not in the data, or of too few
    patients, has the logits that it was trained to and no threshold; a warning lists it. The folder states how, on how
    many rows and patients, and keeps what the weights state of their training, licence and intended use. The given
    model is not changed.

    Without data, with ``prevalence`` alone, the logits are shifted in closed form to another share of positives. The
    ranking and the calls stay as they are, as thresholds move along; whether the probabilities are right at the new
    site is not known.

    Args:
        model: from :func:`medzoo.create`, with a head, or a run, its folder, or the name of a model.
        data: images of the new site with labels and patients, which the model was not trained on, or the
            :class:`~medzoo.evaluation.scores.Scores` of this model as it is; ``None`` for the shift alone.
        to: the folder, which must not hold a model yet.
        rule: how thresholds are chosen; ``None`` is the rule of the present ones, or ``"youden"`` if none is known.
        split: what the data are, in words, for the model card: no path and no name of a patient.
        prevalence: share of positives that the probabilities are to be for, one for all labels or for each: where the
            data are a sample of cases, that of the site's patients. ``None`` is that which a table of rows that were
            sampled by class states (``Table.prevalence``), with a warning, and else that of the data. Rules that depend
            on it, ``"f1"`` and ``"cost"``, choose thresholds for it too.
        from_prevalence: without data, the share of positives that they are for now; ``None`` is that of the data of the
            present calibration, or of the training where there is none, as far as it is stated. Weights of the loss
            that the model states and no calibration undid are then undone too: with them the probabilities are for
            another share than that of the training.
        seen: what happens to rows whose patient or image the run was trained on, where the model is given as a run:
            ``"refuse"`` raises an error, ``"drop"`` leaves them out, ``"allow"`` takes them, with a warning.
        options: of ``score_table``, such as ``batch_size``, ``device`` and ``pixels``.

    Raises:
        ConfigError: neither data nor a prevalence, an unknown rule, a folder with a model, or a model without logits
            or with ``normalised`` probabilities. Nothing is written.
        DataError: too few rows or patients for any output, or data with other labels. Nothing is written.
    """
    given, record = (model, None) if isinstance(model, Classifier) else _load(model)
    _check(given, data, to, rule, prevalence, from_prevalence, options)
    if record is not None and isinstance(data, Table):
        data, options["pixels"] = _unseen(record, given, data, seen, options)
    if prevalence is not None:
        of, classes = given.outputs.labels, given.outputs.task == "multiclass"
        prevalence = shares_of("recalibrate", "prevalence", of, prevalence, classes)
    if data is None:
        new = _shifted(given, prevalence, from_prevalence)
    else:
        if prevalence is None and isinstance(data, Table) and data.prevalence is not None:
            prevalence = _stated(given.outputs, data)
        new = _fitted(given, data, rule, split, prevalence, options)
    folder = new.save_pretrained(to)
    like = next(new.parameters())
    # Read again, so that load report and digest are those of the folder.
    return create(f"local-dir:{folder}").to(like.device).train(given.training)


def _load(model: HasFolder | str | os.PathLike[str]) -> tuple[Classifier, RunRecord | None]:
    """Return the model of a run, or of a name, and the run."""
    name = model if isinstance(model, (str, os.PathLike)) else getattr(model, "folder", None)
    if name is None:
        raise ConfigError(f"recalibrate: expected a model from medzoo.create or a run, got {type(model).__name__}.")
    return load_model(name), record_of(name)


def _unseen(
    record: RunRecord, model: Classifier, table: Table, seen: Seen, options: Mapping[str, Any]
) -> tuple[Table, PixelStore]:
    """Return the rows, and their images, that a run was not trained on, or as ``seen`` has it."""
    how = {name: options[name] for name in ("cache", "unreadable", "allow_mismatch") if name in options}
    pixels = PixelStore(table, transform(model), **how)
    found, _ = find_seen(record, table, pixels.identities, parts=("train",))
    for note in seen_notes(table, found, seen, record.path.name):
        warn(note)
    if seen != "drop" or not found.any():
        return table, pixels
    rest = table.select(np.flatnonzero(~found))
    return rest, PixelStore(rest, transform(model), **how)


def _check(
    model: Classifier, data: object, to: str | os.PathLike[str], rule: object, prevalence: object,
    from_prevalence: object, options: Mapping[str, Any],
) -> None:  # fmt: skip
    """Raise ConfigError for arguments that do not go together, before anything is computed."""
    if not isinstance(model, Classifier):
        raise ConfigError(f"recalibrate: expected a model from medzoo.create, got {type(model).__name__}.")
    without_caution(model, model.name)
    if model.outputs.normalised:
        raise ConfigError(
            f"{model.name}: probabilities that are normalised by operating points are not calibrated: they are no "
            "sigmoid of the logits. Set model.outputs = dataclasses.replace(model.outputs, normalised=False) first."
        )
    if data is None and prevalence is None:
        raise ConfigError("recalibrate: expected data of the new site, or prevalence=, got neither.")
    if data is None and (rule is not None or options):
        raise ConfigError("recalibrate: expected data to choose thresholds on, got a rule or options without.")
    if data is not None and from_prevalence is not None:
        raise ConfigError(
            "recalibrate: from_prevalence is for a shift without data, whose own is counted. Leave it out."
        )
    if isinstance(data, Scores) and options:
        raise ConfigError(f"recalibrate: scores need no {', '.join(options)}. Leave it out.")
    if (Path(to) / "config.json").exists():
        raise ConfigError(f"{Path(to)}: expected a folder without a model, got one with. Give a new folder.")


def _stated(outputs: Outputs, table: Table) -> Prevalence | None:
    """Return the share of positives that a table states for its population, for each output; with a warning.

    An output that the table has no label of is not calibrated on it: its 0.5 is not used.
    """
    stated = dict(zip(table.labels, table.prevalence or (), strict=True))
    if not set(stated) <= set(outputs.labels):
        return None  # refused where the scores are compared with the outputs
    if not all(0 < share < 1 for share in stated.values()):
        warn(
            "recalibrate: the rows were sampled by class, and in their population a label has only positives, or "
            "none, so that the probabilities are for these rows. Give prevalence=."
        )
        return None
    each = ", ".join(f"{label} {percent(share)}" for label, share in stated.items())
    warn(
        "recalibrate: the rows were sampled by class, so that the probabilities are shifted to the share of positives "
        f"in the population that the table states, {each}. Give prevalence= for another."
    )
    return tuple(stated.get(label, 0.5) for label in outputs.labels)


def _fitted(
    model: Classifier, data: Table | Scores, rule: str | float | Mapping[str, str] | None, split: str,
    prevalence: Prevalence | None, options: Mapping[str, Any],
) -> Classifier:  # fmt: skip
    """Return a copy with a calibration and thresholds of the data."""
    before = model.outputs.calibration
    plain = copy.deepcopy(model) if before is None else model.uncalibrated()
    if isinstance(data, Scores):
        scores = _of_all_outputs(data, model.outputs)
        scores = scores if before is None else undo_calibration(scores, before)
    else:
        from medzoo.evaluation.score_table import score_table

        scores = _of_all_outputs(score_table(plain, data, **options), model.outputs)
    policy = model.outputs.policy
    if rule is None:
        rule = "youden" if policy is None else rule_from_text(scores.labels, policy.rule) or "youden"
    what = split or _describe(scores)
    fitted = fit_calibration(scores, split=what)
    calibration = fitted.calibration
    if calibration is None:
        raise DataError(
            f"recalibrate: no output can be calibrated on {_describe(scores)}. {'; '.join(fitted.notes)}. Nothing was "
            "written. With fewer, the closed-form shift remains: recalibrate(model, prevalence=..., to=...)."
        )
    if prevalence is not None:
        # An output that was not fitted is not for the prevalence of the data.
        shift = _shift(scores, _prevalence_of(scores, fitted.labels), prevalence, fitted.labels)
        calibration = with_shift(calibration, shift)
    chosen = choose_thresholds(
        apply_calibration(scores, calibration), rule, split=what, scale="calibrated", prevalence=prevalence
    )
    fold_calibration(plain, calibration)
    chosen.store(plain)
    notes = [note for note in (*fitted.notes, *chosen.notes) if note != OPTIMISTIC]
    if notes and scores.task != "multiclass":
        warn(f"recalibrate: {'; '.join(notes)}.")
    return plain


def _of_all_outputs(scores: Scores, outputs: Outputs) -> Scores:
    """Return scores with a column for each output of the model; the labels of those the data lack are not known."""
    if scores.labels == outputs.labels and scores.task == outputs.task:
        return scores
    if {scores.task, outputs.task} & {"multiclass"} or not set(scores.labels) <= set(outputs.labels):
        raise DataError(
            f"recalibrate: expected {outputs.task} scores of {', '.join(outputs.labels)}, got {scores.task} ones of "
            f"{', '.join(scores.labels)}."
        )

    def spread(array: NDArray[Any], missing: float) -> NDArray[Any]:
        columns = [
            array[:, scores.labels.index(label)] if label in scores.labels else np.full(len(scores), missing)
            for label in outputs.labels
        ]
        return np.stack(columns, 1).astype(array.dtype)

    return replace(
        scores,
        labels=outputs.labels,
        task=outputs.task,
        ranks=spread(scores.ranks, 0.0),
        logits=spread(scores.logits, 0.0),
        probabilities=spread(scores.probabilities, 0.5),
        targets=spread(scores.targets, np.nan),
        thresholds=(),
        readers={},
    )


def _describe(scores: Scores) -> str:
    """Return how many rows and patients there are; no path, which may name a person."""
    rows = f"{len(scores):,} images"
    return rows if scores.patients is None else f"{rows} of {len(np.unique(scores.patients)):,} patients"


def _prevalence_of(scores: Scores, labels: Collection[str]) -> tuple[float, ...]:
    """Return the share of positives of these labels among their known rows, and 0.5 of the others."""
    return tuple(
        float(np.nanmean(scores.targets[:, i], dtype=float)) if label in labels else 0.5
        for i, label in enumerate(scores.labels)
    )


def _shift(
    outputs: Scores | Outputs, before: Prevalence, after: Prevalence, only: Collection[str] | None = None
) -> Calibration:
    return shift_for_prevalence(outputs.labels, before, after, multiclass=outputs.task == "multiclass", only=only)


def _shifted(model: Classifier, after: Any, before: Prevalence | None) -> Classifier:
    """Return a copy whose probabilities are for another prevalence."""
    outputs, now = model.outputs, model.outputs.calibration
    new = copy.deepcopy(model) if now is None else model.uncalibrated()
    if before is None:
        before = _known_prevalence(model)
        # Probabilities that no calibration was fitted to are for the odds w p / (1 - p) of a share p in training.
        if now is None and any(weight != 1 for weight in outputs.loss_weights):
            now = shift_for_loss_weights(outputs.labels, outputs.loss_weights)
    shift = _shift(outputs, before, after)
    fold_calibration(new, with_shift(now, shift))
    return new


def _known_prevalence(model: Classifier) -> Prevalence:
    """Return the prevalence that the probabilities are for, as far as the outputs state it."""
    outputs, now, policy = model.outputs, model.outputs.calibration, model.outputs.policy
    if now is None and outputs.prevalence:
        return outputs.prevalence
    shifted = [] if now is None else [share for share in now.prevalence if share is not None]
    if shifted and len(shifted) == len(outputs.labels):
        return shifted
    if (
        now is not None
        and policy is not None
        and policy.split == now.split
        and policy.positives
        and policy.negatives
        and UNCHANGED not in zip(now.slope, now.intercept, strict=True)
        and "closed-form" not in now.method
    ):
        return tuple(p / max(1, p + n) for p, n in zip(policy.positives, policy.negatives, strict=True))
    raise ConfigError(
        f"{model.name}: expected from_prevalence=, the share of positives that its probabilities are for now, which "
        "the model does not state."
    )
