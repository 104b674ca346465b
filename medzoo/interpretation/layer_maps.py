"""Activation maps of one layer of a model: Grad-CAM and Grad-CAM++ by MONAI's formulas.

Sources: Selvaraju et al., Grad-CAM, https://arxiv.org/abs/1610.02391; Chattopadhay et al., Grad-CAM++,
https://arxiv.org/abs/1710.11063; the formulas are those of ``monai.visualize``. MONAI's classes put hooks on the model
that stay, clear its gradients and invert the map; here a view of the model is hooked, and the map is as computed.

Axes: b batch, c channels, s spatial axes of the input, s' those of the layer's map, n classes, t targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from medzoo.classifier import Classifier
from medzoo.errors import ConfigError

__all__ = ["LAYER_METHODS", "LayerMethod", "layer_maps", "layer_shapes"]

LayerMethod = Literal["gradcam", "gradcam++"]
LAYER_METHODS: tuple[LayerMethod, ...] = ("gradcam", "gradcam++")


def layer_maps(
    view: Classifier, layer: str, x: Tensor, choose: Callable[[Tensor], Tensor], method: LayerMethod = "gradcam"
) -> tuple[Tensor, Tensor]:
    """Return logits ``b n``, and for each target the map of a layer, ``b t *s'``, which is never negative.

    The map has no unit: its scale means nothing across images and models. Rows of a batch do not influence each other.

    Args:
        view: from :func:`medzoo.inference.view.float32_view`; it is hooked for the time of the call.
        layer: the dotted name of a module that returns a map ``b c *s'`` once in a forward pass.
        x: ``b c *s``.
        choose: from logits ``b n`` to the indices of the targets, ``b t``.
        method: ``"gradcam"`` or ``"gradcam++"``.

    Raises:
        ConfigError: the logits do not depend on the layer.
    """
    from monai.visualize.class_activation_maps import GradCAM, GradCAMpp

    kept: list[Tensor] = []

    def keep(_: nn.Module, __: Any, out: Tensor) -> Tensor:
        # The graph begins here. What comes before and after may overwrite its tensors, as DenseNet's ReLU does: both
        # have their own.
        kept.append(out.detach().clone().requires_grad_())
        return kept[-1].clone()

    handle = view.get_submodule(layer).register_forward_hook(keep)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            logits = view(x)
            if not logits.requires_grad:
                raise ConfigError(
                    f"{view.name}: expected a layer that the logits depend on, got {layer}. Choose one between the "
                    "image and the head."
                )
            targets = choose(logits.detach())
            kind = {"gradcam": GradCAM, "gradcam++": GradCAMpp}[method]
            cam = kind(nn_module=_recorded(logits, kept[-1]), target_layers=layer)
            maps = [cam.compute_map(x, class_idx=column) for column in targets.T]
    finally:
        handle.remove()
    return logits.detach(), torch.cat(maps, 1).detach()


def layer_shapes(view: Classifier, layers: Iterable[str], x: Tensor) -> dict[str, list[tuple[int, ...]]]:
    """Return the shapes of what some modules return for ``x``, one each time it runs; ``()`` where it is no tensor."""
    found: dict[str, list[tuple[int, ...]]] = {name: [] for name in layers}

    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda _, __, out: found[name].append(tuple(out.shape) if isinstance(out, Tensor) else ())

    handles = [view.get_submodule(name).register_forward_hook(note(name)) for name in found]
    try:
        with torch.no_grad():
            view(x)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _recorded(logits: Tensor, activations: Tensor) -> Any:
    """Return a forward pass that was run already, as MONAI's methods expect to run it."""
    from monai.visualize.class_activation_maps import ModelWithHooks

    class Recorded(ModelWithHooks):  # type: ignore[misc]  # MONAI has no types
        """Gives the gradient of chosen logits; unlike its base it touches no module."""

        def __init__(self) -> None:
            # Grad-CAM++ multiplies by e to the power of the logit, a factor of the whole map, which would overflow.
            self.score = logits.new_zeros(())

        def __call__(self, x: Any, class_idx: Any = None, retain_graph: bool = False, **_: Any) -> Any:  # noqa: ARG002
            chosen = logits.gather(1, class_idx[:, None]).sum()
            (gradient,) = torch.autograd.grad(chosen, activations, retain_graph=True)
            # Grad-CAM++ adds 1e-7 to squares of the gradient. After an average over many cells these are far smaller,
            # and what was added would decide the map. Both methods give the same map for activations times s and
            # gradients over s; a power of 2 brings the largest gradient to 2 ** 32 without rounding.
            exponent = torch.frexp(gradient.flatten(1).abs().amax(1)).exponent - 32
            s = torch.ldexp(torch.ones_like(exponent, dtype=gradient.dtype), exponent)
            s = s.view(-1, *[1] * (gradient.ndim - 1))
            return logits, ((activations.detach() * s).contiguous(),), ((gradient / s).contiguous(),)

    return Recorded()
