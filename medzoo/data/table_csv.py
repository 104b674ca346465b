"""CSV files as :class:`~medzoo.data.columns.Columns`: what encoding and delimiter they have, and which rows are broken.

``csv`` reads rows and counts lines. Its ``Sniffer`` is not used: it guesses from the frequency of characters, and takes
a letter for the delimiter of a file with one column.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path

from medzoo.data.columns import Columns
from medzoo.data.faults import Faults, join_some, quote
from medzoo.errors import ConfigError, DataError
from medzoo.io.files import existing

__all__ = ["read_csv", "read_records"]

DELIMITERS = (",", ";", "\t")
_FOREIGN = {
    b"PK\x03\x04": "an Excel workbook (.xlsx) or another zip archive",
    b"\xd0\xcf\x11\xe0": "an Excel workbook (.xls)",
    b"\xff\xfe": "UTF-16, which Excel calls Unicode text",
    b"\xfe\xff": "UTF-16",
    b"PAR1": "a Parquet file",
    b"\x1f\x8b": "a gzip file",
}
_SAVE = "Save it as CSV with the encoding UTF-8"


def read_csv(path: str | os.PathLike[str], *, wanted: Sequence[str] = (), delimiter: str | None = None) -> Columns:
    """Read a CSV file with a header; every cell is text, without space around it.

    Rows without any value are left out. Columns without a name are left out if they are blank, as at the end of each
    line of some exports, or first, as pandas writes its index.

    Args:
        path: the file, in UTF-8.
        wanted: columns that will be used, from which the delimiter is recognised.
        delimiter: ``","``, ``";"`` or a tab; ``None`` recognises it from the header.

    Raises:
        DataError: a file that is no such CSV. Rows with too many or too few fields are added to the faults of the
            result instead.
        ConfigError: another delimiter.
    """
    here, _, records = read_records(path, wanted=wanted, delimiter=delimiter)
    header = [name.strip() for name in records[0][1]]
    if twice := sorted({name for name in header if name and header.count(name) > 1}):
        listed = join_some([quote(name) for name in twice])
        raise DataError(f"{here}: expected one column of each name, found {listed} more than once. Rename all but one.")
    return _columns(here, header, records[1:])


def read_records(
    path: str | os.PathLike[str], *, wanted: Sequence[str] = (), delimiter: str | None = None
) -> tuple[Path, str, list[tuple[int, list[str]]]]:
    """Return the file, its delimiter, and the line and the fields of every record with a value; there is at least one.

    Raises:
        DataError, ConfigError: as :func:`read_csv`.
    """
    if delimiter not in (None, *DELIMITERS):
        raise ConfigError(
            f"{path}: expected delimiter to be ',', ';' or a tab, got {delimiter!r}. Choose one of these."
        )
    here = _file(path)
    text = _decoded(here)
    declared = text[:6].lower() if text[:4].lower() == "sep=" else ""
    if declared:  # the first line, by which Excel is given the delimiter
        delimiter = delimiter or declared[4:5]
        text = "".join(io.StringIO(text, newline="").readlines()[1:])
    delimiter = delimiter or _delimiter(here, text, wanted)
    records = _records(here, text, delimiter, 1 + bool(declared))
    if not records:
        raise DataError(f"{here}: expected a CSV file with a header, found no text. Export it again.")
    return here, delimiter, records


def _file(path: str | os.PathLike[str]) -> Path:
    if "://" in os.fspath(path) or os.fspath(path).lower().startswith("file:"):
        raise DataError(f"{path}: expected the path of a file, got an address, which is never fetched. Download it.")
    try:
        here = existing(path)
    except DataError as error:
        if "0 bytes" not in str(error):
            raise
        raise DataError(f"{path}: expected a CSV file with a header, found an empty file (0 bytes).") from None
    if here.is_dir():
        raise DataError(f"{here}: expected a CSV file, found a folder. Give the file, or use Table.from_folder.")
    return here


def _decoded(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Check the file and its disk.") from None
    for magic, name in _FOREIGN.items():
        if data.startswith(magic):
            raise DataError(f"{path}: expected a CSV file in UTF-8, found {name}. {_SAVE}.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}: expected a CSV file in UTF-8, found the byte 0x{data[error.start]:02X} in line {line}, which is "
            f"not UTF-8; such a file is often Windows-1252 or Latin-1. {_SAVE}."
        ) from None


def _delimiter(path: Path, text: str, wanted: Sequence[str]) -> str:
    """Return the delimiter with which the header has the most of the wanted columns, and then the most columns.

    Raises:
        DataError: two are as likely.
    """
    score = {}
    for one in DELIMITERS:
        first = next((fields for _, fields in _records(path, text, one, 1, stop=1)), [])
        score[one] = (sum(name in {field.strip() for field in first} for name in wanted), len(first))
    ranked = sorted(DELIMITERS, key=lambda one: score[one], reverse=True)
    if score[ranked[0]] == score[ranked[1]] and score[ranked[0]][1] > 1:
        raise DataError(
            f"{path}: expected a header with one delimiter, found as many columns with {ranked[0]!r} as with "
            f"{ranked[1]!r}. Give delimiter=."
        )
    return ranked[0] if score[ranked[0]][1] > 1 else ","


def _records(
    path: Path, text: str, delimiter: str, line: int, stop: int | None = None
) -> list[tuple[int, list[str]]]:  # fmt: skip
    """Return the line and the fields of each record that has any, at most ``stop`` of them."""
    if delimiter not in DELIMITERS:
        raise DataError(f"{path}: expected the line 'sep=' to give ',', ';' or a tab, got {delimiter!r}. Remove it.")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    records: list[tuple[int, list[str]]] = []
    start = line
    try:
        for fields in reader:
            if any(field.strip() for field in fields):
                records.append((start, fields))
                if len(records) == stop:
                    break
            start = line + reader.line_num
    except csv.Error as error:
        if stop is not None:
            return []
        cause = "a quote that is not closed" if "end of data" in str(error) else str(error)
        raise DataError(
            f"{path}: expected a CSV record, found one from line {start} on that cannot be read: {cause}. "
            "Correct the quotes of that line: a quote within a quoted field is written twice."
        ) from None
    return records


def _columns(path: Path, header: list[str], records: list[tuple[int, list[str]]]) -> Columns:
    faults = Faults(str(path), "line")
    named = [i for i, name in enumerate(header) if name]
    last = named[-1] + 1 if named else 0
    if not named:
        raise DataError(f"{path}: expected a header with names of columns, found none. Add one as the first line.")
    long, short, unnamed, kept = [], [], [], []
    for line, fields in records:
        if any(field.strip() for field in fields[len(header) :]):
            long.append((line, f"{len(fields)} fields"))
        elif len(fields) < last:
            short.append((line, f"{len(fields)} fields"))
        elif any(fields[i].strip() for i in range(1, min(len(fields), len(header))) if not header[i]):
            unnamed.append((line, ""))
        else:
            kept.append((line, fields))
    count = f"The header has {len(header)}."
    faults.add("rows with too many fields", long, f"{count} Put a value that holds the delimiter in quotes.")
    faults.add("rows with too few fields", short, f"{count} A value may have a line break without quotes around it.")
    faults.add("rows with a value in a column that has no name", unnamed, "Name the column in the header.")
    if not records:
        raise DataError(f"{path}: expected rows below the header, found none. Add the rows, or give another file.")
    faults.lines = [line for line, _ in kept]
    values = {header[i]: [fields[i].strip() for _, fields in kept] for i in named}
    return Columns(values, faults)
