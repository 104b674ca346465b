"""``medzoo.read``: any image file or series folder to one :class:`~medzoo.Image`, by the reader of its format.

Each reader uses the reference library of its format. MONAI's are not used: its Pillow reader swaps the image axes, and
its DICOM reader handles neither MONOCHROME1 nor the order of frames.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from medzoo.errors import DataError
from medzoo.io.dicom.read import read_dicom
from medzoo.io.dicom.record import HeaderRecord
from medzoo.io.dicom.series import read_series
from medzoo.io.dicom.slices import Slice
from medzoo.io.files import MAX_VOXELS, existing, identify, unknown_format
from medzoo.io.folder import single_series
from medzoo.io.image import Image, from_array, read_npy
from medzoo.io.metaimage import read_metaimage
from medzoo.io.nifti import read_nifti
from medzoo.io.options import ReadOptions
from medzoo.io.raster import read_raster
from medzoo.warn import warn

__all__ = ["read", "read_image", "read_scanned"]


def read(
    path: str | os.PathLike[str] | NDArray[Any],
    *,
    frame: int | None = None,
    stack: int | None = None,
    channel_axis: int | None = None,
    nan: Literal["raise", "zero"] = "raise",
    max_voxels: int = MAX_VOXELS,
) -> Image:
    """Read one image: PNG, JPEG, TIFF, DICOM, NIfTI, MHD, MHA, NPY, or a folder with one DICOM series.

    What is known against the image, such as slices beside it that cannot be read, is in its ``warning``, and is issued
    as a Python warning.

    Args:
        path: a file, a folder that holds exactly one DICOM series, or an array ``(c, h, w)`` or ``(c, d, h, w)``.
        frame: which one of several to read, from 0: a frame of a multi-frame DICOM file in the order in which it is
            stored, a slice of a DICOM series counted along its normal, a page of a TIFF, a volume of a 4D NIfTI.
            ``None`` reads a multi-frame DICOM file as a volume with its frames sorted by position, and is an error for
            the other formats where there are several.
        stack: which one of several stacks of a multi-frame DICOM file or of the series of a folder, in the order in
            which the error names them.
        channel_axis: the axis of the file, from 0, that holds channels: 3 for a NIfTI of x, y, z and channels, as BraTS
            stacks four sequences. With 3 or -1, the stacks of a DICOM series or file are the channels, if their
            geometry is identical. The result is ``(c, d, h, w)``.
        nan: ``"raise"`` refuses NaN and infinite values, ``"zero"`` sets them to 0 and notes how many.
        max_voxels: the most values of the image, checked before memory is allocated.

    Returns:
        The image as it was stored: see :class:`~medzoo.Image` for axes, units and geometry.

    Raises:
        DataError: anything that is wrong with the file.
        ConfigError: an invalid option.

    >>> import numpy as np
    >>> read(np.zeros((1, 48, 64), dtype=np.uint8))
    Image(c h w = (1, 48, 64), uint8, spacing unknown, orientation None, modality unknown, unit 8-bit)
    >>> read("chest.dcm")
    Traceback (most recent call last):
    medzoo.errors.DataError: chest.dcm: expected a file or folder, found nothing there. Check the path.
    """
    options = ReadOptions(frame=frame, stack=stack, channel_axis=channel_axis, nan=nan, max_voxels=max_voxels)
    image = read_image(path, options)
    if image.warning:
        warn(f"{image.identity.get('file', 'the array')}: {image.warning}")
    return image


def read_image(path: str | os.PathLike[str] | NDArray[Any] | tuple[Path, ...], options: ReadOptions) -> Image:
    """Read one image as :func:`medzoo.read` does, or the files of a series, without issuing the image's warning."""
    if isinstance(path, tuple):
        return read_series(path, options)
    if not isinstance(path, (str, os.PathLike)):
        return from_array(path, "the array", options)
    here = existing(path)
    if here.is_dir():
        series = single_series(here, options)
        own = replace(options, stack=series.stack)
        try:
            return read_series(series.paths, own, series.headers).with_stack(series.name).with_warning(series.warning)
        except DataError as error:  # such as a gap, where slices beside it cannot be read
            raise DataError(" ".join(filter(None, (str(error), series.warning)))) from None
    return _read_file(here, options)


def read_scanned(headers: Sequence[Slice], options: ReadOptions) -> Image:
    """Read the DICOM files of one image as :func:`read_image` does, without parsing again what a scan has parsed.

    Args:
        headers: of the files, as the scan found them.
        options: what to read.
    """
    if len(headers) > 1:
        return read_series([one.path for one in headers], options, headers)
    return _read_file(existing(headers[0].path), options, headers[0].record)


def _read_file(path: Path, options: ReadOptions, record: HeaderRecord | None = None) -> Image:
    """Read a file by its content; a reader imports its library when it is called."""
    kind = identify(path)
    if kind in ("png", "jpeg", "tiff"):
        return read_raster(path, kind, options)
    if kind == "dicom":
        return read_dicom(path, options, record)
    if kind in ("nifti", "nifti.gz"):
        return read_nifti(path, kind, options)
    if kind == "metaimage":
        return read_metaimage(path, options)
    if kind == "npy":
        return read_npy(path, options)
    raise unknown_format(path)
