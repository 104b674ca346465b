"""Orient, resample, crop and resize pixels to the size a model takes, with the matrix back to the original grid.

``Preprocessing.resample`` names the filter. ``"reference"`` is torchvision's for images and MONAI's for volumes;
``"triangle"`` is that of :mod:`medzoo.transforms.triangle` for volumes, and the same as torchvision's for images.

Axes: c channels, h w height width, d h w depth height width, s spatial axes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from medzoo.contract import Preprocessing
from medzoo.errors import DataError
from medzoo.io.files import MAX_VOXELS, join_sizes
from medzoo.io.image import Image, voxel_sizes
from medzoo.transforms.geometry import resample_to_grid, resize_affine, shift_affine
from medzoo.transforms.pixel_statistics import PixelStatistics
from medzoo.transforms.triangle import AxisGrid, resample_by_triangle, resize_by_triangle

__all__ = ["crop_patch", "join_values", "resample_image", "resample_volume"]

Resampled = tuple[Tensor, NDArray[np.float64]]

# Voxels that the axes of two grids may drift apart across a volume and be taken for parallel: a file states the
# direction of an axis in float32.
SHEAR = 0.02
# What a step adds; it does not name the filter of the reference.
BY_TRIANGLE = " by the triangle filter"


def resample_image(
    x: Tensor, image: Image, how: Preprocessing, steps: list[str], statistics: PixelStatistics | None = None
) -> Resampled:
    """Scale the intensity and resize, ``c h w -> c h' w'``; return the tensor and the 4 x 4 matrix to its grid.

    ``statistics`` are those of ``x``, where they are known.
    """
    from torchvision.transforms.v2.functional import center_crop, resize

    x = _scale_intensity(x, image, how, steps, statistics)
    before = tuple(x.shape[1:])
    to_source = np.eye(4)
    if before == how.size:
        return x, to_source
    if how.fit == "square" and before[0] != before[1]:
        side = min(before)
        top, left = (old // 2 - side // 2 for old in before)
        x, to_source[:2, 3] = x[:, top : top + side, left : left + side], (top, left)
        steps.append(f"cropped from {join_sizes(before)} to the square at the centre, {side} × {side}")
        before = (side, side)
    steps.append(_fit_step(before, how))
    if how.fit == "crop":  # torchvision pads the far side more, and rounds the corner of a crop to even
        padded = [max(0, new - old) // 2 for old, new in zip(before, how.size, strict=True)]
        cut = [round(max(0, old - new) / 2) for old, new in zip(before, how.size, strict=True)]
        to_source[:2, 3] = np.subtract(cut, padded)
        return center_crop(x, list(how.size)), to_source
    return resize(x, list(how.size), antialias=True), to_source @ resize_affine(before, how.size)


def resample_volume(
    x: Tensor,
    image: Image,
    how: Preprocessing,
    label: str,
    steps: list[str],
    statistics: PixelStatistics | None = None,
) -> Resampled:
    """Orient, resample, scale the intensity, crop and resize, ``c d h w -> c d' h' w'``.

    The weights of the triangle filter add up to 1, and are the same from either end of an axis: where it alone follows,
    axes are reversed, and values shifted and scaled, after it, when there are fewer of them.

    Args:
        x: the values, float32, the axes in any order in memory.
        image: where they come from.
        how: the preprocessing.
        label: the file, for messages.
        steps: the list of steps to append to.
        statistics: those of ``x``, where they are known.

    Returns:
        The tensor, and the 4 x 4 matrix from its indices to those of the original grid.

    Raises:
        DataError: a foreground crop of a volume without foreground, or a spacing too large to resample.
    """
    triangle = how.resample == "triangle"
    scaled_last = triangle and how.fit == "resize" and not (how.foreground or how.intensity == "zscore_nonzero")
    to_source, flips = np.eye(4), list[int]()
    x = x if triangle else x.contiguous()  # as MONAI's kernels got it when the published weights were verified
    if image.affine is None and how.orientation:
        steps.append("the file gives no orientation: reorientation skipped")
    elif how.orientation and image.orientation and how.orientation != image.orientation:
        steps.append(f"oriented from {image.orientation} to {how.orientation}")
        order, flips, to_source = _turn(image.orientation, how.orientation, x.shape[1:])
        x = x.permute(0, *[1 + axis for axis in order])
    if flips and (how.spacing or not scaled_last):
        x, flips = x.flip(flips), []
    if image.spacing is None and how.spacing:
        steps.append("the file gives no spacing: resampling skipped")
    elif how.spacing:
        x, to_source = _to_spacing(x, image, to_source, how, label, steps)
        statistics = None
    if not scaled_last:
        x = _scale_intensity(x, image, how, steps, statistics)
    elif how.intensity == "zscore":
        statistics = statistics or PixelStatistics(x.numpy())
    elif how.window:  # what is clipped must be before the filter
        x = x.clamp(*how.window)
    if how.foreground:
        x, to_source = _crop_to_foreground(x, to_source, how, label, steps)
    done = list[str]()
    if (before := tuple(x.shape[1:])) != how.size:
        by_triangle = how.resample == "triangle" and how.fit != "crop"
        done.append(_fit_step(before, how) + (BY_TRIANGLE if by_triangle else ""))
        x, to_source = _fit(x, to_source, how)
    if scaled_last:
        x = _scale_intensity(x.flip(flips) if flips else x, image, how, steps, statistics).contiguous()
    steps += done
    return x.float(), to_source


def _turn(old: str, new: str, size: Sequence[int]) -> tuple[list[int], list[int], NDArray[np.float64]]:
    """Return how axes change from one orientation to another: which come first, which are then reversed (of ``c *s``).

    The third value is the 4 x 4 matrix from an index of the turned grid to one of the grid of ``size``.
    """
    world = ["RLAPSI".index(letter) // 2 for letter in old]
    order = [world.index("RLAPSI".index(letter) // 2) for letter in new]
    flips = [1 + i for i, axis in enumerate(order) if old[axis] != new[i]]
    matrix: NDArray[np.float64] = np.diag([0.0, 0.0, 0.0, 1.0])
    for i, axis in enumerate(order):
        matrix[axis, i], matrix[axis, 3] = (-1, size[axis] - 1) if 1 + i in flips else (1, 0)
    return order, flips, matrix


def _to_spacing(
    x: Tensor, image: Image, to_source: NDArray[np.float64], how: Preprocessing, label: str, steps: list[str]
) -> Resampled:
    """Resample to the grid that MONAI's ``Spacing`` defines, whose first voxel is centred on that of the volume."""
    from monai.data import MetaTensor
    from monai.transforms import Spacing

    assert how.spacing is not None and image.spacing is not None  # noqa: S101, PT018  # the caller looked
    source = np.diag([*image.spacing, 1.0]) if image.affine is None else image.affine
    affine = source @ to_source
    _check_resampled_size(x.shape[1:], voxel_sizes(affine), how.spacing, label)
    volume, spacing = MetaTensor(x, affine=torch.from_numpy(affine)), Spacing(pixdim=how.spacing, mode="bilinear")
    step = f"resampled to {join_values(how.spacing)} mm"
    if how.resample == "triangle":
        asked = spacing(volume, lazy=True)  # its grid alone
        size = [int(side) for side in asked.peek_pending_shape()]
        change = np.linalg.inv(affine) @ np.asarray(asked.peek_pending_affine())
        drift = np.abs(change[:3, :3] - np.diag(np.diag(change)[:3])) @ np.subtract(size, 1)
        if drift.max() < SHEAR:
            steps.append(step + BY_TRIANGLE)
            grid = [AxisGrid(change[axis, 3], change[axis, axis], side) for axis, side in enumerate(size)]
            return resample_by_triangle(x, grid), to_source @ change
        step += " linearly, as the axes of the file are not at right angles"
    steps.append(step)
    resampled = spacing(volume)
    return resampled.as_tensor(), np.linalg.inv(source) @ np.asarray(resampled.affine)


def _crop_to_foreground(
    x: Tensor, to_source: NDArray[np.float64], how: Preprocessing, label: str, steps: list[str]
) -> Resampled:
    """Crop to the bounding box of the values above 0 in any channel."""
    found = (x > 0).any(0)
    if not bool(found.any()):
        raise DataError(
            f"{label}: expected a foreground above 0 after {how.intensity}, to crop to, found none. "
            "Is it an empty scan?"
        )
    inside = [found.amax([other for other in range(3) if other != axis]).nonzero() for axis in range(3)]
    low, high = ([int(places[end]) for places in inside] for end in (0, -1))
    cropped = x[:, *[slice(first, last + 1) for first, last in zip(low, high, strict=True)]]
    steps.append(f"cropped to the foreground, {join_sizes(x.shape[1:])} to {join_sizes(cropped.shape[1:])}")
    return cropped, to_source @ shift_affine(low)


def _fit(x: Tensor, to_source: NDArray[np.float64], how: Preprocessing) -> Resampled:
    """Resize, or crop and pad with zeros, to the size that the model takes."""
    before = tuple(x.shape[1:])
    if how.fit == "crop":
        cut = [max(0, old // 2 - new // 2) if old > new else 0 for old, new in zip(before, how.size, strict=True)]
        more = [max(0, new - old) for old, new in zip(before, how.size, strict=True)]
        x = x[:, *[slice(low, low + new) for low, new in zip(cut, how.size, strict=True)]]
        x = pad(x, [side for n in reversed(more) for side in (n // 2, n - n // 2)])
        return x, to_source @ shift_affine([low - n // 2 for low, n in zip(cut, more, strict=True)])
    to_source = to_source @ resize_affine(before, how.size)
    if how.resample == "triangle":
        return resize_by_triangle(x, how.size), to_source
    from monai.data import MetaTensor
    from monai.transforms import Resize

    return Resize(how.size, mode="trilinear", anti_aliasing=True)(MetaTensor(x)).as_tensor(), to_source


def crop_patch(
    x: Tensor, image: Image, how: Preprocessing, point: Sequence[float], label: str, steps: list[str]
) -> Resampled:
    """Resample the box of ``how.patch`` mm around a point, ``c d h w -> c d' h' w'``, padded with air.

    The box is oblique to many scans, which no filter that goes along the axes can be. With either ``resample`` it is
    interpolated linearly by MONAI, without antialiasing: its voxels should not be larger than those of the scan.

    Args:
        x: the volume.
        image: its geometry.
        how: orientation, patch and size.
        point: the centre, in mm, RAS.
        label: the file, for messages.
        steps: the list of steps to append to.

    Raises:
        DataError: the volume has no geometry, or the point is outside it.
    """
    from nibabel.orientations import axcodes2ornt

    if image.affine is None:
        raise DataError(
            f"{label}: expected a volume with a geometry, to find the point in mm, got none. Use NIfTI or DICOM."
        )
    to_index = np.linalg.inv(image.affine)
    voxel = (to_index @ np.array([*point, 1.0]))[:3]
    size = image.array.shape[1:]
    if not np.isfinite(voxel).all() or (voxel < -0.5).any() or (voxel > np.array(size) - 0.5).any():
        raise DataError(
            f"{label}: the point {join_values(point)} mm (RAS) is voxel {join_values(voxel.round(1))}, outside of "
            f"{join_sizes(size)}. Check points_frame, and that the point belongs to this scan."
        )
    step = np.asarray(how.patch) / np.asarray(how.size)
    target: NDArray[np.float64] = np.diag([0.0, 0.0, 0.0, 1.0])
    for column, (axis, sign) in enumerate(axcodes2ornt(how.orientation).astype(int)):
        target[axis, column] = sign * step[column]
    target[:3, 3] = np.asarray(point) - target[:3, :3] @ ((np.asarray(how.size) - 1) / 2)
    steps.append(
        f"cropped {join_values(how.patch or ())} mm around {join_values(point)} mm (RAS), oriented {how.orientation}"
    )
    # MONAI pads with zeros, so the values are shifted to make air 0, and back.
    air = how.window[0] if how.window else float(x.min())
    near, affine = _surroundings(x, image.affine, to_index @ target, how.size)
    patch = resample_to_grid(near - air, affine, target, how.size, "zeros").float() + air
    return _scale_intensity(patch, image, how, steps), to_index @ target


def _surroundings(
    x: Tensor, affine: NDArray[np.float64], to_index: NDArray[np.float64], size: Sequence[int]
) -> tuple[Tensor, NDArray[np.float64]]:
    """Return the part of a volume that the voxels of a patch are interpolated from, and its affine.

    A scan has a hundred times the voxels of a patch, which need not be touched for each of its patches.
    """
    corners = np.array(np.meshgrid(*[[0, side - 1] for side in size])).reshape(3, -1)
    index = to_index[:3, :3] @ corners + to_index[:3, 3:]
    # Beyond the border there is air, also in the volume that is cut out: one voxel more keeps that so.
    low = np.clip(np.floor(index.min(1)).astype(int) - 1, 0, np.array(x.shape[1:]) - 1)
    high = np.clip(np.ceil(index.max(1)).astype(int) + 2, low + 1, x.shape[1:])
    moved = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ low
    return x[:, low[0] : high[0], low[1] : high[1], low[2] : high[2]], moved


def _scale_intensity(
    x: Tensor, image: Image, how: Preprocessing, steps: list[str], statistics: PixelStatistics | None = None
) -> Tensor:
    """Map stored values to the range the model expects; a z-score by the statistics, or by those of ``x``."""
    if how.intensity == "zscore":
        mean, std = (statistics or PixelStatistics(x.numpy())).moments
        steps.append(f"z-score: mean {mean:.4g}, standard deviation {std:.4g}")
        return (x - mean) / (std if std > 0 else 1.0)
    if how.intensity == "zscore_nonzero":
        from monai.transforms import NormalizeIntensity

        steps.append("z-score of each channel over what is not 0")
        scaled: Tensor = NormalizeIntensity(nonzero=True, channel_wise=True)(x.clone())
        return scaled.as_subclass(Tensor)
    if how.intensity == "window" and how.window:
        low, high = how.window
        steps.append(f"window {low:g} to {high:g} mapped to 0 to 1 and clipped")
        return ((x - low) / (high - low)).clamp(0, 1)
    if image.value_range is None:
        steps.append("values assumed to be in 0 to 1")
        return x
    low, high = image.value_range
    steps.append(f"range {low:g} to {high:g} mapped to 0 to 1")
    return (x - low) / (high - low)


def _check_resampled_size(size: Sequence[int], spacing: Sequence[float], new: Sequence[float], label: str) -> None:
    """Refuse a spacing that would make the volume larger than any scan: its unit is probably wrong."""
    after = [float(n * old / new) for n, old, new in zip(size, spacing, new, strict=True)]
    if np.prod(after) > MAX_VOXELS:
        raise DataError(
            f"{label}: voxels of {join_values(np.round(spacing, 3))} mm resampled to {join_values(new)} mm would make "
            f"{join_sizes([round(n) for n in after])}. Check the unit of the spacing in the file."
        )


def _fit_step(before: Sequence[int], how: Preprocessing) -> str:
    what = "cropped or padded around the centre" if how.fit == "crop" else "resized"
    return f"{what} from {join_sizes(before)} to {join_sizes(how.size)}"


def join_values(values: Sequence[float] | NDArray[np.float64]) -> str:
    """Format numbers as text, such as ``"0.7, 0.7, 2.5"``."""
    return ", ".join(f"{v:g}" for v in values)
