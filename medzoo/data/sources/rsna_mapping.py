"""The file by which the images of the RSNA pneumonia challenge belong to patients of the NIH, and where it is."""

from __future__ import annotations

import json
import re

from medzoo.errors import DataError

__all__ = ["MAPPING", "MAPPING_URL", "check_mapping", "read_mapping"]

MAPPING = "pneumonia-challenge-dataset-mappings_2018.json"
"""Its name as it is published."""
MAPPING_URL = f"https://s3.amazonaws.com/east1.public.rsna.org/AI/2018/{MAPPING}"

_NIH_NAME = re.compile(r"(\d+)_\d+(\.png)?", re.IGNORECASE)


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
        patient = str(int(named[1]))
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
