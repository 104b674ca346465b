"""Affine changes of one image, torchvision's in 2D and MONAI's in 3D, and blur, by given parameters.

Everything spatial is one interpolation, so that an image is resampled once however many changes are made. Outside of
the image the value is ``fill``. Nothing here is random, nor does it depend on the number of
threads.

Axes: c channels, h w height width, d h w depth height width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["blur", "pull_matrix", "warp_image", "warp_volume"]


def warp_image(
    image: Tensor, *, angle: float, shift: Sequence[float], scale: float, shear: Sequence[float], fill: Tensor
) -> Tensor:
    """Turn, shear, scale and shift a picture around its centre, in this order, ``c h w -> c h w``.

    Args:
        image: float32.
        angle: degrees, clockwise.
        shift: pixels down and to the right.
        scale: above 1 enlarges.
        shear: degrees along the rows and along the columns.
        fill: ``c``, the values outside of the picture.
    """
    from torchvision.transforms.v2.functional import InterpolationMode, affine

    # torchvision's own fill weighs the border twice, with the zeros outside and with its mask.
    below = fill.view(-1, 1, 1)
    moved = affine(
        image - below, angle, [shift[1], shift[0]], scale, list(shear), interpolation=InterpolationMode.BILINEAR
    )
    return moved + below


def pull_matrix(
    angles: Sequence[float], shift: Sequence[float], scale: float, shear: Sequence[float], spacing: Sequence[float]
) -> NDArray[np.float64]:
    """Return the 4 x 4 matrix from a voxel of the result to the voxel its value is from, both from the centre.

    Args:
        angles: degrees around the axes d, h and w.
        shift: voxels along d, h and w.
        scale: above 1 enlarges.
        shear: 6 factors: of d by h and w, of h by d and w, of w by d and h.
        spacing: mm along d, h and w. Angles and shears are those of the body, not those of the grid.
    """
    from monai.transforms.utils import create_rotate, create_scale, create_shear

    mm = np.diag([*spacing, 1.0])
    turn = np.asarray(create_rotate(3, [math.radians(a) for a in angles]))
    move: NDArray[np.float64] = np.eye(4)
    move[:3, 3] = -np.asarray(shift) / scale
    pulled = np.linalg.inv(mm) @ turn @ np.asarray(create_shear(3, shear)) @ mm
    return pulled @ move @ np.asarray(create_scale(3, [1 / scale] * 3))


def warp_volume(image: Tensor, matrix: NDArray[np.float64], fill: Tensor) -> Tensor:
    """Resample a volume by :func:`pull_matrix` around its centre, ``c d h w -> c d h w``; ``fill`` is ``c``."""
    from monai.transforms import Affine

    below = fill.view(-1, 1, 1, 1)
    affine = Affine(affine=torch.from_numpy(matrix), mode="bilinear", padding_mode="zeros", image_only=True)
    moved: Tensor = affine(image - below)
    return torch.as_tensor(moved).as_subclass(Tensor) + below


def blur(image: Tensor, sigma: float) -> Tensor:
    """Blur ``c *s`` by a Gaussian of ``sigma`` pixels or voxels, cut at 3 sigma, mirrored at the border.

    SciPy's, because MONAI's darkens the border and depends on the number of threads in a large volume.
    """
    from scipy.ndimage import gaussian_filter

    sigmas = [0.0, *[sigma] * (image.ndim - 1)]
    return torch.from_numpy(gaussian_filter(image.numpy(), sigmas, mode="mirror", radius=math.ceil(3 * sigma)))
