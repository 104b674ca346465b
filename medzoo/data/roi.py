"""Regions of interest: the box of a mask or of six numbers, whose centre is what a row of a table is about.

Axes: c channels, x y z of a volume, n rows.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medzoo.data.columns import Columns
from medzoo.data.faults import quote
from medzoo.data.table_paths import find_images
from medzoo.data.table_points import PointsFrame, read_centres, to_ras
from medzoo.errors import ConfigError, DataError
from medzoo.io.dicom.pixels import load
from medzoo.io.dicom.segmentation import Segmentation, is_segmentation, read_segmentation
from medzoo.io.files import MAX_VOXELS, existing, identify
from medzoo.io.options import ReadOptions
from medzoo.io.read import read_image
from medzoo.progress import track

__all__ = ["Region", "Where", "note_sizes", "read_regions", "region_of_box", "region_of_mask", "region_of_segmentation"]

_SEPARATORS = re.compile(r"[\s,;]+")
LARGE = 64.0
"""Sides in mm over which a note says that a region is large: the patches of the packaged recipes have these."""


@dataclass(frozen=True)
class Region:
    """A box.

    Attributes:
        centre: in mm, RAS.
        sides: in mm, along its own axes.
    """

    centre: tuple[float, float, float]
    sides: tuple[float, float, float]


def region_of_box(text: str, frame: PointsFrame) -> Region | None:
    """Return the region of ``x0 y0 z0 x1 y1 z1`` in mm; ``None`` for a text that is no list of numbers.

    Raises:
        DataError: another count of numbers, or some that are not finite.

    >>> region_of_box("10 20 -30 30 40 -20", "LPS")
    Region(centre=(-20.0, -30.0, -25.0), sides=(20.0, 20.0, 10.0))
    """
    parts = [part for part in _SEPARATORS.split(text.strip("[]() ")) if part]
    try:
        found = [float(part) for part in parts]
    except ValueError:
        return None
    if len(found) != 6 or not all(map(math.isfinite, found)):
        raise DataError(f"expected six finite numbers, x0 y0 z0 x1 y1 z1 in mm, got {quote(text)}")
    corners = to_ras(np.reshape(found, (2, 3)), frame)
    return _region(corners.mean(0), np.abs(corners[1] - corners[0]))


def region_of_mask(path: str | os.PathLike[str]) -> Region:
    """Return the bounding box of what a mask marks: a volume of any format, or a DICOM segmentation object.

    A mask has one value beside 0: a label map of several structures has no single box.

    Raises:
        DataError: nothing is marked, several values, no geometry, or a file that cannot be read.
    """
    here = existing(path)
    is_dicom = not here.is_dir() and identify(here) == "dicom"
    if is_dicom and is_segmentation(load(here, max_voxels=MAX_VOXELS, tags=["SOPClassUID"])):
        return region_of_segmentation(read_segmentation(here))
    image = read_image(here, ReadOptions())
    if image.affine is None or len(image.array) != 1 or image.array.ndim != 4:
        raise DataError(f"{here}: expected a mask as a volume with a geometry, found another image. Use NIfTI or SEG.")
    marked = image.array[0] != 0
    if not marked.any():
        raise DataError(f"{here}: expected a mask with voxels above 0, found none. Correct the mask, or leave it out.")
    values = image.array[0][marked]
    if values.min() != values.max():
        raise DataError(
            f"{here}: expected a mask of 0 and one other value, found values from {values.min():g} to "
            f"{values.max():g}. Write the structure that matters to a mask of its own."
        )
    ends = [np.flatnonzero(marked.any(axis))[[0, -1]] for axis in ((1, 2), (0, 2), (0, 1))]
    low, high = np.array(ends, np.float64).T
    spacing = np.linalg.norm(image.affine[:3, :3], axis=0)
    return _region(image.affine[:3, :3] @ ((low + high) / 2) + image.affine[:3, 3], (high - low + 1) * spacing)


def region_of_segmentation(found: Segmentation) -> Region:
    """Return the bounding box of a segmentation object."""
    return _region((found.low + found.high) / 2 @ found.axes, found.high - found.low)


def _region(centre: NDArray[np.float64], sides: NDArray[np.float64]) -> Region:
    x, y, z = centre.tolist()
    a, b, c = sides.tolist()
    return Region((x, y, z), (a, b, c))


@dataclass(frozen=True)
class Where:
    """The columns that place rows in their images.

    Attributes:
        columns: three, with a point, or one, with a region.
        frame: of their numbers.
        is_region: whether it is a region.
    """

    columns: tuple[str, ...]
    frame: PointsFrame
    is_region: bool

    @classmethod
    def of(cls, point: Sequence[str] | None, roi: str | None, frame: PointsFrame) -> Where | None:
        """Return what was chosen; ``None`` for rows of complete images.

        Raises:
            ConfigError: both.
        """
        if point is not None and roi is not None:
            raise ConfigError("Table: expected point or roi, got both. Leave one out.")
        if roi is not None:
            return cls((roi,), frame, True)
        return None if point is None else cls(tuple(point), frame, False)

    def require(self, columns: Columns) -> None:
        """Raise a DataError unless the columns are there."""
        columns.require(**{"roi" if self.is_region else "point": self.columns})

    def read(
        self, columns: Columns, root: str | os.PathLike[str] | None
    ) -> tuple[NDArray[np.float64] | None, tuple[str, ...]]:
        """Return the centres ``n 3`` in mm, RAS, and notes; without the folder of the images, none for regions."""
        if not self.is_region:
            return read_centres(columns, self.columns, self.frame), ()
        return (None, ()) if root is None else read_regions(columns, self.columns[0], self.frame, root)


def read_regions(
    columns: Columns, name: str, frame: PointsFrame, root: str | os.PathLike[str]
) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Return the centres ``n 3`` in mm, RAS, and a note on the sizes; what is wrong is a fault, which is added.

    Args:
        columns: the table.
        name: a column with boxes, ``x0 y0 z0 x1 y1 z1`` in mm, or with the paths of masks.
        frame: of the numbers of boxes.
        root: folder of the masks.
    """
    cells, found, wrong = columns.values[name], dict[int, Region](), list[tuple[int, str]]()
    masks: list[int] = []
    for row, cell in enumerate(cells):
        try:
            box = region_of_box(cell, frame)
        except DataError:
            wrong.append((row, quote(cell) if cell else "blank"))
            continue
        if box is not None:
            found[row] = box
        else:
            masks.append(row)
    columns.faults.add_rows(
        f"regions in {quote(name)} that are neither a path nor six finite numbers", wrong,
        "Give the path of a mask, or x0 y0 z0 x1 y1 z1 in mm.",
    )  # fmt: skip
    paths = find_images([cells[row] for row in masks], root, columns.faults, "masks", masks)
    known: dict[str, Region | str] = {}
    unusable: list[tuple[int, str]] = []
    for row, path in track(list(zip(masks, paths, strict=True)), "reading masks"):
        if not path:
            continue
        if path not in known:
            try:
                known[path] = region_of_mask(path)
            except DataError as error:
                known[path] = str(error)
        one = known[path]
        if isinstance(one, str):
            unusable.append((row, one))
        else:
            found[row] = one
    columns.faults.add_rows("masks that cannot be used", unusable, "Correct them, or remove the rows.")
    centres = np.full((len(columns), 3), math.nan)
    for row, region in found.items():
        centres[row] = region.centre
    return centres, note_sizes([region.sides for region in found.values()])


def note_sizes(sides: Sequence[tuple[float, float, float]], what: str = "regions") -> tuple[str, ...]:
    """Return a note on how large regions are, as a patch has to hold them.

    >>> note_sizes([(10, 20, 15), (80, 30, 30)])
    ('regions: the longest sides are 20 to 80 mm, median 50; 1 of 2 are longer than 64 mm',)
    """
    if not sides:
        return ()
    longest = np.array(sides).max(1)
    large = int((longest > LARGE).sum())
    return (
        f"{what}: the longest sides are {longest.min():.0f} to {longest.max():.0f} mm, median "
        f"{np.median(longest):.0f}; {large:,} of {len(sides):,} are longer than {LARGE:.0f} mm",
    )
