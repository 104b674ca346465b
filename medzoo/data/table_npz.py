"""Images in memory: NPZ files as MedMNIST publishes them, and arrays; checked for shape and type.

Axes: n images, c channels, d h w depth height width, l labels.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medzoo.data.faults import join_some
from medzoo.data.table_folder import PARTS
from medzoo.errors import DataError, did_you_mean
from medzoo.io.files import existing, wrap_read_errors

__all__ = ["Arrays", "check_images", "read_images", "read_npz"]

_MOST_CHANNELS = 16


class Arrays(NamedTuple):
    """What an NPZ file holds.

    Attributes:
        images: ``n c *s``.
        labels: ``n`` or ``n l``.
        ids: name of the file, part and index in it.
        columns: other arrays of one value for each image, and ``split``.
    """

    images: NDArray[Any]
    labels: NDArray[Any]
    ids: list[str]
    columns: dict[str, NDArray[np.str_]]


def read_npz(path: str | os.PathLike[str]) -> Arrays:
    """Read ``{train,val,test}_{images,labels}``, or ``images`` and ``labels``. Pickled objects are never loaded.

    Raises:
        DataError: not an NPZ file, arrays that are missing or do not fit, or objects.
    """
    here = existing(path)
    if here.is_dir() or not zipfile.is_zipfile(here):
        with here.open("rb") if here.is_file() else open(os.devnull, "rb") as file:  # noqa: PTH123
            single = file.read(6) == b"\x93NUMPY"
        found = "a folder" if here.is_dir() else "a single array (.npy)" if single else "another file, or one cut short"
        raise DataError(
            f"{here}: expected an NPZ file of named arrays, found {found}. Give the file, or copy it again."
        )
    with wrap_read_errors(here, "an NPZ file", zipfile.BadZipFile), np.load(here, allow_pickle=False) as file:
        names = list(file.files)
        parts = _parts(here, names)
        read = {part: _part(here, file, prefix, names) for part, prefix in parts.items()}
    columns = set.intersection(*(set(one) for one in read.values())) - {"images", "labels"}
    images, labels = _joined(here, read, "images"), _joined(here, read, "labels")
    counts = {part: len(one["images"]) for part, one in read.items()}
    ids = [f"{here.name}:{part + ':' if part else ''}{i}" for part, count in counts.items() for i in range(count)]
    others = {name: np.concatenate([one[name].astype(np.str_) for one in read.values()]) for name in sorted(columns)}
    if "" not in counts:
        others["split"] = np.repeat(np.array(list(counts), np.str_), list(counts.values()))
    return Arrays(images, labels, ids, others)


def read_images(path: str | os.PathLike[str], ids: Sequence[str] | NDArray[np.str_]) -> NDArray[Any]:
    """Return the images of some rows of an NPZ file, ``n c *s``, by the ids that :func:`read_npz` gave them.

    Raises:
        DataError: as :func:`read_npz`, or rows that the file does not have.
    """
    found, wanted = read_npz(path), [str(one) for one in ids]
    if wanted == found.ids:
        return found.images  # not copied: they may take most of the memory
    place = {one: row for row, one in enumerate(found.ids)}
    absent = [one for one in wanted if one not in place]
    if absent:
        raise DataError(
            f"{path}: expected the {len(wanted):,} images that it had before, found {len(found.ids):,}, and "
            f"{len(absent):,} are absent: {join_some(absent)}. Restore the file."
        )
    return found.images[[place[one] for one in wanted]]


def _parts(path: Path, names: list[str]) -> dict[str, str]:
    """Return the prefix of each part that the file has, ``""`` for images without parts."""
    prefixes = [n.removesuffix("images") for n in names if n.endswith("images")]
    parts = {PARTS[p[:-1].lower()]: p for p in prefixes if p.endswith("_") and p[:-1].lower() in PARTS}
    if "" in prefixes and not parts:
        parts = {"": ""}
    missing = [f"{prefix}labels" for prefix in parts.values() if f"{prefix}labels" not in names]
    if not parts or missing or (parts and "" in prefixes and "" not in parts):
        wanted = missing[0] if missing else "train_images"
        raise DataError(
            f"{path}: expected the arrays train_images, train_labels and likewise val and test, or images and labels; "
            f"found {join_some(names)}.{did_you_mean(wanted, names)} Rename the arrays."
        )
    order = {name: i for i, name in enumerate(PARTS.values())}
    return dict(sorted(parts.items(), key=lambda item: order.get(item[0], 0)))


def _part(path: Path, file: Any, prefix: str, names: list[str]) -> dict[str, NDArray[Any]]:
    """Return the arrays of a part by their names without its prefix; those of other lengths are left out."""
    own = [name for name in names if name.startswith(prefix)]
    arrays: dict[str, NDArray[Any]] = {}
    for name in own:
        try:
            arrays[name.removeprefix(prefix)] = file[name]
        except ValueError as error:
            if "allow_pickle" not in str(error):
                raise
            raise DataError(
                f"{path}: expected numbers in the array {name}, found Python objects, which are never loaded because "
                "reading them can run code. Save it as an array of numbers."
            ) from None
    images, labels = arrays["images"], arrays["labels"]
    if len(images) != len(labels) or images.ndim < 3 or labels.ndim not in (1, 2):
        raise DataError(
            f"{path}: expected as many {prefix}labels as {prefix}images, found shapes {labels.shape} and "
            f"{images.shape}. Save the file again."
        )
    arrays["images"] = _channels_first(path, images)
    return {
        name: array
        for name, array in arrays.items()
        if name in ("images", "labels")
        or (array.ndim == 1 and len(array) == len(images) and array.dtype.kind in "iuUb")
    }


def _channels_first(path: Path, images: NDArray[Any]) -> NDArray[Any]:
    """Return ``n c *s`` of ``n h w``, ``n h w c``, ``n d h w`` or ``n d h w c``, where c is 1, 3 or 4."""
    if images.ndim == 3:
        return images[:, None]
    if images.ndim == 4 and images.shape[1] in (1, 3):
        return images
    if images.shape[-1] in (1, 3, 4):
        return np.ascontiguousarray(np.moveaxis(images, -1, 1))
    if images.ndim == 4:
        return images[:, None]
    if images.ndim == 5 and images.shape[1] <= _MOST_CHANNELS:
        return images
    raise DataError(f"{path}: expected images n h w, n h w c, n d h w or n d h w c, found shape {images.shape}.")


def _joined(path: Path, read: dict[str, dict[str, NDArray[Any]]], name: str) -> NDArray[Any]:
    arrays = [one[name] for one in read.values()]
    if len({(one.shape[1:], one.dtype) for one in arrays}) > 1:
        listed = ", ".join(f"{part} {one[name].shape[1:]} {one[name].dtype}" for part, one in read.items())
        raise DataError(f"{path}: expected {name} of one shape and type in every part, found {listed}.")
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def check_images(images: Any) -> NDArray[Any]:
    """Return images ``n c *s``, of ``n h w``, ``n c h w`` or ``n c d h w``.

    Raises:
        DataError: another shape, no image, or values that are not real numbers.
    """
    try:
        array = np.asarray(images)
    except ValueError:
        raise DataError("from_arrays: expected images of one shape, got several. Resize them, or give paths.") from None
    if array.dtype.kind not in "biuf":
        raise DataError(f"from_arrays: expected images of real numbers, got {array.dtype}. Convert them first.")
    if array.ndim not in (3, 4, 5) or 0 in array.shape:
        raise DataError(f"from_arrays: expected images n h w, n c h w or n c d h w, got shape {array.shape}.")
    if array.ndim > 3 and array.shape[1] > _MOST_CHANNELS:
        fix = "np.moveaxis(images, -1, 1)" if array.shape[-1] in (1, 3, 4) else "images[:, None]"
        raise DataError(
            f"from_arrays: expected images n c h w or n c d h w, got {array.shape}: {array.shape[1]} channels. "
            f"Give the channels their axis: {fix}."
        )
    return array[:, None] if array.ndim == 3 else array
