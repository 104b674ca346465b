"""The reader of one DICOM file: a radiograph, a slice with its position, or the frames of a multi-frame file.

Axes: c channels, f frames, h w rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medzoo.errors import DataError
from medzoo.io.dicom import header
from medzoo.io.dicom.elements import items, numbers, text
from medzoo.io.dicom.frames import select_frames
from medzoo.io.dicom.module import MEASUREMENTS
from medzoo.io.dicom.pixels import Pixels, decode_pixels, load
from medzoo.io.dicom.presentation import presentation_warnings
from medzoo.io.dicom.record import HeaderRecord
from medzoo.io.dicom.rescale import rescale_of, rescale_warning
from medzoo.io.dicom.values import PixelValues, apply_modality, apply_voi, invert
from medzoo.io.image import Image, as_native, handle_nan, merge_equal_channels
from medzoo.io.options import ReadOptions

__all__ = ["read_dicom"]

_Values = tuple[NDArray[Any], str, tuple[float, float] | None]  # c f h w, its unit and its range


def read_dicom(path: Path, options: ReadOptions, record: HeaderRecord | None = None) -> Image:
    """Read one DICOM file, ``c h w``, or ``c f h w`` of several frames.

    Args:
        path: the file.
        options: what to read of it.
        record: what a scan knows of its header, which is then not parsed again unless the file was changed.

    Raises:
        DataError: not an image, damaged, or not decodable.
    """
    ds = _recorded(path, record) if record else None
    if ds is None:
        ds, record = load(path, max_voxels=options.max_voxels), None
    with header.wrap_dicom_errors(path, "a DICOM image"):
        if kind := header.non_image_kind(ds):
            raise DataError(f"{path}: expected an image, found {kind}. {header.non_image_advice(ds)}")
        frames = header.frame_count(ds)
        selected = select_frames(ds, path, options)
        pixels = decode_pixels(ds, path, options.frame if frames > 1 else None, options.max_voxels)
        chosen = list(selected.frames)
        if len(pixels.array) == frames and chosen != list(range(frames)):
            pixels = replace(pixels, array=pixels.array[chosen])
        modality = header.modality_of(ds)
        notes = list(pixels.notes)
        warnings = [*pixels.warnings, *presentation_warnings(ds, pixels.photometric)]
        if not ds.get("Modality") and modality:
            notes.append(f"modality {modality} taken from the SOP class")
        if pixels.array.ndim == 4:
            array, unit, value_range = _colour(pixels, notes)
        else:
            array, unit, value_range = _grey(pixels, ds, path, modality, chosen, notes, warnings)
        if len(chosen) > 1 and "TotalPixelMatrixColumns" in ds:
            warnings.append("The frames are tiles of one large image, not slices: read them with frame.")
        if ignored := header.ignored_geometry(ds, path, chosen[0]):
            notes.append(f"{ignored} is invalid and ignored")
        notes.extend(selected.notes)
        if selected.channels > 1:  # 1 (c d) h w -> c d h w
            if len(array) != 1:
                raise DataError(
                    f"{path}: expected grey stacks to read as channels, found colour. Read them one by one."
                )
            array = array.reshape(selected.channels, -1, *array.shape[2:])
        identity = header.identity_of(ds, path) | ({"stack": selected.stack} if selected.stack else {})
        if record and record.patient:
            identity["patient"] = record.patient
        array = as_native(handle_nan(array[:, 0] if len(chosen) == 1 else array, path, options.nan, notes))
        part, age = header.body_part_of(ds), record.age if record else header.age_of(ds)
        geometry = selected.affine, selected.spacing
        warning = " ".join(filter(None, (*warnings, selected.warning)))
        return Image(array, *geometry, modality, unit, value_range, identity, tuple(notes), part, age, warning)


def _recorded(path: Path, record: HeaderRecord) -> Any:
    with header.wrap_dicom_errors(path, "a DICOM file"):
        return record.load(path)


def _grey(
    pixels: Pixels, ds: Any, path: Path, modality: str, chosen: list[int], notes: list[str], warnings: list[str]
) -> _Values:
    """Return ``1 f h w``, its unit and its range, by the meaning of the modality's values."""
    values = _by_frame(
        PixelValues(pixels.array, pixels.low, pixels.high),
        [header.functional_group(ds, "PixelValueTransformationSequence", frame) for frame in chosen],
        lambda part, i: apply_modality(part, ds, path, chosen[i]),
    )
    unit, value_range = "raw", None
    if modality in MEASUREMENTS:
        notes.extend(values.notes)
        if pixels.photometric == "MONOCHROME1":
            notes.append("MONOCHROME1 ignored: the values are measurements")
        if modality == "CT":
            unit = _unit_of_ct(values, ds, chosen, notes, warnings)
    else:
        if modality != "MR":
            values = _by_frame(
                values,
                [header.functional_group(ds, "FrameVOILUTSequence", frame) for frame in chosen],
                lambda part, i: apply_voi(part, ds, path, chosen[i]),
            )
        values = invert(values, path) if pixels.photometric == "MONOCHROME1" else values
        notes.extend(values.notes)
    warnings.extend(values.warnings)
    if len(chosen) > 1 and (rescale := rescale_warning([rescale_of(ds, frame) for frame in chosen], modality)):
        warnings.append(rescale)
    if modality not in MEASUREMENTS | {"MR"} and np.isfinite(values.low + values.high):
        value_range = (values.low, values.high)
        bits = np.log2(values.high + 1) if values.low == 0 else 0.0
        unit = f"{int(bits)}-bit" if bits and bits.is_integer() else "raw"
    return values.array[None], unit, value_range


def _by_frame(values: PixelValues, groups: list[Any], step: Callable[[PixelValues, int], PixelValues]) -> PixelValues:
    """Apply a step to all frames at once, or to each where its functional group is its own.

    Args:
        values: ``f h w``.
        groups: the functional group of each frame.
        step: the step, of some frames and the index of the first of them.
    """
    if all(group is groups[0] or group == groups[0] for group in groups):
        return step(values, 0)
    parts = [step(replace(values, array=values.array[i]), i) for i in range(len(groups))]
    array = np.stack([part.array for part in parts])
    low, high = min(part.low for part in parts), max(part.high for part in parts)
    same = len({part.notes for part in parts}) == 1
    notes = parts[0].notes if same else (*values.notes, "each frame by values of its own")
    warnings = tuple(dict.fromkeys(warning for part in parts for warning in part.warnings))
    return PixelValues(array, low, high, notes, all(part.rescaled for part in parts), warnings)


def _unit_of_ct(values: PixelValues, ds: Any, chosen: list[int], notes: list[str], warnings: list[str]) -> str:
    """Return the unit of the values of a CT: HU, which is the standard's default, where all are rescaled to it."""
    if not values.rescaled:
        notes.append("no rescale: values as stored")
        return "raw"
    sources = [header.functional_group(ds, "PixelValueTransformationSequence", frame) for frame in chosen]
    luts = items(ds, "ModalityLUTSequence")
    if not luts and any(slope < 0 for source in sources for slope in numbers(source, "RescaleSlope")):
        warnings.append("RescaleSlope is negative, which that of a CT is not: the values may be a negative.")
    units = {text(luts[0], "ModalityLUTType")} if luts else {text(source, "RescaleType") for source in sources}
    others = {unit.upper() for unit in units} - {"", "HU"}
    if not others:
        return "HU"
    notes.append("rescaled to a unit other than HU" + (", modified HU (HU_MOD)" if others == {"HU_MOD"} else ""))
    return "raw"


def _colour(pixels: Pixels, notes: list[str]) -> _Values:
    """Return ``c f h w`` of RGB, or of grey that was stored as RGB."""
    bits = np.log2(pixels.high + 1) if pixels.low == 0 else 0.0
    unit = f"{int(bits)}-bit" if bits else "raw"
    return merge_equal_channels(np.moveaxis(pixels.array, -1, 0), notes), unit, (pixels.low, pixels.high)
