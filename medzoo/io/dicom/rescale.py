"""Whether the rescale of the slices or frames of one volume is what its modality allows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from medzoo.io.dicom.header import functional_group
from medzoo.io.dicom.tags import text_of

__all__ = ["rescale_of", "rescale_warning"]

_TAGS = (0x00281053, 0x00281052)


def rescale_of(ds: Any, frame: int = 0) -> tuple[str, str]:
    """Return RescaleSlope and RescaleIntercept of a frame as text; ``""`` where they are absent."""
    source = ds
    if 0x52009229 in ds or 0x52009230 in ds:
        source = functional_group(ds, "PixelValueTransformationSequence", frame)
    slope, intercept = (text_of(source, tag) if tag in source else "" for tag in _TAGS)
    return slope, intercept


def rescale_warning(rescales: Sequence[tuple[str, str]], modality: str) -> str:
    """Return a warning if some slices of a volume are not rescaled, or those of a CT differently; ``""`` otherwise.

    PET and MR may scale each slice to fill its bits. All slices of a CT are in HU, by one slope and intercept.
    """
    lacking = sum(rescale == ("", "") for rescale in rescales)
    if 0 < lacking < len(rescales):
        return (
            f"{lacking} of {len(rescales)} slices lack the RescaleSlope and RescaleIntercept that the others have: "
            "their values may be on another scale."
        )
    if modality == "CT" and len(set(rescales)) > 1:
        return (
            f"The slices have {len(set(rescales))} different pairs of RescaleSlope and RescaleIntercept, where those "
            "of a CT share one: values in HU may be wrong."
        )
    return ""
