"""Trees with a folder per class, as published sets are unpacked: ``CLASS/…`` or ``{train,val,test}/CLASS/…``."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from medzoo.data.columns import Columns
from medzoo.data.faults import Faults, join_some, quote
from medzoo.data.table_paths import ADVICE, absolute, fault_of_file
from medzoo.errors import ConfigError, DataError
from medzoo.io.files import existing, has_image_suffix
from medzoo.io.folder import ScanItem, scan

__all__ = ["PARTS", "PatientRule", "read_folder"]

PARTS = {
    "train": "train", "training": "train", "valid": "valid", "val": "valid", "validation": "valid", "dev": "valid",
    "test": "test", "testing": "test",
}  # fmt: skip
"""Names of folders and of arrays that give a split, and what the column ``split`` has for them."""

PatientRule = str | Callable[[Path], str]


def read_folder(root: str | os.PathLike[str], patient: PatientRule | None) -> tuple[Columns, list[str]]:
    """Return the columns ``path``, ``label``, ``split`` and ``patient`` of a tree, and the path of each image.

    Hidden files, ``__MACOSX`` and files that are no images are left out. A folder of the same name in the tree is
    the tree itself where nothing else is there, and a copy that is left out beside the parts.

    Args:
        root: the folder.
        patient: a regular expression with one group, or a function, from the path relative to ``root``.

    Raises:
        DataError: the tree is none of both layouts.
    """
    folder = existing(root)
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder with a folder per class, found a file. Give the folder.")
    rule = _patient_rule(patient)
    parts, notes = _layout(folder)
    faults = Faults(str(folder), "image")
    values: dict[str, list[str]] = {name: [] for name in ("path", "label", "split")}
    paths: list[str] = []
    skipped: Counter[str] = Counter()
    for part, inside in parts.items():
        for kind in _folders(inside):
            items = scan(kind)
            skipped.update(item.reason for item in items if item.kind == "skip")
            images = [item for item in items if item.kind != "skip"]
            if not images:
                faults.add_general(
                    f"{kind.relative_to(folder)}: a class without images. Remove the folder, or fill it."
                )
            _check(images, len(paths), folder, faults)
            paths += ["\n".join(map(absolute, item.paths)) for item in images]
            values["path"] += [_id(item, folder, kind) for item in images]
            values["label"] += [kind.name] * len(images)
            values["split"] += [part] * len(images)
    if not any(values["split"]):
        del values["split"]
    faults.lines = range(len(paths))
    if rule is not None:
        values["patient"] = [rule(Path(name)) for name in values["path"]]
        unmatched = [(i, quote(values["path"][i])) for i, found in enumerate(values["patient"]) if not found]
        faults.add_rows("images whose path gives no patient", unmatched, "Correct patient=.")
        values["patient"] = [found or "?" for found in values["patient"]]
    notes += [f"{count:,} files left out: {reason}" for reason, count in sorted(skipped.items())]
    return Columns(values, faults, tuple(notes)), paths


def _id(item: ScanItem, folder: Path, kind: Path) -> str:
    """Return the path of an image relative to the root, with the name of its stack."""
    return f"{kind.relative_to(folder).as_posix()}/{item.label}" + (f" ({item.name})" if item.name else "")


def _check(images: Sequence[ScanItem], start: int, folder: Path, faults: Faults) -> None:
    """Add what is wrong with images, as far as it shows without reading them."""
    found: dict[str, list[tuple[int, str]]] = {}
    advice = dict(ADVICE)
    for i, item in enumerate(images, start):
        name = item.paths[0].relative_to(folder).as_posix()
        problem = ""
        try:
            name.encode()
        except UnicodeEncodeError:
            problem, advice[problem] = "names that are not UTF-8", "Rename the files."
        if "\n" in name:
            problem, advice[problem] = "names with a line break", "Rename the files."
        if item.kind == "lost":
            problem, advice[problem] = "slices that cannot be read", "Copy them again, or remove the series."
        elif item.stack is not None:
            problem, advice[problem] = "files with several stacks", "Write each stack to a file of its own."
        if not problem:
            try:
                problem = fault_of_file(str(item.paths[0]), item.paths[0].stat())
            except OSError:
                problem = "files that cannot be opened"
        if problem:
            found.setdefault(problem, []).append((i, quote(name)))
    for problem, places in found.items():
        faults.add(problem, places, advice[problem])


def _patient_rule(patient: PatientRule | None) -> Callable[[Path], str] | None:
    if patient is None or callable(patient):
        return patient
    try:
        pattern = re.compile(patient)
    except re.error as error:
        raise ConfigError(f"patient={patient!r}: expected a regular expression ({error}). Correct it.") from None
    if pattern.groups != 1:
        raise ConfigError(
            f"patient={patient!r}: expected a regular expression with one group, found {pattern.groups}. "
            r"Put what names the patient in parentheses, such as r'(person\d+)_'."
        )

    def search(path: Path) -> str:
        match = pattern.search(path.as_posix())
        return (match[1] or "").strip() if match else ""

    return search


def _folders(folder: Path) -> list[Path]:
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror}). Check its permissions.") from None
    return [p for p in entries if p.is_dir() and not p.name.startswith(".") and p.name != "__MACOSX"]


def _layout(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """Return the parts of a tree by name (``""`` for a tree without parts), and notes."""
    top, notes = folder, []
    while True:
        inside = _folders(top)
        if len(inside) == 1 and inside[0].name.lower() not in PARTS and _folders(inside[0]):
            top = inside[0]
            continue
        break
    parts = [p for name in PARTS for p in inside if p.name.lower() == name]
    others = [p for p in inside if p not in parts]
    if parts and others == [p for p in others if p.name == top.name]:
        notes += [f"left out {p.relative_to(folder)}, a folder with the name of the one it is in" for p in others]
        others = []
    if parts and others:
        raise DataError(
            f"{top}: expected either parts or classes as folders, found both: the parts "
            f"{join_some([p.name for p in parts])} and {join_some([p.name for p in others])}. Move one of them away."
        )
    names = [PARTS[p.name.lower()] for p in parts]
    if len(set(names)) < len(names):
        raise DataError(f"{top}: expected one folder of each part, found {join_some([p.name for p in parts])}.")
    if not inside:
        raise DataError(
            f"{top}: expected a folder per class, found no folder. Move the images of each class to a folder with its "
            "name, or list them in a CSV file for Table.from_csv."
        )
    for place in parts or [top]:
        _refuse_loose(place, folder)
    return dict(zip(names, parts, strict=True)) if parts else {"": top}, notes


def _refuse_loose(place: Path, folder: Path) -> None:
    """Raise DataError if images are beside the folders of the classes."""
    loose = [
        p.name for p in sorted(place.iterdir()) if not p.name.startswith(".") and p.is_file() and has_image_suffix(p)
    ]
    if loose:
        raise DataError(
            f"{place}: expected images in folders of their class, found {len(loose):,} beside them: "
            f"{join_some(loose)}. Move them into the folder of their class, or away."
        )
    if not _folders(place):
        raise DataError(f"{place}: expected a folder per class, found none. Is {folder} the right folder?")
