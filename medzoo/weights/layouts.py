"""From the layouts of other projects to ours: one pure function each, from a flat dict to a flat dict.

Every function names what it leaves behind on purpose, so that nothing gets lost by accident: the strict load that
follows takes exactly what is converted.
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
    "from_dae",
    "from_monai_swinunetr",
    "from_swin_ssl",
    "from_timm_resnet",
    "from_torchxrayvision",
    "recognise",
    "to_monai_swinunetr",
    "unwrapped",
]


@dataclass(frozen=True)
class Converted:
    """Tensors under our names, and the upstream names that have no place here.

    Attributes:
        tensors: ours.
        dropped: upstream's, each left behind on purpose.
    """

    tensors: dict[str, Tensor]
    dropped: tuple[str, ...]


def _converted(flat: Mapping[str, Tensor], rename: Callable[[str], str | None]) -> Converted:
    """Apply a renaming that returns ``None`` for what is left behind."""
    tensors: dict[str, Tensor] = {}
    dropped = []
    for name, tensor in flat.items():
        ours = rename(name)
        if ours is None:
            dropped.append(name)
        else:
            tensors[ours] = tensor
    return Converted(tensors, tuple(dropped))


def from_monai_swinunetr(flat: Mapping[str, Tensor]) -> Converted:
    """Take the encoder out of a whole MONAI ``SwinUNETR``, VoCo's and SwinUNETR-V2's included.

    ``swinViT.X`` becomes ``encoder.X``. Left behind: the index buffers, which are derived here, and the U-Net's own
    ``encoder1``… ``decoder1``… ``out``.
    """

    def rename(name: str) -> str | None:
        if not name.startswith("swinViT.") or name.endswith("relative_position_index"):
            return None
        return f"encoder.{name.removeprefix('swinViT.')}"

    return _converted(flat, rename)


def from_swin_ssl(flat: Mapping[str, Tensor]) -> Converted:
    """Take the encoder out of Tang et al.'s self-supervised ``model_swinvit.pt``, whose MLP layers are ``fc1, fc2``.

    Left behind: the index buffers and the heads of the three pretext tasks.
    """
    heads = ("norm.", "convTrans3d.", "rotation_head.", "contrastive_head.")

    def rename(name: str) -> str | None:
        if name.startswith(heads) or name.endswith("relative_position_index"):
            return None
        return "encoder." + name.replace(".mlp.fc1.", ".mlp.linear1.").replace(".mlp.fc2.", ".mlp.linear2.")

    return _converted(flat, rename)


def from_dae(flat: Mapping[str, Tensor]) -> Converted:
    """Take the encoder out of the disruptive autoencoder's ``ssl_pretrained_weights.pth``.

    ``encoder.layersN.0.0.X`` loses its second list. Left behind: the mask token, the last norm, the index buffers and
    everything outside of ``encoder.``.
    """

    def rename(name: str) -> str | None:
        left = ("encoder.mask_token", "encoder.norm.weight", "encoder.norm.bias")
        if not name.startswith("encoder.") or name in left or name.endswith("relative_position_index"):
            return None
        return re.sub(r"^(encoder\.layers\d\.0\.)0\.", r"\1", name)

    return _converted(flat, rename)


def from_timm_resnet(flat: Mapping[str, Tensor]) -> Converted:
    """Take the encoder out of a timm or torchvision ResNet; its classifier ``fc`` is left behind."""
    return _converted(flat, lambda name: None if name.startswith("fc.") else f"encoder.{name}")


def from_torchxrayvision(flat: Mapping[str, Tensor]) -> Converted:
    """Take a whole TorchXRayVision DenseNet, ``features.X`` and the ``classifier``, without its thresholds."""

    def rename(name: str) -> str | None:
        if name.startswith("features."):
            return f"encoder.{name}"
        return f"head.{name}" if name.startswith("classifier.") else None

    return _converted(flat, rename)


def to_monai_swinunetr(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give our Swin encoder its names in a MONAI ``SwinUNETR`` back; load them there with ``strict=False``.

    MONAI keeps index buffers and a decoder that ours does not have.
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
    "medzoo": lambda flat: Converted(dict(flat), ()),
}

# Those whose arithmetic depends on the MONAI that trained them.
MONAI_LAYOUTS = frozenset({"monai-swinunetr", "swin-ssl", "dae"})

# What a file of each layout must have; the first that fits is taken.
_SIGNS = {
    "monai-swinunetr": r"swinViT\.patch_embed\.proj\.weight",
    "dae": r"encoder\.layers1\.0\.0\.blocks\.0\.norm1\.weight",
    "swin-ssl": r"layers1\.0\.blocks\.0\.mlp\.fc1\.weight",
    "torchxrayvision": r"features\.denseblock1\.denselayer1\.norm1\.weight",
    "timm-resnet": r"layer1\.0\.conv1\.weight",
    "medzoo": r"encoder\..*",
}


def unwrapped(flat: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the dict without the prefixes that DataParallel and torch.compile put before every name."""
    names = dict(flat)
    for prefix in ("_orig_mod.", "module.", "_orig_mod."):
        if names and all(name.startswith(prefix) for name in names):
            names = {name.removeprefix(prefix): t for name, t in names.items()}
    return names


def recognise(flat: Mapping[str, Tensor], source: str, strip: str = "") -> tuple[str, dict[str, Tensor]]:
    """Return the layout of a flat dict, and the dict without the prefix that wraps all of its names.

    ``module.`` (DataParallel) and ``_orig_mod.`` (torch.compile) are stripped by themselves; a trainer's own prefix,
    such as Lightning's ``model.``, is given as ``strip``, and names without it are then left out.

    Raises:
        WeightsMismatch: no layout that is known.
    """
    names = dict(flat)
    if strip:
        names = {name.removeprefix(strip): t for name, t in names.items() if name.startswith(strip)}
    names = unwrapped(names)
    for layout, sign in _SIGNS.items():
        if any(re.fullmatch(sign, name) for name in names):
            return layout, names
    first = ", ".join(list(flat)[:3]) or "none"
    prefixes = {name.partition(".")[0] + "." for name in flat}
    hint = f" Perhaps its names carry a prefix, {sorted(prefixes)[0]!r}: give --strip." if len(prefixes) == 1 else ""
    raise WeightsMismatch(
        f"{source}: expected the layout of {', '.join(LAYOUTS)}, got names such as {first}.{hint}"
        + did_you_mean(first, LAYOUTS)
    )
