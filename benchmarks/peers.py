"""What medzoo is compared with: full models and parts of models, each with exactly medzoo's tensors.

A peer that this machine lacks is absent with a reason, and the row is measured without it.

The parts of the Swin encoder are those of its first stage, where three quarters of the time go. MONAI builds the mask
of its shifted windows in every forward pass of a stage; for a part it is built once beforehand.

Axes: b batch, c channels, d h w depth height width, n features.
"""

from __future__ import annotations

import copy
import inspect
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

import medzoo
from benchmarks.cases import CHANNELS_LAST, COMPILED, CREATED, EAGER, GRAPHLESS, MONAI, ONNXRUNTIME, TIMM, Case
from medzoo.classifier import Classifier
from medzoo.deployment.onnx_export import onnx_runner
from medzoo.input_spec import InputSpec
from medzoo.kernels.box_attention import attend, fill_biases
from medzoo.kernels.cpu.slabs import SLAB, slabs
from medzoo.kernels.window_partition import box_layout
from medzoo.models.cnn import BASE, SMALL, XRAY
from medzoo.models.swin import HEADS, PATCH
from medzoo.nn.conv import ConvEncoder, StageTable
from medzoo.nn.head import Head
from medzoo.nn.patch_merging import PatchMerging
from medzoo.nn.swin_block import SwinBlock, WindowGrid

# The Swin encoder's window sides, and the channels of its first stage.
WINDOW = (7, 7, 7)
WIDTH = 48


class Absent(Exception):
    """A peer cannot take part; the message is the reason."""


class MonaiFeatures(nn.Module):
    """MONAI's Swin encoder and global average pooling of its last map, ``b c d h w -> b n``.

    MONAI offers no way to skip the four other maps it normalizes.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        """Return the pooled features."""
        return cast(Tensor, self.encoder(x)[-1]).flatten(2).mean(-1)


def monai_modules() -> Any:
    """Return MONAI's module of the Swin encoder."""
    try:
        import einops  # noqa: F401  # MONAI imports it late and fails in forward
        from monai.networks.nets import swin_unetr
    except ImportError as error:
        raise Absent(f"MONAI is not installed ({error})") from error
    return swin_unetr


def monai_options(part: Any, flash: bool) -> dict[str, Any]:
    """Return the option that turns on MONAI's flash path, if this MONAI has it."""
    if not flash:
        return {}
    if "use_flash_attention" not in inspect.signature(part).parameters:
        raise Absent("this MONAI has no use_flash_attention, which came with 1.6")
    return {"use_flash_attention": True}


def monai_swin(model: nn.Module, flash: bool = False) -> nn.Module:
    """Return MONAI's encoder with the tensors of a ``swin_encoder_mlp`` without a head."""
    kind = monai_modules().SwinTransformer
    encoder = kind(
        in_chans=1,
        embed_dim=cast(nn.Conv3d, model.get_submodule("encoder.patch_embed.proj")).out_channels,
        window_size=WINDOW,
        patch_size=(2, 2, 2),
        depths=(2, 2, 2, 2),
        num_heads=(3, 6, 12, 24),
        downsample="merging",
        spatial_dims=3,
        **monai_options(kind, flash),
    )
    return copy_tensors(MonaiFeatures(encoder), model)


def copy_tensors(peer: nn.Module, model: nn.Module) -> nn.Module:
    """Return the peer with the model's tensors; only MONAI's index buffers, which are derived, may be missing."""
    missing, unexpected = peer.load_state_dict(model.state_dict(), strict=False)
    left = [name for name in missing if not name.endswith("relative_position_index")]
    if left or unexpected:
        raise Absent(f"its tensors are not medzoo's: {(left + unexpected)[:3]}")
    return peer


class Chain(nn.Sequential):
    """The layers of a convolutional model one after the other, as PyTorch runs them."""

    def __init__(self, encoder: Any, head: nn.Module) -> None:
        # Only the child modules: whatever the forward of a medzoo stage does, this one is plain.
        stages = [nn.Sequential(*stage.children()) for stage in encoder.stages]
        super().__init__(*stages, *head.children())


def eager(model: Any) -> nn.Module:
    """Return the same layers as a plain ``nn.Sequential``."""
    return Chain(copy.deepcopy(model.encoder), copy.deepcopy(model.head))


class ChannelsLast(nn.Module):
    """The same layers with input, kernels and maps in channels-last order.

    For one channel both orders are the same bytes, and ``.to(memory_format=...)`` keeps the strides of the other order;
    the library then runs the first layer channels first. So the strides are set explicitly.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.plain = eager(model)
        for parameter in self.plain.parameters():
            if parameter.ndim > 3:
                parameter.data = self._strided(parameter.data)

    @staticmethod
    def _strided(x: Tensor) -> Tensor:
        kind = torch.channels_last_3d if x.ndim == 5 else torch.channels_last
        if x.shape[1] > 1:
            return x.contiguous(memory_format=kind)
        return x.as_strided(x.shape, torch.empty(x.shape, device="meta", memory_format=kind).stride())

    def forward(self, x: Tensor) -> Tensor:
        """Run the layers on the same bytes."""
        return cast(Tensor, self.plain(self._strided(x)))


def timm_model(model: Any) -> nn.Module:
    """Return timm's own classifier with the model's tensors."""
    try:
        import timm
    except ImportError as error:
        raise Absent(f"timm is not installed ({error})") from error
    names = {"resnet18_multilabel": ("resnet18", "fc"), "densenet121_xray": ("densenet121", "classifier")}
    name, classifier = names[model.name]
    peer = timm.create_model(name, num_classes=model.num_classes, in_chans=model.input_spec.channels)
    tensors = {
        key.replace("head.classifier", classifier).removeprefix("encoder."): value
        for key, value in model.state_dict().items()
    }
    peer.load_state_dict(tensors, strict=True)
    return cast(nn.Module, peer)


class Exported(nn.Module):
    """The file of :func:`medzoo.export`, run by onnxruntime with PyTorch's number of threads, ``b c *s -> b n``.

    It is timed as :func:`medzoo.open_onnx` gives it, with its check of the input. An encoder, which that does not open,
    runs in the same session without the check.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        like = next(model.parameters())
        if like.device.type != "cpu" or like.dtype != torch.float32:
            raise Absent(f"it is compared in float32 on a CPU, not in {like.dtype} on {like.device.type}")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            output, threads = medzoo.export(model, path).output, torch.get_num_threads()
            opened = output == "logits"
            self.run = medzoo.open_onnx(path, threads=threads) if opened else onnx_runner(path, output, model.name)

    def forward(self, x: Tensor) -> Tensor:
        """Run the file."""
        return self.run(x)


def compiled(model: nn.Module) -> nn.Module:
    """Return the fastest plain peer under ``torch.compile`` with freezing; it compiles at its first call."""
    from torch._inductor import config

    like = next(model.parameters())
    module = fastest_plain(model, like.device.type).to(like).eval()
    config.freezing = True
    return cast(nn.Module, torch.compile(module, dynamic=False))


def fastest_plain(model: Any, device: str) -> nn.Module:
    """Return the fastest peer on a device type; on a GPU, convolutions are fastest with channels last."""
    if model.name == "swin_encoder_mlp":
        return monai_swin(model, flash=True)
    if model.name in ("resnet18_multilabel", "densenet121_xray"):
        return timm_model(model)
    return ChannelsLast(model) if device == "cuda" else eager(model)


PEERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    MONAI[0]: monai_swin,
    MONAI[1]: lambda model: monai_swin(model, flash=True),
    CREATED: copy.deepcopy,
    EAGER: eager,
    CHANNELS_LAST: ChannelsLast,
    TIMM: timm_model,
    COMPILED: compiled,
    ONNXRUNTIME: Exported,
    GRAPHLESS: lambda model: cast(nn.Module, medzoo.optimize(cast(Any, model))),
}


def matched_parameters(ours: nn.Module, peer: nn.Module) -> Sequence[tuple[Tensor, Tensor]]:
    """Pair medzoo's parameters with the peer's: by name if the names agree, else in order.

    Raises:
        ValueError: the two have different parameters.
    """
    mine, other = dict(ours.named_parameters()), dict(peer.named_parameters())
    if mine.keys() == other.keys():
        return [(mine[name], other[name]) for name in mine]
    pairs = list(zip(mine.values(), other.values(), strict=True))
    for a, b in pairs:
        if a.shape != b.shape:
            raise ValueError(f"expected parameters of the same shapes, got {tuple(a.shape)} and {tuple(b.shape)}.")
    return pairs


# The stage table of each convolutional model, and the options that avoid a head of fixed size.
TABLES: dict[str, tuple[StageTable, dict[str, Any]]] = {
    "cnn3d_small": (SMALL, {"pool": "avg"}),
    "cnn3d_base": (BASE, {}),
    "xray_cnn": (XRAY, {"pool": "avg"}),
}


class Models(NamedTuple):
    """A model or a part of one, the shape of its input, and how a peer with the same tensors is built."""

    module: nn.Module
    shape: tuple[int, ...]
    peer: Callable[[str], nn.Module]


def build_models(case: Case) -> Models:
    """Build what a case names.

    Every tensor is perturbed first: fresh biases are zero and fresh norms are identities, and would hide an error in
    either.
    """
    if case.part:
        return _swin_part(case) if case.model == "swin_encoder_mlp" else _conv_stage(case)
    model = medzoo.create(case.model, **_options(case))
    # What is exported takes this size alone; a size that is not square cannot be of fit="square".
    model.preprocessing = replace(model.preprocessing, size=case.size, fit="resize")
    perturb_parameters(model)
    shape = (case.batch, model.input_spec.channels, *case.size)
    return Models(model, shape, lambda name: PEERS[name](model))


def _options(case: Case) -> dict[str, Any]:
    """Return the builder options of a case; no dropout in training, whose random masks would differ from the peer's."""
    options = dict(medzoo.describe(case.model).tiny) if case.tiny else {}
    if case.model == "swin_encoder_mlp":
        return options | {"num_classes": 0}
    if case.model in ("cnn3d_small", "xray_cnn"):
        options["size"] = case.size
    if case.mode == "train" and case.model in ("cnn3d_small", "cnn3d_base", "xray_cnn"):
        options["dropout"] = 0.0
    return options


@torch.no_grad()
def perturb_parameters(module: nn.Module) -> None:
    """Move every vector, bias table and running statistic away from its initial value."""
    for name, tensor in module.named_parameters():
        if tensor.ndim == 1:
            tensor.add_(torch.randn_like(tensor), alpha=0.1)
        elif name.endswith("relative_position_bias_table"):
            tensor.normal_(std=0.5)
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)


class AttentionHalf(nn.Module):
    """The attention branch of a Swin block on a CPU, without the residual sum: ``b d h w c -> b d h w c``."""

    def __init__(self, block: SwinBlock) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        """Run the branch slab by slab, as the block does."""
        c, grid = x.shape[-1], WindowGrid.of(x.shape[1:4], WINDOW, self.block.shifted)
        inputs = self.block._inputs(x, grid, None)
        table, known = inputs.memo.recall(inputs.table)
        out = torch.empty_like(x)
        for where, axes in slabs(inputs.geometry, len(x), SLAB // (3 * c)):
            slab = x[where]
            layout = box_layout(axes, grid.window, len(slab), x.device)
            biases = fill_biases(known, table, inputs.window, layout)
            attended = attend(slab.reshape(-1, c), inputs.attention, biases, layout, eps=inputs.eps[0])
            out[where] = attended.view(slab.shape)
        return out


class MonaiBlock(nn.Module):
    """MONAI's Swin block, or its attention branch, with the mask built beforehand."""

    def __init__(self, ours: nn.Module, size: tuple[int, ...], *, shifted: bool, flash: bool, attention: bool) -> None:
        super().__init__()
        monai: Any = monai_modules()
        kind = monai.SwinTransformerBlock
        shift = tuple(side // 2 if shifted else 0 for side in WINDOW)
        block = kind(WIDTH, HEADS[0], WINDOW, shift, **monai_options(kind, flash))
        self.block: Any = copy_tensors(block, ours)
        self.attention = attention
        mask = None
        if shifted:
            window, shift = monai.get_window_size(size, WINDOW, shift)
            padded = [-(-side // w) * w for side, w in zip(size, window, strict=True)]
            mask = monai.compute_mask(padded, window, shift, "cpu")
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        return cast(Tensor, (self.block.forward_part1 if self.attention else self.block)(x, self.mask))


def _swin_part(case: Case) -> Models:
    """Build a part of the Swin encoder's first stage."""
    kind, _, shifted = case.part.partition(" ")
    tokens = tuple(side // PATCH for side in case.size)
    merging = PatchMerging(WIDTH, "monai1.5")
    block = SwinBlock(WIDTH, HEADS[0], shifted=bool(shifted), drop_path=0.0)
    ours = merging if kind == "merging" else block
    perturb_parameters(ours)

    def peer(name: str) -> nn.Module:
        if kind == "merging":
            return copy_tensors(monai_modules().PatchMerging(WIDTH, spatial_dims=3), ours)
        return MonaiBlock(ours, tokens, shifted=bool(shifted), flash=name == MONAI[1], attention=kind == "attention")

    return Models(AttentionHalf(block) if kind == "attention" else ours, (case.batch, *tokens, WIDTH), peer)


def _conv_stage(case: Case) -> Models:
    """Build one convolution stage as a model of its own, optimized as the full model is; it averages its map."""
    table, options = TABLES[case.model]
    full: Any = medzoo.create(case.model, num_classes=0, **options)
    number = int(case.part.split()[-1]) - 1
    size = replace(table, stages=number).map_size(case.size)
    conv = full.encoder.stages[number].conv
    encoder = ConvEncoder(conv.in_channels, (conv.out_channels,), replace(table, stages=1), len(size))
    spec = InputSpec("b c d h w" if len(size) == 3 else "b c h w", channels=conv.in_channels, size=size)
    model = Classifier(encoder, Head(conv.out_channels, 0), input_spec=spec, name=case.model).eval()
    perturb_parameters(model)
    plain = copy.deepcopy(model)
    shape = (case.batch, conv.in_channels, *size)
    return Models(medzoo.optimize(model), shape, lambda _: Chain(plain.encoder, plain.head))
