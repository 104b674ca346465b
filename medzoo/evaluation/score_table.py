"""``score_table``: what a model gives for every row of a table.

Axes: b batch, n rows, l labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from medzoo.classifier import Classifier
from medzoo.contract import Outputs, Task
from medzoo.data.faults import Faults, join_some, quote
from medzoo.data.identity import list_rows
from medzoo.data.pixel_hashes import name_row
from medzoo.data.pixels import CacheMode, PixelStore
from medzoo.data.table import Table
from medzoo.errors import ConfigError, DataError, check_int, did_you_mean
from medzoo.evaluation.label_match import match_names, spelling_note
from medzoo.evaluation.score_files.readers import read_readers
from medzoo.evaluation.scores import Scores
from medzoo.inference.run import check_outputs, ready_runner
from medzoo.progress import track
from medzoo.transforms.transform import transform

__all__ = ["match_outputs", "score_table"]

READER = "reader:"


def score_table(
    model: Classifier,
    table: Table,
    *,
    pixels: PixelStore | None = None,
    rows: NDArray[np.int64] | None = None,
    labels: Mapping[str, str] | None = None,
    batch_size: int = 16,
    device: torch.device | str | None = None,
    allow_mismatch: bool = False,
    unreadable: Literal["refuse", "drop"] = "refuse",
    cache: CacheMode = "disk",
    allow_untrained: bool = False,
    title: str = "",
) -> Scores:
    """Return the scores of a model for the rows of a table, with the thresholds of its outputs.

    Labels of the table and of the model are matched by name, spelled alike except for capitals, spaces, underscores
    and hyphens; those that only one of them has are left out, and noted. The model runs as :func:`medzoo.predict` runs
    it and is not changed. Columns ``reader:…`` of the table become readers; see :meth:`Scores.from_csv`.

    Args:
        model: from :func:`medzoo.create`.
        table: its images, labels, patients and groups.
        pixels: the preprocessed images of this table for this model; ``None`` makes them.
        rows: indices of the rows that are scored, in increasing order; ``None`` for all.
        labels: the name of the model's label by the table's, where they differ.
        batch_size: images per forward pass.
        device: where to run; ``None`` is the device of the model.
        allow_mismatch: use images of another kind than the model is for.
        unreadable: ``"drop"`` leaves out images that cannot be read; see ``Scores.dropped``.
        cache: see :class:`~medzoo.data.pixels.PixelStore`. With ``"off"`` logits are those of :func:`medzoo.predict`;
            else preprocessed images are rounded as they are in training.
        allow_untrained: use outputs that were not trained.
        title: of the progress bar; empty for that of the model.

    Raises:
        ConfigError: no label is in both, the tasks do not fit, or no output was trained.
        DataError: an image cannot be used, or the model returns NaN or infinity, by row.
    """
    check_outputs(model, allow_untrained, "score_table")
    check_int(model.name, "batch_size", batch_size, 1)
    chosen = _choose(model, table, labels or {}, allow_untrained)
    own = pixels is None
    if pixels is None:
        pixels = PixelStore(
            table, transform(model), cache=cache, unreadable=unreadable, allow_mismatch=allow_mismatch
        )  # fmt: skip
    else:
        _check_pixels(pixels, model, table)
    with pixels if own else nullcontext():
        gone = {dropped.row for dropped in pixels.dropped}
        wanted = range(len(table)) if rows is None else rows.tolist()
        rows = np.array([row for row in wanted if row not in gone], np.int64)
        logits = _run(model, pixels, rows, batch_size, device, title or f"running {model.name}")
        notes = pixels.counts  # not the example, which has a path: notes go into a report
    _check_finite(logits, table, rows, model.name)
    return _scores(model, table.select(rows), logits, chosen, notes, pixels.dropped)


def match_outputs(
    model: Classifier, table: Table, labels: Mapping[str, str] | None = None, allow_untrained: bool = False
) -> dict[str, int]:
    """Return the index of the model's output for each label of a table that :func:`score_table` scores."""
    chosen = _choose(model, table, labels or {}, allow_untrained)
    return {table.labels[i]: output for i, output in zip(chosen.table, chosen.model, strict=True)}


def _check_pixels(pixels: PixelStore, model: Classifier, table: Table) -> None:
    """Raise ConfigError unless the images are of the table, preprocessed for the model."""
    if len(pixels.table) != len(table) or (pixels.table.ids != table.ids).any():
        raise ConfigError(
            f"score_table: expected the pixels of {table.source}, {len(table):,} rows, got those of "
            f"{pixels.table.source}, {len(pixels.table):,} rows. Make them of this table."
        )
    given, wanted = pixels.transform, transform(model)
    if (given.preprocessing, given.channels) != (wanted.preprocessing, wanted.channels):
        raise ConfigError(
            f"score_table: expected pixels that were preprocessed for {model.name}, got those for {given.who}. Make "
            "them with medzoo.transform(model), or leave pixels= out."
        )


@dataclass(frozen=True)
class _Chosen:
    """Labels that table and model have.

    Attributes:
        table: their indices in the labels of the table.
        model: their indices in the outputs of the model.
        task: of the scores.
        notes: what was matched and left out.
    """

    table: list[int]
    model: list[int]
    task: Task
    notes: tuple[str, ...]


def _choose(model: Classifier, table: Table, labels: Mapping[str, str], allow_untrained: bool) -> _Chosen:
    """Return the labels that both have.

    Raises:
        ConfigError: none, or the tasks do not fit.
    """
    outputs, who = model.outputs, f"{model.name} and {table.source}"
    for name, given, known in (("table", labels, table.labels), ("model", labels.values(), outputs.labels)):
        for label in given:
            if label not in known:
                raise ConfigError(
                    f"{who}: labels= has {quote(label)}, which is no label of the {name}: "
                    f"{join_some(known, 20)}.{did_you_mean(label, known)}"
                )
    rest = [label for label in outputs.labels if label not in labels.values()]
    matched = {**match_names([label for label in table.labels if label not in labels], rest), **labels}
    if (outputs.task == "multiclass") != (table.task == "multiclass"):
        raise ConfigError(
            f"{who}: the model is {outputs.task} and the table {table.task}, so that their labels mean different "
            "things. Make the table with task= of the model, and with its labels as names=."
        )
    _check_matched(model, table, matched, who)
    notes = spelling_note(matched, "of the model")
    index = {label: i for i, label in enumerate(outputs.labels)}
    untrained = [label for label in matched if not outputs.trained[index[matched[label]]]]
    if untrained and not allow_untrained:
        matched = {label: name for label, name in matched.items() if label not in untrained}
        if not matched or table.task == "multiclass":
            raise ConfigError(
                f"{who}: the outputs {join_some([quote(n) for n in untrained], 20)} were not trained, so their "
                "probabilities mean nothing. Train them, or pass allow_untrained=True."
            )
    if untrained:
        done = "are scored all the same" if allow_untrained else "are left out"
        notes += (f"outputs that were not trained {done}: {join_some(untrained, 20)}",)
    absent = [label for label in table.labels if label not in {*matched, *untrained}]
    extra = [label for label in outputs.labels if label not in {*matched.values(), *labels.values()}]
    if absent:
        notes += (f"labels of the table that the model does not have are left out: {join_some(absent, 20)}",)
    if extra and not untrained:
        notes += (f"labels of the model that the table does not have are left out: {join_some(extra, 20)}",)
    at = [i for i, label in enumerate(table.labels) if label in matched]
    places = [index[matched[table.labels[i]]] for i in at]
    task: Task = table.task if table.task != "binary" and len(at) > 1 else "binary"
    return _Chosen(at, places, task, notes)


def _check_matched(model: Classifier, table: Table, matched: Mapping[str, str], who: str) -> None:
    """Raise ConfigError unless there are labels that both have, and of multiclass all."""
    names = model.outputs.labels
    have = f"The table has {join_some(table.labels, 20)}, the model {join_some(names, 20)}."
    if table.task == "multiclass" and not len(matched) == len(table.labels) == len(names):
        raise ConfigError(
            f"{who}: classes that exclude each other have to be the same in both. {have} Make the table with the "
            "classes of the model as names=, or give labels= with the model's name of each of the table's."
        )
    if not matched:
        near = next(filter(None, (did_you_mean(label, names) for label in table.labels)), "")
        example = {table.labels[0]: names[0]}
        raise ConfigError(
            f"{who}: no label is in both. {have}{near} Rename those of the table with its option names=, or give the "
            f"model's name of a label of the table, such as labels={example}, if they mean the same."
        )


def _run(
    model: Classifier, pixels: PixelStore, rows: NDArray[np.int64], batch_size: int, device: Any, title: str
) -> NDArray[np.float32]:
    """Return the logits of the rows, ``n`` by the outputs of the model."""
    runner, like = ready_runner(model, device, len(rows))
    found = []
    with torch.inference_mode():
        for start in track(range(0, len(rows), batch_size), title):
            images = [pixels.transform.normalise(pixels.read(int(row))) for row in rows[start : start + batch_size]]
            found.append(runner(torch.stack(images).to(like)).float().cpu().numpy())
    return np.concatenate(found) if found else np.zeros((0, model.num_classes), np.float32)


def _check_finite(logits: NDArray[np.float32], table: Table, rows: NDArray[np.int64], who: str) -> None:
    bad = np.flatnonzero(~np.isfinite(logits).all(1))
    if len(bad):
        named = list_rows([f"{name_row(table, int(rows[i]))} ({table.ids[rows[i]]})" for i in bad])
        raise DataError(
            f"{table.source}: {who} returned NaN or infinity for {len(bad):,} of {len(rows):,} images: {named}. Use "
            "float32, and check its weights and these images with medzoo.show(path)."
        )


def _scores(
    model: Classifier, part: Table, logits: NDArray[np.float32], chosen: _Chosen, notes: tuple[str, ...], dropped: Any
) -> Scores:
    """Return the scores of the rows of a table."""
    outputs, names = model.outputs, tuple(part.labels[i] for i in chosen.table)
    faults = Faults(part.source)
    faults.lines = range(len(part)) if part.lines is None else part.lines.tolist()
    columns = {n: v.tolist() for n, v in part.groups.items() if n.startswith(READER)}
    readers = read_readers(columns, READER, names, chosen.task, faults)
    faults.check()
    probabilities = None
    if outputs.normalised:
        probabilities = outputs.probabilities(torch.from_numpy(logits)).numpy()[:, chosen.model]
    limits, rule = _thresholds(outputs)
    return Scores.from_logits(
        logits[:, chosen.model], probabilities=probabilities, task=chosen.task, ids=part.ids,
        targets=part.targets[:, chosen.table], labels=names,
        thresholds=tuple(limits[i] for i in chosen.model) if limits else (), threshold_rule=rule,
        patients=part.patients, groups={n: v for n, v in part.groups.items() if not n.startswith(READER)},
        readers=readers, source=f"{model.name} on {part.source}", notes=(*part.notes, *notes, *chosen.notes),
        dropped=dropped,
    )  # fmt: skip


def _thresholds(outputs: Outputs) -> tuple[tuple[float | None, ...], str]:
    """Return a threshold for each output, none for multiclass, and how they were chosen."""
    if outputs.task == "multiclass":
        return (), ""
    policy, limits = outputs.policy, tuple(outputs.thresholds)
    if policy is not None:
        rule = policy.rule + (f" on {policy.split}" if policy.split else "")
    else:
        rule = "0.5 by default, chosen on no data" if all(t in (0.5, None) for t in limits) else ""
    # The rescaling of probabilities maps each operating point to 0.5.
    return (tuple(None if t is None else 0.5 for t in limits) if outputs.normalised else limits), rule
