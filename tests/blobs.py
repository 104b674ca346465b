"""Images with a blob at a known place: noise, a dark blob in every image, and a bright one in the positives.

The dark blob is as conspicuous as the bright one and says nothing of the class: a map that points at what stands out
finds the bright one in half of the images.

Axes: b batch, c channels, s spatial axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

import medzoo

# Of a blob at its centre, in standard deviations of the noise.
HEIGHT = 6.0


@dataclass(frozen=True)
class Planted:
    """An image in a file.

    Attributes:
        path: of the file.
        positive: whether it has the bright blob.
        centre: of the bright blob, in mm.
    """

    path: Path
    positive: bool
    centre: NDArray[np.float64]


@dataclass(frozen=True)
class Grid:
    """Where the pixels or voxels of an image lie.

    Attributes:
        size: of the array.
        affine: 4 x 4, from an index to mm; of an image in 2D, whose pixels count as 1 mm, the first two rows.
    """

    size: tuple[int, ...]
    affine: NDArray[np.float64]

    def place(self, index: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the position of an index, in mm."""
        dims = len(self.size)
        return self.affine[:dims, :dims] @ index + self.affine[:dims, 3]

    def blob(self, centre: NDArray[np.float64], sigma: float) -> NDArray[np.float32]:
        """Return a round blob in mm of height 1 around an index."""
        dims = len(self.size)
        steps = np.indices(self.size, np.float32) - centre.reshape(-1, *[1] * dims).astype(np.float32)
        offset = np.tensordot(self.affine[:dims, :dims].astype(np.float32), steps, 1)
        return np.exp(-(offset**2).sum(0) / (2 * sigma**2))

    def draw(self, rng: np.random.Generator, positive: bool, sigma: float) -> tuple[NDArray[np.float32], NDArray]:
        """Return an image ``*s``, and where its bright blob is in mm, which a negative lacks."""
        dims = len(self.size)
        steps = np.linalg.norm(self.affine[:dims, :dims], axis=0)
        margin = 2 * sigma / steps
        while True:
            bright, dark = (rng.uniform(margin, np.array(self.size) - 1 - margin) for _ in range(2))
            if np.linalg.norm(self.place(bright) - self.place(dark)) > 5 * sigma:
                break
        image = rng.standard_normal(self.size, np.float32) - HEIGHT * self.blob(dark, sigma)
        return (image + HEIGHT * self.blob(bright, sigma) if positive else image), self.place(bright)


# The preprocessing that brings the noise of a file to mean 0 and standard deviation 1. A z-score of each image would do
# so too, but for the blob, which would then shift the whole background: models learn to see that, and point nowhere.
INTENSITY = {
    2: {"intensity": "unit", "mean": (128 / 255,), "std": (20 / 255,)},
    3: {"intensity": "window", "window": (-1000.0, 1000.0), "mean": (0.5,), "std": (0.05,)},
}


def plant(folder: Path, grid: Grid, sigma: float, kinds: Sequence[bool], seed: int) -> list[Planted]:
    """Write positives and negatives: images by PIL as 8-bit PNG, volumes by nibabel as NIfTI."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    planted = []
    for i, positive in enumerate(kinds):
        image, centre = grid.draw(rng, positive, sigma)
        if image.ndim == 2:
            path = folder / f"{i}.png"
            PIL.Image.fromarray(np.clip(128 + 20 * image, 0, 255).astype(np.uint8)).save(path)
        else:
            path = folder / f"{i}.nii"
            nib.save(nib.Nifti1Image((100 * image).astype(np.int16), grid.affine), path)
        planted.append(Planted(path, positive, centre))
    return planted


def train_on_blobs(model: medzoo.Classifier, planted: list[Planted], *, steps: int, batch: int, lr: float) -> None:
    """Train on images, which are flipped at random along each axis."""
    rng = np.random.default_rng(0)
    prepare = medzoo.transform(model)
    pools = [torch.stack([prepare(one.path) for one in planted if one.positive == kind]) for kind in (False, True)]
    y = torch.arange(batch) % 2
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    model.train()
    for _ in range(steps):
        drawn = [pools[kind][rng.integers(len(pools[kind]))] for kind in y]
        x = torch.stack([row.flip([a for a in range(1, row.ndim) if rng.random() < 0.5]) for row in drawn])
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(model(x)[:, 0], y.float()).backward()
        optimizer.step()
        schedule.step()
    model.eval()
    model.set_outputs(labels=["blob"], task="binary")


def points_at(explanation: medzoo.Explanation, centre: NDArray[np.float64], radius: float) -> bool:
    """Whether the maximum of a map is within a radius of the place of a blob, enlarged by half a cell; zeros have none.

    Args:
        explanation: of one target.
        centre: in mm.
        radius: in mm.
    """
    if not explanation.map.any():
        return False
    dims, image = len(centre), explanation.image
    to_mm = np.eye(4) if image.affine is None else image.affine  # a NIfTI file may be read in another order of axes
    highest = [*explanation.peak, 0, 0][:3]
    offset = centre - (to_mm @ [*highest, 1])[:dims]
    cells = (to_mm @ explanation.geometry.to_source @ explanation.frame)[
        :dims, :dims
    ]  # columns: the steps of the cells
    steps = np.linalg.solve(cells, offset)
    return bool(np.linalg.norm(cells @ (steps - steps.clip(-0.5, 0.5))) <= radius)
