"""The plan of a prediction: one planned image per file, series, array or point."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from medzoo.errors import ConfigError, DataError, InputError
from medzoo.inference.engine import AnyModel
from medzoo.io.dicom.pixels import load
from medzoo.io.dicom.slices import Slice
from medzoo.io.files import MAX_VOXELS, existing, identify
from medzoo.io.folder import ScanItem, scan_together
from medzoo.io.image import Image, from_array
from medzoo.io.options import ReadOptions
from medzoo.transforms.transform import ImageSource, as_array, not_an_image, transform

__all__ = ["Plan", "PlannedImage", "Points", "plan", "read_points"]

Point = tuple[float, float, float]
Points = str | os.PathLike[str] | Sequence[Sequence[float]]

UNKNOWN_POINT: Point = (math.nan, math.nan, math.nan)
_OWNER_TAGS = ("PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID")
COLUMNS = ("coordX", "coordY", "coordZ")


@dataclass(frozen=True, eq=False)
class PlannedImage:
    """One image to predict.

    Attributes:
        label: the name of the image in results and messages.
        image: a file, the files of a series, or an image in memory.
        in_memory: whether the caller gave it as an array or image. An error in it is then raised; an error in a file
            is recorded in the result.
        point: centre of a patch in mm, RAS.
        given_point: the same point in the caller's frame.
        warning: what is known against the image before it is read.
        stack: which stack of a multi-frame file with several.
        stack_name: what distinguishes the image from the others of its series, for its identity.
        headers: of its DICOM files, as the scan found them.
    """

    label: str
    image: Path | Image | tuple[Path, ...]
    in_memory: bool
    point: Point | None = None
    given_point: Point | None = None
    warning: str = ""
    stack: int | None = None
    stack_name: str = ""
    headers: tuple[Slice, ...] = field(default=(), repr=False)

    def annotate(self, image: Image) -> Image:
        """Return the image with what the plan knows about it."""
        return image.with_stack(self.stack_name).with_warning(self.warning)


@dataclass(frozen=True)
class Plan:
    """The images to predict.

    Attributes:
        images: one per prediction.
        skipped: path to the reason why it is skipped.
        single: whether the caller asked for one image, and gets one prediction instead of a list.
    """

    images: tuple[PlannedImage, ...]
    skipped: Mapping[str, str]
    single: bool


def plan(
    model: AnyModel, source: ImageSource | Sequence[ImageSource], points: Points | None, points_frame: str
) -> Plan:
    """List the images to predict. Headers are read, pixels are not.

    Raises:
        ConfigError: points for a model of complete images, or none for a patch model; an unknown ``points_frame``.
        DataError: a path cannot be opened, or no point belongs to an image.
        InputError: something that is not an image.
    """
    options = ReadOptions(channels=model.input_spec.channels)
    is_list = isinstance(source, (list, tuple))
    sources: Sequence[Any] = source if isinstance(source, (list, tuple)) else [source]
    images: list[PlannedImage] = []
    skipped: dict[str, str] = {}
    parts, one_image = _parts(model, sources, is_list), True
    paths = [part for part in parts if not isinstance(part, PlannedImage)]
    scanned = iter(scan_together(paths, options))  # together: a series may be spread over several folders
    for part in parts:
        if isinstance(part, PlannedImage):
            images.append(part)
            continue
        items = next(scanned)
        if not isinstance(part, Path) and len(part) == 1:  # one file that is given by name is an image whatever it is
            items = [replace(item, kind="image", reason="") if len(item.paths) == 1 else item for item in items]
        found = _from_scan(model, items, skipped)
        one_image &= len(found) == 1 and (not isinstance(part, Path) or isinstance(found[0].image, tuple))
        images += found
    single = not is_list and one_image and points is None
    transform(model).check_point(None if points is None else (0.0, 0.0, 0.0))
    if points is not None:
        images = _with_points(images, read_points(points), points_frame, model.name, skipped)
    return Plan(tuple(images), skipped, single)


def read_points(points: Points) -> dict[str, list[Point]]:
    """Return the points by series UID; the key is ``""`` if no series is given.

    Args:
        points: a list of (x, y, z) in mm; or a CSV file with the columns ``coordX``, ``coordY``, ``coordZ``, and
            ``seriesuid`` if it covers several scans, like LUNA16's ``annotations.csv``.

    Raises:
        DataError: the file cannot be read or lacks a column, or a row is not three numbers.
    """
    if not isinstance(points, (str, os.PathLike)):
        points = np.asarray(points).tolist() if hasattr(points, "shape") else points
        return {"": [_parse_point(point, f"point {i}") for i, point in enumerate(points)]}
    path = Path(points)
    try:
        reader = csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines())
        rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = (error.strerror or error) if isinstance(error, OSError) else error
        raise DataError(
            f"{path}: expected a CSV file of points, but it cannot be read ({reason}). Give one with the columns "
            f"{', '.join(COLUMNS)} in mm, and seriesuid for several scans."
        ) from error
    missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise DataError(
            f"{path}: expected the columns {', '.join(COLUMNS)}, and seriesuid for several scans; "
            f"missing: {', '.join(missing)}. Rename the columns."
        )
    found: dict[str, list[Point]] = {}
    for line, row in rows:
        point = _parse_point([row[name] for name in COLUMNS], f"{path}, row {line}")
        found.setdefault((row.get("seriesuid") or "").strip(), []).append(point)
    if "" in found and len(found) > 1:
        raise DataError(
            f"{path}: expected a seriesuid in every row or in none, got {len(found[''])} rows without one. Add them."
        )
    return found


def _parse_point(values: Sequence[object], where: str) -> Point:
    try:
        x, y, z = (float(str(v)) for v in values)
    except (TypeError, ValueError):
        raise DataError(f"{where}: expected three numbers in mm, got {values!r}.") from None
    # NaN is kept: it fails later as a point outside of its scan, and the other points are still predicted.
    return x, y, z


def _is_folder(item: str | os.PathLike[str]) -> bool:
    # Path.is_dir raises for a path that is not valid; here, reading it raises the error.
    return os.path.isdir(item)  # noqa: PTH112


def _labelled(item: Image | NDArray[Any] | Tensor, label: str) -> Image:
    """Return an image whose identity has a name for messages."""
    if not isinstance(item, Image):
        array = as_array(item) if isinstance(item, Tensor) else item
        return from_array(array, label, ReadOptions())
    if "file" in item.identity:
        return item
    return replace(item, identity={**item.identity, "file": label})


def _parts(
    model: AnyModel, sources: Sequence[Any], is_list: bool
) -> list[PlannedImage | Path | list[Path]]:  # fmt: skip
    """Return the arrays, the folders, and at the place of the first file all files."""
    files: list[Path] = []
    found: list[PlannedImage | Path | list[Path]] = []
    for index, item in enumerate(sources):
        if isinstance(item, (Image, np.ndarray, Tensor)):
            image = _labelled(item, f"array {index}" if is_list else "the array")
            found.append(PlannedImage(image.identity["file"], image, in_memory=True))
        elif not isinstance(item, (str, os.PathLike)):
            raise not_an_image(item, model.name)
        elif not str(item).strip():
            raise InputError(f"{model.name}: expected a path, got an empty one. Check the variable it came from.")
        elif _is_folder(item):
            found.append(Path(item))
        else:
            if not files:  # all are grouped into volumes, as the files of a folder are
                found.append(files)
            files.append(Path(item))
    return found


def _from_scan(model: AnyModel, items: Sequence[ScanItem], skipped: dict[str, str]) -> list[PlannedImage]:
    """Return the images among the items, and add the others to ``skipped``; a 2D model takes the slices of a series."""
    images = []
    volumes = model.input_spec.dims == 3
    for item in items:
        label = str(item.paths[0])
        if item.kind == "skip" or (item.kind == "lost" and volumes):
            skipped[label] = item.reason
        elif volumes:
            image = item.paths if item.kind == "series" else item.paths[0]
            images.append(
                PlannedImage(
                    label, image, in_memory=False, warning=item.warning, stack=item.stack, stack_name=item.name,
                    headers=item.headers,
                )
            )  # fmt: skip
        else:  # slices are images of their own, and so are those that are lost
            headers = {one.path: (one,) for one in item.headers}
            images += [
                PlannedImage(str(file), file, in_memory=False, stack=item.stack, headers=headers.get(file, ()))
                for file in item.paths
            ]
    return images


def _with_points(
    images: list[PlannedImage], points: Mapping[str, list[Point]], frame: str, who: str, skipped: dict[str, str]
) -> list[PlannedImage]:
    """Return one planned image per point. Points without a series belong to the only image.

    Images without a point and points without an image are added to ``skipped``.
    """
    if frame not in ("LPS", "RAS"):
        raise ConfigError(f"{who}: expected points_frame 'LPS' or 'RAS', got {frame!r}.")
    if "" in points and len(images) != 1:
        raise ConfigError(
            f"{who}: expected a column seriesuid that assigns each point to one of {len(images)} images, got none. "
            "Add it, or give one image."
        )
    sign = -1.0 if frame == "LPS" else 1.0
    _check_owners(images, points, who)
    planned: list[PlannedImage] = []
    unused = {name: len(own) for name, own in points.items() if name}
    for image in images:
        try:
            name = _series_name(image)
        except DataError:
            # Reading it fails again, and that error is recorded in its result.
            planned.append(replace(image, point=UNKNOWN_POINT))
            continue
        own = points.get("") or points.get(name, [])
        unused.pop(name, None)
        if not own:
            skipped[image.label] = f"no point is given for {name!r}"
        planned += [replace(image, point=(sign * x, sign * y, z), given_point=(x, y, z)) for x, y, z in own]
    if not planned and images:
        raise DataError(
            f"{who}: no point belongs to an image: the points name {', '.join(list(unused)[:3]) or 'none'}, the images "
            f"are {', '.join(_series_name(image) for image in images[:3])}. Check the column seriesuid."
        )
    skipped |= {f"points of {name}": f"{count} points of a scan that was not given" for name, count in unused.items()}
    return planned


def _check_owners(images: Sequence[PlannedImage], points: Mapping[str, list[Point]], who: str) -> None:
    """Raise DataError if images of different patients, studies or frames of reference share a UID with points."""
    owners: dict[str, set[tuple[str, ...]]] = {}
    for image in images:
        with suppress(DataError):
            owners.setdefault(_series_name(image), set()).add(_owner(image))
    for name, found in owners.items():
        if len(found) > 1 and points.get(name):
            raise DataError(
                f"{who}: expected the points of {name} to belong to one scan, found {len(found)} images of different "
                "patients, studies or frames of reference with this name. Give each with its own points."
            )


def _owner(planned: PlannedImage) -> tuple[str, ...]:
    """Return what distinguishes scans with one series UID."""
    image = planned.image[0] if isinstance(planned.image, tuple) else planned.image
    if isinstance(image, Image):
        return tuple(image.identity.get(key, "") for key in ("patient", "study"))
    if identify(existing(image)) != "dicom":
        return (str(image),)
    ds = load(image, max_voxels=MAX_VOXELS, tags=list(_OWNER_TAGS))
    return tuple(str(ds.get(keyword) or "") for keyword in _OWNER_TAGS)


def _series_name(planned: PlannedImage) -> str:
    """Return the name of a scan in a table of points: the UID of a DICOM series, else the file name."""
    image = planned.image[0] if isinstance(planned.image, tuple) else planned.image
    if isinstance(image, Image):
        if image.identity.get("series"):
            return image.identity["series"]
        name = Path(image.identity["file"]).name
    elif identify(existing(image)) == "dicom":
        return str(load(image, max_voxels=MAX_VOXELS, tags=["SeriesInstanceUID"]).get("SeriesInstanceUID") or "")
    else:
        name = image.name
    for suffix in (".nii.gz", ".nii", ".mhd", ".mha"):
        name = name.removesuffix(suffix)
    return name
