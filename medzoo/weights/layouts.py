"""Convert the parameter names of other projects to medzoo's: one renaming per layout.

A renaming returns ``None`` for what is dropped on purpose, and the strict load that follows needs everything else:
nothing is lost by accident.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from medzoo.errors import WeightsMismatch

__all__ = ["LAYOUTS", "MONAI_LAYOUTS", "Converted", "convert", "detect_layout", "strip_wrappers", "to_monai_swinunetr"]


@dataclass(frozen=True)
class Converted:
    """Tensors by medzoo's names, and the upstream names that have no counterpart.

    Attributes:
        tensors: the tensors by medzoo's names.
        dropped: upstream names that were dropped on purpose.
    """

    tensors: dict[str, Tensor]
    dropped: tuple[str, ...] = ()


def convert(flat: Mapping[str, Tensor], layout: str) -> Converted:
    """Rename the tensors of a flat dict in a layout of :data:`LAYOUTS`."""
    renamed = {name: LAYOUTS[layout][1](name) for name in flat}
    tensors = {new: flat[old] for old, new in renamed.items() if new is not None}
    return Converted(tensors, tuple(old for old, new in renamed.items() if new is None))


def _from_monai_swinunetr(name: str) -> str | None:
    """Select the encoder of a complete MONAI ``SwinUNETR``, including those of VoCo and SwinUNETR-V2.

    ``swinViT.X`` becomes ``encoder.X``. Dropped: the index buffers, which medzoo computes, and the U-Net's own
    ``encoder1``… ``decoder1``… ``out``.
    """
    if not name.startswith("swinViT.") or name.endswith("relative_position_index"):
        return None
    return f"encoder.{name.removeprefix('swinViT.')}"


def _from_swin_ssl(name: str) -> str | None:
    """Select the encoder of Tang et al.'s self-supervised ``model_swinvit.pt``, whose MLP layers are ``fc1, fc2``.

    Dropped: the index buffers and the heads of the three pretext tasks.
    """
    heads = ("norm.", "convTrans3d.", "rotation_head.", "contrastive_head.")
    if name.startswith(heads) or name.endswith("relative_position_index"):
        return None
    return "encoder." + name.replace(".mlp.fc1.", ".mlp.linear1.").replace(".mlp.fc2.", ".mlp.linear2.")


def _from_dae(name: str) -> str | None:
    """Select the encoder of the disruptive autoencoder's ``ssl_pretrained_weights.pth``.

    ``encoder.layersN.0.0.X`` loses its second list index. Dropped: the mask token, the last norm, the index buffers and
    everything outside ``encoder.``.
    """
    dropped = ("encoder.mask_token", "encoder.norm.weight", "encoder.norm.bias")
    if not name.startswith("encoder.") or name in dropped or name.endswith("relative_position_index"):
        return None
    return re.sub(r"^(encoder\.layers\d\.0\.)0\.", r"\1", name)


def _from_torchxrayvision(name: str) -> str | None:
    """Rename a complete TorchXRayVision DenseNet, ``features.X`` and ``classifier``, without its thresholds."""
    if name.startswith("features."):
        return f"encoder.{name}"
    return f"head.{name}" if name.startswith("classifier.") else None


def _from_timm_resnet(name: str) -> str | None:
    """Select the encoder of a timm or torchvision ResNet; its classifier ``fc`` is dropped."""
    return None if name.startswith("fc.") else f"encoder.{name}"


# Each layout: a name that every file of it has, as a pattern, and its renaming. The first match decides.
LAYOUTS: dict[str, tuple[str, Callable[[str], str | None]]] = {
    "monai-swinunetr": (r"swinViT\.patch_embed\.proj\.weight", _from_monai_swinunetr),
    "dae": (r"encoder\.layers1\.0\.0\.blocks\.0\.norm1\.weight", _from_dae),
    "swin-ssl": (r"layers1\.0\.blocks\.0\.mlp\.fc1\.weight", _from_swin_ssl),
    "torchxrayvision": (r"features\.denseblock1\.denselayer1\.norm1\.weight", _from_torchxrayvision),
    "timm-resnet": (r"layer1\.0\.conv1\.weight", _from_timm_resnet),
    "medzoo": (r"encoder\..*", lambda name: name),
}
# Layouts whose arithmetic depends on the MONAI version that trained them.
MONAI_LAYOUTS = frozenset({"monai-swinunetr", "swin-ssl", "dae"})


def to_monai_swinunetr(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a Swin encoder's names to those in a MONAI ``SwinUNETR``; load them there with ``strict=False``.

    MONAI also stores index buffers and a decoder.
    """
    return {
        f"swinViT.{name.removeprefix('encoder.')}": tensor
        for name, tensor in tensors.items()
        if name.startswith("encoder.")
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
    for layout, (marker, _) in LAYOUTS.items():
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
    raise WeightsMismatch(f"{source}: expected the layout of {', '.join(LAYOUTS)}, got names such as {first}.{hint}")
