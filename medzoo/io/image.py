"""The image that every reader returns, how a reader finishes one, and the reader of arrays and ``.npy`` files.

Axes: c channels, d h w depth height width; x y z grow to the patient's right, front and head.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tokenize import TokenError  # NumPy parses the header of a file as Python
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medzoo.errors import DataError
from medzoo.io.files import check_size, join_sizes, wrap_read_errors
from medzoo.io.options import ReadOptions

__all__ = [
    "Image", "as_native", "axis_directions", "from_array", "handle_nan", "has_independent_axes", "integer_range",
    "merge_equal_channels", "read_npy", "to_closest_ras", "upright", "voxel_sizes",
]  # fmt: skip


@dataclass(frozen=True, eq=False)
class Image:
    """One image as it was stored, with its geometry.

    Attributes:
        array: ``(c, h, w)`` or ``(c, d, h, w)``, a real dtype. A DICOM volume is (slices, rows, columns); a NIfTI,
            MHD or MHA volume is (x, y, z) in the closest canonical orientation.
        affine: 4 x 4, from the index of a voxel along the spatial axes to its centre in mm in the RAS+ world (x
            grows to the patient's right, y to the front, z to the head). ``None`` where the file has none. A 2D
            image with a position in the world uses columns 0, 1 for h, w and column 2 for the direction of its normal.
        spacing: mm between voxel centres, one for each spatial axis; ``None`` where the file does not give it.
        modality: DICOM modality (``"CT"``, ``"MR"``, ``"DX"``...), ``""`` where the file does not give it.
        unit: ``"HU"`` for CT, else ``"8-bit"``, ``"16-bit"``, ``"12-bit"``... for stored grey levels, ``"raw"`` for
            values without a defined unit.
        value_range: the lowest and highest value the storage could hold after the steps in ``notes``, such as
            ``(0, 255)``; ``None`` where values are unbounded. X-ray models scale by this, never by the image's own
            extremes.
        identity: ``file``, and for DICOM ``study``, ``series``, ``sop`` (instance UIDs; hashed where not of digits and
            dots), ``patient`` (hashed), ``view`` (the known words, such as AP, PA, LL, or "other"), ``stack`` (what
            distinguishes it from other volumes of its series or file), ``class_modality`` (that of the SOP class, where
            the file states another). Never a name, a date of birth, a patient id in plain text or other free text.
        notes: what the reader changed: ``"MONOCHROME1 inverted"``, ``"EXIF orientation 6 applied"``.
        body_part: DICOM body part in capitals, such as ``"CHEST"``; ``""`` where the file does not give it.
        age: age of the patient in years; ``None`` where the file does not give it.
        warning: why this may not be the image that was meant, such as slices beside it that cannot be read; empty if
            nothing is known against it.
        stored: the direction of each axis in the file, such as ``"LPS"``, of a volume that was turned when it was read;
            else empty.
    """

    array: NDArray[Any]
    affine: NDArray[np.float64] | None = None
    spacing: tuple[float, ...] | None = None
    modality: str = ""
    unit: str = "raw"
    value_range: tuple[float, float] | None = None
    identity: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    body_part: str = ""
    age: float | None = None
    warning: str = ""
    stored: str = ""

    def __post_init__(self) -> None:
        if self.array.ndim not in (3, 4) or self.array.dtype.kind not in "uifb" or 0 in self.array.shape:
            raise DataError(
                f"{self.identity.get('file', 'Image')}: expected an array (c, h, w) or (c, d, h, w) of real numbers, "
                f"got {self.array.dtype} {self.array.shape}. Put the channel axis first, array[None]."
            )

    @property
    def dims(self) -> int:
        """Number of spatial axes: 2 or 3."""
        return self.array.ndim - 1

    @property
    def orientation(self) -> str | None:
        """The direction of each spatial axis, such as ``"RAS"`` or ``"SPL"``; ``None`` without an affine."""
        return None if self.affine is None or self.dims != 3 else axis_directions(self.affine)

    def with_warning(self, warning: str) -> Image:
        """Return the image with one more warning; an empty one changes nothing."""
        return replace(self, warning=" ".join(filter(None, (self.warning, warning)))) if warning else self

    def with_stack(self, name: str) -> Image:
        """Return the image with what distinguishes it from the others of its series in its identity, as ``stack``."""
        return replace(self, identity={**self.identity, "stack": name}) if name else self

    def __repr__(self) -> str:
        axes = "c h w" if self.dims == 2 else "c d h w"
        spacing = "unknown" if self.spacing is None else " x ".join(f"{s:g}" for s in self.spacing) + " mm"
        return (
            f"Image({axes} = {self.array.shape}, {self.array.dtype}, spacing {spacing}, "
            f"orientation {self.orientation}, modality {self.modality or 'unknown'}, unit {self.unit})"
        )


def from_array(array: NDArray[Any], label: str, options: ReadOptions) -> Image:
    """Return an array ``h w``, ``c h w`` or ``c d h w`` as an image without geometry; ``channel_axis`` may be the last.

    Raises:
        DataError: not real numbers, another number of axes, or a volume without its channel axis.
    """
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "uifb":
        got = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise DataError(f"{label}: expected a path or an array of real numbers, got {got}. Convert it to float32.")
    if array.ndim not in (2, 3, 4):
        raise DataError(
            f"{label}: expected axes (h, w), (c, h, w) or (c, d, h, w), got shape {array.shape}. "
            "Give one image, with its channels first."
        )
    notes: list[str] = []
    if options.channel_axis is not None:
        array = _channels_first(array, label, options.channel_axis, notes)
    if array.ndim == 3 and array.shape[0] > 4:
        raise DataError(
            f"{label}: expected (c, h, w) with up to 4 channels, got shape {array.shape}. "
            "Put an axis in front of a volume, array[None], and the channels first in a colour image."
        )
    options.refuse(label, "an array", "frame", "stack")
    check_size(Path(label), array.size, options.max_voxels, join_sizes(array.shape))
    values = handle_nan(as_native(array[None] if array.ndim == 2 else array), label, options.nan, notes)
    bits = 1 if values.dtype.kind == "b" else 8 * values.dtype.itemsize
    values = values.astype(np.uint8) if values.dtype.kind == "b" else values
    unit, value_range = integer_range(values.dtype, bits)
    return Image(values, unit=unit, value_range=value_range, identity={"file": label}, notes=tuple(notes))


def _channels_first(array: NDArray[Any], label: str, axis: int, notes: list[str]) -> NDArray[Any]:
    """Return an array with its last axis, of channels, in front."""
    last = array.ndim - 1
    if last < 2 or axis not in (-1, last):
        raise DataError(
            f"{label}: expected channels along axis {axis}, the axes are {join_sizes(array.shape)}. "
            "Give channel_axis=-1 for channels that are last, and leave it out for channels that are first."
        )
    notes.append(f"axis {last} read as {array.shape[-1]} channels")
    return np.moveaxis(array, -1, 0)


def read_npy(path: Path, options: ReadOptions) -> Image:
    """Read a ``.npy`` file; pickled objects in it are never loaded.

    Raises:
        DataError: not an array of real numbers, cut short, or too large.
    """
    options.refuse(path, "an NPY file", "frame", "stack")
    with wrap_read_errors(path, "an NPY array", TokenError), path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(file)
        if dtype.hasobject:
            raise DataError(f"{path}: expected numbers, found pickled objects, which are never loaded. Save numbers.")
        check_size(path, math.prod(shape), options.max_voxels, join_sizes(shape) or "a single number")
        found, expected = path.stat().st_size - file.tell(), math.prod(shape) * dtype.itemsize
        if found != expected:
            raise DataError(
                f"{path}: expected {expected} bytes of {dtype} {shape}, found {found}. Copy or save the file again."
            )
        array = np.load(path, allow_pickle=False)
    return from_array(array, str(path), options)


def handle_nan(array: NDArray[Any], label: object, policy: str, notes: list[str]) -> NDArray[Any]:
    """Return the array with NaN and infinity set to 0, and note how many.

    Raises:
        DataError: there are some, and the policy is ``"raise"``, not ``"zero"``.
    """
    if array.dtype.kind != "f":
        return array
    finite = np.isfinite(array)
    count = int(array.size - np.count_nonzero(finite))
    if not count:
        return array
    if policy == "raise":
        raise DataError(
            f"{label}: expected finite values, found {count} of {array.size} NaN or infinite. "
            "Correct the file, or read it with nan='zero'."
        )
    notes.append(f"{count} NaN or infinite values set to 0")
    return np.where(finite, array, array.dtype.type(0))


def as_native(array: NDArray[Any]) -> NDArray[Any]:
    """Return the array C-contiguous and in native byte order, floats of another width as float32 or float64."""
    dtype = array.dtype.newbyteorder("=")
    if dtype.kind == "f" and dtype.itemsize not in (4, 8):
        dtype = np.dtype(np.float32 if dtype.itemsize < 4 else np.float64)
    return np.ascontiguousarray(array, dtype=dtype)


def integer_range(dtype: np.dtype[Any], bits: int) -> tuple[str, tuple[float, float] | None]:
    """Return the unit and value range of integers of up to 16 bits; the range of a wider type is never filled.

    >>> integer_range(np.dtype(np.uint16), 12)
    ('12-bit', (0.0, 4095.0))
    >>> integer_range(np.dtype(np.int16), 16)
    ('raw', (-32768.0, 32767.0))
    >>> integer_range(np.dtype(np.float32), 32)
    ('raw', None)
    """
    if dtype.kind == "f" or bits > 16:
        return "raw", None
    if dtype.kind == "i":
        return "raw", (float(-(2 ** (bits - 1))), float(2 ** (bits - 1) - 1))
    return f"{bits}-bit", (0.0, float(2**bits - 1))


def merge_equal_channels(values: NDArray[Any], notes: list[str]) -> NDArray[Any]:
    """Return one channel of three that are exactly equal, ``3 *s -> 1 *s``: grey that was stored as colour."""
    if values.shape[0] == 3 and np.array_equal(values[0], values[1]) and np.array_equal(values[0], values[2]):
        notes.append("three equal channels merged into one")
        return np.ascontiguousarray(values[:1])
    return values


def upright(values: NDArray[Any], orientation: int, notes: list[str]) -> NDArray[Any]:
    """Return ``c h w`` as the EXIF or TIFF orientation says it is displayed."""
    if orientation not in range(2, 9):
        return values
    notes.append(f"EXIF orientation {orientation} applied")
    if orientation >= 5:
        values = values.swapaxes(1, 2)
    down = -1 if orientation in (3, 4, 7, 8) else 1
    across = -1 if orientation in (2, 3, 6, 7) else 1
    return values[:, ::down, ::across]


def axis_directions(affine: NDArray[np.float64]) -> str:
    """Return the direction of each of the three axes of an affine, such as ``"LPS"``."""
    from nibabel.orientations import aff2axcodes

    return "".join(aff2axcodes(affine))


def voxel_sizes(affine: NDArray[np.float64]) -> tuple[float, ...]:
    """Return the mm between voxel centres along each of the three axes of an affine."""
    return tuple(float(size) for size in np.linalg.norm(affine[:3, :3], axis=0))


def has_independent_axes(affine: NDArray[np.float64]) -> bool:
    """Return whether an affine is finite and its three axes are linearly independent."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    usable = np.isfinite(affine).all() and (lengths > 0).all()
    return bool(usable and abs(np.linalg.det(affine[:3, :3] / lengths)) >= 1e-3)


def to_closest_ras(
    values: NDArray[Any], affine: NDArray[np.float64], notes: list[str]
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Permute and flip ``x y z *c`` until x y z point as nearly as they can to the right, front and head."""
    from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

    change = io_orientation(affine)
    if not np.array_equal(change, [[0, 1], [1, 1], [2, 1]]):
        notes.append(f"reoriented from {axis_directions(affine)} to RAS")
        affine = affine @ inv_ornt_aff(change, values.shape[:3])
        values = apply_orientation(values, change)
    return np.ascontiguousarray(values), np.asarray(affine, dtype=np.float64)
