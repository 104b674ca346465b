"""Patch merging: eight neighbouring tokens become one of twice the width.

Axes: b batch, d h w depth height width, i j k the place in a 2 x 2 x 2 cell, c channels.
"""

from __future__ import annotations

import itertools

import torch
from einops import rearrange
from torch import Tensor, nn

from medzoo.nn.fast_path import SLAB, fast_path_for, needs_gradient
from medzoo.nn.linear import linear

__all__ = ["OCTANTS", "PatchMerging"]

# The octants laid side by side, each as its place along d, h, w. MONAI up to 1.4 read 010 and 001 twice, and 110 and
# 011 never; 1.5 mended it (pull request 8285) under the same keys and shapes, so weights remember their arithmetic.
OCTANTS = {
    "monai1.4": "000 100 010 001 101 010 001 111",
    "monai1.5": "000 100 010 001 110 101 011 111",
    "v2": "000 001 010 011 100 101 110 111",
}


class PatchMerging(nn.Module):
    """Halve each spatial axis and double the channels, ``b d h w c -> b d/2 h/2 w/2 2c``.

    Args:
        channels: channels of the input.
        order: a key of :data:`OCTANTS`.
    """

    def __init__(self, channels: int, order: str) -> None:
        super().__init__()
        self.octants = [tuple(map(int, place)) for place in OCTANTS[order].split()]
        self.norm = nn.LayerNorm(8 * channels)
        self.reduction = nn.Linear(8 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Merge. Every side of the map is even."""
        fast = x.device.type == "cpu" and fast_path_for(self, x, (nn.LayerNorm, nn.Linear))
        if not fast or needs_gradient(self, x):
            return self.reduction(self.norm(self._side_by_side(x)))
        b, d, h, w, c = x.shape
        out = x.new_empty(b, d // 2, h // 2, w // 2, 2 * c)
        # As in a block, a slab at a time keeps what lies between the operations in the cache.
        thick = max(1, SLAB // (2 * h * w * c))
        for sample, start in itertools.product(range(b), range(0, d // 2, thick)):
            cells = self.norm(self._side_by_side(x[sample : sample + 1, 2 * start : 2 * (start + thick)]))
            slab = out[sample, start : start + thick]
            slab.copy_(linear(cells.flatten(0, 3), self.reduction.weight).view(slab.shape))
        return out

    def _side_by_side(self, x: Tensor) -> Tensor:
        """Lay the octants of each cell side by side, ``b d h w c -> b d/2 h/2 w/2 8c``."""
        octants = rearrange(x, "b (d i) (h j) (w k) c -> i j k b d h w c", i=2, j=2, k=2)
        return torch.cat([octants[place] for place in self.octants], -1)
