"""The pixels of uncompressed slices straight into the volume, for those with the header of the first.

The first slice is read twice, by :func:`~medzoo.io.dicom.read.read_dicom` and directly. Only if the values are equal
are others read directly: what depends on the header alone is then as it was for the first. What depends on the pixels,
such as values beyond the stored bits, is checked for each, and a slice where it is unusual is left to ``read_dicom``.

Axes: d slices, h w rows and columns.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medzoo.errors import DataError
from medzoo.io.dicom import header
from medzoo.io.dicom.layout import UNDEFINED
from medzoo.io.dicom.module import MEASUREMENTS, pixel_module
from medzoo.io.dicom.record import HeaderRecord, state_of
from medzoo.io.dicom.rescale import Rescale, rescale_values
from medzoo.io.image import Image

__all__ = ["fill_alike"]


@dataclass(frozen=True)
class _Form:
    """How the values of a slice are made of its bytes.

    Attributes:
        record: of the first slice.
        stored: the dtype of a sample.
        low: the lowest value that the stored bits can hold.
        high: the highest.
        rescale: slope and intercept; ``None`` for values as stored.
    """

    record: HeaderRecord
    stored: np.dtype[Any]
    low: float
    high: float
    rescale: Rescale | None


def fill_alike(volume: NDArray[Any], files: Sequence[tuple[Path, HeaderRecord | None]], first: Image) -> list[bool]:
    """Read the slices that can be read directly into a volume, and return which they are.

    Args:
        volume: ``d h w``, of the dtype of the first slice.
        files: the path and the record of each slice.
        first: the first slice.
    """
    path, record = files[0]
    form = _form_of(record, path, volume) if record else None
    if form is None or not (_fill(volume[0], path, record, form) and np.array_equal(volume[0], first.array[0])):
        return [False] * len(files)
    # One after the other: threads do not pay, since what takes time is the copy from the system's cache to memory.
    return [True, *(_fill(out, path, one, form) for out, (path, one) in zip(volume[1:], files[1:], strict=True))]


def _form_of(record: HeaderRecord, path: Path, volume: NDArray[Any]) -> _Form | None:
    """Return how slices with this header are read; ``None`` where that takes more than a rescale."""
    if record.length == UNDEFINED:
        return None
    ds = record.dataset(bytes(record.length))
    try:
        with header.wrap_dicom_errors(path, "a DICOM image"):
            module, modality = pixel_module(ds, None, True, [], []), header.modality_of(ds)
            low, high = module.range
            rescale = rescale_values(low, high, True, ds, path, 0)
    except DataError:
        return None
    photometric = ("MONOCHROME1", "MONOCHROME2") if modality in MEASUREMENTS else ("MONOCHROME2",)
    grey = modality in MEASUREMENTS | {"MR"} and module.photometric in photometric  # neither window nor inversion
    if not grey or module.samples != 1 or module.frames != 1 or module.shift or module.allocated not in (8, 16, 32):
        return None
    stored = np.dtype(f"<{'i' if module.signed else 'u'}{module.allocated // 8}")
    size = module.rows * module.columns * stored.itemsize
    dtype = rescale.dtype if rescale else stored
    if record.length < size or (module.rows, module.columns) != volume.shape[1:] or dtype != volume.dtype:
        return None
    if rescale and max(abs(rescale.low), abs(rescale.high)) > float(np.finfo(np.float32).max):  # infinite values
        return None
    return _Form(record, stored, low, high, rescale)


def _fill(out: NDArray[Any], path: Path, record: HeaderRecord | None, form: _Form) -> bool:
    """Read one slice; return ``False`` where it differs from the first in more than its pixels, or is unusual."""
    if record is None or record.length != form.record.length or record.shared != form.record.shared:
        return False
    raw = out if out.dtype.itemsize == form.stored.itemsize else np.empty(out.shape, form.stored)
    try:
        with path.open("rb", buffering=0) as file:
            if state_of(os.fstat(file.fileno())) != record.state:
                return False
            file.seek(record.offset)
            if file.readinto(raw.data.cast("B")) != raw.nbytes:
                return False
    except OSError:  # reading it once more reports it
        return False
    stored = raw.view(form.stored)
    info = np.iinfo(form.stored)
    if (form.low > info.min and stored.min() < form.low) or (form.high < info.max and stored.max() > form.high):
        return False
    if form.rescale is not None:  # of integers as wide as the result, the bits stay where they are
        form.rescale.apply(out if raw is out and out.dtype.kind in "iu" else stored, out)
    return True
