"""What :func:`medzoo.explain` returns: which region of an image drove an output, on the image as it was read.

Axes: s spatial axes of the image, s' cells of the map.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medzoo.errors import ConfigError, did_you_mean
from medzoo.inference.result import Prediction, Predictions
from medzoo.interpretation.picture import draw_explanation
from medzoo.interpretation.saved import save_explanation
from medzoo.io.image import Image
from medzoo.transforms.geometry import Geometry

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

__all__ = ["Explanation", "Explanations"]


@dataclass(frozen=True, eq=False)
class Explanation:
    """Where in an image an output was influenced: a map of influence, not a localisation.

    Attributes:
        prediction: what :func:`medzoo.predict` returns for the image.
        original: the image as it was read, or a function that reads it again and checks that it is the one that was
            explained; see :attr:`image`.
        cells: for each target, the map as it was computed, float32 ``*s'``. Grad-CAM is never negative and has no unit.
            Occlusion is by how much the logit falls where a region is hidden; negative where it rises.
        geometry: where the input of the model lies in the image.
        frame: 4 x 4, from an index of a map in ``cells`` to an index of the input of the model.
        method: ``"gradcam"``, ``"gradcam++"`` or ``"occlusion"``.
        layer: the module whose activations were weighted; empty for occlusion.
        warning: why a map says little: too coarse, or zero everywhere; empty if nothing is known against it.
    """

    prediction: Prediction
    original: Image | Callable[[], Image]
    cells: Mapping[str, NDArray[np.float32]]
    geometry: Geometry
    frame: NDArray[np.float64]
    method: str
    layer: str = ""
    warning: str = ""

    @property
    def image(self) -> Image:
        """The image as :func:`medzoo.read` returns it; of several explanations, each access reads it from its file.

        Raises:
            DataError: the file cannot be read, or has another image than the one that was explained.
        """
        return self.original if isinstance(self.original, Image) else self.original()

    @property
    def targets(self) -> tuple[str, ...]:
        """The outputs that are explained."""
        return tuple(self.cells)

    def __getitem__(self, target: str) -> Explanation:
        """Return the explanation of one target alone."""
        if target not in self.cells:
            raise ConfigError(
                f"explanation of {self.prediction.source}: expected one of {', '.join(self.targets)}, got {target!r}."
                f"{did_you_mean(target, self.targets)}"
            )
        return replace(self, cells={target: self.cells[target]})

    @property
    def map(self) -> NDArray[np.float32]:
        """The map of the only target, on the spatial axes of ``medzoo.read(source).array``; 0 where nothing was seen.

        Each access computes a new array, of the size of the image: keep it where you use it twice.

        Raises:
            ConfigError: there are several targets.
        """
        return np.asarray(self.geometry.invert(self._only("map")[None], self.frame)[0].numpy())

    @property
    def peak(self) -> tuple[int, ...]:
        """The index of the maximum of :attr:`map`: the voxel at the centre of its highest cell.

        ``map.argmax()`` may be anywhere from there to the border, as a map is constant beyond its outermost cells. Of
        occlusion where nothing raised the output it is the minimum, and of a map of zeros the middle of what the model
        saw. In a volume with a position it is at ``image.affine @ [*peak, 1]``, in mm, RAS+.

        Raises:
            ConfigError: there are several targets.
        """
        return self.geometry.peak(self._only("peak"), self.frame)

    def _only(self, asked: str) -> NDArray[np.float32]:
        """Return the cells of the only target, for a property of it."""
        if len(self.cells) != 1:
            raise ConfigError(
                f"explanation of {self.prediction.source}: expected one target, got {', '.join(self.targets)}. Choose "
                f"one: explanation[{self.targets[0]!r}].{asked}"
            )
        (cells,) = self.cells.values()
        return cells

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a picture (``.png``, ``.jpg``), a NIfTI volume (``.nii.gz``, ``.nii``) or an array (``.npy``).

        A picture shows all targets. A volume and an array are float32 on the axes of :attr:`image`: a NIfTI or MHD file
        is turned to RAS+ as :func:`medzoo.read` does, also where it is stored in another order, such as LPS. A volume
        has the affine of these axes, so that viewers show it in place; to compute with it voxel by voxel, take
        ``medzoo.read(source).array`` or ``nibabel.as_closest_canonical``, not the array as stored. A 2D image with a
        position is a volume of one slice. What is at ``path`` is replaced once the new file is complete.

        Raises:
            ConfigError: another suffix; several targets, or for a volume an image without a position; a file that
                cannot be written.
        """
        return save_explanation(self, path)

    def draw(self) -> Picture:
        """Draw the image beside each map over it, with its target, probability and scale; 1600 pixels wide.

        Of a volume, the planes are those through the maximum of the map (:attr:`peak`), in the radiological convention.
        The map is clear where it is low, a line follows half of its maximum, and what the model did not see is hatched.
        """
        return draw_explanation(self)


class Explanations(list[Explanation]):
    """Explanations in the order of their sources. They hold small maps, and read the images of files again when asked.

    Attributes:
        predictions: of all images, those that failed included, as :func:`medzoo.predict` returns them.
    """

    def __init__(self, explanations: Sequence[Explanation], predictions: Predictions) -> None:
        super().__init__(explanations)
        self.predictions = predictions

    @property
    def failed(self) -> list[Prediction]:
        """The predictions of images that have an error, and no explanation."""
        return self.predictions.failed

    @property
    def skipped(self) -> dict[str, str]:
        """Path to the reason why it was skipped, as :attr:`medzoo.Predictions.skipped`."""
        return self.predictions.skipped
