"""Which layer a map is computed from, and which outputs it explains.

Axes: b batch, s spatial axes, n classes, t targets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medzoo import registry
from medzoo.classifier import Classifier
from medzoo.errors import ConfigError, UnknownModelError, did_you_mean
from medzoo.interpretation.layer_maps import map_sizes

__all__ = ["CELLS", "ChosenLayer", "choose_layer", "choose_targets"]

# A map of fewer cells along an axis cannot point within the image.
CELLS = 4


@dataclass(frozen=True)
class ChosenLayer:
    """A layer and the spatial size of its map.

    Attributes:
        name: dotted name of the module.
        size: cells along each spatial axis.
    """

    name: str
    size: tuple[int, ...]

    @property
    def is_coarse(self) -> bool:
        """Whether the map has too few cells to point."""
        return min(self.size) < CELLS


def choose_layer(view: Classifier, x: Tensor, layer: str | None = None) -> ChosenLayer:
    """Return the layer for inputs of the size of ``x``.

    It is the ``cam_layer`` of the registration; where its map has fewer than four cells along an axis, the deepest
    map of ``feature_info`` that has them, else the largest.

    Args:
        view: the model.
        x: ``b c *s``, one row of it.
        layer: the dotted name of another module.

    Raises:
        ConfigError: there is no such module, or it returns no map.
    """
    stages = [f"encoder.{info['module']}" for info in reversed(view.feature_info)]
    if layer is None:
        try:
            first = [registry.describe(view.name).cam_layer]
        except UnknownModelError:  # a classifier that was not made by medzoo.create
            first = []
        names = list(dict.fromkeys([*first, *stages]))
    else:
        modules = dict(view.named_modules())
        if layer not in modules or not layer:
            raise ConfigError(
                f"{view.name}: expected the dotted name of a module, got layer={layer!r}."
                f"{did_you_mean(str(layer), modules)} The stages are {', '.join(stages)}."
            )
        names = [layer]
    shapes = map_sizes(view, names, x[:1])
    dims = view.input_spec.dims
    maps = [ChosenLayer(name, shapes[name][2:]) for name in names if len(shapes.get(name, ())) == 2 + dims]
    if not maps:
        got = shapes.get(names[0], "none")
        raise ConfigError(
            f"{view.name}: expected a layer that returns a map {view.input_spec.axes!r} once in a forward pass, got "
            f"{names[0]} with {got}. The stages are {', '.join(stages)}."
        )
    return next((found for found in maps if not found.is_coarse), max(maps, key=lambda found: min(found.size)))


def choose_targets(
    model: Classifier, target: str | Sequence[str] | None, allow_untrained: bool
) -> Callable[[Tensor], Tensor]:
    """Return what chooses the outputs to explain, from logits ``b n`` to indices ``b t``.

    Without a target it is the trained output with the highest probability of each image.

    Raises:
        ConfigError: the model has no such output, or it was not trained.
    """
    outputs = model.outputs
    if target is None:
        usable = torch.tensor([trained or allow_untrained for trained in outputs.trained])

        def likeliest(logits: Tensor) -> Tensor:
            probabilities = outputs.probabilities(logits.float().cpu())
            return probabilities.masked_fill(~usable, -1.0).argmax(1, keepdim=True).to(logits.device)

        return likeliest
    names = [target] if isinstance(target, str) else list(target)
    unknown = [name for name in names if name not in outputs.labels]
    if unknown or not names:
        raise ConfigError(
            f"{model.name}: expected a target among its outputs, got {unknown[0] if unknown else names!r}."
            f"{did_you_mean(str(unknown[0]), outputs.labels) if unknown else ''} They are {', '.join(outputs.labels)}."
        )
    indices = [outputs.labels.index(name) for name in names]
    untrained = [name for name, i in zip(names, indices, strict=True) if not outputs.trained[i]]
    if untrained and not allow_untrained:
        raise ConfigError(
            f"{model.name}: the output {untrained[0]!r} was not trained, so a map of it means nothing. Choose another, "
            "or pass allow_untrained=True."
        )
    return lambda logits: torch.tensor(indices, device=logits.device).expand(len(logits), -1)
