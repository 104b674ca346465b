"""``medzoo.explain``: which region of an image drove an output.

Axes: b batch, c channels, s spatial axes, t targets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch

from medzoo.classifier import Classifier
from medzoo.inference.naming import name_outputs, provenance
from medzoo.inference.plan import Points, plan
from medzoo.inference.reading import ImageReader
from medzoo.inference.run import check_outputs
from medzoo.inference.view import float32_view
from medzoo.interpretation.cell_frame import cell_frame
from medzoo.interpretation.choose import choose_layer, choose_targets
from medzoo.interpretation.explanation import Explanation
from medzoo.interpretation.layer_maps import layer_maps
from medzoo.transforms.transform import ImageSource, transform

__all__ = ["Method", "explain"]

Method = Literal["gradcam", "gradcam++", "occlusion"]


def explain(
    model: Classifier,
    source: ImageSource | list[Any] | tuple[Any, ...],
    target: str | Sequence[str] | None = None,
    method: Method = "gradcam",
    *,
    layer: str | None = None,
    points: Points | None = None,
    points_frame: Literal["LPS", "RAS"] = "LPS",
    allow_untrained: bool = False,
    allow_mismatch: bool = False,
    progress: Callable[[int, int], object] | None = None,  # noqa: ARG001
) -> Explanation:
    """Return where an image influenced an output."""
    check_outputs(model, allow_untrained, "explain")
    choose = choose_targets(model, target, allow_untrained)
    work = plan(model, source, points, points_frame)
    reader = ImageReader(transform(model), work.images, provenance(model), allow_mismatch, keep=True)
    view = float32_view(model, next(model.parameters()).device)
    item = reader[0]
    prepared = item.prepared
    if prepared is None or method == "occlusion":
        raise NotImplementedError
    x = prepared.tensor[None]
    chosen = choose_layer(view, x, layer)
    picked: list[torch.Tensor] = []

    def remember(logits: torch.Tensor) -> torch.Tensor:
        picked.append(choose(logits))
        return picked[-1]

    logits, maps = layer_maps(view, chosen.name, x, remember, method)
    labels = [model.outputs.labels[int(i)] for i in picked[0][0]]
    return Explanation(
        name_outputs(item, logits[0].cpu(), model.outputs),
        prepared.image,
        {label: row.cpu().numpy() for label, row in zip(labels, maps[0], strict=True)},
        prepared.geometry,
        cell_frame(view, chosen.name, x, chosen.size),
        method,
        chosen.name,
    )
