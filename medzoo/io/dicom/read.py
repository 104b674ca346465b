"""One DICOM file to an image: a picture, a slice with its place, or the frames of a multi-frame file.

Axes: h w rows and columns, f frames.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medzoo.errors import DataError
from medzoo.io.arrays import as_real, settle_nan
from medzoo.io.dicom.header import frame_item, identity, modality, not_an_image, plane, spacing_2d
from medzoo.io.dicom.pixels import frames_of, load, stored_pixels
from medzoo.io.dicom.values import Values, picture, rescaled, turned_over
from medzoo.io.files import refusing
from medzoo.io.image import Image
from medzoo.io.raster import collapse_grey

__all__ = ["read_dicom", "to_image"]

_MEASURED = frozenset({"CT", "PT", "NM"})
"""Their values are measurements: a window or MONOCHROME1 says how to show them, not what they are."""


def read_dicom(path: Path, *, frame: int | None, nan: str, max_voxels: int) -> Image:
    """Read one DICOM file.

    Args:
        path: the file.
        frame: the frame to take; ``None`` takes all, as a volume ``1 f h w`` where there are several.
        nan: what to do with NaN in float pixels.
        max_voxels: the most values.

    Raises:
        DataError: no image, damaged, or not decodable.
    """
    from pydicom.errors import BytesLengthException, InvalidDicomError

    ds = load(path, max_voxels=max_voxels)
    with refusing(path, "a DICOM image", InvalidDicomError, BytesLengthException) as told:
        image = to_image(ds, path, frame=frame, max_voxels=max_voxels)
    values, mended = settle_nan(image.array, path, nan)
    doubts = (f"pydicom had {len(told)} doubts about the header",) if told else ()
    return Image(
        as_real(values), image.affine, image.spacing, image.modality, image.unit, image.value_range, image.identity,
        (*image.notes, *mended, *doubts),
    )  # fmt: skip


def to_image(ds: Any, path: Path, *, frame: int | None, max_voxels: int) -> Image:
    """Return the image of a data set; raises whatever pydicom does, which the caller turns into words."""
    what = not_an_image(ds)
    if what:
        raise DataError(f"{path}: expected an image, found {what}. Give the images it refers to.")
    frames = frames_of(ds)
    if frame is not None and frame >= frames:
        raise DataError(f"{path}: expected frame below {frames}, got frame={frame}. Count frames from 0.")
    chosen = [frame] if frame is not None else list(range(frames))
    stored = stored_pixels(ds, path, frame if frames > 1 else None, max_voxels)
    kind = modality(ds)
    notes: list[str] = []
    if not ds.get("Modality") and kind:
        notes.append(f"modality {kind} told by the SOP class")
    if frames > 1 and frame is not None:
        notes.append(f"frame {frame} of {frames}")
    span: tuple[float, float] | None
    if stored.ndim == 4 or str(ds.get("PhotometricInterpretation")) == "PALETTE COLOR":
        array, unit, span = _colour(stored, ds, notes)
    else:
        array, unit, span = _grey(stored, ds, path, kind, chosen, notes)
    affine, spacing = _geometry(ds, path, chosen, notes)
    if len(chosen) == 1:
        array = array[:, 0]
    return Image(array, affine, spacing, kind, unit, span, identity(ds, path), tuple(notes))


def _grey(
    stored: NDArray[Any], ds: Any, path: Path, kind: str, chosen: list[int], notes: list[str]
) -> tuple[NDArray[Any], str, tuple[float, float] | None]:
    """Return ``1 f h w``, its unit and its range, by what the modality's values are."""
    photometric = str(ds.get("PhotometricInterpretation"))
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise DataError(f"{path}: expected MONOCHROME1 or 2 for grey pixels, found {photometric}. Export it anew.")
    values = _rescale_frames(stored, ds, path, chosen)
    whole = Values(values.array[None], values.low, values.high, values.notes, values.rescaled)
    if kind in _MEASURED:
        notes.extend(whole.notes)
        if photometric == "MONOCHROME1":
            notes.append("MONOCHROME1 left alone: the values are measurements")
        if kind == "CT" and whole.rescaled and _hounsfield(ds, chosen[0]):
            return whole.array, "HU", None
        if kind == "CT":
            notes.append("rescaled to something other than HU" if whole.rescaled else "no rescale: values as stored")
        return whole.array, "raw", None
    if kind == "MR":
        if photometric == "MONOCHROME1":
            whole = turned_over(whole, path)
        notes.extend(whole.notes)
        return whole.array, "raw", None
    whole = picture(whole, ds, path)
    notes.extend(whole.notes)
    if not np.isfinite(whole.low + whole.high):
        return whole.array, "raw", None
    bits = np.log2(whole.high + 1) if whole.low == 0 else 0.0
    return whole.array, f"{int(bits)}-bit" if bits and bits.is_integer() else "raw", (whole.low, whole.high)


def _rescale_frames(stored: NDArray[Any], ds: Any, path: Path, chosen: list[int]) -> Values:
    """Rescale all frames at once, or one by one where each has its own numbers."""
    items = {id(frame_item(ds, "PixelValueTransformationSequence", frame)) for frame in chosen}
    if len(items) == 1:
        return rescaled(stored, ds, path, chosen[0])
    parts = [rescaled(stored[i], ds, path, frame) for i, frame in enumerate(chosen)]
    return Values(
        np.stack([part.array for part in parts]),
        min(part.low for part in parts),
        max(part.high for part in parts),
        parts[0].notes if len({part.notes for part in parts}) == 1 else ("each frame rescaled by its own numbers",),
        all(part.rescaled for part in parts),
    )


def _hounsfield(ds: Any, frame: int) -> bool:
    """Say whether the rescaled values of a CT are HU: where nothing is said, the standard says they are."""
    item = frame_item(ds, "PixelValueTransformationSequence", frame)
    luts = ds.get("ModalityLUTSequence")
    named = luts[0].get("ModalityLUTType") if luts else item.get("RescaleType")
    return str(named or "HU").strip().upper() == "HU"


def _colour(stored: NDArray[Any], ds: Any, notes: list[str]) -> tuple[NDArray[Any], str, tuple[float, float]]:
    """Return ``c f h w`` of RGB, or of grey that was stored as RGB."""
    from pydicom.pixels import apply_color_lut

    bits = int(ds.BitsStored)
    if str(ds.get("PhotometricInterpretation")) == "PALETTE COLOR":
        stored = apply_color_lut(stored, ds)[..., :3]
        bits = 8 * stored.dtype.itemsize
        notes.append("palette converted to RGB")
    return collapse_grey(np.moveaxis(stored, -1, 0), notes), f"{bits}-bit", (0.0, 2.0**bits - 1)


def _geometry(
    ds: Any, path: Path, chosen: list[int], notes: list[str]
) -> tuple[NDArray[np.float64] | None, tuple[float, ...] | None]:
    """Return affine and spacing of a slice, or of frames that lie evenly along a line."""
    if len(chosen) == 1:
        here = plane(ds, path, chosen[0])
        flat = spacing_2d(ds, path, chosen[0])
        if flat is None:
            notes.append("no pixel spacing")
        return (here.affine() if here else None), flat
    planes = [plane(ds, path, frame) for frame in chosen]
    placed = [p for p in planes if p is not None]
    if len(placed) < len(planes):
        notes.append("frames without a place in the patient")
        return None, None
    steps = np.diff([p.origin for p in placed], axis=0)
    step = steps.mean(axis=0)
    length = float(np.linalg.norm(step))
    turned = max(float(np.abs(p.down - placed[0].down).max() + np.abs(p.right - placed[0].right).max()) for p in placed)
    if not length or np.abs(steps - step).max() > 0.1 * length or turned > 1e-3:
        notes.append("frames do not lie evenly along a line: no geometry")
        return None, None
    first = placed[0]
    return first.affine(step), (length, float(np.linalg.norm(first.down)), float(np.linalg.norm(first.right)))
