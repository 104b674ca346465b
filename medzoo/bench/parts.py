"""The hot paths apart: one piece of a model beside the same piece of a peer.

The Swin pieces are those of the first stage, where three quarters of the time go. MONAI builds the mask of its shifted
windows in every forward pass of a stage; here it is given one made beforehand.

Axes: b batch, c channels, d h w depth height width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

import medzoo
from medzoo.bench.cases import MONAI, Case
from medzoo.bench.peers import WINDOW, Chain, fill, monai_modules, monai_options
from medzoo.classifier import Classifier
from medzoo.contract import InputSpec
from medzoo.kernels.boxes import BoxType, arrange, slabs
from medzoo.kernels.cpu.box_attention import attend
from medzoo.models.cnn3d import BASE, SMALL
from medzoo.models.swin import HEADS, PATCH, SwinBlock
from medzoo.models.xray_cnn import STAGES
from medzoo.nn.conv import ConvEncoder, StageTable
from medzoo.nn.fast_path import SLAB
from medzoo.nn.head import Head
from medzoo.nn.patch_merging import PatchMerging
from medzoo.nn.windows import WindowGrid

__all__ = ["Part", "build_part"]

WIDTH = 48
# The stage table of each convolutional model, and the options that leave out a head of fixed size.
TABLES: dict[str, tuple[StageTable, dict[str, Any]]] = {
    "cnn3d_small": (SMALL, {"pool": "avg"}),
    "cnn3d_base": (BASE, {}),
    "xray_cnn": (STAGES, {"pool": "avg"}),
}


@dataclass
class Part:
    """Our piece, the shape it takes, and how a peer's is made."""

    module: nn.Module
    shape: tuple[int, ...]
    peer: Callable[[str], nn.Module]


def build_part(case: Case, perturb: Callable[[nn.Module], None]) -> Part:
    """Build the piece that a case names."""
    if case.model == "swin_encoder_mlp":
        return _swin(case, perturb)
    return _stage(case, perturb)


class AttentionHalf(nn.Module):
    """The first half of our block without its sum, the way the block runs it; as MONAI's part 1."""

    def __init__(self, block: SwinBlock) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        """Attend, ``b d h w c -> b d h w c``."""
        block, c = self.block, x.shape[-1]
        grid = WindowGrid.of(x.shape[1:4], WINDOW, block.shifted)
        weights, _ = block._weights()
        table: Tensor = block.attn.relative_position_bias_table
        known: dict[BoxType, Tensor] = {}
        if not x.is_cuda:
            table, known = block.attn.memo.recall(table)
        out = torch.empty_like(x)
        for place, axes in slabs(grid, len(x), x.numel() if x.is_cuda else SLAB // (3 * c)):
            slab = x[place]
            where = arrange(axes, grid.window, len(slab), x.device)
            biases = block._biases(table, known, where)
            out[place] = attend(slab.reshape(-1, c), weights, biases, where, eps=block.norm1.eps).view(slab.shape)
        return out


def _swin(case: Case, perturb: Callable[[nn.Module], None]) -> Part:
    """Build a piece of the Swin encoder's first stage."""
    kind, _, shifted = case.part.partition(" ")
    tokens = tuple(side // PATCH for side in case.size)
    shape = (case.batch, *tokens, WIDTH)
    merging = PatchMerging(WIDTH, "monai1.5")
    block = SwinBlock(WIDTH, HEADS[0], shifted=bool(shifted), drop_path=0.0)
    ours = merging if kind == "merging" else block
    perturb(ours)

    def peer(name: str) -> nn.Module:
        if kind == "merging":
            other = monai_modules().PatchMerging(WIDTH, spatial_dims=3)
            fill(other, ours)
            return other
        return MonaiBlock(ours, tokens, shifted=bool(shifted), flash=name == MONAI[1], attention=kind == "attention")

    return Part(AttentionHalf(block) if kind == "attention" else ours, shape, peer)


class MonaiBlock(nn.Module):
    """MONAI's block, or its attention half, with the mask made beforehand."""

    def __init__(self, ours: nn.Module, size: tuple[int, ...], *, shifted: bool, flash: bool, attention: bool) -> None:
        super().__init__()
        monai: Any = monai_modules()
        kind = monai.SwinTransformerBlock
        shift = tuple(side // 2 if shifted else 0 for side in WINDOW)
        block = kind(WIDTH, HEADS[0], WINDOW, shift, **monai_options(kind, flash))
        fill(block, ours)
        self.block, self.attention = block, attention
        mask = None
        if shifted:
            window, shift = monai.get_window_size(size, WINDOW, shift)
            padded = [-(-side // w) * w for side, w in zip(size, window, strict=True)]
            mask = monai.compute_mask(padded, window, shift, "cpu")
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        return self.block.forward_part1(x, self.mask) if self.attention else self.block(x, self.mask)


def _stage(case: Case, perturb: Callable[[nn.Module], None]) -> Part:
    """Build one convolution stage as a model of its own, optimised as the whole is; it averages the stage's map."""
    table, options = TABLES[case.model]
    whole: Any = medzoo.create(case.model, num_classes=0, **options)
    number = int(case.part.split()[-1]) - 1
    size = replace(table, stages=number).map_size(case.size)
    conv = whole.encoder.stages[number].conv
    encoder = ConvEncoder(conv.in_channels, (conv.out_channels,), replace(table, stages=1), len(size))
    spec = InputSpec("b c d h w" if len(size) == 3 else "b c h w", channels=conv.in_channels, size=size)
    model = Classifier(encoder, Head(conv.out_channels, 0), input_spec=spec, name=case.model).eval()
    perturb(model)
    plain = copy.deepcopy(model)
    return Part(
        medzoo.optimize(model), (case.batch, conv.in_channels, *size), lambda _: Chain(plain.encoder, plain.head)
    )
