"""Occlusion sensitivity: by how much a logit falls when a box of the image is hidden.

Source: Zeiler and Fergus, Visualizing and Understanding Convolutional Networks, https://arxiv.org/abs/1311.2901. It is
what ``monai.visualize.OcclusionSensitivity`` computes, by the sliding windows of MONAI that it uses. That class itself
indexes tensors in a way that PyTorch warns about at each box, and gives the score under the box, of a softmax or
sigmoid chosen by the channels of the image. Here it is the fall of the logit: a region that raises it is positive.

A box is hidden by the mean of each channel of the image: a value in the middle of the image whatever its normalisation,
where 0 would be black after one, air after another and the mean after a third.

Axes: b batch, c channels, s spatial axes of the input, s' those of the map, n classes, t targets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medzoo.classifier import Classifier
from medzoo.errors import ConfigError, check_ints

__all__ = ["box_frame", "check_box", "default_box", "occlusion_maps", "positions"]

# Boxes along each axis of an image and of a volume. With every half box a position, that is 15 x 15 = 225 copies of an
# image and 7 x 7 x 7 = 343 of a volume.
BOXES = {2: 8, 3: 4}
# The fast and the plain form of a model agree to this, so that a smaller fall is rounding: absolute, or relative to a
# logit above 1.
ROUNDING = 1e-5


def default_box(size: Sequence[int]) -> tuple[int, ...]:
    """Return the sides of the box for an input: an eighth of each side of an image, a quarter of a volume's, and even.

    >>> default_box((224, 320)), default_box((96, 96, 96))
    ((28, 40), (24, 24, 24))
    """
    return tuple(min(side, max(2, 2 * round(side / BOXES[len(size)] / 2))) for side in size)


def check_box(who: str, box: int | Sequence[int] | None, size: Sequence[int]) -> tuple[int, ...]:
    """Return the sides of the box, as given or by default.

    Raises:
        ConfigError: it is not a box within an input of this size.
    """
    if box is None:
        return default_box(size)
    sides = check_ints(who, "mask_size", [box] * len(size) if isinstance(box, int) else box, len(size))
    if any(side > length for side, length in zip(sides, size, strict=True)):
        raise ConfigError(
            f"{who}: expected mask_size within the input of {tuple(size)}, got {sides}. Take a smaller one."
        )
    return sides


def strides(box: Sequence[int]) -> tuple[int, ...]:
    """Return the distance between positions: half a box."""
    return tuple(max(1, side // 2) for side in box)


def positions(size: Sequence[int], box: Sequence[int]) -> int:
    """Return how many copies of an input are run, each with a box hidden at another place.

    >>> positions((224, 224), (28, 28)), positions((96, 96, 96), (24, 24, 24))
    (225, 343)
    """
    along = zip(size, box, strides(box), strict=True)
    return math.prod(math.ceil((length - side) / step) + 1 for length, side, step in along)


def box_frame(box: Sequence[int]) -> NDArray[np.float64]:
    """Return the 4 x 4 matrix from an index of the map of :func:`occlusion_maps` to an index of the input."""
    frame = np.eye(4)
    for axis, step in enumerate(strides(box)):
        frame[axis, axis], frame[axis, 3] = step, (step - 1) / 2
    return frame


def occlusion_maps(
    model: Classifier, x: Tensor, logits: Tensor, targets: Tensor, box: Sequence[int], batch_size: int,
    ran: Callable[[int], object] = lambda _: None,
) -> Tensor:  # fmt: skip
    """Return for each target by how much its logit falls, ``1 c *s -> t *s'``, negative where it rises.

    A voxel has the mean over the boxes it is in. The map has one cell for each half box, see :func:`box_frame`; falls
    within rounding are 0.

    Args:
        model: in eval mode.
        x: ``1 c *s``.
        logits: of ``x``, ``1 n``.
        targets: indices of outputs, ``t``.
        box: its sides, see :func:`default_box`.
        batch_size: copies per forward pass.
        ran: called after each forward pass with the number of copies.
    """
    from monai.inferers import sliding_window_inference

    nothing = x.mean(tuple(range(2, x.ndim)), keepdim=True)[0]

    def falls_of(_: Tensor, places: Sequence[Sequence[slice]]) -> Tensor:
        copies = x.repeat(len(places), *[1] * (x.ndim - 1))
        for copy, place in zip(copies, places, strict=True):
            copy[(slice(None), *place[2:])] = nothing
        found = (logits - model(copies))[:, targets]
        ran(len(places))
        return found.view(*found.shape, *[1] * len(box)).repeat(1, 1, *box)

    steps = strides(box)
    # MONAI rounds the distance between positions down from a share of the box.
    overlap = [max(0.0, 1 - (step + 0.5) / side) for step, side in zip(steps, box, strict=True)]
    with torch.inference_mode():
        falls = sliding_window_inference(x[:, :1], box, batch_size, falls_of, overlap, with_coord=True)[0]
    # The middle of each half box.
    cells = falls[(slice(None), *(slice(step // 2, None, step) for step in steps))]
    floor = (ROUNDING * logits[0, targets].abs().clamp(min=1)).view(-1, *[1] * len(box))
    return cells.where(cells.abs() > floor, 0.0)
