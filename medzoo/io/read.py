"""``medzoo.read``: any image file or series folder to one :class:`~medzoo.Image`, by the reader of its format.

Each reader uses the reference library of its format. MONAI's are not used: its Pillow reader swaps the image axes, and
its DICOM reader handles neither MONOCHROME1 nor the order of frames.
"""

from __future__ import annotations

import os
from typing import Any, Literal

from numpy.typing import NDArray

from medzoo.errors import ConfigError, check_int
from medzoo.io.dicom.read import read_dicom
from medzoo.io.dicom.series import read_series
from medzoo.io.files import MAX_VOXELS, existing, identify, unknown_format
from medzoo.io.folder import single_series
from medzoo.io.image import Image, from_array, read_npy
from medzoo.io.metaimage import read_metaimage
from medzoo.io.nifti import read_nifti
from medzoo.io.raster import read_raster

__all__ = ["read"]


def read(
    path: str | os.PathLike[str] | NDArray[Any],
    *,
    frame: int | None = None,
    nan: Literal["raise", "zero"] = "raise",
    max_voxels: int = MAX_VOXELS,
) -> Image:
    """Read one image: PNG, JPEG, TIFF, DICOM, NIfTI, MHD, MHA, NPY, or a folder with one DICOM series.

    Args:
        path: a file, a folder that holds exactly one DICOM series, or an array ``(c, h, w)`` or ``(c, d, h, w)``.
        frame: which one of several to read, from 0: a frame of a multi-frame DICOM file, a slice of a DICOM series
            counted along its normal, a page of a TIFF, a volume of a 4D NIfTI. ``None`` reads a multi-frame DICOM
            file as a volume, and is an error for the other formats where there are several.
        nan: ``"raise"`` refuses NaN and infinite values, ``"zero"`` sets them to 0 and notes how many.
        max_voxels: the most values of the image, checked before memory is allocated.

    Returns:
        The image as it was stored: see :class:`~medzoo.Image` for axes, units and geometry.

    Raises:
        DataError: anything that is wrong with the file.
        ConfigError: an invalid ``frame``, ``nan`` or ``max_voxels``.

    >>> import numpy as np
    >>> read(np.zeros((1, 48, 64), dtype=np.uint8))
    Image(c h w = (1, 48, 64), uint8, spacing unknown, orientation None, modality unknown, unit 8-bit)
    >>> read("chest.dcm")
    Traceback (most recent call last):
    medzoo.errors.DataError: chest.dcm: expected a file or folder, found nothing there. Check the path.
    """
    if nan not in ("raise", "zero"):
        raise ConfigError(f"read: expected nan='raise' or nan='zero', got {nan!r}.")
    if frame is not None:
        frame = check_int("read", "frame", frame, 0)
    max_voxels = check_int("read", "max_voxels", max_voxels, 1)
    if not isinstance(path, (str, os.PathLike)):
        return from_array(path, "the array", nan=nan, max_voxels=max_voxels)
    here = existing(path)
    if here.is_dir():
        return read_series(single_series(here), frame=frame, nan=nan, max_voxels=max_voxels)
    kind = identify(here)  # a reader imports its library when it is called
    if kind in ("png", "jpeg", "tiff"):
        return read_raster(here, kind, frame=frame, nan=nan, max_voxels=max_voxels)
    if kind == "dicom":
        return read_dicom(here, frame=frame, nan=nan, max_voxels=max_voxels)
    if kind in ("nifti", "nifti.gz"):
        return read_nifti(here, kind, frame=frame, nan=nan, max_voxels=max_voxels)
    if kind == "metaimage":
        return read_metaimage(here, frame=frame, nan=nan, max_voxels=max_voxels)
    if kind == "npy":
        return read_npy(here, frame=frame, nan=nan, max_voxels=max_voxels)
    raise unknown_format(here)
