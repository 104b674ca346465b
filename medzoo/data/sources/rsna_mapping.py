"""The file by which the images of the RSNA pneumonia challenge belong to patients of the NIH, and where it is."""

from __future__ import annotations

import json
import re
from pathlib import Path

from medzoo.errors import DataError

__all__ = ["MAPPING", "MAPPING_NAME", "MAPPING_URL", "MOST_BYTES", "check_mapping", "load_mapping", "read_mapping"]

MAPPING = "pneumonia-challenge-dataset-mappings_2018.json"
"""Its name as it is published."""
MAPPING_URL = f"https://s3.amazonaws.com/east1.public.rsna.org/AI/2018/{MAPPING}"

MAPPING_NAME = "rsna-mapping"
"""Its name in ``medzoo fetch data:…``, under which its digest is recorded."""
MOST_BYTES = 1 << 28
"""Of a mapping; the published one has some 30,000 records of a few hundred bytes."""

_NIH_NAME = re.compile(r"([0-9]+)_[0-9]+(\.png)?", re.IGNORECASE)


def load_mapping(path: Path) -> dict[str, str]:
    """Return what :func:`read_mapping` returns of a file.

    Raises:
        DataError: no file, one that is empty, too large or cannot be read, or as :func:`read_mapping`.
    """
    found = ""
    try:
        if not path.exists():
            found = "nothing there"
        elif not path.is_file():
            found = "a folder" if path.is_dir() else "a pipe or device"
        else:
            with path.open("rb") as file:
                data = file.read(MOST_BYTES + 1)
            found = "" if data else "an empty file (0 bytes)"
            found = f"more than {MOST_BYTES >> 20} MiB" if len(data) > MOST_BYTES else found
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Ask for read access.") from None
    if found:
        raise DataError(
            f"{path}: expected the mapping as a JSON file, found {found}. Get it with medzoo fetch data:{MAPPING_NAME} "
            "--to FILE.json."
        )
    return read_mapping(data, str(path))


def read_mapping(data: bytes, who: str) -> dict[str, str]:
    """Return the NIH patient of each image of the challenge, as text without zeros in front, as ChestX-ray14 has it.

    Args:
        data: a list of records in JSON, each with ``subset_img_id`` and with ``img_id``, the NIH's name of the image,
            whose first part is the patient.
        who: begins a message, such as the file.

    Raises:
        DataError: no JSON, or other records.
    """
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{who}: expected a list of records in JSON, got another file ({error}).") from None
    if not isinstance(found, list) or not found:
        got = "an empty list" if found == [] else f"a {type(found).__name__}"
        raise DataError(f"{who}: expected a list of records in JSON, got {got}. Give {MAPPING}.")
    patients: dict[str, str] = {}
    for number, record in enumerate(found):
        image, nih = (record.get(k) if isinstance(record, dict) else None for k in ("subset_img_id", "img_id"))
        named = _NIH_NAME.fullmatch(nih.strip()) if isinstance(nih, str) else None
        if not isinstance(image, str) or named is None:
            raise DataError(
                f"{who}: expected a subset_img_id and an img_id as 00000001_000.png in each record, record {number} "
                f"has none. Take the file as it is published, {MAPPING}."
            )
        patient = named[1].lstrip("0") or "0"
        if patients.setdefault(image.strip(), patient) != patient:
            raise DataError(
                f"{who}: record {number} gives an image another patient than an earlier one. Correct the file."
            )
    return patients


def check_mapping(data: bytes, who: str) -> int:
    """Return of how many images a mapping gives the patient.

    Raises:
        DataError: as :func:`read_mapping`.
    """
    return len(read_mapping(data, who))
