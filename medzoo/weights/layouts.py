"""Convert the parameter names of other projects to medzoo's: one pure function per layout, from a flat dict to another.

Each function lists what it drops on purpose, and the strict load that follows needs everything else: nothing is lost by
accident.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from medzoo.errors import WeightsMismatch, did_you_mean

__all__ = [
    "LAYOUTS",
    "MONAI_LAYOUTS",
    "Converted",
    "detect_layout",
    "from_dae",
    "from_monai_swinunetr",
    "from_swin_ssl",
    "from_timm_resnet",
    "from_torchxrayvision",
    "strip_wrappers",
    "to_monai_swinunetr",
]


@dataclass(frozen=True)
class Converted:
    """Tensors by medzoo's names, and the upstream names that have no counterpart.

    Attributes:
        tensors: the tensors by medzoo's names.
        dropped: upstream names that were dropped on purpose.
    """

    tensors: dict[str, Tensor]
    dropped: tuple[str, ...] = ()


def _rename(flat: Mapping[str, Tensor], rename: Callable[[str], str | None]) -> Converted:
    """Apply a renaming that returns ``None`` for what is dropped."""
    tensors: dict[str, Tensor] = {}
    dropped = []
    for name, tensor in flat.items():
        renamed = rename(name)
        if renamed is None:
            dropped.append(name)
        else:
            tensors[renamed] = tensor
    return Converted(tensors, tuple(dropped))


def from_monai_swinunetr(flat: Mapping[str, Tensor]) -> Converted:
    """Extract the encoder of a complete MONAI ``SwinUNETR``, including those of VoCo and SwinUNETR-V2.

    ``swinViT.X`` becomes ``encoder.X``. Dropped: the index buffers, which medzoo computes, and the U-Net's own
    ``encoder1``… ``decoder1``… ``out``.
    """

    def rename(name: str) -> str | None:
        if not name.startswith("swinViT.") or name.endswith("relative_position_index"):
            return None
        return f"encoder.{name.removeprefix('swinViT.')}"

    return _rename(flat, rename)


def from_swin_ssl(flat: Mapping[str, Tensor]) -> Converted:
    """Extract the encoder of Tang et al.'s self-supervised ``model_swinvit.pt``, whose MLP layers are ``fc1, fc2``.

    Dropped: the index buffers and the heads of the three pretext tasks.
    """
    heads = ("norm.", "convTrans3d.", "rotation_head.", "contrastive_head.")

    def rename(name: str) -> str | None:
        if name.startswith(heads) or name.endswith("relative_position_index"):
            return None
        return "encoder." + name.replace(".mlp.fc1.", ".mlp.linear1.").replace(".mlp.fc2.", ".mlp.linear2.")

    return _rename(flat, rename)


def from_dae(flat: Mapping[str, Tensor]) -> Converted:
    """Extract the encoder of the disruptive autoencoder's ``ssl_pretrained_weights.pth``.

    ``encoder.layersN.0.0.X`` loses its second list index. Dropped: the mask token, the last norm, the index buffers and
    everything outside ``encoder.``.
    """

    def rename(name: str) -> str | None:
        dropped = ("encoder.mask_token", "encoder.norm.weight", "encoder.norm.bias")
        if not name.startswith("encoder.") or name in dropped or name.endswith("relative_position_index"):
            return None
        return re.sub(r"^(encoder\.layers\d\.0\.)0\.", r"\1", name)

    return _rename(flat, rename)


def from_timm_resnet(flat: Mapping[str, Tensor]) -> Converted:
    """Extract the encoder of a timm or torchvision ResNet; its classifier ``fc`` is dropped."""
    return _rename(flat, lambda name: None if name.startswith("fc.") else f"encoder.{name}")


def from_torchxrayvision(flat: Mapping[str, Tensor]) -> Converted:
    """Convert a complete TorchXRayVision DenseNet, ``features.X`` and ``classifier``, without its thresholds."""

    def rename(name: str) -> str | None:
        if name.startswith("features."):
            return f"encoder.{name}"
        return f"head.{name}" if name.startswith("classifier.") else None

    return _rename(flat, rename)


def to_monai_swinunetr(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a Swin encoder's names to those in a MONAI ``SwinUNETR``; load them there with ``strict=False``.

    MONAI also stores index buffers and a decoder.
    """
    return {
        f"swinViT.{name.removeprefix('encoder.')}": tensor
        for name, tensor in tensors.items()
        if name.startswith("encoder.")
    }


LAYOUTS: dict[str, Callable[[Mapping[str, Tensor]], Converted]] = {
    "monai-swinunetr": from_monai_swinunetr,
    "swin-ssl": from_swin_ssl,
    "dae": from_dae,
    "timm-resnet": from_timm_resnet,
    "torchxrayvision": from_torchxrayvision,
    "medzoo": lambda flat: Converted(dict(flat)),
}

# Layouts whose arithmetic depends on the MONAI version that trained them.
MONAI_LAYOUTS = frozenset({"monai-swinunetr", "swin-ssl", "dae"})

# A name that every file of a layout has; the first match decides.
_MARKERS = {
    "monai-swinunetr": r"swinViT\.patch_embed\.proj\.weight",
    "dae": r"encoder\.layers1\.0\.0\.blocks\.0\.norm1\.weight",
    "swin-ssl": r"layers1\.0\.blocks\.0\.mlp\.fc1\.weight",
    "torchxrayvision": r"features\.denseblock1\.denselayer1\.norm1\.weight",
    "timm-resnet": r"layer1\.0\.conv1\.weight",
    "medzoo": r"encoder\..*",
}


def strip_wrappers(flat: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the dict without the prefixes that DataParallel and torch.compile add to every name."""
    names = dict(flat)
    for prefix in ("_orig_mod.", "module.", "_orig_mod."):
        if names and all(name.startswith(prefix) for name in names):
            names = {name.removeprefix(prefix): t for name, t in names.items()}
    return names


def detect_layout(flat: Mapping[str, Tensor], source: str, strip: str = "") -> tuple[str, dict[str, Tensor]]:
    """Return the layout of a flat dict, and the dict without the prefix that all of its names have.

    ``module.`` (DataParallel) and ``_orig_mod.`` (torch.compile) are always stripped. A trainer's own prefix, such as
    Lightning's ``model.``, is given as ``strip``; names without it are then left out.

    Raises:
        WeightsMismatch: an unknown layout.
    """
    names = dict(flat)
    if strip:
        names = {name.removeprefix(strip): t for name, t in names.items() if name.startswith(strip)}
    names = strip_wrappers(names)
    for layout, marker in _MARKERS.items():
        if any(re.fullmatch(marker, name) for name in names):
            return layout, names
    first = ", ".join(list(flat)[:3]) or "none"
    prefixes = {name.partition(".")[0] + "." for name in flat}
    hint = ""
    if len(prefixes) == 1:
        prefix = prefixes.pop()
        hint = (
            f" All of them start with {prefix!r}: if a trainer added that prefix, remove it from the names, or use "
            f"medzoo convert ... --strip {prefix}"
        )
    raise WeightsMismatch(
        f"{source}: expected the layout of {', '.join(LAYOUTS)}, got names such as {first}.{hint}"
        + did_you_mean(first, LAYOUTS)
    )
