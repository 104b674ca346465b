"""``medzoo.show_transforms`` draws an image after each step on its way to the network, ``draw_batch`` a batch there.

Pictures are drawn from the values before the model's mean and std, all of one sheet on the same grey levels, so that a
change of brightness is seen.

Axes: b batch, c channels, s spatial axes (h w or d h w), l labels.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medzoo.contract import Preprocessing
from medzoo.data.dataset import Batch
from medzoo.errors import check_int
from medzoo.io.files import join_sizes
from medzoo.io.image import Image
from medzoo.transforms.augment import Augmentation, Augmenter
from medzoo.transforms.resample import resample_volume
from medzoo.transforms.transform import ImageSource, Prepared, Transform, transform
from medzoo.visual.colours import blend
from medzoo.visual.show import (
    PAPER,
    Panel,
    as_displayed,
    compose,
    draw,
    flat_panel,
    index_as_displayed,
    middle_planes,
    paste,
    planes,
    save_picture,
)

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from medzoo.features import CheckedModel

__all__ = ["draw_batch", "draw_changes", "draw_input", "show_transforms"]

_WIDTH = 1700  # pixels of a sheet
_SIDE = {2: 300, 3: 180}  # pixels along the longer side of a panel
_BATCH_SIDE = {2: 200, 3: 130}
_AXES = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}

Levels = tuple[float, float]


def show_transforms(
    model: CheckedModel,
    source: ImageSource,
    *,
    augment: Augmentation | None = None,
    seed: int = 0,
    n: int = 5,
    out: str | os.PathLike[str] | None = None,
) -> Picture:
    """Draw an image as it was read, after the steps of the model's preprocessing, and augmented.

    A volume is drawn by its three middle planes, with a histogram of its values beside them. Letters mark the sides; an
    augmented image has none, because a flip changes them.

    Args:
        model: from :func:`medzoo.create`.
        source: a path, an image or an array, as :func:`medzoo.transform` takes it.
        augment: the changes; ``None`` are those of ``medzoo.transform(model, train=True)``.
        seed: of the first augmented image; the others have the seeds after it.
        n: augmented images; 0 for none.
        out: a file to write the picture to, such as ``"steps.png"``.

    Returns:
        The picture.

    Raises:
        DataError: the image cannot be read, or is not of the kind the model is for.
        ConfigError: an augmentation that changes a label of the model, or the picture cannot be written.
    """
    check_int("show_transforms", "n", n, 0)
    how = transform(model, train=True, augment=augment)
    found = how.pixels(source)
    side, levels = _SIDE[found.tensor.ndim - 1], _levels(found.tensor, how.preprocessing)
    placed = found.image.affine is not None
    tiles = [draw(found.image, side)]
    resampled = _resampled(found, how.preprocessing)
    if resampled is not None:
        tiles.append(_tile(resampled, how.preprocessing, levels, "oriented, resampled and scaled", side))
    after = how.normalise(found.tensor)
    span = f"after mean and std {float(after.min()):.3g} to {float(after.max()):.3g}"
    title = [f"as {how.who} takes it", *found.steps, *filter(None, [found.warning]), span]
    tiles.append(_tile(found.tensor, how.preprocessing, levels, title, side, placed=placed))
    assert how.augmenter is not None  # noqa: S101  # train=True gives one
    for one in range(seed, seed + n):
        changed = how.augmenter(found.tensor, one)
        text = f"augmented, seed {one}"
        tiles.append(_tile(changed, how.preprocessing, levels, text, side, placed=placed, letters=False))
    return save_picture(paste(tiles, _WIDTH), out)


def draw_batch(
    batch: Batch,
    how: Transform,
    labels: Sequence[str],
    out: str | os.PathLike[str] | None = None,
    *,
    limit: int = 16,
) -> Picture:
    """Draw the images of a batch as the network sees them, each with its row and its labels, and no patient.

    Args:
        batch: images ``b c *s`` after the model's mean and std, targets ``b l`` and rows of the table.
        how: the preprocessing they are from.
        labels: names of the l targets.
        out: a file to write the picture to.
        limit: images that are drawn at most.

    Raises:
        ConfigError: the picture cannot be written.
    """
    shape = (-1, *[1] * (batch.image.ndim - 2))
    mean, std = (torch.tensor(v).view(shape) for v in (how.preprocessing.mean, how.preprocessing.std))
    images = [image.detach().cpu().float() * std + mean for image in batch.image[:limit]]
    levels = _levels(torch.stack(images), how.preprocessing)
    side = _BATCH_SIDE[batch.image.ndim - 2]
    tiles = []
    for image, target, row in zip(images, batch.target.cpu(), batch.row.tolist(), strict=False):
        text = [f"row {row}", _label(target, labels)]
        tiles.append(_tile(image, how.preprocessing, levels, text, side, letters=False, histogram=False))
    return save_picture(paste(tiles, _WIDTH), out)


def draw_changes(
    x: Tensor, augmenter: Augmenter, name: str, out: str | os.PathLike[str] | None = None, *, draws: int = 4
) -> Picture:
    """Draw one image, then with each change of an augmentation alone, and with all of them as in training.

    Of a single change, the strongest of some draws is shown, so that what it may do at most is nearly seen.

    Args:
        x: the image ``c *s`` before the model's mean and std.
        augmenter: of the training.
        name: of the image, below it.
        out: a file to write the picture to.
        draws: of each single change, and of all together.

    Raises:
        ConfigError: the picture cannot be written.
    """
    how, preprocessing = augmenter.augmentation, augmenter.preprocessing
    side, levels = _SIDE[x.ndim - 1], _levels(x, preprocessing)

    def tile(image: Tensor, text: str) -> Picture:
        return _tile(image, preprocessing, levels, text, side, letters=False, histogram=False)

    tiles = [tile(x, name)]
    for field, amount in how.changes().items():
        alone = Augmenter(replace(Augmentation(), **{field: getattr(how, field)}), preprocessing)
        drawn = [alone(x, seed) for seed in range(draws)]
        tiles.append(tile(max(drawn, key=lambda one: float((one - x).abs().mean())), f"{field} alone: {amount}"))
    tiles += [tile(augmenter(x, seed), f"all together, draw {seed + 1}") for seed in range(draws)]
    return save_picture(paste(tiles, _WIDTH), out)


def draw_input(x: Tensor, how: Transform, heat: Tensor | None = None, at: Sequence[int] = ()) -> Picture:
    """Draw one image as the network sees it, ``c *s`` before the model's mean and std, without a name.

    Args:
        x: the image.
        how: its preprocessing.
        heat: a map ``*s`` that is never negative, drawn over the image once more: beside it, or of a volume below it,
            both in the planes through the map's maximum. A map that is zero everywhere is not drawn.
        at: the index of its maximum, for a volume.
    """
    levels, side = _levels(x[None], how.preprocessing), _BATCH_SIDE[x.ndim - 1]
    if heat is None or not heat.any():
        return _tile(x, how.preprocessing, levels, "", side, letters=False, histogram=False)
    grey, values = _grey(x, levels), (heat.float() / heat.max()).numpy()
    image = Image(grey, _affine(x, how.preprocessing))
    pixels = np.moveaxis(grey, 0, -1) if len(grey) == 3 else np.repeat(grey[0][..., None], 3, -1)
    if image.dims == 2:
        plain = flat_panel(image, pixels)
        return _grid([[plain, replace(plain, pixels=blend(pixels, values))]], side)
    (volume, spacing), (shown, _) = as_displayed(image, pixels), as_displayed(image, values)
    where, oriented = index_as_displayed(image, at), image.affine is not None
    cuts, maps = (planes(one, spacing, where, oriented=oriented) for one in (volume, shown))
    return _grid([cuts, [replace(c, pixels=blend(c.pixels, m.pixels)) for c, m in zip(cuts, maps, strict=True)]], side)


def _grid(rows: Sequence[Sequence[Panel]], side: int, gap: int = 6) -> Picture:
    """Put rows of panels below each other without text; the longest side of one has ``side`` pixels."""
    from PIL import Image as Pillow

    scale = side / max(max(panel.mm) for panel in rows[0])
    width = sum(panel.size(scale)[0] + gap for panel in rows[0]) - gap
    height = max(panel.size(scale)[1] for panel in rows[0])
    picture = Pillow.new("RGB", (width, len(rows) * (height + gap) - gap), PAPER)
    for row, panels in enumerate(rows):
        left = 0
        for panel in panels:
            picture.paste(panel.scaled(scale), (left, row * (height + gap)))
            left += panel.size(scale)[0] + gap
    return picture


def _label(target: Tensor, labels: Sequence[str]) -> str:
    """Return the labels of a row in words: those that are 1, and those that are not known."""
    positive = [name for name, value in zip(labels, target.tolist(), strict=True) if value == 1]
    unknown = [name for name, value in zip(labels, target.tolist(), strict=True) if value != value]
    text = ", ".join(positive) or ("no label is positive" if len(unknown) < len(labels) else "")
    return "; ".join(filter(None, [text, f"not known: {', '.join(unknown)}" if unknown else ""]))


def _resampled(found: Prepared, how: Preprocessing) -> Tensor | None:
    """Return the volume before it is cropped or resized to the model's size; ``None`` if that is no step of its own."""
    image = found.image
    if image.orientation is None or how.orientation is None or how.patch is not None:
        return None
    at = [["RLAPSI".index(c) // 2 for c in image.orientation].index("RLAPSI".index(c) // 2) for c in how.orientation]
    size = [image.array.shape[1 + i] for i in at]
    if how.spacing is not None and image.spacing is not None:
        from monai.data.utils import compute_shape_offset

        before, after = (np.diag([*mm, 1.0]) for mm in ([image.spacing[i] for i in at], how.spacing))
        size = [int(n) for n in compute_shape_offset(size, before, after)[0]]
    x = torch.from_numpy(np.require(image.array, np.float32, ["C", "W"]))
    natural = replace(how, size=tuple(size), foreground=False, fit="crop")
    return resample_volume(x, image, natural, "the image", [])[0]


def _levels(x: Tensor, how: Preprocessing) -> Levels:
    """Return the values that are drawn black and white."""
    if how.intensity in ("unit", "window"):
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(x.numpy(), (0.5, 99.5)))
    return low, high if high > low else low + 1


def _tile(
    x: Tensor,
    how: Preprocessing,
    levels: Levels,
    text: str | Sequence[str],
    side: int,
    *,
    placed: bool = True,
    letters: bool = True,
    histogram: bool = True,
) -> Picture:
    """Draw one tensor ``c *s`` with its histogram and text; ``placed`` if its axes are those of the preprocessing."""
    grey = _grey(x, levels)
    image = Image(grey, _affine(x, how) if placed else None)
    pixels = np.moveaxis(grey, 0, -1) if len(grey) == 3 else grey[0]
    panels = middle_planes(image, pixels) if image.dims == 3 else [flat_panel(image, pixels)]
    if not letters:
        panels = [replace(panel, edges="") for panel in panels]
    if histogram:
        longest = max(max(panel.mm) for panel in panels)
        panels = [*panels, Panel(_histogram(x, levels), (longest / 3, longest / 2), "", "")]
    lines = [text] if isinstance(text, str) else list(text)
    if histogram:
        channel = f", channel 1 of {len(grey)}" if len(grey) not in (1, 3) else ""
        lines.append(f"{join_sizes(x.shape[1:])}{channel}, {float(x.min()):.3g} to {float(x.max()):.3g}")
    width = max(24, sum(round(panel.mm[1] / max(panel.mm) * side) + 52 for panel in panels) // 8)
    return compose(panels, [part for line in lines for part in textwrap.wrap(line, width)], side)


def _grey(x: Tensor, levels: Levels) -> NDArray[np.uint8]:
    """Return values in 8 bits, of the same shape."""
    return ((x - levels[0]) / (levels[1] - levels[0])).clamp(0, 1).mul(255).round().to(torch.uint8).numpy()


def _affine(x: Tensor, how: Preprocessing) -> NDArray[np.float64] | None:
    """Return the 4 x 4 matrix of a volume's orientation, so that it is drawn as a radiologist sees it."""
    if x.ndim != 4 or how.orientation is None:
        return None
    affine: NDArray[np.float64] = np.zeros((4, 4))
    affine[3, 3] = 1
    spacing: Sequence[float] = (1.0, 1.0, 1.0)
    if how.spacing is not None:
        spacing = how.spacing
    elif how.patch is not None:
        spacing = [side / n for side, n in zip(how.patch, how.size, strict=True)]
    for column, letter in enumerate(how.orientation):
        axis, sign = _AXES[letter]
        affine[axis, column] = sign * spacing[column]
    return affine


def _histogram(x: Tensor, levels: Levels, bins: int = 48, height: int = 32) -> NDArray[np.uint8]:
    """Return bars of the share of values from black to white, ``h w``; the highest inner one fills the height."""
    counts: NDArray[Any] = np.histogram(x.numpy().clip(*levels), bins=bins, range=levels)[0]
    top = max(1, int(counts[1:-1].max()))
    bars = np.minimum(height, np.ceil(counts / top * height)).astype(int)
    drawn = np.arange(height)[::-1, None] < bars
    return np.where(drawn, 200, 40).astype(np.uint8)
