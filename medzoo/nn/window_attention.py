"""Window attention with a learned relative position bias, as in Swin, in 3D.

Axes: b batch, g windows of a map, t tokens of a window, c channels, m heads, e head width.

Source: Liu et al., Swin Transformer, ICCV 2021, https://arxiv.org/abs/2103.14030; the 3D form and its quirks are
those of MONAI's ``SwinTransformer``, so that its weights give its outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from medzoo.kernels.bias_memo import BiasMemo
from medzoo.nn.windows import relative_position_index

__all__ = ["WindowAttention", "biased_attention"]


def biased_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Attend, ``b m t e, b m k e, b m k e, b|1 m t k -> b m t e``."""
    # The bias must share q's dtype: cuDNN silently misreads a float32 mask beside bfloat16 queries (pytorch 191612).
    bias = bias.to(q.dtype)
    if q.is_cuda and torch.is_grad_enabled():
        # Its backward pass gives NaN for some lengths, 64 among them (pytorch 196678).
        with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


class WindowAttention(nn.Module):
    """Multi-head attention inside each window, ``(b g) t c -> (b g) t c``.

    Args:
        channels: width of a token.
        heads: number of heads; ``channels`` is a multiple.
        window: sides of the largest window, which the bias table is made for.
    """

    relative_position_index: Tensor

    def __init__(self, channels: int, heads: int, window: Sequence[int]) -> None:
        super().__init__()
        self.heads, self.window = heads, tuple(window)
        rows = 1
        for side in window:
            rows *= 2 * side - 1
        self.relative_position_bias_table = nn.Parameter(torch.empty(rows, heads))
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.memo = BiasMemo()
        self.rebuild_buffers(self.relative_position_bias_table.device)

    def rebuild_buffers(self, device: torch.device) -> None:
        """Derive the index again, on ``device``: it is not stored with the weights, and a meta device has no values."""
        index = relative_position_index(self.window, device)
        self.register_buffer("relative_position_index", index, persistent=False)

    def bias(self, tokens: int) -> Tensor:
        """Return the bias of each pair of tokens, ``m t t``.

        A map smaller than the window has fewer tokens, and reads the first rows and columns of the full window's
        index. That is not the geometric sub-window, but it is what MONAI does, and weights are trained with it.
        """
        index = self.relative_position_index[:tokens, :tokens]
        return rearrange(self.relative_position_bias_table[index], "q k m -> m q k")

    def forward(self, windows: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend within each window.

        Args:
            windows: ``(b g) t c``.
            mask: ``g t t``, added to the logits of each window of a map, or ``None``.

        Returns:
            The tokens after the output projection, ``(b g) t c``.
        """
        bias = self.bias(windows.shape[1])[None]
        if mask is not None:
            bias = bias + mask[:, None]
        g = bias.shape[0]
        # Windows that differ in mask share an axis with the heads, so that nothing is repeated for the batch.
        bias = rearrange(bias, "g m q k -> 1 (g m) q k")
        q, k, v = rearrange(self.qkv(windows), "(b g) t (three m e) -> three b (g m) t e", three=3, m=self.heads, g=g)
        out = biased_attention(q, k, v, bias)
        return self.proj(rearrange(out, "b (g m) t e -> (b g) t (m e)", g=g))
