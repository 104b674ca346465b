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

from medzoo.errors import ConfigError, DataError, did_you_mean
from medzoo.inference.result import Prediction, Predictions
from medzoo.interpretation.picture import draw_explanation
from medzoo.interpretation.saved import save_explanation
from medzoo.io.image import Image
from medzoo.transforms.geometry import Geometry
from medzoo.visual.overlay import peak

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

__all__ = ["Explanation", "Explanations"]


@dataclass(frozen=True, eq=False)
class Explanation:
    """Where in an image an output was influenced: a map of influence, not a localisation.

    Attributes:
        prediction: what :func:`medzoo.predict` returns for the image.
        original: the image as it was read, or a function that reads it again; see :attr:`image`.
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
        if isinstance(self.original, Image):
            return self.original
        image = self.original()
        if image.identity != self.prediction.identity or image.array.shape[1:] != self.geometry.source_size:
            raise DataError(
                f"{self.prediction.name}: expected the image that was explained, got another one: the file was changed "
                "since. Explain it again."
            )
        return image

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
        if len(self.cells) != 1:
            raise ConfigError(
                f"explanation of {self.prediction.source}: expected one target, got {', '.join(self.targets)}. Choose "
                f"one: explanation[{self.targets[0]!r}].map"
            )
        (cells,) = self.cells.values()
        return np.asarray(self.geometry.invert(cells[None], self.frame)[0].numpy())

    @property
    def peak(self) -> tuple[int, ...]:
        """The index of the maximum of :attr:`map`, which is at the centre of the highest cell.

        ``map.argmax()`` may be up to the border away from it: beyond the outermost cells a map is constant. Of
        occlusion where nothing raised the output it is the minimum, and of a map of zeros the middle of the image.

        Raises:
            ConfigError: there are several targets.
        """
        return peak(self.map, signed=self.method == "occlusion")

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a picture (``.png``, ``.jpg``), a NIfTI volume (``.nii.gz``, ``.nii``) or an array (``.npy``).

        A picture shows all targets. A volume has the axes and the affine of the image, float32; a 2D image with a
        position is a volume of one slice. What is at ``path`` is replaced once the new file is complete.

        Raises:
            ConfigError: another suffix; several targets, or for a volume an image without a position; a file that
                cannot be written.
        """
        return save_explanation(self, path)

    def draw(self) -> Picture:
        """Draw the image beside each map over it, with its target, probability and scale; 1600 pixels wide.

        Of a volume, the planes are those through the maximum of the map, in the radiological convention. The map is
        clear where it is low, a line follows half of its maximum, and what the model did not see is hatched.
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
