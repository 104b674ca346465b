"""Patch merging: eight neighbouring tokens become one of twice the width.

Axes: b batch, d h w depth height width, i j k the position in a 2 x 2 x 2 cell, c channels.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from medzoo.kernels import dispatch
from medzoo.nn.guards import fast_path_for, needs_gradient

__all__ = ["OCTANTS", "PatchMerging"]

# The octants laid side by side, each as its position along d, h, w. MONAI up to 1.4 read 010 and 001 twice, and 110 and
# 011 never; 1.5 fixed it (pull request 8285) under the same keys and shapes, so weights record their arithmetic.
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
        self.octants = [tuple(map(int, position)) for position in OCTANTS[order].split()]
        self.norm = nn.LayerNorm(8 * channels)
        self.reduction = nn.Linear(8 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Merge. Every side of the map is even."""
        weights = (self.norm.weight, self.norm.bias, self.reduction.weight)
        as_built = self.reduction.bias is None and not any(weight is None for weight in weights)
        if as_built and fast_path_for(self, x, (nn.LayerNorm, nn.Linear)):
            differentiated = needs_gradient(self, x)
            y = dispatch.patch_merging(
                dispatch.MergeInputs(x, self.octants, weights, self.norm.eps, differentiated=differentiated)
            )
            if y is not None:
                return y
        cells = rearrange(x, "b (d i) (h j) (w k) c -> i j k b d h w c", i=2, j=2, k=2)
        side_by_side = torch.cat([cells[octant] for octant in self.octants], -1)
        return self.reduction(self.norm(side_by_side))
