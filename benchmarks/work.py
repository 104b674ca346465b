"""The work a case needs, by formula: floating-point operations, bytes moved, and peak memory.

A multiplication and an addition are two operations. Only matrix products and convolutions count; norms, activations and
softmax are a few percent of them.

*Convolutional models*: each convolution takes ``2 · outputs · (inputs of one output)``, each linear layer
``2 · in · out`` for a sample.

*Swin encoder*, for a stage of T tokens and C channels: a block takes ``8 T C²`` for its queries, keys, values and
output, ``4 P C`` for the attention itself and ``16 T C²`` for its MLP; patch merging takes ``4 T C²``. P is the number
of token pairs that attend to each other: windows are cut at the map's border and at the seam of a shift, so P is a
product of sums of squares along the axes. What is computed on padding, or masked afterwards, is not needed;
``padded=True`` counts it, as MONAI computes it.

*Bytes*: every parameter is read once, and every map between two layers is written and read once, as if all else stayed
in cache: for the Swin encoder the inputs of the two halves of each block, for the others the input of each convolution
and linear layer, after pooling.

*Training* is three times the forward pass: the gradients of inputs and of parameters each cost as much as it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import medzoo
from benchmarks.cases import COMPILED, MONAI, Case
from benchmarks.peers import WIDTH, WINDOW, Chain
from medzoo.models.swin import DEPTHS, HEADS, PATCH
from medzoo.nn.conv import ConvEncoder


@dataclass(frozen=True)
class Work:
    """Operations and bytes of one call."""

    flops: int
    bytes: int


def work(case: Case) -> Work:
    """Return the work that one call of a case needs."""
    if case.model != "swin_encoder_mlp":
        flops, moved = _layers(case)
    else:
        flops, moved = _swin_part(case) if case.part else _swin(case)
    passes = 3 if case.mode == "train" else 1
    return Work(passes * flops, passes * moved * (2 if case.dtype == "bfloat16" else 4))


def segments(side: int, window: int, shifted: bool) -> list[int]:
    """Return the lengths into which windows, the seam of a shift and the border cut an axis.

    >>> segments(16, 7, shifted=False), segments(16, 7, shifted=True)
    ([7, 7, 2], [3, 7, 6])
    """
    if side <= window:
        return [side]
    first = window // 2 if shifted else 0
    # A shifted axis ends, padded, in the part of a window behind the seam: at most window - window // 2 tokens.
    padded = -(-side // window) * window
    edges = [0, *range(first, padded, window), padded] if first else [*range(0, padded, window), padded]
    return [min(b, side) - a for a, b in itertools.pairwise(edges) if a < side and b > a]


def pairs(size: Sequence[int], shifted: bool) -> int:
    """Return how many pairs of a query and a key a block needs on a map."""
    return math.prod(
        sum(length**2 for length in segments(side, window, shifted)) for side, window in zip(size, WINDOW, strict=True)
    )


def swin_flops(size: Sequence[int], batch: int = 1, *, padded: bool = False) -> int:
    """Return the operations of the encoder for volumes of ``size`` with one channel."""
    tokens = [side // PATCH for side in size]
    total = 2 * math.prod(tokens) * PATCH**3 * WIDTH
    for stage, depth in enumerate(DEPTHS):
        channels = WIDTH * 2**stage
        for block in range(depth):
            total += attention_flops(tokens, channels, block % 2 == 1, padded=padded)
            total += 16 * math.prod(tokens) * channels**2
        total += 4 * math.prod(tokens) * channels**2
        tokens = [side // 2 for side in tokens]
    return batch * total


def attention_flops(size: Sequence[int], channels: int, shifted: bool, *, padded: bool = False) -> int:
    """Return the operations of a block's attention branch on a map."""
    if not padded:
        return 8 * math.prod(size) * channels**2 + 4 * pairs(size, shifted) * channels
    window = [min(side, w) for side, w in zip(size, WINDOW, strict=True)]
    tokens = math.prod(-(-side // w) * w for side, w in zip(size, window, strict=True))
    return 8 * tokens * channels**2 + 4 * tokens * math.prod(window) * channels


def _swin(case: Case) -> tuple[int, int]:
    """Return the operations of the encoder, and how many values are read or written."""
    tokens = math.prod(side // PATCH for side in case.size)
    moved = case.voxels + 8 * WIDTH  # the volume itself, and its embedding's parameters
    for stage, depth in enumerate(DEPTHS):
        channels = WIDTH * 2**stage
        # Each half of a block reads and writes the tokens; so do the step into a stage and the merging after it.
        moved += case.batch * tokens * channels * (4 * depth + 2)
        moved += depth * (12 * channels**2 + math.prod(2 * w - 1 for w in WINDOW) * HEADS[stage]) + 16 * channels**2
        tokens //= 8
    return swin_flops(case.size, case.batch), moved


def _swin_part(case: Case) -> tuple[int, int]:
    """Return the operations of a part of the first stage, and how many values are read or written."""
    size = [side // PATCH for side in case.size]
    tokens = math.prod(size)
    kind, _, shifted = case.part.partition(" ")
    if kind == "merging":
        return case.batch * 4 * tokens * WIDTH**2, case.batch * tokens * WIDTH * 5 // 4 + 16 * WIDTH**2
    flops = attention_flops(size, WIDTH, bool(shifted))
    moved, parameters = 2 * tokens * WIDTH, 4 * WIDTH**2
    if kind == "block":
        flops, moved, parameters = flops + 16 * tokens * WIDTH**2, 2 * moved, 3 * parameters
    return case.batch * flops, case.batch * moved + parameters


def _layers(case: Case) -> tuple[int, int]:
    """Return the same of a convolutional model, from the shapes at its layers; nothing is computed."""
    options: dict[str, Any] = {"size": case.size} if case.model in ("cnn3d_small", "xray_cnn") else {}
    if case.part and options:
        options = {"pool": "avg", "num_classes": 0}
    with torch.device("meta"):
        model: Any = medzoo.create(case.model, **options).eval()
        x = torch.empty(case.batch, model.input_spec.channels, *case.size)
        net = Chain(model.encoder, model.head) if isinstance(model.encoder, ConvEncoder) else nn.Sequential(model)
        seen: list[tuple[nn.Module, Tensor, Tensor]] = []
        for module in net.modules():
            if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.Linear)):
                module.register_forward_hook(lambda m, args, out: seen.append((m, args[0], out)))
        with torch.no_grad():
            net(x)
    if case.part:
        number = int(case.part.split()[-1])
        # The next layer's input is this stage's output; the last stage's map goes into the average.
        seen = seen[number - 1 : number]
    flops = moved = 0
    for i, (module, given, out) in enumerate(seen):
        weight: Any = module.weight
        flops += 2 * out.numel() * weight[0].numel()
        moved += given.numel() * (2 if i else 1) + sum(p.numel() for p in module.parameters())
    return flops, moved


def estimate_memory(case: Case, who: str) -> int:
    """Return about how many bytes a call of ``who`` needs at its peak; an upper estimate.

    A map of the first stage dominates. For MONAI's Swin encoder it is the attention scores of the padded windows,
    ``heads × tokens × window`` values: written three times by the default path (product, with bias, softmax), once and
    a bias as large by the flash path, and kept by every block of the first stage for a backward pass. For everything
    else it is activations: about 12 maps of the widest stage, kept for each layer in training.
    """
    size = 2 if case.dtype == "bfloat16" else 4
    train = case.mode == "train"
    if case.model != "swin_encoder_mlp":
        widest = {"cnn3d_small": 32, "cnn3d_base": 64, "xray_cnn": 16, "resnet18_multilabel": 16}.get(case.model, 64)
        return case.voxels * widest * size * (8 if train else 4)
    tokens = [side // PATCH for side in case.size]
    maps = case.batch * math.prod(tokens) * WIDTH * size * (12 * DEPTHS[0] * 2 if train else 12)
    if who not in (*MONAI, COMPILED):
        return maps
    padded = case.batch * math.prod(-(-side // w) * w for side, w in zip(tokens, WINDOW, strict=True))
    scores = padded * math.prod(WINDOW) * HEADS[0] * size
    return maps + scores * (2 * DEPTHS[0] + 2 if train else 3)
