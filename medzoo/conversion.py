"""Someone's own checkpoint into a model, and a model's encoder back into MONAI."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from medzoo.errors import ConfigError
from medzoo.weights.checkpoint import read_checkpoint
from medzoo.weights.layouts import LAYOUTS, MONAI_LAYOUTS, recognise, to_monai_swinunetr
from medzoo.weights.load import CLASSIFIER, LoadReport, input_kernel, load_tensors, stored_channels

if TYPE_CHECKING:
    from medzoo.classifier import Classifier

__all__ = ["convert_checkpoint", "load_state", "to_monai"]


def load_state(model: Classifier, tensors: Mapping[str, Tensor], *, source: str = "the tensors") -> LoadReport:
    """Load tensors of any known layout into a model, strictly, and return what became of each.

    Ours, MONAI ``SwinUNETR``, timm and torchvision ResNet and TorchXRayVision DenseNet are recognised, with the
    prefixes of DataParallel and torch.compile. Tensors of an encoder alone leave the head as it is, and the report says
    so.

    Args:
        model: from :func:`medzoo.create`.
        tensors: a flat dict.
        source: what to call them.

    Raises:
        WeightsMismatch: an unknown layout, or a missing, unexpected or misshapen tensor.
    """
    layout, flat = recognise(tensors, source)
    converted = LAYOUTS[layout](flat)
    whole = any(name.startswith("head.") for name in converted.tensors)
    report = load_tensors(
        model,
        converted.tensors,
        source=source,
        digest="none",
        kernel=input_kernel(model, model.input_spec.channels),
        part="model" if whole else "encoder",
        device=next(model.parameters()).device,
    )
    model.load_report = report.leaving(converted.dropped)
    return model.load_report


def convert_checkpoint(
    file: Path, model: str, folder: Path, *, strip: str = "", options: Mapping[str, Any] | None = None
) -> LoadReport:
    """Read someone's own checkpoint, and write it as a folder that ``create("local-dir:…")`` takes.

    A checkpoint of an encoder alone becomes a backbone, with ``num_classes=0``.

    Args:
        file: a safetensors file or a PyTorch checkpoint, which is never trusted.
        model: the registered model whose weights these are.
        folder: where to write.
        strip: a prefix that the trainer put before every name of the model, such as Lightning's ``"model."``.
        options: builder options that the weights need; those of MONAI need ``patch_merging``.

    Raises:
        UnsafeWeights, WeightsCorrupt, WeightsMismatch: the file cannot be used, or does not fit.
    """
    from medzoo.factory import create

    tensors, digest = read_checkpoint(file)
    layout, flat = recognise(tensors, str(file), strip)
    if layout in MONAI_LAYOUTS and "patch_merging" not in (options or {}):
        raise ConfigError(
            f"{file}: expected --option patch_merging=monai1.4 or monai1.5, got none. MONAI changed this arithmetic in "
            "1.5 under the same keys: say which MONAI trained it (SwinUNETR weights from before 2025 need monai1.4)."
        )
    converted = LAYOUTS[layout](flat)
    head = converted.tensors.get(CLASSIFIER[0])
    chosen = dict(options or {})
    if {"num_classes", "in_chans"} & chosen.keys():
        raise ConfigError(f"{file}: num_classes and in_chans are the checkpoint's own. Leave them out.")
    with torch.device("meta"):
        built = create(model, num_classes=head.shape[0] if head is not None else 0, **chosen)
        kernel = input_kernel(built, built.input_spec.channels)
        stored = stored_channels(converted.tensors, kernel, built.input_spec.channels)
        if stored != built.input_spec.channels:
            built = create(model, num_classes=built.num_classes, in_chans=stored, **chosen)
    report = load_tensors(built, converted.tensors, source=str(file), digest=digest, kernel=kernel)
    outside = tuple(name for name in tensors if strip and not name.startswith(strip))
    built.load_report = report.leaving(outside + converted.dropped)
    built.save_pretrained(folder)
    return built.load_report


def to_monai(model: Classifier) -> dict[str, Tensor]:
    """Return the tensors of a Swin encoder under their names in a MONAI ``SwinUNETR``.

    Load them there with ``strict=False``: MONAI stores index buffers and a decoder that are not here. Its
    ``downsample`` must be the arithmetic of the model's ``patch_merging``.

    Raises:
        ConfigError: the model is not a Swin encoder.
    """
    if model.name != "swin_encoder_mlp":
        raise ConfigError(f"{model.name}: expected swin_encoder_mlp, whose encoder MONAI has too.")
    return to_monai_swinunetr(model.state_dict())
