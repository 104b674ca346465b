"""Which layer a map is computed from, and which outputs it explains.

Axes: b batch, s spatial axes, n classes, t targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from medzoo import registry
from medzoo.classifier import Classifier
from medzoo.errors import ConfigError, UnknownModelError, did_you_mean
from medzoo.inference.view import without_values
from medzoo.interpretation.layer_maps import layer_shapes
from medzoo.nn.patch_merging import PatchMerging
from medzoo.nn.swin_block import SwinBlock

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
        ConfigError: there is no such module, or it does not return one map in a forward pass.
    """
    stages = [f"encoder.{info['module']}" for info in reversed(view.feature_info)]
    modules = dict(view.named_modules())
    if layer is None:
        try:
            first = [registry.describe(view.name).cam_layer]
        except UnknownModelError:  # a classifier that was not made by medzoo.create
            first = []
        # A part that was replaced may have other names.
        names = [name for name in dict.fromkeys([*first, *stages]) if name in modules]
    elif isinstance(layer, str) and layer and layer in modules:
        names = [layer]
    else:
        raise ConfigError(
            f"{view.name}: expected the dotted name of a module, got layer={layer!r}."
            f"{did_you_mean(str(layer), modules)} The stages are {', '.join(reversed(stages))}."
        )
    runs = without_values(view, x[:1], lambda view, x: layer_shapes(view, names, x))
    faults = {name: _map_fault(view, name, shapes, x) for name, shapes in runs.items()}
    maps = [ChosenLayer(name, shapes[0][2:]) for name, shapes in runs.items() if not faults[name]]
    if not maps:
        got = ", ".join(f"{name}, which {fault}" for name, fault in faults.items()) or "none of its stages"
        raise ConfigError(
            f"{view.name}: expected a layer that returns one map {view.input_spec.axes!r} in a forward pass, got "
            f"{got}. The stages are {', '.join(reversed(stages))}."
        )
    return next((found for found in maps if not found.is_coarse), max(maps, key=lambda found: min(found.size)))


def _map_fault(view: Classifier, name: str, shapes: Sequence[tuple[int, ...]], x: Tensor) -> str:
    """Return why what a layer returned is not a map of the input, channels first; empty if it is."""
    if len(shapes) != 1:
        return f"ran {len(shapes)} times"
    (shape,) = shapes
    if not shape:
        return "returned no tensor"
    if len(shape) != x.ndim or len(x[:1]) != shape[0]:
        return f"returned {shape}"
    path = name.split(".")
    parents = [view.get_submodule(".".join(path[:end])) for end in range(1, len(path) + 1)]
    inside = any(isinstance(part, (SwinBlock, PatchMerging)) for part in parents)
    if inside or any(cells > side for cells, side in zip(shape[2:], x.shape[2:], strict=True)):
        return f"returned {shape}, with the channels last"
    return ""


def choose_targets(
    model: Classifier, target: str | Sequence[str] | None, allow_untrained: bool
) -> Callable[[Tensor], Tensor]:
    """Return what chooses the outputs to explain, from logits ``b n`` to indices ``b t``.

    Without a target it is, for each image, the trained output with the highest probability, or of all if none was
    trained.

    Raises:
        ConfigError: the model has no such output, or it was not trained.
    """
    outputs = model.outputs
    if target is None:
        usable = torch.tensor(outputs.trained if any(outputs.trained) else [True], device="cpu")

        def likeliest(logits: Tensor) -> Tensor:
            probabilities = outputs.probabilities(logits.float().cpu())
            return probabilities.masked_fill(~usable, -1.0).argmax(1, keepdim=True).to(logits.device)

        return likeliest
    names: list[Any] = list(target) if isinstance(target, Iterable) and not isinstance(target, str) else [target]
    unknown = [name for name in names if name not in outputs.labels]
    if unknown or not names:
        raise ConfigError(
            f"{model.name}: expected the target among its outputs, got {(unknown or [target])[0]!r}."
            f"{did_you_mean(str(unknown[0]), outputs.labels) if unknown else ''} They are {', '.join(outputs.labels)}."
        )
    names = list(dict.fromkeys(names))
    indices = [outputs.labels.index(name) for name in names]
    untrained = [name for name, i in zip(names, indices, strict=True) if not outputs.trained[i]]
    if untrained and not allow_untrained:
        raise ConfigError(
            f"{model.name}: the output {untrained[0]!r} was not trained, so a map of it means nothing. Choose another, "
            "or pass allow_untrained=True."
        )
    return lambda logits: torch.tensor(indices, device=logits.device).expand(len(logits), -1)
