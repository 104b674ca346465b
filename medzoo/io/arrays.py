"""NumPy arrays and ``.npy`` files, which say nothing but numbers: no geometry, no unit.

Axes: c channels, d h w depth height width.
"""

from __future__ import annotations

import math
from pathlib import Path
from tokenize import TokenError  # NumPy parses the header of a file as Python
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medzoo.errors import DataError
from medzoo.io.files import check_size, refusing
from medzoo.io.image import Image

__all__ = ["as_real", "from_array", "read_npy", "settle_nan"]


def settle_nan(array: NDArray[Any], label: object, policy: str) -> tuple[NDArray[Any], tuple[str, ...]]:
    """Refuse NaN and infinite values, or set them to zero and say how many.

    Raises:
        DataError: there are some, and the policy is ``"raise"``.
    """
    if array.dtype.kind != "f":
        return array, ()
    finite = np.isfinite(array)
    bad = int(array.size - np.count_nonzero(finite))
    if not bad:
        return array, ()
    if policy == "raise":
        raise DataError(
            f"{label}: expected finite values, found {bad} of {array.size} NaN or infinite. "
            "Mend the file, or read it with nan='zero'."
        )
    return np.where(finite, array, array.dtype.type(0)), (f"{bad} NaN or infinite values set to 0",)


def as_real(array: NDArray[Any]) -> NDArray[Any]:
    """Return the array C-contiguous, in native byte order, and in no float wider or narrower than C knows."""
    dtype = array.dtype.newbyteorder("=")
    if dtype.kind == "f" and dtype.itemsize not in (4, 8):
        dtype = np.dtype(np.float32 if dtype.itemsize < 4 else np.float64)
    return np.ascontiguousarray(array, dtype=dtype)


def from_array(array: NDArray[Any], label: str, *, nan: str, max_voxels: int) -> Image:
    """Return an array as an image, ``h w``, ``c h w`` or ``c d h w``.

    Raises:
        DataError: not numbers, another number of axes, or a volume without its channel axis.
    """
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "uifb":
        got = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise DataError(f"{label}: expected a path or an array of real numbers, got {got}. Convert it to float32.")
    if array.ndim not in (2, 3, 4):
        raise DataError(
            f"{label}: expected axes (h, w), (c, h, w) or (c, d, h, w), got shape {array.shape}. "
            "Give one image, with its channels first."
        )
    if array.ndim == 3 and array.shape[0] > 4:
        raise DataError(
            f"{label}: expected (c, h, w) with up to 4 channels, got shape {array.shape}. "
            "Put an axis in front of a volume, array[None], and the channels first in a colour image."
        )
    check_size(Path(label), array.size, max_voxels, " × ".join(map(str, array.shape)))
    values, notes = settle_nan(as_real(array), label, nan)
    if values.ndim == 2:
        values = values[None]
    if values.dtype.kind == "f":
        return Image(values, identity={"file": label}, notes=notes)
    if values.dtype.kind == "b":
        return Image(values.astype(np.uint8), unit="1-bit", value_range=(0.0, 1.0), identity={"file": label})
    info = np.iinfo(values.dtype)
    if info.bits > 16:  # no image fills these: the type says nothing of the range
        return Image(values, identity={"file": label})
    unit = f"{info.bits}-bit" if values.dtype.kind == "u" else "raw"
    return Image(values, unit=unit, value_range=(float(info.min), float(info.max)), identity={"file": label})


def read_npy(path: Path, *, frame: int | None, nan: str, max_voxels: int) -> Image:
    """Read a ``.npy`` file; pickled objects in it are never loaded.

    Raises:
        DataError: not an array of numbers, cut short, or too large.
    """
    if frame is not None:
        raise DataError(f"{path}: an NPY file has no frames, got frame={frame}. Leave frame out.")
    with refusing(path, "an NPY array", TokenError), path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(file)
        if dtype.hasobject:
            raise DataError(f"{path}: expected numbers, found pickled objects, which are never loaded. Save numbers.")
        check_size(path, math.prod(shape), max_voxels, " × ".join(map(str, shape)) or "a single number")
        found, claimed = path.stat().st_size - file.tell(), math.prod(shape) * dtype.itemsize
        if found != claimed:
            raise DataError(
                f"{path}: expected {claimed} bytes of {dtype} {shape}, found {found}. Copy or save the file again."
            )
        array = np.load(path, allow_pickle=False)
    return from_array(array, str(path), nan=nan, max_voxels=max_voxels)
