"""The Swin Transformer encoder of Swin UNETR, with an MLP head: ``swin_encoder_mlp``.

Sources: Hatamizadeh et al., Swin UNETR, https://arxiv.org/abs/2201.01266; Tang et al., Self-Supervised Pre-Training of
Swin Transformers for 3D Medical Image Analysis, https://arxiv.org/abs/2111.14791; He et al., SwinUNETR-V2,
https://doi.org/10.1007/978-3-031-43901-8_40 (``use_v2``). Keys and arithmetic are those of MONAI's ``SwinTransformer``;
the position index is derived instead of stored, and the head is ours.

Axes: b batch, c channels, d h w depth height width, n classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from medzoo.classifier import Classifier
from medzoo.contract import Outputs, Preprocessing
from medzoo.errors import ConfigError, check_int, check_rate, did_you_mean
from medzoo.input_spec import InputSpec
from medzoo.kernels import dispatch
from medzoo.nn.encoder import Encoder
from medzoo.nn.guards import fast_path_for, needs_gradient, unobserved
from medzoo.nn.head import Head
from medzoo.nn.patch_merging import OCTANTS, PatchMerging
from medzoo.nn.swin_block import DropPath, SwinBlock
from medzoo.provenance import IntendedUse
from medzoo.registry import register
from medzoo.weights.record import HubFile, UrlFile, Weights, ZipMember

__all__ = ["DropPath", "SwinBlock", "SwinEncoder", "swin_encoder_mlp"]

PATCH = 2
DEPTHS = (2, 2, 2, 2)
HEADS = (3, 6, 12, 24)
FEATURE_SIZES = (12, 24, 48, 96, 192)


class SwinStage(nn.Module):
    """The blocks of one resolution, then patch merging: ``b c d h w -> b 2c d/2 h/2 w/2``."""

    def __init__(self, channels: int, heads: int, drop_path: Sequence[float], patch_merging: str) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            SwinBlock(channels, heads, shifted=i % 2 == 1, drop_path=rate) for i, rate in enumerate(drop_path)
        )
        self.downsample = PatchMerging(channels, patch_merging)
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        """Run the blocks on channels-last tokens; the result is a view of such tokens too."""
        x = rearrange(x, "b c d h w -> b d h w c").contiguous()
        recompute = self.grad_checkpointing and torch.is_grad_enabled()
        overwrite = unobserved(x, self.blocks, SwinBlock)  # the result of one block is read by the next alone
        for i, block in enumerate(self.blocks):
            if recompute:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = cast(SwinBlock, block).forward_inplace(x) if i and overwrite else block(x)
        return rearrange(self.downsample(x), "b d h w c -> b c d h w")


class ConvLayer(nn.Module):
    """A 3 x 3 x 3 convolution under the name that MONAI's checkpoints use, ``conv.weight``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve."""
        return self.conv(x)


class ResidualLayer(nn.Module):
    """Two convolutions with instance norm, added to their input: ``b c d h w -> b c d h w``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = ConvLayer(channels)
        self.conv2 = ConvLayer(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Refine the map."""
        x = x.contiguous()
        y = F.leaky_relu(F.instance_norm(self.conv1(x)), 0.01)
        return F.leaky_relu(F.instance_norm(self.conv2(y)) + x, 0.01)


class ResidualBlock(nn.Module):
    """The block that SwinUNETR-V2 puts before each stage, under MONAI's name for it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layer = ResidualLayer(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Refine the map."""
        return self.layer(x)


class PatchEmbed(nn.Module):
    """Cut the volume into 2 x 2 x 2 patches and project each, ``b c d h w -> b c' d/2 h/2 w/2``."""

    def __init__(self, in_chans: int, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(in_chans, channels, PATCH, stride=PATCH)

    def forward(self, x: Tensor) -> Tensor:
        """Project each patch."""
        even = all(side % PATCH == 0 for side in x.shape[2:])
        if not even or not fast_path_for(self, x, (nn.Conv3d,)) or not self._cuts_patches():
            return self.proj(x)
        d, h, w = (side // PATCH for side in x.shape[2:])
        patches = rearrange(x, "b c (d i) (h j) (w k) -> (b d h w) (c i j k)", i=PATCH, j=PATCH, k=PATCH)
        embedded = dispatch.linear_patches(
            patches, self.proj.weight.flatten(1), self.proj.bias, differentiated=needs_gradient(self, x)
        )
        return rearrange(embedded, "(b d h w) c -> b c d h w", b=len(x), d=d, h=h, w=w)

    def _cuts_patches(self) -> bool:
        """Whether the convolution is the one this was built with: every voxel in one patch."""
        p, patch = self.proj, (PATCH,) * 3
        return (p.kernel_size, p.stride, p.padding, p.dilation, p.groups) == (patch, patch, (0,) * 3, (1,) * 3, 1)


class SwinEncoder(Encoder):
    """Five maps at strides 2, 4, 8, 16, 32, each normalised over its channels; ``forward`` gives the last.

    Args:
        in_chans: channels of the volume.
        feature_size: channels of the first map; they double with each stage.
        patch_merging: ``"monai1.4"``, ``"monai1.5"`` or ``"v2"``, see :data:`medzoo.nn.patch_merging.OCTANTS`.
        use_v2: put SwinUNETR-V2's residual convolutions before each stage.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0.
    """

    def __init__(
        self,
        in_chans: int = 1,
        *,
        feature_size: int = 48,
        patch_merging: str = "monai1.5",
        use_v2: bool = False,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(in_chans, feature_size)
        self.feature_info.append({"num_chs": feature_size, "reduction": 2, "module": "patch_embed"})
        # The names of the modules each stage runs; the embedding has none of these.
        self.layers_of: list[list[str]] = [[]]
        rates = [drop_path_rate * i / (sum(DEPTHS) - 1) for i in range(sum(DEPTHS))]
        for i, (depth, heads) in enumerate(zip(DEPTHS, HEADS, strict=True)):
            channels = feature_size * 2**i
            # MONAI keeps each stage in a list of one, hence "layers1.0.blocks.0" in every checkpoint.
            parts: dict[str, nn.Module] = {f"layers{i + 1}c": ResidualBlock(channels)} if use_v2 else {}
            parts[f"layers{i + 1}"] = SwinStage(channels, heads, rates[:depth], patch_merging)
            del rates[:depth]
            for name, part in parts.items():
                self.add_module(name, nn.Sequential(part))
            self.layers_of.append(list(parts))
            self.feature_info.append(
                {"num_chs": 2 * channels, "reduction": 2 ** (i + 2), "module": f"layers{i + 1}"},
            )
        self.apply(_init_linear)

    def stage(self, i: int, x: Tensor) -> Tensor:
        """Embed the patches, or run the stage of one resolution."""
        if i == 0:
            return self.patch_embed(x)
        for layer in self.layers_of[i]:
            x = self.get_submodule(layer)(x)
        return x

    def publish(self, x: Tensor) -> Tensor:
        """Normalise each voxel over its channels, without learned scale, as Swin UNETR does to every map it gives."""
        return F.layer_norm(x.movedim(1, -1), x.shape[1:2]).movedim(-1, 1)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory in training: keep only what goes into each block, and recompute the rest."""
        for module in self.modules():
            if isinstance(module, SwinStage):
                module.grad_checkpointing = enable


def _init_linear(module: nn.Module) -> None:
    """Start linear layers as the Swin paper's code does."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


_RELEASE = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1"
_SIZE = (96, 96, 96)
# Abdominal soft tissue, in HU.
_WINDOW = (-175.0, 250.0)

# The public weights of the encoder, each trained with MONAI up to 1.4. The arithmetic of their patch merging is part of
# the record: under the same keys MONAI changed it in 1.5.
WEIGHTS = (
    Weights(
        tag="btcv",
        source=HubFile("MONAI/swin_unetr_btcv_segmentation", "models/model.pt"),
        # The publisher gives no other digest, and no commit is known.
        digest="md5:50dd67a01b28a1d5487fd9ac27e682fb",
        license="Apache-2.0",
        citation="Tang et al., Self-Supervised Pre-Training of Swin Transformers for 3D Medical Image Analysis, CVPR "
        "2022; MONAI model zoo",
        trained_on="abdominal CT of BTCV, segmentation into 14 classes",
        intended_use=IntendedUse(modality=("CT",), body_part=("ABDOMEN",)),
        layout="monai-swinunetr",
        part="encoder",
        preprocessing=Preprocessing(
            size=_SIZE, orientation="RAS", spacing=(1.5, 1.5, 2.0), intensity="window", window=_WINDOW, fit="crop"
        ),
        options={"patch_merging": "monai1.4"},
        default=True,
    ),
    Weights(
        tag="brats21_fold0",
        source=ZipMember(
            url=f"{_RELEASE}/fold0_f48_ep300_4gpu_dice0_8854.zip",
            member="fold0_f48_ep300_4gpu_dice0_8854/model.pt",
            digest="sha256:47ba479743f9d5151654d1232d3e8d3aa68d7e9d68a837ef7b8c644329293d63",
            size=231_022_652,
        ),
        digest="sha256:1083e1585263a73919a5ecfee9403989ca4bfd2ec70308679667bd23b53714b4",
        size=256_368_326,
        license="not stated",
        citation="Hatamizadeh et al., Swin UNETR: Swin Transformers for Semantic Segmentation of Brain Tumors, 2022",
        trained_on="brain MR of BraTS 2021, fold 0, segmentation of tumours",
        intended_use=IntendedUse(modality=("MR",), body_part=("BRAIN",)),
        layout="monai-swinunetr",
        part="encoder",
        in_chans=4,
        channels=("FLAIR", "T1 post contrast", "T1", "T2"),
        preprocessing=Preprocessing(size=(128, 128, 128), intensity="zscore_nonzero", fit="crop"),
        metrics={"BraTS 2021 fold 0 mean Dice, published": 0.8854},
        options={"patch_merging": "monai1.4"},
    ),
    Weights(
        tag="dae50k",
        source=UrlFile(f"{_RELEASE}/ssl_pretrained_weights.pth"),
        digest="sha256:c3564f40a6a051d3753a6d8fae5cc8eaf21ce8d82a9a3baf80748d15664055e8",
        license="not stated",
        citation="Valanarasu et al., Disruptive Autoencoders: Leveraging Low-level Features for 3D Medical Image "
        "Pre-training, 2023, https://arxiv.org/abs/2307.16896",
        trained_on="unlabelled scans, 50,000 by its name, by a disruptive autoencoder",
        layout="dae",
        part="encoder",
        options={"patch_merging": "monai1.4"},
    ),
    Weights(
        tag="voco_b",
        source=HubFile("Luffy503/VoCo", "VoCo_B_SSL_head.pt"),
        # As a project that uses the file gives it; no other digest and no commit are known.
        digest="md5:f80c4da2f81d700bdae3df188f2057eb",
        license="Apache-2.0",
        citation="Wu et al., Large-Scale 3D Medical Image Pre-training with Geometric Context Priors (VoCo), 2024",
        trained_on="unlabelled CT, by volume contrast",
        intended_use=IntendedUse(modality=("CT",)),
        layout="monai-swinunetr",
        part="encoder",
        # Neither orientation nor spacing is known.
        preprocessing=Preprocessing(size=_SIZE, intensity="window", window=_WINDOW, fit="crop"),
        options={"patch_merging": "monai1.4", "use_v2": True},
    ),
)

INPUT = InputSpec("b c d h w", channels=1, size=(96, 96, 96), multiple=32, minimum=32)


@register(
    input_spec=INPUT,
    outputs=Outputs(labels=("positive",), task="binary"),
    preprocessing=Preprocessing(size=(96, 96, 96), orientation="RAS", intensity="zscore", resample="triangle"),
    parameters=8_259_123,
    summary="Swin Transformer encoder of Swin UNETR with an MLP head",
    source="https://arxiv.org/abs/2201.01266",
    citation="Hatamizadeh et al., Swin UNETR: Swin Transformers for Semantic Segmentation of Brain Tumors, 2022",
    cam_layer="encoder",
    tiny={"feature_size": 12, "hidden": 8},
    tiny_size=(32, 32, 32),
    weights=WEIGHTS,
)
def swin_encoder_mlp(
    *,
    num_classes: int = 1,
    in_chans: int = 1,
    feature_size: int = 48,
    patch_merging: str = "monai1.5",
    use_v2: bool = False,
    drop_path_rate: float = 0.0,
    hidden: int = 256,
) -> Classifier:
    """Build the Swin encoder and its head, ``b c d h w -> b n``; every side is a multiple of 32.

    Args:
        num_classes: number of logits, or 0 for the averaged features ``b 16*feature_size``.
        in_chans: channels of the volume.
        feature_size: 12, 24, 48, 96 or 192. The papers' Swin UNETR has 48.
        patch_merging: ``"monai1.4"`` for weights trained with MONAI up to 1.4, ``"monai1.5"`` since, or ``"v2"``.
        use_v2: the residual convolutions of SwinUNETR-V2, as VoCo's weights need.
        drop_path_rate: stochastic depth of the last block, in [0, 1).
        hidden: width of the head's hidden layer; ours.

    Raises:
        ConfigError: a ``feature_size``, ``patch_merging`` or ``drop_path_rate`` that there is not.
    """
    who = "swin_encoder_mlp"
    if check_int(who, "feature_size", feature_size, 1) not in FEATURE_SIZES:
        raise ConfigError(f"{who}: expected feature_size 12, 24, 48, 96 or 192, got {feature_size!r}.")
    if patch_merging not in OCTANTS:
        known = ", ".join(map(repr, OCTANTS))
        raise ConfigError(
            f"{who}: expected patch_merging to be one of {known}, got {patch_merging!r}."
            + did_you_mean(str(patch_merging), OCTANTS)
        )
    encoder = SwinEncoder(
        in_chans,
        feature_size=feature_size,
        patch_merging=patch_merging,
        use_v2=use_v2,
        drop_path_rate=check_rate(who, "drop_path_rate", drop_path_rate),
    )
    head = Head(encoder.num_features, num_classes, order=("fc", "gelu"), hidden=check_int(who, "hidden", hidden, 1))
    return Classifier(encoder, head, input_spec=INPUT.with_channels(in_chans))
