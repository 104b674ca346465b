"""``load_table``: the table of a data path, by the fields of a recipe."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from medzoo.data.label_rules import LabelOptions
from medzoo.data.sources.catalogue import published
from medzoo.data.sources.options import SourceOptions
from medzoo.data.table import Table
from medzoo.errors import ConfigError, did_you_mean
from medzoo.training.recipe import DataSection, Recipe

__all__ = ["label_options", "load_table", "source_choices"]

CSV = (".csv", ".tsv")
OF_TABLES = (
    "image", "label", "labels", "task", "positive", "sep", "no_finding", "others", "uncertain", "blank", "patient",
    "duplicates", "key", "choose", "unmatched", "point", "points_frame",
)  # fmt: skip
"""Fields that cannot act on a published set, which states all this itself."""
OF_SETS = ("missing", "findings", "mapping", "negatives", "sample_seed", "sequence", "same_person")
"""Fields that cannot act on a table of one's own."""


def load_table(
    recipe: Recipe, data: str | os.PathLike[str], root: str | os.PathLike[str] | None = None, *, images: bool = True
) -> Table:  # fmt: skip
    """Return the table of a CSV file, a MedMNIST file, a folder with a folder for each class, or a DICOM folder.

    Args:
        recipe: its section ``data`` names the columns.
        data: ``.csv`` or ``.tsv``, ``.npz``, or a folder. With ``data.key`` it is the CSV file that is joined to the
            DICOM studies of ``root``.
        root: folder of the images of a CSV file; ``None`` is that of the file.
        images: whether the images of a CSV file have to be there.

    Raises:
        ConfigError: no such path, one that needs something else, or a field that cannot act on a published set.
        DataError: the table cannot be used.
    """
    path, how = Path(data), recipe.data
    if not path.exists():
        raise ConfigError(f"{path}: no such file or folder.{_near(path)} Give a .csv, .tsv or .npz file, or a folder.")
    # A set that is published as a file is read as that set, any other file as a table of one's own.
    files = CSV if how.source == "medmnist" else (*CSV, ".npz")
    if how.source != "table" and path.suffix.lower() not in files:
        if root is not None:
            raise ConfigError(f"{path}: root is for the images of a .csv or .tsv file. Leave it out.")
        _check_fields(how, path)
        return Table.from_source(how.source, path, **source_choices(how))
    if path.is_file() and how.source != "table":
        _check_not_published(how.source, path)
    table = _own_table(how, path, root, images=images)
    return replace(table, notes=(*table.notes, *_unused(how)))


def _check_fields(how: DataSection, path: Path) -> None:
    """Raise ConfigError for fields that were changed and cannot act on a published set."""
    usual = [DataSection(), Recipe.load(how.source).data]  # the recipe of a set has its name
    changed = [name for name in OF_TABLES if all(getattr(how, name) != getattr(one, name) for one in usual)]
    if changed:
        listed = ", ".join(f"data.{name}" for name in changed)
        findings = "findings" in published(how.source).options and {"label", "labels"} & {*changed}
        raise ConfigError(
            f"{path}: {listed} cannot act on the published set {how.source}, which has its own labels, patients and "
            f"places. {'Choose findings with data.findings and leave' if findings else 'Leave'} "
            f"{'this' if len(changed) == 1 else 'these'} out, or give a .csv file of your own."
        )


def _check_not_published(source: str, path: Path) -> None:
    """Raise ConfigError for a CSV file of the published set, which is read with its folder."""
    if any(fnmatchcase(path.name, pattern) for pattern in published(source).tables):
        raise ConfigError(
            f"{path}: this is a file of the published set {source}: give the folder it is in, {path.parent}. A table "
            "of your own needs another name."
        )


def _unused(how: DataSection) -> Sequence[str]:
    """Return notes on the fields of published sets, which a table of one's own does not use."""
    names = [f"data.{name}" for name in OF_SETS if getattr(how, name) != getattr(DataSection(), name)]
    of = "published sets" if how.source == "table" else f"the folder of {how.source}"
    verb = "is" if len(names) == 1 else "are"
    return [f"{', '.join(names)} {verb} for {of} and not used for a table"] if names else []


def _own_table(how: DataSection, path: Path, root: str | os.PathLike[str] | None, *, images: bool) -> Table:
    if root is not None and not Path(root).is_dir():
        raise ConfigError(f"root {Path(root)}: no such folder.{_near(Path(root))} Give the folder of the images.")
    if how.key is not None:
        return _from_dicom(how, path, root)
    if path.suffix.lower() in CSV and path.is_file():
        return Table.from_csv(
            path, root=root, image=how.image, label=_columns(how), patient=how.patient, duplicates=how.duplicates,
            images=images, point=how.point, points_frame=how.points_frame, roi=how.roi, **label_options(how),
        )  # fmt: skip
    if path.is_file() and path.suffix.lower() not in (*CSV, ".npz"):
        sheet = " Save the sheet as CSV." if path.suffix.lower() in (".xlsx", ".xls", ".ods") else ""
        raise ConfigError(f"{path}: expected a .csv, .tsv or .npz file or a folder, got another file.{sheet}")
    if root is not None:
        raise ConfigError(f"{path}: root is for the images of a .csv or .tsv file. Leave it out.")
    if path.suffix.lower() == ".npz" and path.is_file():
        return Table.from_npz(path, patient=how.patient, **label_options(how))
    if path.is_dir():
        entries = sorted(path.iterdir())
        # Beside folders, which may be classes, an NPZ file is not what the labels are in.
        suffixes = CSV if any(entry.is_dir() for entry in entries) else (*CSV, ".npz")
        tables = [file for file in entries if file.suffix.lower() in suffixes]
        if tables:
            raise ConfigError(
                f"{path}: expected a folder for each class, got one with a table, {tables[0].name}. "
                f"Give the table: {tables[0]}."
            )
        return Table.from_folder(path, patient=how.patient, **label_options(how))
    raise ConfigError(f"{path}: expected a file or a folder, got neither.")


def _from_dicom(how: DataSection, path: Path, root: str | os.PathLike[str] | None) -> Table:
    if path.suffix.lower() not in CSV or root is None or how.key is None:
        raise ConfigError(
            f"{path}: with data.key, expected the .csv file of the labels, and the DICOM folder as root. Give both."
        )
    return Table.from_dicom(
        root, path, key=how.key, label=_columns(how), patient=how.patient or "PatientID", choose=how.choose,
        unmatched=how.unmatched, **label_options(how),
    )  # fmt: skip


def source_choices(how: DataSection) -> SourceOptions:
    """Return what was chosen about a published set."""
    return {
        "missing": how.missing,
        "findings": how.findings,
        "mapping": how.mapping,
        "negatives": how.negatives,
        "sample_seed": how.sample_seed,
        "sequence": how.sequence,
        "roi": how.roi,
        "same_person": how.same_person,
    }


def _columns(how: DataSection) -> str | list[str]:
    return how.label if isinstance(how.label, str) else list(how.label)


def label_options(how: DataSection) -> LabelOptions:
    """Return what the labels mean, which every kind of table takes."""
    return {
        "task": how.task,
        "names": how.labels,
        "positive": how.positive,
        "sep": how.sep,
        "none": how.no_finding,
        "others": how.others,
        "uncertain": how.uncertain,
        "blank": how.blank,
    }


def _near(path: Path) -> str:
    """Return the nearest name beside a path that does not exist, or the part of it that does not."""
    parent = path.parent
    if not parent.is_dir():
        return f" {parent} does not exist either."
    return did_you_mean(path.name, (entry.name for entry in parent.iterdir()))
