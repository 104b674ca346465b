"""Orient, resample, crop and resize pixels to the size a model takes, with the matrix back to the original grid.

The resampling is torchvision's for images and MONAI's for volumes.

Axes: c channels, h w height width, d h w depth height width, s spatial axes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medzoo.contract import Preprocessing
from medzoo.errors import DataError
from medzoo.io.files import MAX_VOXELS, join_sizes
from medzoo.io.image import Image, voxel_sizes
from medzoo.transforms.geometry import resample_to_grid, resize_affine

__all__ = ["crop_patch", "join_values", "resample_image", "resample_volume"]

Resampled = tuple[Tensor, NDArray[np.float64]]


def resample_image(x: Tensor, image: Image, how: Preprocessing, steps: list[str]) -> Resampled:
    """Scale the intensity and resize, ``c h w -> c h' w'``; return the tensor and the 4 x 4 matrix to its grid."""
    from torchvision.transforms.v2.functional import center_crop, resize

    x = _scale_intensity(x, image, how, steps)
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
        pad = [max(0, new - old) // 2 for old, new in zip(before, how.size, strict=True)]
        cut = [round(max(0, old - new) / 2) for old, new in zip(before, how.size, strict=True)]
        to_source[:2, 3] = np.subtract(cut, pad)
        return center_crop(x, list(how.size)), to_source
    return resize(x, list(how.size), antialias=True), to_source @ resize_affine(before, how.size)


def resample_volume(x: Tensor, image: Image, how: Preprocessing, label: str, steps: list[str]) -> Resampled:
    """Orient, resample, scale the intensity, crop and resize, ``c d h w -> c d' h' w'``.

    Returns:
        The tensor, and the 4 x 4 matrix from its indices to those of the original grid.

    Raises:
        DataError: a foreground crop of a volume without foreground, or a spacing too large to resample.
    """
    from monai.data import MetaTensor
    from monai.transforms import CropForeground, Orientation, Resize, ResizeWithPadOrCrop, Spacing

    spacing = (1.0, 1.0, 1.0) if image.spacing is None else image.spacing
    source = np.diag([*spacing, 1.0]) if image.affine is None else image.affine
    volume = MetaTensor(x, affine=torch.from_numpy(source))
    if image.affine is None and how.orientation:
        steps.append("the file gives no orientation: reorientation skipped")
    elif how.orientation and how.orientation != image.orientation:
        steps.append(f"oriented from {image.orientation} to {how.orientation}")
        volume = Orientation(axcodes=how.orientation, labels=None)(volume)
    if image.spacing is None and how.spacing:
        steps.append("the file gives no spacing: resampling skipped")
    elif how.spacing:
        _check_resampled_size(volume.shape[1:], voxel_sizes(np.asarray(volume.affine)), how.spacing, label)
        steps.append(f"resampled to {join_values(how.spacing)} mm")
        volume = Spacing(pixdim=how.spacing, mode="bilinear")(volume)
    volume = _scale_intensity(volume, image, how, steps)
    before = tuple(volume.shape[1:])
    if how.foreground:
        if not bool((volume > 0).any()):
            raise DataError(
                f"{label}: expected a foreground above 0 after {how.intensity}, to crop to, found none. "
                "Is it an empty scan?"
            )
        volume = CropForeground(allow_smaller=True)(volume)
        steps.append(f"cropped to the foreground, {join_sizes(before)} to {join_sizes(volume.shape[1:])}")
        before = tuple(volume.shape[1:])
    if before != how.size:
        steps.append(_fit_step(before, how))
        resize = Resize(how.size, mode="trilinear", anti_aliasing=True)
        volume = (ResizeWithPadOrCrop(how.size) if how.fit == "crop" else resize)(volume)
    return volume.as_tensor().float(), np.linalg.inv(source) @ np.asarray(volume.affine)


def crop_patch(
    x: Tensor, image: Image, how: Preprocessing, point: Sequence[float], label: str, steps: list[str]
) -> Resampled:
    """Resample the box of ``how.patch`` mm around a point, ``c d h w -> c d' h' w'``, padded with air.

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


def _scale_intensity(x: Tensor, image: Image, how: Preprocessing, steps: list[str]) -> Tensor:
    """Map stored values to the range the model expects, before anything is cropped or resized."""
    if how.intensity == "zscore":
        mean, std = x.mean(), x.std(correction=0)
        steps.append(f"z-score: mean {mean:.4g}, standard deviation {std:.4g}")
        return (x - mean) / (std if std > 0 else 1.0)
    if how.intensity == "zscore_nonzero":
        from monai.data import MetaTensor
        from monai.transforms import NormalizeIntensity

        steps.append("z-score of each channel over what is not 0")
        scaled: Tensor = NormalizeIntensity(nonzero=True, channel_wise=True)(x.clone())
        return scaled if isinstance(x, MetaTensor) else scaled.as_subclass(Tensor)
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
