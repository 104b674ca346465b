"""Who medzoo is compared with, each with exactly our tensors.

A peer that this machine lacks is absent with a reason, and the row goes on without it.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

import medzoo
from medzoo.bench.cases import CHANNELS_LAST, COMPILED, CREATED, EAGER, GRAPHLESS, MONAI, TIMM

__all__ = ["PEERS", "WINDOW", "Absent", "matched_parameters", "monai_swin"]


# The sides of the Swin encoder's windows, in MONAI and here.
WINDOW = (7, 7, 7)


class Absent(Exception):
    """A peer cannot take part; the message says why."""


class MonaiFeatures(nn.Module):
    """MONAI's Swin encoder and the average over its last map, ``b c d h w -> b c'``.

    MONAI has no way to leave out the four other maps it normalises.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        """Return the averaged features."""
        return cast(Tensor, self.encoder(x)[-1]).flatten(2).mean(-1)


def monai_modules() -> Any:
    """Return MONAI's module of the Swin encoder."""
    try:
        import einops  # noqa: F401  # MONAI imports it late and fails in forward
        from monai.networks.nets import swin_unetr
    except ImportError as error:
        raise Absent(f"MONAI is not installed ({error})") from error
    return swin_unetr


def monai_options(part: Any, flash: bool) -> dict[str, Any]:
    """Return the option that makes MONAI use its fast path, where this MONAI has it."""
    if not flash:
        return {}
    if "use_flash_attention" not in inspect.signature(part).parameters:
        raise Absent("this MONAI has no use_flash_attention, which came with 1.6")
    return {"use_flash_attention": True}


def monai_swin(model: nn.Module, flash: bool = False) -> nn.Module:
    """Return MONAI's encoder with the tensors of our ``swin_encoder_mlp`` without a head."""
    kind = monai_modules().SwinTransformer
    encoder = kind(
        in_chans=1,
        embed_dim=cast(nn.Conv3d, model.get_submodule("encoder.patch_embed.proj")).out_channels,
        window_size=WINDOW,
        patch_size=(2, 2, 2),
        depths=(2, 2, 2, 2),
        num_heads=(3, 6, 12, 24),
        downsample="merging",
        spatial_dims=3,
        **monai_options(kind, flash),
    )
    peer = MonaiFeatures(encoder)
    fill(peer, model)
    return peer


def fill(peer: nn.Module, model: nn.Module) -> None:
    """Copy our tensors; only MONAI's index buffers, which are derived, may be left over."""
    missing, unexpected = peer.load_state_dict(model.state_dict(), strict=False)
    left = [name for name in missing if not name.endswith("relative_position_index")]
    if left or unexpected:
        raise Absent(f"its tensors are not ours: {(left + unexpected)[:3]}")


class Chain(nn.Sequential):
    """The layers of a convolutional model one after the other, as PyTorch runs them."""

    def __init__(self, encoder: Any, head: nn.Module) -> None:
        # The children alone: whatever a stage's own forward has become, this is the plain one.
        stages = [nn.Sequential(*stage.children()) for stage in encoder.stages]
        super().__init__(*stages, *head.children())


def eager(model: nn.Module) -> nn.Module:
    """Return the same layers as a plain ``nn.Sequential``."""
    model = copy.deepcopy(model)
    return Chain(model.encoder, cast(nn.Module, model.head))


class ChannelsLast(nn.Module):
    """The same layers with input, kernels and maps in channels-last order.

    Where there is one channel both orders are the same bytes, and ``.to(memory_format=...)`` keeps the strides of the
    other; the library then runs the first layer channels first. So the strides are written explicitly.
    """

    def __init__(self, plain: nn.Module) -> None:
        super().__init__()
        self.plain = plain
        for parameter in plain.parameters():
            if parameter.ndim > 3:
                parameter.data = self._strided(parameter.data)

    @staticmethod
    def _strided(x: Tensor) -> Tensor:
        kind = torch.channels_last_3d if x.ndim == 5 else torch.channels_last
        if x.shape[1] > 1:
            return x.contiguous(memory_format=kind)
        return x.as_strided(x.shape, torch.empty(x.shape, device="meta", memory_format=kind).stride())

    def forward(self, x: Tensor) -> Tensor:
        """Run the layers on the same bytes."""
        return self.plain(self._strided(x))


def channels_last(model: nn.Module) -> nn.Module:
    """Return the same layers in channels-last order."""
    return ChannelsLast(eager(model))


def timm_model(model: nn.Module) -> nn.Module:
    """Return timm's own classifier with our tensors."""
    try:
        import timm
    except ImportError as error:
        raise Absent(f"timm is not installed ({error})") from error
    ours: Any = model
    name = {"resnet18_multilabel": "resnet18", "densenet121_xray": "densenet121"}[ours.name]
    peer = timm.create_model(name, num_classes=ours.num_classes, in_chans=ours.input_spec.channels)
    classifier = {"resnet18": "fc", "densenet121": "classifier"}[name]
    tensors = {
        key.replace("head.classifier", classifier).removeprefix("encoder."): value
        for key, value in model.state_dict().items()
    }
    peer.load_state_dict(tensors, strict=True)
    return cast(nn.Module, peer)


def compiled(model: nn.Module) -> nn.Module:
    """Return the fastest plain peer under torch.compile with freezing; it compiles at its first call."""
    from torch._inductor import config

    like = next(model.parameters())
    module = fastest_plain(model, like.device.type).to(like).eval()
    config.freezing = True
    return cast(nn.Module, torch.compile(module, dynamic=False))


def fastest_plain(model: nn.Module, device: str) -> nn.Module:
    """Return the fastest peer on a kind of device; a GPU convolves fastest with channels last."""
    name = cast(Any, model).name
    if name == "swin_encoder_mlp":
        return monai_swin(model, flash=True)
    if name in ("resnet18_multilabel", "densenet121_xray"):
        return timm_model(model)
    return channels_last(model) if device == "cuda" else eager(model)


def graphless(model: nn.Module) -> nn.Module:
    """Return the optimized model without a CUDA graph."""
    optimized: nn.Module = medzoo.optimize(cast(Any, model))
    return optimized


PEERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    MONAI[0]: monai_swin,
    MONAI[1]: lambda model: monai_swin(model, flash=True),
    CREATED: copy.deepcopy,
    EAGER: eager,
    CHANNELS_LAST: channels_last,
    TIMM: timm_model,
    COMPILED: compiled,
    GRAPHLESS: graphless,
}


def matched_parameters(ours: nn.Module, peer: nn.Module) -> Sequence[tuple[Tensor, Tensor]]:
    """Pair our parameters with the peer's: by name where the names agree, else in order.

    Raises:
        ValueError: the two have different parameters.
    """
    mine, other = dict(ours.named_parameters()), dict(peer.named_parameters())
    if mine.keys() == other.keys():
        return [(mine[name], other[name]) for name in mine]
    pairs = list(zip(mine.values(), other.values(), strict=True))
    for a, b in pairs:
        if a.shape != b.shape:
            raise ValueError(f"expected parameters of the same shapes, got {tuple(a.shape)} and {tuple(b.shape)}.")
    return pairs
