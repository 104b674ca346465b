"""Activation maps of one layer of a model: Grad-CAM and Grad-CAM++ by MONAI's formulas.

Sources: Selvaraju et al., Grad-CAM, https://arxiv.org/abs/1610.02391; Chattopadhay et al., Grad-CAM++,
https://arxiv.org/abs/1710.11063; the formulas are those of ``monai.visualize``. MONAI's classes put hooks on the model
that stay, clear its gradients and invert the map; here a view of the model is hooked, and the map is as computed.

Axes: b batch, c channels, s spatial axes of the input, s' those of the layer's map, n classes, t targets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from medzoo.classifier import Classifier

__all__ = ["LAYER_METHODS", "LayerMethod", "layer_maps", "map_sizes"]

LayerMethod = Literal["gradcam", "gradcam++"]
LAYER_METHODS: tuple[LayerMethod, ...] = ("gradcam", "gradcam++")


def layer_maps(
    view: Classifier, layer: str, x: Tensor, choose: Callable[[Tensor], Tensor], method: LayerMethod = "gradcam"
) -> tuple[Tensor, Tensor]:
    """Return logits ``b n``, and for each target the map of a layer, ``b t *s'``, which is never negative.

    The map is linear in the activations of the layer, in no unit: its scale means nothing across images and models.
    Rows of a batch do not influence each other.

    Args:
        view: from :func:`medzoo.inference.view.float32_view`; it is hooked for the time of the call.
        layer: the dotted name of a module that returns a map ``b c *s'``.
        x: ``b c *s``.
        choose: from logits ``b n`` to the indices of the targets, ``b t``.
        method: ``"gradcam"`` or ``"gradcam++"``.
    """
    from monai.visualize.class_activation_maps import GradCAM, GradCAMpp

    kept: list[Tensor] = []

    def keep(_: nn.Module, __: Any, out: Tensor) -> Tensor:
        # The graph begins here. What follows gets a copy, as it may overwrite its input: DenseNet's ReLU does.
        kept.append(out.detach().requires_grad_())
        return kept[-1].clone()

    handle = view.get_submodule(layer).register_forward_hook(keep)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            logits = view(x)
            targets = choose(logits.detach())
            recorded = _recorded(logits, kept[-1])
            kind = {"gradcam": GradCAM, "gradcam++": GradCAMpp}[method]
            cam = kind(nn_module=recorded, target_layers=layer)
            maps = [cam.compute_map(x, class_idx=column) for column in targets.T]
    finally:
        handle.remove()
    return logits.detach(), torch.cat(maps, 1).detach()


def map_sizes(view: Classifier, layers: list[str], x: Tensor) -> dict[str, tuple[int, ...]]:
    """Return the shape of what each of some modules returns for ``x``; one that returns no tensor is left out."""
    found: dict[str, tuple[int, ...]] = {}

    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_: nn.Module, __: Any, out: Any) -> None:
            if isinstance(out, Tensor):
                found[name] = tuple(out.shape)

        return hook

    handles = [view.get_submodule(name).register_forward_hook(note(name)) for name in layers]
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
            return logits, (activations.detach().contiguous(),), (gradient.contiguous(),)

    return Recorded()
