"""Encoders rewritten for inference: BatchNorm and ReLU folded into convolutions, of our own encoders and of timm's.

This file reads modules; the arithmetic is in :mod:`medzoo.kernels.conv_stage` and :mod:`medzoo.kernels.cpu.conv`.

Axes: b batch, c channels, h w height width, s any number of spatial axes.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from medzoo.inference.dense_block import fold_dense, parts_of_dense
from medzoo.inference.norms import affine, foldable, is_batchnorm
from medzoo.kernels.conv_stage import FoldedStage
from medzoo.kernels.cpu.conv import Shape, conv, on_cpu, pack_conv, private
from medzoo.kernels.cpu.slabs import keep_freed_memory
from medzoo.kernels.dispatch import kernel_serves
from medzoo.nn.conv import ConvEncoder, ConvStage, is_standard
from medzoo.nn.encoder import Encoder
from medzoo.nn.guards import Watch, hooked, inner

__all__ = ["FoldedConvEncoder", "FoldedEncoder", "can_fold", "fold_stage", "is_launch_bound"]

# Numbers in the largest map of images up to which a GPU runs kernels faster than Python launches them.
LAUNCH_BOUND = 2**23


def can_fold(stage: nn.Module) -> bool:
    """Whether a stage in eval mode consists of its usual parts, without hooks."""
    if type(stage) is not ConvStage or stage.training or hooked(stage, *stage.children()) or not is_standard(stage):
        return False
    norm = stage._modules.get("norm")
    return norm is None or foldable(norm)


def fold_stage(stage: nn.Module) -> FoldedStage:
    """Return what a stage that :func:`can_fold` computes in eval mode; its tensors are read now, and not followed."""
    parts: Any = dict(stage.named_children())
    order, convolution = list(parts), parts["conv"]
    weight = convolution.weight.detach()
    bias = weight.new_zeros(len(weight)) if convolution.bias is None else convolution.bias.detach()
    return FoldedStage(
        weight,
        bias.double(),
        affine(parts["norm"]) if "norm" in order else None,
        norm_first="norm" in order and order.index("norm") < order.index("pool"),
        padding=convolution.padding[0],
        pool=parts["pool"].kernel_size,
    )


def is_launch_bound(encoder: ConvEncoder, x: Tensor) -> bool:
    """Whether so few images are on a GPU that the plain stages are faster: they launch no kernel of Triton."""
    if not x.is_cuda or x.ndim != 4:
        return False
    return x.numel() // x.shape[1] * int(encoder.feature_info[0]["num_chs"]) <= LAUNCH_BOUND


class FoldedConvEncoder(ConvEncoder):
    """A :class:`~medzoo.nn.conv.ConvEncoder` whose stages are folded when they first run, ``b c *s -> b c' *s'``.

    A stage that cannot be folded, or that has a hook, runs unchanged.

    Args:
        plain: the encoder whose stages are run.
    """

    plain: ConvEncoder

    def __init__(self, plain: ConvEncoder) -> None:
        Encoder.__init__(self)  # ConvEncoder's would make new weights
        object.__setattr__(self, "plain", plain)  # its parameters are not registered twice
        self.stages = plain.stages
        self.feature_info = plain.feature_info
        self._folded: dict[int, tuple[Watch, FoldedStage | None]] = {}

    def stage(self, i: int, x: Tensor) -> Tensor:
        """Run one stage, folded where that is safe."""
        folded = self.folded(i)
        return self.stages[i](x) if folded is None else folded(x)

    def folded(self, i: int) -> FoldedStage | None:
        """Return stage ``i`` folded, or ``None`` if it must run unchanged."""
        stage, found = self.stages[i], self._folded.get(i)
        if found is None or not found[0].holds():
            with torch.inference_mode(False), torch.no_grad():
                on_gpu = [t for t in (*stage.parameters(), *stage.buffers()) if t.is_cuda]
                watch = Watch(stage, exact=True, derived=on_gpu)
                found = (watch, fold_stage(stage) if can_fold(stage) else None)
            self._folded[i] = found
        return found[1]

    def verify(self) -> bool:
        """Drop what was folded from values that are others now; return whether there was none."""
        changed = [i for i, (watch, _) in list(self._folded.items()) if not watch.verify()]
        for i in changed:
            self._folded.pop(i, None)
        return not changed

    def summary(self) -> list[str]:
        """Describe what is done to the stages, line by line."""
        plain = [f"stages.{i}" for i in range(len(self.stages)) if self.folded(i) is None]
        done = len(self.stages) - len(plain)
        like = next(self.stages.parameters())
        by_triton = ", pooled by Triton" if kernel_serves("pool_last", like) else ""
        where = "in slabs" if on_cpu(like) else "channels last" + by_triton
        how = "BatchNorm folded, pooled before ReLU, " + where
        how += ", by oneDNN" if private(like) else ""
        lines = [f"{done} of {len(self.stages)} stages: {how}"] if done else []
        return lines + [f"unchanged: {', '.join(plain)}"] * bool(plain)


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
        # The kernel, and the input size that it is packed for.
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

    An encoder with a hook anywhere inside runs unchanged.

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

    def summary(self) -> list[str]:
        """Describe what is done to the encoder, line by line."""
        count = self._current()[1]
        return [f"{count} BatchNorms folded, channels last" if count else "unchanged, because it has hooks"]

    def verify(self) -> bool:
        """Drop what was folded from values that are others now; return whether there was none."""
        found = self._found
        if found is None or found[0].verify():
            return True
        self._found = None
        return False

    def _current(self) -> tuple[Any, int]:
        found = self._found  # once: another thread may drop it
        if found is None or not found[0].holds():
            with torch.inference_mode(False), torch.no_grad():
                plain = hooked(*inner(self.plain))
                watch = Watch(self.plain, exact=False, derived=() if plain else _folded_tensors(self.plain))
                found = (watch, *((self.plain, 0) if plain else _fold(self.plain)))
            self._found = found
            keep_freed_memory()
        return found[1:]


def _folded_tensors(encoder: nn.Module) -> list[Tensor]:
    """List the tensors that :func:`_fold` reads; all others are shared with its copy."""
    found = {id(t): t for part in parts_of_dense(encoder) for t in (*part.parameters(), *part.buffers())}
    for block in encoder.modules():
        parts = dict(block.named_children())
        for first, second, _ in _chains(block):
            if _can_fold(parts[first], parts[second]):
                for part in (parts[first], parts[second]):
                    found |= {id(t): t for t in (*part.parameters(), *part.buffers())}
    return list(found.values())


def _fold(encoder: nn.Module) -> tuple[nn.Module, int]:
    """Return a copy with each foldable norm in the convolution before it, and their number."""
    tensors: list[Tensor] = [*encoder.parameters(), *encoder.buffers()]
    folded = copy.deepcopy(encoder, {id(tensor): tensor for tensor in tensors})
    count = fold_dense(folded)
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
    return (
        is_batchnorm(norm)
        and type(plain) is nn.Conv2d
        and plain.padding_mode == "zeros"
        and isinstance(plain.padding, tuple)
    )


def _nothing_between(parts: dict[str, nn.Module]) -> bool:
    """Whether a ReLU follows its norm directly: timm may put a DropBlock between the two."""
    return type(parts.get("drop_block", nn.Identity())) is nn.Identity
