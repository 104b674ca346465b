"""Which axis of a file holds channels: a fourth axis may be time, or the sequences that a model takes together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medzoo.errors import DataError
from medzoo.io.files import check_frame, join_sizes
from medzoo.io.options import ReadOptions

__all__ = ["channels_first", "volumes_to_channels"]


def volumes_to_channels(
    path: Path, values: NDArray[Any], shape: tuple[int, ...], options: ReadOptions, notes: list[str]
) -> NDArray[Any]:
    """Return one volume, or all of them as channels: ``*s n -> *s c``.

    They are channels on request, or where there are as many as the model has channels and nothing else is asked for.

    Args:
        path: the file.
        values: the volumes of the file, with the axis that counts them last, also where there is one.
        shape: the axes of the file: those of space, and any more.
        options: what the caller asks for.
        notes: gets what was chosen.

    Raises:
        DataError: there are several and neither is asked for, or the axis does not exist.
    """
    count, space, last = values.shape[-1], values.ndim - 1, len(shape) - 1
    if options.channel_axis is not None:
        axis = last if options.channel_axis == -1 else options.channel_axis
        if last < space or not space <= axis <= last or shape[axis] != count:
            raise DataError(
                f"{path}: expected channels along axis {options.channel_axis}, the axes are {join_sizes(shape)}. "
                + ("Leave channel_axis out." if last < space else f"Give channel_axis={_option(shape, space)}.")
            )
        as_channels = True
    else:
        as_channels = count > 1 and count == options.channels and options.frame is None and options.stack is None
    if as_channels:
        notes.append(f"axis {_longest(shape, space)} read as {count} channels")
        return values
    if count > 1 and options.frame is None:
        raise DataError(
            f"{path}: expected one volume, found {count} ({join_sizes(shape)}). "
            f"Choose one with frame=0, or split the file. To read all as channels, give "
            f"channel_axis={_option(shape, space)}."
        )
    check_frame(path, options.frame, count)
    if count > 1:
        notes.append(f"volume {options.frame} of {count}")
    chosen = options.frame or 0
    return values[..., chosen : chosen + 1]


def channels_first(values: NDArray[Any]) -> NDArray[Any]:
    """Move the last axis to the front: ``*s c -> c *s``."""
    return np.moveaxis(values, -1, 0)


def _longest(shape: tuple[int, ...], space: int) -> int:
    """Return the axis after those of space that has more than one entry; the last one where none has."""
    return next((axis for axis in range(space, len(shape)) if shape[axis] > 1), len(shape) - 1)


def _option(shape: tuple[int, ...], space: int) -> int:
    """Return the ``channel_axis`` to ask for: that of a picture is -1, as 2 may be an axis of space."""
    axis = _longest(shape, space)
    return axis if axis >= 3 else -1
