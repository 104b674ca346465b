"""The picture of an explanation: its maps over the image, and what they are of in words."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medzoo.inference.result import Prediction
from medzoo.io.files import join_sizes
from medzoo.io.image import Image
from medzoo.visual.overlay import Overlay, draw_overlays
from medzoo.visual.panel_text import Line

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from medzoo.interpretation.explanation import Explanation

__all__ = ["draw_explanation"]

_METHODS = {"gradcam": "Grad-CAM", "gradcam++": "Grad-CAM++", "occlusion": "Occlusion"}
_NOT_A_LOCALISATION = "A map of influence, not a localisation: what moved this output need not be where a finding is."


def draw_explanation(explanation: Explanation) -> Picture:
    """Draw an image beside the maps over it, with target, probability, method and warnings."""
    found, image = explanation.prediction, explanation.image  # which may be read from its file
    seen = np.asarray(explanation.geometry.covered().numpy())
    signed = explanation.method == "occlusion"
    overlays = []
    for target in explanation.targets:
        alone = explanation[target]
        values, at = alone.map, alone.peak
        heading = [Line(target, "title"), Line(_describe_output(found, target))]
        if target in found.untrained:
            heading.append(Line("This output was not trained: its probability and its map mean nothing.", "warning"))
        if not values.any():
            heading.append(Line("The map is zero everywhere: nothing is drawn over the image.", "warning"))
        else:
            heading.append(Line(_place(image, values, at), "note"))
        overlays.append(Overlay(values, at, heading, _scale(explanation.method), signed))
    return draw_overlays(image, overlays, seen, _warnings(explanation, image), _caption(explanation, image))


def _describe_output(found: Prediction, target: str) -> str:
    """Return the probability of an output and how it is called, as a sentence without its name."""
    if target not in found.probabilities:
        return "no probability"
    probability = f"probability {found.probabilities[target]:.3f}"
    if target in found.untrained:
        return f"{probability}, output not trained"
    called = {True: "called positive", False: "called negative", None: "no threshold: neither positive nor negative"}
    return f"{probability}, {called[found.positive.get(target)]}, trained output"


def _scale(method: str) -> str:
    if method == "occlusion":
        return "by how much the logit falls where a region is hidden; below 0 it rises"
    return f"{_METHODS.get(method, method)}, no unit: comparable within this map alone"


def _place(image: Image, values: NDArray[np.float32], at: tuple[int, ...]) -> str:
    """Return where the maximum is: the index on the axes of the array, and for a volume the position in mm."""
    name = "maximum" if values.max() > 0 else "minimum"
    where = f"{name} at index ({', '.join(map(str, at))}) of {join_sizes(values.shape)}"
    if image.affine is None or image.dims != 3:
        return where
    x, y, z = (image.affine @ [*at, 1.0])[:3]
    return f"{where}, LPS ({-x:.1f}, {-y:.1f}, {z:.1f}) mm"


def _caption(explanation: Explanation, image: Image) -> list[Line]:
    """Return the lines at the end: what the map is, its method, the file and the weights."""
    found = explanation.prediction
    cells = join_sizes(next(iter(explanation.cells.values())).shape)
    method = _METHODS.get(explanation.method, explanation.method)
    layer = f" of {explanation.layer}" if explanation.layer else ""
    file = Path(image.identity.get("file", found.source)).name
    stack = f" ({image.identity['stack']})" if "stack" in image.identity else ""
    point = f" at ({', '.join(f'{v:.1f}' for v in found.point)}) mm" if found.point else ""
    weights = f"{found.provenance['model']}, weights {found.provenance['weights']}" if found.provenance else ""
    facts = [f"{method}{layer}, {cells} cells", f"{file}{stack}{point}", weights]
    return [Line(_NOT_A_LOCALISATION), Line(" · ".join(filter(None, facts)), "note")]


def _warnings(explanation: Explanation, image: Image) -> list[Line]:
    """Return what is known against the image, the prediction and the map; a picture has no room for whole paths."""
    found = explanation.prediction
    lines = []
    for text in filter(None, (found.warning, explanation.warning)):
        for path in (image.identity.get("file", found.source), found.source):
            text = text.replace(path, Path(path).name)
        lines.append(Line(text, "warning"))
    return lines
