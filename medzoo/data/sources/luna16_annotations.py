"""The annotated nodules of LUNA16.

Axes: n nodules.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medzoo.data.sources.luna16_places import read_places
from medzoo.data.sources.tree import one_file, walk_tree
from medzoo.data.texts import StrArray
from medzoo.errors import DataError

__all__ = ["ANNOTATIONS", "Annotations", "find_csv", "read_annotations", "read_nodules"]

ANNOTATIONS = "annotations.csv"
_EXCLUDED = "annotations_excluded.csv"


@dataclass(frozen=True, eq=False)
class Annotations:
    """Annotated nodules.

    Attributes:
        series: ``n``, the seriesuid of each one's scan, which is the name of its file without the suffix.
        centres: ``n 3`` in mm, RAS.
        diameters: ``n`` in mm. Excluded findings may have one of -1, for which the challenge's script takes 10 mm.
        excluded: ``n``, whether it is of ``annotations_excluded.csv``: a mark there counts neither as a hit nor as a
            false positive.
    """

    series: StrArray
    centres: NDArray[np.float64]
    diameters: NDArray[np.float64]
    excluded: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.series)


def find_csv(folder: Path, name: str) -> Path | None:
    """Return a CSV file of the set, which may be beside the subsets or in a folder of its own."""
    return one_file((here / name for here, names in walk_tree(folder) if name in names), name, folder)


def read_annotations(folder: Path) -> Annotations:
    """Return the nodules of ``annotations.csv``, then the findings of ``annotations_excluded.csv`` if it is there.

    Args:
        folder: the one that holds the subsets and the CSV files, at any depth.

    Raises:
        DataError: there is no ``annotations.csv``, or a file is wrong.
    """
    path = find_csv(folder, ANNOTATIONS)
    if path is None:
        raise DataError(
            f"{folder}: expected {ANNOTATIONS} in it or in a folder below, found none. Download it from the same page "
            "as the scans."
        )
    nodules, other = read_nodules(path), find_csv(folder, _EXCLUDED)
    if other is None:
        return nodules
    more = read_nodules(other, excluded=True)
    pairs = zip(vars(nodules).values(), vars(more).values(), strict=True)
    return Annotations(*(np.concatenate(pair) for pair in pairs))


def read_nodules(path: Path, *, excluded: bool = False) -> Annotations:
    """Return the nodules of one of the two files.

    Raises:
        DataError: the file is wrong.
    """
    places = read_places(path, "diameter_mm")
    if not excluded:
        flat = np.flatnonzero(places.values <= 0)
        places.faults.add_rows(
            "nodules whose diameter is not above 0 mm", ((int(row), f"{places.values[row]:g}") for row in flat),
            "Copy the file again from its source.",
        )  # fmt: skip
    places.faults.check()
    return Annotations(
        places.names[places.series], places.points, places.values, np.full(len(places), excluded, np.bool_)
    )
