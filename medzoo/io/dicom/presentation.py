"""Whether a projection X-ray is stored as a radiologist sees it."""

from __future__ import annotations

from typing import Any

from medzoo.io.dicom.elements import text
from medzoo.io.dicom.header import PROJECTION_MODALITIES, modality_of

__all__ = ["presentation_warnings"]

_FOR_PROCESSING = frozenset(f"1.2.840.10008.5.1.4.1.1.{suffix}" for suffix in ("1.1.1", "1.2.1", "1.3.1"))
_CONTRADICTIONS = {("MONOCHROME1", "IDENTITY"), ("MONOCHROME2", "INVERSE")}


def presentation_warnings(ds: Any, photometric: str) -> list[str]:
    """Return what in a header of a projection X-ray is against its pixels as an image; ``[]`` of anything else.

    PresentationLUTShape says the same as the photometric interpretation in another way (PS3.3 C.8.11.3.1.2): where they
    differ, one of them is wrong.
    """
    if modality_of(ds) not in PROJECTION_MODALITIES:
        return []
    found = []
    if text(ds, "PresentationIntentType").upper() == "FOR PROCESSING" or text(ds, "SOPClassUID") in _FOR_PROCESSING:
        found.append(
            "The image is FOR PROCESSING: values of the detector, not the image that a radiologist sees. Give the one "
            "FOR PRESENTATION."
        )
    shape = text(ds, "PresentationLUTShape").upper()
    if (photometric, shape) in _CONTRADICTIONS:
        found.append(
            f"PhotometricInterpretation is {photometric}, but PresentationLUTShape is {shape}: one of them is wrong, "
            "and the image may be a negative."
        )
    return found
