"""timm's DenseNet for inference on a CPU: blocks that join no maps, and transitions that pool before they convolve.

Every layer of a block normalises all maps before it, and timm joins them again each time. Here a block writes into one
map, channels last, of which each layer reads the channels it needs. A 1 × 1 convolution is a matrix product of voxels
and kernel, so of BatchNorm, ReLU and the convolution behind them only a threshold is left in front of the product:
``relu(s x + t)`` is ``s max(x, -t / s) + t`` where s is positive, with a minimum where it is negative, and the product
takes over s and t.

Axes: b batch, c channels, h w height width, n voxels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from medzoo.inference.norms import affine, is_batchnorm

__all__ = ["FoldedDenseBlock", "FoldedTransition", "fold_dense", "parts_of_dense"]


class _Product:
    """BatchNorm, ReLU and a 1 × 1 convolution, perhaps with the BatchNorm and ReLU behind it: ``n c -> n c'``.

    Args:
        norm: the BatchNorm.
        convolution: the convolution.
        after: the BatchNorm behind it, which a ReLU follows.
    """

    def __init__(self, norm: Any, convolution: Any, after: Any = None) -> None:
        scale, shift = affine(norm)
        weight = convolution.weight.detach().double().flatten(1)
        bias = weight @ torch.where(scale == 0, shift.relu(), shift)
        if convolution.bias is not None:
            bias += convolution.bias.detach().double()
        weight = weight * scale
        if after is not None:
            slope, offset = affine(after)
            weight, bias = weight * slope[:, None], bias * slope + offset
        edge = torch.where(scale == 0, 0.0, -shift / scale)
        self.low = torch.where(scale < 0, -torch.inf, edge).float()
        self.high = torch.where(scale > 0, torch.inf, edge).float()
        self.usual = bool((scale > 0).all())
        self.weight, self.bias, self.relu = weight.t().float().contiguous(), bias.float(), after is not None

    def exact(self) -> bool:
        """Whether float32 has all that was derived: where a scale is nearly 0, the threshold may be too large."""
        edges = torch.where(self.low.isinf(), self.high, self.low)
        return all(bool(t.isfinite().all()) for t in (edges, self.weight, self.bias))

    def __call__(self, x: Tensor) -> Tensor:
        """Compute the product."""
        y = torch.maximum(x, self.low) if self.usual else torch.clamp(x, self.low, self.high)
        y = torch.addmm(self.bias, y, self.weight)
        return y.relu_() if self.relu else y


class FoldedDenseBlock(nn.Module):
    """A block of timm's DenseNet: ``b c h w -> b c' h w``, channels last.

    Args:
        block: a ``DenseBlock`` whose layers can be folded.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        layers: list[Any] = list(block.children())
        self.products = [_Product(layer.norm1, layer.conv1, layer.norm2) for layer in layers]
        self.convolutions = nn.ModuleList([layer.conv2 for layer in layers])
        self.grown = sum(layer.conv2.out_channels for layer in layers)

    def exact(self) -> bool:
        """Whether float32 has all that was derived."""
        return all(product.exact() for product in self.products)

    def forward(self, x: Tensor) -> Tensor:
        """Run all layers."""
        b, c, h, w = x.shape
        maps = x.new_empty(b, h, w, c + self.grown)
        maps[..., :c] = x.movedim(1, -1)
        by_voxel = maps.flatten(0, 2)
        for product, convolution in zip(self.products, self.convolutions, strict=True):
            new = convolution(product(by_voxel[:, :c]).view(b, h, w, -1).movedim(-1, 1))
            maps[..., c : c + new.shape[1]] = new.movedim(1, -1)
            c += new.shape[1]
        return maps.movedim(-1, 1)


class FoldedTransition(nn.Module):
    """What halves a map between two blocks: ``b c h w -> b c' h/2 w/2``, channels last.

    A 1 × 1 convolution of a mean is the mean of the convolution, with a quarter of the products.

    Args:
        transition: a ``DenseTransition`` that can be folded.
    """

    def __init__(self, transition: Any) -> None:
        super().__init__()
        self.norm, self.pool = transition.norm, transition.pool
        self.weight = transition.conv.weight.detach().flatten(1).t().contiguous()

    def forward(self, x: Tensor) -> Tensor:
        """Normalise, pool and convolve."""
        y = self.pool(self.norm(x)).movedim(1, -1)
        return torch.matmul(y, self.weight).movedim(-1, 1)


def fold_dense(encoder: nn.Module) -> int:
    """Replace the blocks and transitions of a DenseNet in float32 on a CPU; return how many BatchNorms were folded.

    Args:
        encoder: a copy, which is changed.
    """
    count = 0
    for parent, name, child in _foldable(encoder):
        if _named(child, "DenseTransition"):
            parent.add_module(name, FoldedTransition(child))
            continue
        block = FoldedDenseBlock(child)
        if block.exact():
            parent.add_module(name, block)
            count += 2 * len(block.products)
    return count


def parts_of_dense(encoder: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules whose tensors :func:`fold_dense` reads."""
    for _, _, child in _foldable(encoder):
        if _named(child, "DenseTransition"):
            yield child.get_submodule("conv")
            continue
        for layer in child.children():
            yield from (layer.get_submodule(name) for name in ("norm1", "conv1", "norm2"))


def _foldable(encoder: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """List the blocks and transitions that can be folded, with the module that has them and their name."""
    tensors = [*encoder.parameters(), *encoder.buffers()]
    if not all(t.device.type == "cpu" and (t.dtype == torch.float32 or not t.is_floating_point()) for t in tensors):
        return []
    found = []
    for parent in encoder.modules():
        for name, child in parent.named_children():
            if _can_fold_block(child) or _can_fold_transition(child):
                found.append((parent, name, child))
    return found


def _named(module: nn.Module, name: str) -> bool:
    return f"{type(module).__module__}.{type(module).__qualname__}" == f"timm.models.densenet.{name}"


def _can_fold_block(block: nn.Module) -> bool:
    return _named(block, "DenseBlock") and all(map(_can_fold_layer, block.children()))


def _can_fold_layer(layer: nn.Module) -> bool:
    if not _named(layer, "DenseLayer") or layer.training:
        return False
    parts: dict[str, Any] = dict(layer.named_children())
    if list(parts) != ["norm1", "conv1", "norm2", "conv2"] or not all(map(_is_relu, (parts["norm1"], parts["norm2"]))):
        return False
    return _is_product(parts["conv1"]) and type(parts["conv2"]) is nn.Conv2d


def _can_fold_transition(transition: nn.Module) -> bool:
    parts: dict[str, Any] = dict(transition.named_children())
    if (
        not _named(transition, "DenseTransition")
        or list(parts) != ["norm", "conv", "pool"]
        or type(parts["pool"]) is not nn.AvgPool2d
    ):
        return False
    return _is_product(parts["conv"]) and parts["conv"].bias is None


def _is_relu(norm: Any) -> bool:
    """Whether a module is a BatchNorm with a ReLU."""
    return is_batchnorm(norm) and type(getattr(norm, "act", None)) is nn.ReLU


def _is_product(convolution: Any) -> bool:
    """Whether a convolution is a matrix product of all channels of a voxel."""
    return (
        type(convolution) is nn.Conv2d
        and (convolution.kernel_size, convolution.stride, convolution.groups) == ((1, 1), (1, 1), 1)
        and convolution.padding in ((0, 0), "valid")
    )
