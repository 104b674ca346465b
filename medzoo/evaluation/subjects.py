"""What is evaluated: a model, a run, the name of either, or scores."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medzoo.classifier import Classifier
from medzoo.data.table import Table
from medzoo.errors import ConfigError, did_you_mean
from medzoo.evaluation.pool import pool
from medzoo.evaluation.run_record import HasFolder, RunRecord, is_run
from medzoo.evaluation.scores import Scores
from medzoo.factory import create
from medzoo.inference.engine import EngineModel, refuse_engine

__all__ = [
    "Evaluated",
    "Subject",
    "check_name",
    "distinct",
    "evaluated",
    "is_scores_file",
    "load_model",
    "pooled",
    "record_of",
    "without_caution",
]

Subject = Classifier | Scores | HasFolder | str | os.PathLike[str]


def is_scores_file(name: str | os.PathLike[str]) -> bool:
    """Whether a name is that of a file of scores."""
    return Path(name).suffix.lower() in (".csv", ".tsv")


@dataclass(frozen=True, eq=False)
class Evaluated:
    """What is evaluated: a model, perhaps of a run, or scores, perhaps those of the runs of several folds."""

    name: str
    model: Classifier | None = None
    record: RunRecord | None = None
    scores: Scores | None = None
    pooled: tuple[RunRecord, ...] = ()


def evaluated(given: Subject, table: Table | None) -> Evaluated:
    """Return what is given: a model, scores, or the model of a run or of a name.

    Raises:
        ConfigError: none of these, or a model with a caution.
    """
    if isinstance(given, Classifier):
        return Evaluated(given.name, without_caution(given, given.name))
    if isinstance(given, Scores):
        return Evaluated("scores", scores=given)
    given = getattr(given, "folder", given)  # of a run
    if isinstance(given, EngineModel):
        raise refuse_engine(given, "evaluate")
    if not isinstance(given, (str, os.PathLike)):
        raise ConfigError(f"evaluate: expected a model, a run, scores or a path, got {type(given).__name__}.")
    path = Path(given)
    if is_scores_file(path):
        return Evaluated(path.stem, scores=Scores.from_csv(path, table=table))
    record = record_of(given)
    name = os.fspath(given) if record is None else record.path.name
    kind, _, where = name.partition(":")
    return Evaluated(Path(where).name if kind == "local-dir" else name, load_model(given), record)


def pooled(given: Sequence[Any], table: Table | None, part: str | None) -> Evaluated:
    """Return the out-of-fold scores of several runs."""
    if table is not None or part is not None:
        raise ConfigError("evaluate: out_of_fold pools the validation parts of runs. Leave the table and part out.")
    records = [record_of(getattr(one, "folder", one)) for one in given if not isinstance(one, (Classifier, Scores))]
    runs = [record for record in records if record is not None]
    if len(runs) < len(given) or len(runs) < 2:
        raise ConfigError(f"evaluate: out_of_fold needs two runs or more, one for each fold, got {len(runs)}.")
    return Evaluated("out-of-fold", scores=pool([record.predictions("valid") for record in runs]), pooled=tuple(runs))


def record_of(name: str | os.PathLike[str]) -> RunRecord | None:
    """Return the run that a folder is of: the run's own, or that of its model; ``None`` for any other model.

    Raises:
        ConfigError: a run of :func:`medzoo.reproduce` that is not honest, of which no report must look so.
    """
    kind, _, where = os.fspath(name).partition(":")
    folder = Path(where).absolute().parent if kind == "local-dir" else Path(name)
    if not is_run(folder):
        return None
    record = RunRecord(folder)
    if caution := record.caution():
        raise ConfigError(
            f"{folder}: expected a run whose figures hold for new patients, got one of a reproduction. {caution} "
            f"Take the honest one, {folder.parent / 'honest'}."
        )
    return record


def check_name(name: str | os.PathLike[str]) -> None:
    """Check what can be known of the name of a model without loading it.

    Raises:
        ConfigError: a run that has not ended, or a path to something else or to nothing.
    """
    text, path = os.fspath(name), Path(name)
    if is_run(path):
        record = RunRecord(path)
        record.weights()  # raises for a run without a model
        if not record.facts().get("ended"):
            raise ConfigError(f"{path}: the training has not ended. Continue it with medzoo.resume({text!r}).")
    elif text.startswith(("local-dir:", "hf-hub:")):
        return
    elif path.suffix.lower() == ".onnx":
        raise ConfigError(
            f"{path}: expected a model of medzoo, got an ONNX file, which only predict takes. Evaluate the model that "
            "it was exported from."
        )
    elif path.exists():
        raise ConfigError(
            f"{path}: expected the folder of a finished run, a CSV file of scores, or a model. A folder that "
            f"save_pretrained wrote is given as 'local-dir:{path}'."
        )
    elif path.name != text:
        beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ConfigError(f"{path}: no such folder of a run.{did_you_mean(path.name, beside)} Check the path.")


def load_model(name: str | os.PathLike[str]) -> Classifier:
    """Return the model of a run's folder, or of a name with its tag, a folder or a repository, in eval mode.

    Raises:
        ConfigError: it is none of these, or a model with a caution, of which no report must look honest.
    """
    check_name(name)
    text, path = os.fspath(name), Path(name)
    if is_run(path):
        return without_caution(create(f"local-dir:{path / 'model'}").eval(), text)
    if text.startswith(("local-dir:", "hf-hub:")):
        return without_caution(create(text).eval(), text)
    kind, _, tag = text.partition(":")
    return create(kind, pretrained=tag or True).eval()


def without_caution(model: Classifier, name: str) -> Classifier:
    """Return the model; ConfigError for one of a run whose figures say nothing about new patients."""
    if model.outputs.caution:
        raise ConfigError(
            f"{name}: expected a model whose figures hold for new patients, got one of a reproduction. "
            f"{model.outputs.caution} Take the honest one of that reproduction."
        )
    return model


def distinct(subjects: list[Evaluated], rivals: list[Evaluated]) -> tuple[list[Evaluated], list[Evaluated]]:
    """Return the subjects with different names: folders of the same name in different places are numbered."""
    every = [*subjects, *rivals]
    names = [subject.name for subject in every]
    named = [
        replace(subject, name=f"{name} ({names[: i + 1].count(name)})") if names.count(name) > 1 else subject
        for i, (subject, name) in enumerate(zip(every, names, strict=True))
    ]
    return named[: len(subjects)], named[len(subjects) :]
