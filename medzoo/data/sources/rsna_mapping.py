"""The file by which the images of the RSNA pneumonia challenge belong to NIH patients, and where it is."""

from __future__ import annotations

import json

from medzoo.errors import DataError

__all__ = ["MAPPING_URL", "check_mapping"]

MAPPING_URL = "https://s3.amazonaws.com/east1.public.rsna.org/AI/2018/pneumonia-challenge-dataset-mappings_2018.json"
KEYS = ("subset_img_id", "img_id")


def check_mapping(data: bytes, who: str) -> int:
    """Return the number of records of a mapping, each with an image of the challenge and the NIH's name of it.

    Raises:
        DataError: no JSON, or other records.
    """
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{who}: expected a list of records in JSON, got another file ({error}).") from None
    if not isinstance(found, list) or not found:
        got = "an empty list" if found == [] else f"a {type(found).__name__}"
        raise DataError(f"{who}: expected a list of records in JSON, got {got}.")
    for number, record in enumerate(found):
        absent = [key for key in KEYS if not isinstance(record, dict) or not isinstance(record.get(key), str)]
        if absent:
            raise DataError(f"{who}: expected {' and '.join(KEYS)} in each record, record {number} has no {absent[0]}.")
    return len(found)
