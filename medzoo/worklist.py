"""What there is to predict: from files, folders, arrays and points to one task for each prediction."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from medzoo.classifier import Classifier
from medzoo.data.arrays import from_array
from medzoo.data.files import MAX_VOXELS, identify
from medzoo.data.image import Image
from medzoo.data.points import Point, read_points
from medzoo.data.transform import Source, transform
from medzoo.errors import ConfigError, DataError, InputError

__all__ = ["Plan", "Points", "Task", "plan"]

NOWHERE: Point = (math.nan, math.nan, math.nan)
Points = str | os.PathLike[str] | Sequence[Sequence[float]]


@dataclass(frozen=True, eq=False)
class Task:
    """One image to prepare: a file, the files of a series, or an image in memory.

    Attributes:
        label: what to call it.
        image: what the transform takes, or the paths of a series.
        in_memory: whether a fault in it is the caller's, and is raised, or the file's, and is kept.
        point: centre of a patch in mm, RAS.
        given_point: the same as the caller gave it.
    """

    label: str
    image: Source | tuple[Path, ...]
    in_memory: bool
    point: Point | None = None
    given_point: Point | None = None


@dataclass(frozen=True)
class Plan:
    """What to predict.

    Attributes:
        tasks: one for each prediction.
        skipped: what is passed over, and why.
        single: whether the caller asked for one image and gets one prediction.
    """

    tasks: tuple[Task, ...]
    skipped: Mapping[str, str]
    single: bool


def plan(
    model: Classifier, source: Source | Sequence[Source], points: Points | None = None, points_frame: str = "LPS"
) -> Plan:
    """List what there is to predict; headers are read, pixels are not."""
    is_list = isinstance(source, (list, tuple))
    sources: Sequence[Any] = source if isinstance(source, (list, tuple)) else [source]
    tasks: list[Task] = []
    skipped: dict[str, str] = {}
    trees = False
    for place, item in enumerate(sources):
        if isinstance(item, (Image, np.ndarray, Tensor)):
            label = f"array {place}" if is_list else "the array"
            tasks.append(Task(label, _labelled(item, label), in_memory=True))
        elif isinstance(item, (str, os.PathLike)):
            found, passed, whole = _files(model, Path(item))
            tasks += found
            skipped |= passed
            trees |= not whole
        else:
            raise InputError(
                f"{model.name}: expected a path, a medzoo.Image or an array (c, ...), got {type(item).__name__}. "
                "Use numpy.asarray(...) to make an array."
            )
    single = not is_list and not trees and points is None
    patch = model.preprocessing.patch if model.preprocessing else None
    if (points is None) != (patch is None):
        # The transform says which of the two is missing.
        transform(model).check_point(None if points is None else (0.0, 0.0, 0.0))
    if points is not None:
        tasks = _with_points(tasks, read_points(points), points_frame, model.name)
    return Plan(tuple(tasks), skipped, single)


def _labelled(item: Image | NDArray[Any] | Tensor, label: str) -> Image:
    """Give something in memory a name for messages."""
    if not isinstance(item, Image):
        array = item.detach().cpu().numpy() if isinstance(item, Tensor) else item
        return from_array(array, label, nan="raise", max_voxels=MAX_VOXELS)
    if "file" in item.identity:
        return item
    return replace(item, identity={**item.identity, "file": label})


def _files(model: Classifier, path: Path) -> tuple[list[Task], dict[str, str], bool]:
    """Return the tasks under a path, what is passed over, and whether it is a single image."""
    from medzoo.data.folder import scan

    if not path.is_dir():
        return [Task(str(path), path, in_memory=False)], {}, True
    tasks, skipped = [], {}
    for source in scan(path):
        if source.kind == "skip":
            skipped[str(source.paths[0])] = source.reason
        elif source.kind == "series" and model.input_spec.dims == 3:
            tasks.append(Task(str(source.paths[0]), source.paths, in_memory=False))
        else:
            tasks += [Task(str(file), file, in_memory=False) for file in source.paths]
    one_series = len(tasks) == 1 and isinstance(tasks[0].image, tuple) and not skipped
    return tasks, skipped, one_series


def _with_points(tasks: list[Task], points: Mapping[str, list[Point]], frame: str, who: str) -> list[Task]:
    """Make one task of each point of each image; points without a series belong to the only image."""
    if frame not in ("LPS", "RAS"):
        raise ConfigError(f"{who}: expected points_frame 'LPS' or 'RAS', got {frame!r}.")
    if "" in points and len(tasks) != 1:
        raise ConfigError(
            f"{who}: expected a column seriesuid that says which of {len(tasks)} images each point belongs to, got "
            "none. Add it, or give one image."
        )
    sign = -1.0 if frame == "LPS" else 1.0
    out = []
    for task in tasks:
        try:
            mine = points.get("") or points.get(_series_name(task), [])
        except DataError:
            mine = [NOWHERE]  # its reading fails again, and is then kept with the reason
        out += [replace(task, point=(sign * x, sign * y, z), given_point=(x, y, z)) for x, y, z in mine]
    return out


def _series_name(task: Task) -> str:
    """Return what a table of points calls a scan: the UID of a DICOM series, else the name of the file."""
    from medzoo.data.dicom_pixels import load

    path = task.image[0] if isinstance(task.image, tuple) else task.image
    if not isinstance(path, (str, os.PathLike)):
        return ""
    path = Path(path)
    if identify(path) == "dicom":
        return str(load(path, max_voxels=MAX_VOXELS, tags=["SeriesInstanceUID"]).get("SeriesInstanceUID") or "")
    name = path.name
    for suffix in (".nii.gz", ".nii", ".mhd", ".mha"):
        name = name.removesuffix(suffix)
    return name
