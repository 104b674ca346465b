"""Any image file or series folder to one :class:`~medzoo.io.image.Image`, by the reader of its format.

The readers use the format's own library. MONAI's are not used here: its Pillow reader swaps the image axes, its DICOM
reader knows no MONOCHROME1 and no frame order.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from medzoo.errors import ConfigError
from medzoo.io.files import MAX_VOXELS, existing, identify, unknown
from medzoo.io.image import Image

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
        frame: which one of several to take, from 0: a frame of a multi-frame DICOM file, a slice of a DICOM series by
            its place along the normal, a page of a TIFF, a volume of a 4D NIfTI. ``None`` takes a multi-frame DICOM
            file as a volume, and refuses the others where there are several.
        nan: ``"raise"`` refuses NaN and infinite values, ``"zero"`` replaces them and says how many.
        max_voxels: refuse, before memory is set aside, an image of more values than this.

    Returns:
        The image as it was stored: see :class:`~medzoo.io.image.Image` for axes, units and geometry.

    Raises:
        DataError: anything that is wrong with the file.
        ConfigError: ``frame``, ``nan`` or ``max_voxels`` that cannot be.

    >>> import numpy as np
    >>> read(np.zeros((1, 48, 64), dtype=np.uint8))
    Image(c h w = (1, 48, 64), uint8, spacing unknown, orientation None, modality unknown, unit 8-bit)
    >>> read("chest.dcm")
    Traceback (most recent call last):
    medzoo.errors.DataError: chest.dcm: expected a file or folder, found nothing there. Check the path.
    """
    if nan not in ("raise", "zero"):
        raise ConfigError(f"read: expected nan='raise' or nan='zero', got {nan!r}.")
    if frame is not None and (isinstance(frame, bool) or not isinstance(frame, int) or frame < 0):
        raise ConfigError(f"read: expected frame=None or a number from 0, got {frame!r}.")
    if isinstance(max_voxels, bool) or not isinstance(max_voxels, int) or max_voxels < 1:
        raise ConfigError(f"read: expected max_voxels to be an int >= 1, got {max_voxels!r}.")
    if not isinstance(path, (str, os.PathLike)):
        from medzoo.io.arrays import from_array

        return from_array(path, "the array", nan=nan, max_voxels=max_voxels)
    here = existing(path)
    if here.is_dir():
        from medzoo.io.dicom.series import read_series
        from medzoo.io.folder import series_of

        return read_series(series_of(here), frame=frame, nan=nan, max_voxels=max_voxels)
    return _read_file(here, frame, nan, max_voxels)


def _read_file(path: Path, frame: int | None, nan: str, max_voxels: int) -> Image:
    """Call the reader for the bytes of one file; each loads its library only here."""
    kind = identify(path)
    if kind in ("png", "jpeg", "tiff"):
        from medzoo.io.raster import read_raster

        return read_raster(path, kind, frame=frame, nan=nan, max_voxels=max_voxels)
    if kind == "dicom":
        from medzoo.io.dicom.read import read_dicom

        return read_dicom(path, frame=frame, nan=nan, max_voxels=max_voxels)
    if kind in ("nifti", "nifti.gz"):
        from medzoo.io.nifti import read_nifti

        return read_nifti(path, kind, frame=frame, nan=nan, max_voxels=max_voxels)
    if kind == "metaimage":
        from medzoo.io.metaimage import read_metaimage

        return read_metaimage(path, frame=frame, nan=nan, max_voxels=max_voxels)
    if kind == "npy":
        from medzoo.io.arrays import read_npy

        return read_npy(path, frame=frame, nan=nan, max_voxels=max_voxels)
    raise unknown(path)
