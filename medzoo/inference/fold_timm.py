"""timm's ResNet and DenseNet made fast for inference: BatchNorm and ReLU in the convolution, channels last.

Axes: b batch, c channels, h w height width.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from medzoo.kernels.cpu.slabs import keep_freed_memory
from medzoo.nn.fast_norm import affine, foldable
from medzoo.nn.fast_ops import Shape, Watch, conv, pack_conv
from medzoo.nn.fast_path import hooked

__all__ = ["FoldedEncoder"]

# For each class of timm: the convolution, the norm that alone reads it, and a ReLU right behind that or an empty name.
_CHAINS = {
    "timm.models.resnet.ResNet": [("conv1", "bn1", "act1")],
    "timm.models.resnet.BasicBlock": [("conv1", "bn1", "act1"), ("conv2", "bn2", "")],
    "timm.models.resnet.Bottleneck": [("conv1", "bn1", "act1"), ("conv2", "bn2", "act2"), ("conv3", "bn3", "")],
    "timm.models.densenet.DenseLayer": [("conv1", "norm2", "")],
}


class FoldedConv(nn.Module):
    """A convolution with the BatchNorm behind it, and perhaps a ReLU: ``b c h w -> b c' h' w'``.

    Args:
        plain: a Conv2d.
        norm: the BatchNorm.
        relu: whether a ReLU follows.
    """

    def __init__(self, plain: Any, norm: nn.Module, relu: bool) -> None:
        super().__init__()
        self.relu = relu
        self.shape = Shape(plain.stride, plain.padding, plain.dilation, plain.groups)
        scale, shift = affine(norm)
        weight = plain.weight.detach()
        folded = (weight.double() * scale.reshape(-1, 1, 1, 1)).to(weight.dtype)
        # The kernel, and the size of input that it is laid out for.
        self.kernel: tuple[Tensor, torch.Size | None] = (folded, None)
        bias = shift if plain.bias is None else shift + plain.bias.detach().double() * scale
        self.bias = bias.to(weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve."""
        weight, size = self.kernel
        if size != x.shape:
            with torch.inference_mode(False), torch.no_grad():
                weight = pack_conv(weight, self.shape, x.shape)
            self.kernel = (weight, x.shape)
        return conv(x, weight, self.bias, self.shape, self.relu)


class FoldedEncoder:
    """A timm encoder's verbs, run on a folded copy of it that shares every other tensor.

    An encoder with a hook anywhere inside runs as it is.

    Args:
        plain: the encoder.
    """

    def __init__(self, plain: nn.Module) -> None:
        self.plain: Any = plain
        self._found: tuple[Watch, Any, int] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Return the last map."""
        return self._current()[0](x.contiguous(memory_format=torch.channels_last))

    def forward_intermediates(self, x: Tensor, **options: Any) -> Any:
        """Return maps as timm does."""
        return self._current()[0].forward_intermediates(x.contiguous(memory_format=torch.channels_last), **options)

    def told(self) -> list[str]:
        """Say what is done to the encoder."""
        count = self._current()[1]
        return [f"{count} BatchNorms folded, channels last" if count else "left as it is, for it has hooks"]

    def _current(self) -> tuple[Any, int]:
        if self._found is None or not self._found[0].holds():
            with torch.inference_mode(False), torch.no_grad():
                folded = (self.plain, 0) if hooked(*self.plain.modules()) else _fold(self.plain)
            self._found = (Watch(self.plain, exact=False), *folded)
            keep_freed_memory()
        return self._found[1:]


def _fold(encoder: nn.Module) -> tuple[nn.Module, int]:
    """Return a copy with each foldable norm in the convolution before it, and their number."""
    tensors: list[Tensor] = [*encoder.parameters(), *encoder.buffers()]
    folded = copy.deepcopy(encoder, {id(tensor): tensor for tensor in tensors})
    count = 0
    for block in list(folded.modules()):
        for first, second, third in _chains(block):
            parts = dict(block.named_children())
            plain, norm, relu = parts[first], parts[second], parts.get(third)
            if not _can_fold(plain, norm):
                continue
            # timm's BatchNormAct2d is a norm with its activation.
            act = getattr(norm, "act", None) or (relu if third else None)
            inner = act is getattr(norm, "act", None)
            fused = type(act) is nn.ReLU and (inner or _nothing_between(parts))
            setattr(block, first, FoldedConv(plain, norm, fused))
            setattr(block, second, act if inner and act is not None and not fused else nn.Identity())
            if third and fused:
                setattr(block, third, nn.Identity())
            count += 1
    return folded, count


def _chains(block: nn.Module) -> Iterator[tuple[str, str, str]]:
    """Name the parts of a module that run one after the other."""
    if type(block) is nn.Sequential:
        names = list(block._modules)
        yield from ((first, second, "") for first, second in itertools.pairwise(names))
    yield from _CHAINS.get(f"{type(block).__module__}.{type(block).__qualname__}", [])


def _can_fold(plain: nn.Module, norm: nn.Module) -> bool:
    """Whether the two are a plain Conv2d and a BatchNorm in eval mode, perhaps timm's with an activation."""
    normal = type(norm) is nn.BatchNorm2d or (
        type(norm).__qualname__ == "BatchNormAct2d" and type(getattr(norm, "drop", None)) is nn.Identity
    )
    return (
        normal
        and foldable(norm)
        and type(plain) is nn.Conv2d
        and plain.padding_mode == "zeros"
        and isinstance(plain.padding, tuple)
    )


def _nothing_between(parts: dict[str, nn.Module]) -> bool:
    """Whether a ReLU follows its norm directly: timm may put a DropBlock between the two."""
    return type(parts.get("drop_block", nn.Identity())) is nn.Identity
