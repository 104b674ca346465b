"""How pixels come to lie where a model wants them: orient, resample, cut, resize. Each returns the way back.

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
from medzoo.io.files import MAX_VOXELS
from medzoo.io.image import Image
from medzoo.transforms.geometry import scaling

__all__ = ["arrange_image", "arrange_volume", "cut_patch", "scale"]

Arranged = tuple[Tensor, NDArray[np.float64]]


def scale(x: Tensor, image: Image, wanted: Preprocessing, steps: list[str]) -> Tensor:
    """Map stored values to what the model expects, before anything is cut or resized."""
    if wanted.intensity == "zscore":
        mean, std = x.mean(), x.std(correction=0)
        steps.append(f"z-score: mean {mean:.4g}, standard deviation {std:.4g}")
        return (x - mean) / (std if std > 0 else 1.0)
    if wanted.intensity == "zscore_nonzero":
        steps.append("z-score of each channel over what is not 0")
        x = x.clone()
        for i, channel in enumerate(x):
            x[i] = _zscore_nonzero(channel)
        return x
    if wanted.intensity == "window" and wanted.window:
        low, high = wanted.window
        steps.append(f"window {low:g} to {high:g} mapped to 0 to 1 and clipped")
        return ((x - low) / (high - low)).clamp(0, 1)
    if image.value_range is None:
        steps.append("values taken as 0 to 1")
        return x
    low, high = image.value_range
    steps.append(f"range {low:g} to {high:g} mapped to 0 to 1")
    return (x - low) / (high - low)


def _zscore_nonzero(channel: Tensor) -> Tensor:
    """Centre and scale what is not 0; an empty channel stays as it is."""
    some = channel != 0
    if not bool(some.any()):
        return channel
    mean, std = channel[some].mean(), channel[some].std(correction=0)
    return torch.where(some, (channel - mean) / (std if std > 0 else 1.0), channel)


def arrange_image(x: Tensor, image: Image, wanted: Preprocessing, steps: list[str]) -> Arranged:
    """Scale and resize an image, ``c h w -> c h' w'``, and return the matrix back to its grid."""
    from torchvision.transforms.v2.functional import center_crop, resize

    x = scale(x, image, wanted, steps)
    before = tuple(x.shape[1:])
    if before == wanted.size:
        return x, np.eye(4)
    to_square = np.eye(4)
    if wanted.fit == "square" and before[0] != before[1]:
        side = min(before)
        top, left = (old // 2 - side // 2 for old in before)
        x, to_square[:2, 3] = x[:, top : top + side, left : left + side], (top, left)
        steps.append(f"cut from {sides(before)} to the square at the centre, {sides((side, side))}")
        before = (side, side)
    if wanted.fit != "crop":
        steps.append(f"resized from {sides(before)} to {sides(wanted.size)}")
        return resize(x, list(wanted.size), antialias=True), to_square @ scaling(before, wanted.size)
    steps.append(f"cut or padded around the centre from {sides(before)} to {sides(wanted.size)}")
    to_source = np.eye(4)
    # torchvision pads the far side more, and rounds the corner of a crop to even.
    pad = [max(0, new - old) // 2 for old, new in zip(before, wanted.size, strict=True)]
    cut = [round(max(0, old - new) / 2) for old, new in zip(before, wanted.size, strict=True)]
    to_source[:2, 3] = np.subtract(cut, pad)
    return center_crop(x, list(wanted.size)), to_source


def arrange_volume(x: Tensor, image: Image, wanted: Preprocessing, label: str, steps: list[str]) -> Arranged:
    """Orient, scale, cut and resize a volume, ``c d h w -> c d' h' w'``, and return the matrix back to its grid."""
    from monai.data import MetaTensor
    from monai.transforms import CropForeground, Orientation, Resize, ResizeWithPadOrCrop, Spacing

    known = np.eye(4) if image.spacing is None else np.diag([*image.spacing, 1.0])
    source = known if image.affine is None else image.affine
    volume = MetaTensor(x, affine=torch.from_numpy(source))
    if image.affine is None and wanted.orientation:
        steps.append("the file does not say how the patient lies: orientation skipped")
    elif wanted.orientation and wanted.orientation != image.orientation:
        steps.append(f"oriented from {image.orientation} to {wanted.orientation}")
        volume = Orientation(axcodes=wanted.orientation, labels=None)(volume)
    if image.spacing is None and wanted.spacing:
        steps.append("the file does not say the spacing: resampling skipped")
    elif wanted.spacing:
        stored = np.linalg.norm(np.asarray(volume.affine)[:3, :3], axis=0)
        _check_resampled(volume.shape[1:], stored, wanted.spacing, label)
        steps.append(f"resampled to {numbers(wanted.spacing)} mm")
        volume = Spacing(pixdim=wanted.spacing, mode="bilinear")(volume)
    volume = scale(volume, image, wanted, steps)
    if wanted.foreground and not bool((volume > 0).any()):
        raise DataError(
            f"{label}: expected something above 0 after {wanted.intensity}, to crop to, found none. "
            "Is it an empty scan?"
        )
    if wanted.foreground:
        before = tuple(volume.shape[1:])
        volume = CropForeground(allow_smaller=True)(volume)
        steps.append(f"cropped to the foreground, {sides(before)} to {sides(volume.shape[1:])}")
    before = tuple(volume.shape[1:])
    if before != wanted.size:
        if wanted.fit == "crop":
            steps.append(f"cut or padded around the centre from {sides(before)} to {sides(wanted.size)}")
            volume = ResizeWithPadOrCrop(wanted.size)(volume)
        else:
            steps.append(f"resized from {sides(before)} to {sides(wanted.size)}")
            volume = Resize(wanted.size, mode="trilinear", anti_aliasing=True)(volume)
    to_source = np.linalg.inv(source) @ np.asarray(volume.affine)
    return volume.as_tensor().float(), to_source


def _check_resampled(size: Sequence[int], spacing: NDArray[np.float64], wanted: Sequence[float], label: str) -> None:
    """Refuse a spacing that would blow the volume up beyond what a scan can be: its unit is probably wrong."""
    after = [float(n * old / new) for n, old, new in zip(size, spacing, wanted, strict=True)]
    if np.prod(after) > MAX_VOXELS:
        raise DataError(
            f"{label}: voxels of {numbers(spacing.round(3))} mm resampled to {numbers(wanted)} mm would make "
            f"{sides([round(n) for n in after])}. Check the unit of the spacing in the file."
        )


def cut_patch(
    x: Tensor, image: Image, wanted: Preprocessing, point: Sequence[float], label: str, steps: list[str]
) -> Arranged:
    """Cut the box of ``wanted.patch`` mm around a point, ``c d h w -> c d' h' w'``; beyond the border lies air.

    Args:
        x: the volume.
        image: its geometry.
        wanted: orientation, patch and size.
        point: the centre, in mm, RAS.
        label: the file, for messages.
        steps: is told what was done.

    Raises:
        DataError: the volume has no geometry, or the point lies outside it.
    """
    from monai.data import MetaTensor
    from monai.transforms import SpatialResample

    if image.affine is None:
        raise DataError(
            f"{label}: expected a volume with a geometry, to find the point in mm, got none. Use NIfTI or DICOM."
        )
    voxel = (np.linalg.inv(image.affine) @ np.array([*point, 1.0]))[:3]
    size = image.array.shape[1:]
    if not np.isfinite(voxel).all() or (voxel < -0.5).any() or (voxel > np.array(size) - 0.5).any():
        raise DataError(
            f"{label}: the point {numbers(point)} mm (RAS) is voxel {numbers(voxel.round(1))}, outside of "
            f"{sides(size)}. Check points_frame, and that the point belongs to this scan."
        )
    axes = np.zeros((3, 3))
    for column, letter in enumerate(wanted.orientation or ""):
        axis, negative = divmod("RLAPSI".index(letter), 2)
        axes[axis, column] = -1.0 if negative else 1.0
    step = np.asarray(wanted.patch) / np.asarray(wanted.size)
    target = np.eye(4)
    target[:3, :3] = axes * step
    target[:3, 3] = np.asarray(point) - target[:3, :3] @ ((np.asarray(wanted.size) - 1) / 2)
    steps.append(f"cut {numbers(wanted.patch or ())} mm around {numbers(point)} mm (RAS), {wanted.orientation}")
    # The resampling fills with zeros, so air is moved to zero and back.
    air = wanted.window[0] if wanted.window else float(x.min())
    resample = SpatialResample(mode="bilinear", padding_mode="zeros", align_corners=False)
    patch = resample(
        MetaTensor(x - air, affine=torch.from_numpy(image.affine)),
        dst_affine=torch.from_numpy(target),
        spatial_size=wanted.size,
    )
    return scale(patch.as_tensor().float() + air, image, wanted, steps), np.linalg.inv(image.affine) @ target


def sides(size: Sequence[int]) -> str:
    """Write a size as people do."""
    return " × ".join(str(int(s)) for s in size)


def numbers(values: Sequence[float] | NDArray[np.float64]) -> str:
    """Write numbers short."""
    return ", ".join(f"{v:g}" for v in values)
