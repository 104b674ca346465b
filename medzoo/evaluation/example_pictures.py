"""The pictures of a report's examples: the image as the network saw it, and the map of its output over it.

Axes: b batch, c channels, s spatial axes of the input, s' cells of the map.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medzoo.classifier import Classifier
from medzoo.data.pixels import PixelStore
from medzoo.errors import ConfigError
from medzoo.evaluation.examples import ExamplePicture
from medzoo.evaluation.scores import Scores
from medzoo.inference.view import float32_view
from medzoo.interpretation.cell_frame import layer_frame
from medzoo.interpretation.choose import choose_layer
from medzoo.interpretation.layer_maps import layer_maps
from medzoo.progress import track
from medzoo.transforms.geometry import Geometry
from medzoo.visual.show_transforms import draw_input

__all__ = ["ExampleMaps", "ExamplePictures"]

_BATCH = 4  # images per forward pass: the plain path takes more memory than the one that scored them


@dataclass(frozen=True)
class ExampleMaps:
    """How the maps over the examples of a report were made, which is the same for all of them.

    Attributes:
        method: of the maps, by name.
        layer: the module whose activations were weighted.
        size: cells of a map along each axis.
        coarse: whether these are too few to point within an image.
        why: why there are none; the other fields are then empty.
    """

    method: str = ""
    layer: str = ""
    size: tuple[int, ...] = ()
    coarse: bool = False
    why: str = ""


class ExamplePictures:
    """Draws rows of a table as a model saw them, with the map of an output over them.

    A map takes a forward pass of the image, and at most one more pass chooses the layer.

    Args:
        model: that is evaluated; it is not changed.
        pixels: its images, which may be stored in 8 bits: maps are of the values that were scored.
        outputs: the index of the model's output by the label of the table.
        maps: whether to draw maps.
        device: where to compute them; ``None`` is the device of the model.

    Attributes:
        maps: how they are made; ``None`` without maps.
    """

    def __init__(
        self,
        model: Classifier,
        pixels: PixelStore,
        outputs: Mapping[str, int],
        *,
        maps: bool = True,
        device: Any = None,
    ) -> None:
        self._pixels, self._outputs = pixels, outputs
        self._place = {str(one): row for row, one in enumerate(pixels.table.ids)}
        self._device = next(model.parameters()).device if device is None else torch.device(device)
        self.maps: ExampleMaps | None = None
        if not maps:
            return
        try:
            self._view = float32_view(model, self._device)
            gone = {dropped.row for dropped in pixels.dropped}
            x = self._input(pixels.read(next(row for row in range(len(pixels.table)) if row not in gone)))
            chosen = choose_layer(self._view, x)
        except ConfigError as error:
            self.maps = ExampleMaps(why=str(error))
            return
        self.maps = ExampleMaps("Grad-CAM", chosen.name, chosen.size, chosen.is_coarse)
        size = tuple(x.shape[2:])
        self._frame, self._grid = layer_frame(self._view, chosen, x), Geometry(size, size, np.eye(4))

    def draw(self, scores: Scores, asked: Sequence[tuple[int, str]]) -> Iterator[ExamplePicture]:
        """Yield the picture of each row of the scores, with the map of a label."""
        for start in track(range(0, len(asked), _BATCH), "drawing examples"):
            some = asked[start : start + _BATCH]
            images = [self._pixels.read(self._place[str(scores.ids[row])]) for row, _ in some]
            maps = self._maps(images, [label for _, label in some])
            for image, cells in zip(images, maps, strict=True):
                out = io.BytesIO()
                heat = None if cells is None else self._grid.invert(cells[None], self._frame)[0]
                at = () if cells is None else self._grid.peak(cells, self._frame)
                draw_input(image, self._pixels.transform, heat, at).save(out, "PNG")
                yield ExamplePicture(out.getvalue(), None if heat is None else bool(heat.any()))

    def _maps(self, images: Sequence[Tensor], labels: Sequence[str]) -> Sequence[Tensor | None]:
        """Return the map of an output over each image, ``*s'``, which is never negative; ``None`` for no map."""
        if self.maps is None or self.maps.why:
            return [None] * len(images)
        x = torch.cat([self._input(image) for image in images])
        targets = torch.tensor([[self._outputs[label]] for label in labels], device=self._device)
        _, cells = layer_maps(self._view, self.maps.layer, x, lambda _: targets)
        return [one[0].cpu() for one in cells]

    def _input(self, image: Tensor) -> Tensor:
        return self._pixels.transform.normalise(image)[None].to(self._device)
