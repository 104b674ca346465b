"""MONAI's Swin encoder as the reference, in each of its three arithmetics, with our tensors."""

from __future__ import annotations

import torch
from monai.networks.nets.swin_unetr import PatchMergingV2, SwinTransformer
from torch import Tensor

from medzoo.models.swin import SwinEncoder


class PatchMergingUpTo14(PatchMergingV2):
    """What MONAI up to 1.4 computed for ``downsample="merging"``: x5 equals x2, and x6 equals x3."""

    def forward(self, x: Tensor) -> Tensor:
        x0 = x[:, 0::2, 0::2, 0::2, :]
        x1 = x[:, 1::2, 0::2, 0::2, :]
        x2 = x[:, 0::2, 1::2, 0::2, :]
        x3 = x[:, 0::2, 0::2, 1::2, :]
        x4 = x[:, 1::2, 0::2, 1::2, :]
        x5 = x[:, 0::2, 1::2, 0::2, :]
        x6 = x[:, 0::2, 0::2, 1::2, :]
        x7 = x[:, 1::2, 1::2, 1::2, :]
        return self.reduction(self.norm(torch.cat([x0, x1, x2, x3, x4, x5, x6, x7], -1)))


DOWNSAMPLE = {"monai1.4": PatchMergingUpTo14, "monai1.5": "merging", "v2": "mergingv2"}


def reference(encoder: SwinEncoder, *, patch_merging: str, feature_size: int, in_chans: int = 1) -> SwinTransformer:
    """Return MONAI's encoder with exactly ``encoder``'s tensors."""
    monai = SwinTransformer(
        in_chans=in_chans,
        embed_dim=feature_size,
        window_size=(7, 7, 7),
        patch_size=(2, 2, 2),
        depths=(2, 2, 2, 2),
        num_heads=(3, 6, 12, 24),
        downsample=DOWNSAMPLE[patch_merging],
        use_v2=hasattr(encoder, "layers1c"),
        spatial_dims=3,
    )
    missing, unexpected = monai.load_state_dict(encoder.state_dict(), strict=False)
    assert not unexpected
    assert all(name.endswith("relative_position_index") for name in missing)
    return monai
