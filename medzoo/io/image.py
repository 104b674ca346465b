"""What every reader returns: the pixels of one image, and what the file says they mean.

Axes: c channels, d h w depth height width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medzoo.errors import DataError

__all__ = ["Image"]


@dataclass(frozen=True, eq=False)
class Image:
    """One image as it was stored, with its geometry.

    Attributes:
        array: ``(c, h, w)`` or ``(c, d, h, w)``, a real dtype. A DICOM volume is (slices, rows, columns); a NIfTI,
            MHD or MHA volume is (x, y, z) in the closest canonical orientation.
        affine: 4 x 4, from the index of a voxel along the spatial axes to its centre in mm in the RAS+ world (x
            grows to the patient's right, y to the front, z to the head). ``None`` where the file has none. A 2D
            image with a place in the world uses columns 0, 1 for h, w and column 2 for the direction of its normal.
        spacing: mm between voxel centres, one for each spatial axis; ``None`` where the file does not say.
        modality: DICOM modality (``"CT"``, ``"MR"``, ``"DX"``...), ``""`` where the file does not say.
        unit: ``"HU"`` for CT, else ``"8-bit"``, ``"16-bit"``, ``"12-bit"``... for stored grey levels, ``"raw"`` for
            anything without a defined meaning.
        value_range: the lowest and highest value the storage could hold after the steps in ``notes``, such as
            ``(0, 255)``; ``None`` where values are unbounded. X-ray models scale by this, never by the image's own
            extremes.
        identity: ``file``, and for DICOM ``study``, ``series``, ``sop`` (instance UIDs), ``patient`` (hashed),
            ``view`` (AP, PA, LL...). Never a name, a date of birth or a patient id in the clear.
        notes: what the reader did, in words: ``"MONOCHROME1 inverted"``, ``"EXIF orientation 6 applied"``.
    """

    array: NDArray[Any]
    affine: NDArray[np.float64] | None = None
    spacing: tuple[float, ...] | None = None
    modality: str = ""
    unit: str = "raw"
    value_range: tuple[float, float] | None = None
    identity: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

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
        """Where each spatial axis points, such as ``"RAS"`` or ``"SPL"``; ``None`` without an affine."""
        if self.affine is None or self.dims != 3:
            return None
        from nibabel.orientations import aff2axcodes

        return "".join(aff2axcodes(self.affine))

    def __repr__(self) -> str:
        axes = "c h w" if self.dims == 2 else "c d h w"
        spacing = "unknown" if self.spacing is None else " x ".join(f"{s:g}" for s in self.spacing) + " mm"
        return (
            f"Image({axes} = {self.array.shape}, {self.array.dtype}, spacing {spacing}, "
            f"orientation {self.orientation}, modality {self.modality or 'unknown'}, unit {self.unit})"
        )
