"""Load and convert the user's own checkpoints, and export a model's encoder to MONAI."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from medzoo.assembly import assemble
from medzoo.classifier import Classifier
from medzoo.errors import ConfigError
from medzoo.registry import describe
from medzoo.resolve import request
from medzoo.weights.checkpoint import read_checkpoint
from medzoo.weights.layouts import MONAI_LAYOUTS, convert, detect_layout, to_monai_swinunetr
from medzoo.weights.load import CLASSIFIER, LoadReport, input_kernel, load_tensors
from medzoo.weights.obtain import Obtained
from medzoo.weights.record import Weights

__all__ = ["convert_checkpoint", "load_state", "to_monai"]


def load_state(model: Classifier, tensors: Mapping[str, Tensor], *, source: str = "the tensors") -> LoadReport:
    """Load tensors of any known layout into a model, strictly, and return what became of each.

    The layouts are medzoo's own, MONAI ``SwinUNETR``, timm and torchvision ResNet, and TorchXRayVision DenseNet, with
    or without the prefixes of DataParallel and torch.compile. Tensors of an encoder leave the head unchanged; the
    report lists the head as random.

    Args:
        model: a model from :func:`medzoo.create`.
        tensors: a flat dict.
        source: name of the tensors, for the report and messages.

    Raises:
        WeightsMismatch: an unknown layout, a missing or unexpected tensor, or one of another shape.
    """
    layout, flat = detect_layout(tensors, source)
    converted = convert(flat, layout)
    has_head = any(name.startswith("head.") for name in converted.tensors)
    done = load_tensors(
        model,
        converted.tensors,
        source=source,
        kernel=input_kernel(model, model.input_spec.channels),
        part="model" if has_head else "encoder",
        device=next(model.parameters()).device,
    )
    dropped = (*done.dropped, *converted.dropped)
    model.load_report = LoadReport(source, "none", done.loaded, done.adapted, done.new, dropped)
    return model.load_report


def convert_checkpoint(
    file: Path, model: str, folder: Path, *, strip: str = "", options: Mapping[str, Any] | None = None
) -> LoadReport:
    """Convert the user's own checkpoint into a folder for ``create("local-dir:…")``.

    A checkpoint of an encoder becomes a backbone, with ``num_classes=0``.

    Args:
        file: a safetensors file or a PyTorch checkpoint; nothing in it is ever run.
        model: the registered model of these weights.
        folder: where to write.
        strip: a prefix that the trainer added to every name of the model, such as Lightning's ``"model."``.
        options: builder options that the weights need; those of MONAI need ``patch_merging``.

    Raises:
        UnsafeWeights, WeightsCorrupt, WeightsMismatch: the file cannot be used, or does not fit.
        ConfigError: an option that is missing, unknown, or stated by the checkpoint itself.
    """
    tensors, digest = read_checkpoint(file)
    layout, flat = detect_layout(tensors, str(file), strip)
    chosen = dict(options or {})
    if layout in MONAI_LAYOUTS and "patch_merging" not in chosen:
        raise ConfigError(
            f"{file}: expected the option patch_merging 'monai1.4' or 'monai1.5', got none. MONAI 1.5 changed this "
            "arithmetic without changing a key: state the MONAI version of the training (SwinUNETR weights from before "
            "2025 need monai1.4), with medzoo convert as --option patch_merging=monai1.4."
        )
    if {"num_classes", "in_chans"} & chosen.keys():
        raise ConfigError(f"{file}: num_classes and in_chans are read from the checkpoint. Leave them out.")
    converted = convert(flat, layout)
    stripped = tuple(name for name in tensors if strip and not name.startswith(strip))
    obtained = Obtained(converted.tensors, digest, file, stripped + converted.dropped)
    num_classes = None if CLASSIFIER[0] in converted.tensors else 0
    built = assemble(request(describe(model), Weights.of_file(file), chosen, num_classes=num_classes), obtained)
    built.save_pretrained(folder)
    return cast(LoadReport, built.load_report)


def to_monai(model: Classifier) -> dict[str, Tensor]:
    """Return the tensors of a Swin encoder by their names in a MONAI ``SwinUNETR``.

    Load them there with ``strict=False``: MONAI also stores index buffers and a decoder. Its ``downsample`` must match
    the model's ``patch_merging``.

    Raises:
        ConfigError: the model is not a Swin encoder.
    """
    if model.name != "swin_encoder_mlp":
        raise ConfigError(f"{model.name}: expected swin_encoder_mlp, the only model whose encoder is MONAI's.")
    return to_monai_swinunetr(model.state_dict())
