"""The reader of one DICOM file: a radiograph, a slice with its position, or the frames of a multi-frame file.

Axes: c channels, f frames, h w rows and columns.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medzoo.errors import DataError
from medzoo.io.dicom import header
from medzoo.io.dicom.frames import select_frames
from medzoo.io.dicom.pixels import decode_pixels, load
from medzoo.io.dicom.values import PixelValues, apply_modality, apply_voi, invert
from medzoo.io.image import Image, as_native, handle_nan, merge_equal_channels
from medzoo.io.options import ReadOptions

__all__ = ["read_dicom"]

_Values = tuple[NDArray[Any], str, tuple[float, float] | None]  # c f h w, its unit and its range

_QUANTITATIVE = frozenset({"CT", "PT", "NM"})
"""Modalities whose values are measurements: a window or MONOCHROME1 defines only how they are displayed."""


def read_dicom(path: Path, options: ReadOptions) -> Image:
    """Read one DICOM file, ``c h w``, or ``c f h w`` of several frames.

    Raises:
        DataError: not an image, damaged, or not decodable.
    """
    ds = load(path, max_voxels=options.max_voxels)
    with header.wrap_dicom_errors(path, "a DICOM image") as issued:
        if kind := header.non_image_kind(ds):
            raise DataError(f"{path}: expected an image, found {kind}. Give the images it refers to.")
        frames = header.frame_count(ds)
        selected = select_frames(ds, path, options)
        stored = decode_pixels(ds, path, options.frame if frames > 1 else None, options.max_voxels)
        chosen = list(selected.frames)
        if len(stored) == frames and chosen != list(range(frames)):
            stored = stored[chosen]
        modality = header.modality_of(ds)
        notes: list[str] = []
        if not ds.get("Modality") and modality:
            notes.append(f"modality {modality} taken from the SOP class")
        colour = stored.ndim == 4 or str(ds.get("PhotometricInterpretation")) == "PALETTE COLOR"
        values = _colour(stored, ds, notes) if colour else _grey(stored, ds, path, modality, chosen, notes)
        array, unit, value_range = values
        notes.extend(selected.notes)
        if selected.channels > 1:  # 1 (c d) h w -> c d h w
            if len(array) != 1:
                raise DataError(
                    f"{path}: expected grey stacks to read as channels, found colour. Read them one by one."
                )
            array = array.reshape(selected.channels, -1, *array.shape[2:])
        identity = header.identity_of(ds, path) | ({"stack": selected.stack} if selected.stack else {})
        array = as_native(handle_nan(array[:, 0] if len(chosen) == 1 else array, path, options.nan, notes))
        if issued:
            notes.append(f"pydicom issued {len(issued)} warnings about the header")
        part, age = header.body_part_of(ds), header.age_of(ds)
        geometry = selected.affine, selected.spacing
        return Image(array, *geometry, modality, unit, value_range, identity, tuple(notes), part, age, selected.warning)


def _grey(stored: NDArray[Any], ds: Any, path: Path, modality: str, chosen: list[int], notes: list[str]) -> _Values:
    """Return ``1 f h w``, its unit and its range, by the meaning of the modality's values."""
    photometric = str(ds.get("PhotometricInterpretation"))
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise DataError(f"{path}: expected MONOCHROME1 or 2 for grey pixels, found {photometric}. Export it again.")
    values = _rescale_frames(stored, ds, path, chosen)
    unit, value_range = "raw", None
    if modality in _QUANTITATIVE:
        notes.extend(values.notes)
        if photometric == "MONOCHROME1":
            notes.append("MONOCHROME1 ignored: the values are measurements")
        if modality == "CT" and values.rescaled and _is_hounsfield(ds, chosen[0]):
            unit = "HU"
        elif modality == "CT":
            notes.append("rescaled to a unit other than HU" if values.rescaled else "no rescale: values as stored")
    elif modality == "MR":
        values = invert(values, path) if photometric == "MONOCHROME1" else values
        notes.extend(values.notes)
    else:
        values = apply_voi(values, ds, path)
        notes.extend(values.notes)
        if np.isfinite(values.low + values.high):
            value_range = (values.low, values.high)
            bits = np.log2(values.high + 1) if values.low == 0 else 0.0
            unit = f"{int(bits)}-bit" if bits and bits.is_integer() else "raw"
    return values.array[None], unit, value_range


def _rescale_frames(stored: NDArray[Any], ds: Any, path: Path, chosen: list[int]) -> PixelValues:
    """Rescale all frames at once, or one by one where each has its own slope and intercept."""
    items = {id(header.functional_group(ds, "PixelValueTransformationSequence", frame)) for frame in chosen}
    if len(items) == 1:
        return apply_modality(stored, ds, path, chosen[0])
    parts = [apply_modality(stored[i], ds, path, frame) for i, frame in enumerate(chosen)]
    array = np.stack([part.array for part in parts])
    low, high = min(part.low for part in parts), max(part.high for part in parts)
    notes = parts[0].notes if len({part.notes for part in parts}) == 1 else ("each frame rescaled by its own values",)
    return PixelValues(array, low, high, notes, all(part.rescaled for part in parts))


def _is_hounsfield(ds: Any, frame: int) -> bool:
    """Return whether the rescaled values of a CT are HU, which is the standard's default."""
    item = header.functional_group(ds, "PixelValueTransformationSequence", frame)
    luts = ds.get("ModalityLUTSequence")
    unit = luts[0].get("ModalityLUTType") if luts else item.get("RescaleType")
    return str(unit or "HU").strip().upper() == "HU"


def _colour(stored: NDArray[Any], ds: Any, notes: list[str]) -> _Values:
    """Return ``c f h w`` of RGB, or of grey that was stored as RGB."""
    from pydicom.pixels import apply_color_lut

    bits = int(ds.BitsStored)
    if str(ds.get("PhotometricInterpretation")) == "PALETTE COLOR":
        stored = apply_color_lut(stored, ds)[..., :3]
        bits = 8 * stored.dtype.itemsize
        notes.append("palette converted to RGB")
    return merge_equal_channels(np.moveaxis(stored, -1, 0), notes), f"{bits}-bit", (0.0, 2.0**bits - 1)
