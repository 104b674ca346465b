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
from medzoo.errors import ConfigError, DataError, InputError
from medzoo.inference.points import Point, read_points
from medzoo.io.arrays import from_array
from medzoo.io.files import MAX_VOXELS, existing, identify
from medzoo.io.folder import Source as Found
from medzoo.io.folder import group, scan
from medzoo.io.image import Image
from medzoo.transforms.transform import Source, as_array, not_an_image, transform

__all__ = ["Plan", "Points", "Task", "plan"]

NOWHERE: Point = (math.nan, math.nan, math.nan)
Points = str | os.PathLike[str] | Sequence[Sequence[float]]


@dataclass(frozen=True, eq=False)
class Task:
    """One image to prepare: a file, the files of a series, or an image in memory.

    Attributes:
        label: what to call it.
        image: a file, the files of a series, or an image in memory.
        in_memory: whether a fault in it is the caller's, and is raised, or the file's, and is kept.
        point: centre of a patch in mm, RAS.
        given_point: the same as the caller gave it.
    """

    label: str
    image: Path | Image | tuple[Path, ...]
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
    files = [Path(item) for item in sources if isinstance(item, (str, os.PathLike)) and not _is_folder(item)]
    # Slices of a series that were named one by one belong together, as they do in a folder.
    together = len(files) > 1
    tasks: list[Task] = []
    skipped: dict[str, str] = {}
    one_image = True
    for place, item in enumerate(sources):
        if isinstance(item, (Image, np.ndarray, Tensor)):
            image = _labelled(item, f"array {place}" if is_list else "the array")
            tasks.append(Task(image.identity["file"], image, in_memory=True))
        elif not isinstance(item, (str, os.PathLike)):
            raise not_an_image(item, model.name)
        elif not str(item).strip():
            raise InputError(f"{model.name}: expected a path, got an empty one. Check the variable it came from.")
        elif _is_folder(item):
            found = _tasks(model, scan(item), skipped)
            one_image &= len(found) == 1 and isinstance(found[0].image, tuple)
            tasks += found
        elif not together:
            tasks.append(Task(str(item), Path(item), in_memory=False))
        elif files:
            tasks += _tasks(model, group(files, Path()), skipped)
            files = []
    single = not is_list and one_image and points is None
    patch = model.preprocessing.patch if model.preprocessing else None
    if (points is None) != (patch is None):
        # The transform says which of the two is missing.
        transform(model).check_point(None if points is None else (0.0, 0.0, 0.0))
    if points is not None:
        tasks = _with_points(tasks, read_points(points), points_frame, model.name, skipped)
    return Plan(tuple(tasks), skipped, single)


def _is_folder(item: str | os.PathLike[str]) -> bool:
    try:
        return Path(item).is_dir()
    except (OSError, ValueError):  # a name that no file can have; its reading says so
        return False


def _labelled(item: Image | NDArray[Any] | Tensor, label: str) -> Image:
    """Give something in memory a name for messages."""
    if not isinstance(item, Image):
        array = as_array(item) if isinstance(item, Tensor) else item
        return from_array(array, label, nan="raise", max_voxels=MAX_VOXELS)
    if "file" in item.identity:
        return item
    return replace(item, identity={**item.identity, "file": label})


def _tasks(model: Classifier, found: Sequence[Found], skipped: dict[str, str]) -> list[Task]:
    """Return the tasks of what was found; what is no image is added to ``skipped``."""
    tasks = []
    for source in found:
        if source.kind == "skip":
            skipped[str(source.paths[0])] = source.reason
        elif source.kind == "series" and model.input_spec.dims == 3:
            tasks.append(Task(str(source.paths[0]), source.paths, in_memory=False))
        else:
            tasks += [Task(str(file), file, in_memory=False) for file in source.paths]
    return tasks


def _with_points(
    tasks: list[Task], points: Mapping[str, list[Point]], frame: str, who: str, skipped: dict[str, str]
) -> list[Task]:
    """Make one task of each point of each image; points without a series belong to the only image.

    An image without a point, and points of no image, are added to ``skipped``.
    """
    if frame not in ("LPS", "RAS"):
        raise ConfigError(f"{who}: expected points_frame 'LPS' or 'RAS', got {frame!r}.")
    if "" in points and len(tasks) != 1:
        raise ConfigError(
            f"{who}: expected a column seriesuid that says which of {len(tasks)} images each point belongs to, got "
            "none. Add it, or give one image."
        )
    sign = -1.0 if frame == "LPS" else 1.0
    out: list[Task] = []
    left = {name: len(mine) for name, mine in points.items() if name}
    for task in tasks:
        try:
            name = _series_name(task)
        except DataError:
            out.append(replace(task, point=NOWHERE))  # its reading fails again, and is then kept with the reason
            continue
        mine = points.get("") or points.get(name, [])
        left.pop(name, None)
        if not mine:
            skipped[task.label] = f"no point is given for {name!r}"
        out += [replace(task, point=(sign * x, sign * y, z), given_point=(x, y, z)) for x, y, z in mine]
    if not out and tasks:
        raise DataError(
            f"{who}: no point belongs to an image: the points name {', '.join(list(left)[:3]) or 'none'}, the images "
            f"are {', '.join(_series_name(task) for task in tasks[:3])}. Check the column seriesuid."
        )
    skipped |= {f"points of {name}": f"{count} points of a scan that was not given" for name, count in left.items()}
    return out


def _series_name(task: Task) -> str:
    """Return what a table of points calls a scan: the UID of a DICOM series, else the name of the file."""
    from medzoo.io.dicom.pixels import load

    image = task.image[0] if isinstance(task.image, tuple) else task.image
    if isinstance(image, Image) and image.identity.get("series"):
        return image.identity["series"]
    path = Path(image.identity["file"] if isinstance(image, Image) else str(image))
    if not isinstance(image, Image) and identify(existing(path)) == "dicom":
        return str(load(path, max_voxels=MAX_VOXELS, tags=["SeriesInstanceUID"]).get("SeriesInstanceUID") or "")
    name = path.name
    for suffix in (".nii.gz", ".nii", ".mhd", ".mha"):
        name = name.removesuffix(suffix)
    return name
