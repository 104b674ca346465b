"""Patch merging: eight neighbouring tokens become one of twice the width.

Axes: b batch, d h w depth height width, i j k the place in a 2 x 2 x 2 cell, c channels.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

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
        octants = rearrange(x, "b (d i) (h j) (w k) c -> i j k b d h w c", i=2, j=2, k=2)
        return self.reduction(self.norm(torch.cat([octants[place] for place in self.octants], -1)))
