"""Read the tensors out of a foreign checkpoint without running anything from it.

A state dict is read by ``torch.load(weights_only=True)`` with a fixed list of NumPy's scalars, and TorchXRayVision's
pickles of a whole DenseNet by :mod:`medzoo.weights.whole_module`. There is no way to trust a file: any other pickle of
a whole module is refused; its author can save the ``state_dict()``.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medzoo.errors import WeightsCorrupt, WeightsMismatch
from medzoo.weights.inert import unsafe
from medzoo.weights.load import read_bytes, read_tensors
from medzoo.weights.whole_module import Archive, holds_module, is_zip, module_tensors

__all__ = ["read_checkpoint", "tensors_in"]

# Where trainers keep the weights among their own state.
_NESTED = ("state_dict", "model_state_dict", "model", "net")


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], str]:
    """Return the tensors of a safetensors file or of a PyTorch checkpoint by name, and the digest of its bytes.

    A dict inside of ``state_dict``, ``model_state_dict``, ``model`` or ``net`` is taken out; epochs, metrics and the
    optimiser's state are left behind.

    Raises:
        WeightsUnavailable: no such file.
        WeightsCorrupt: not the bytes of a checkpoint.
        UnsafeWeights: the file asks for more than tensors and plain containers.
        WeightsMismatch: there is no dict of tensors in it.
    """
    if path.suffix.lower() == ".safetensors":
        return read_tensors(path)
    data = read_bytes(path)
    return tensors_in(data, str(path)), f"sha256:{hashlib.sha256(data).hexdigest()}"


def tensors_in(data: bytes, source: str) -> dict[str, Tensor]:
    """Return the tensors of a PyTorch checkpoint by name: a state dict, or TorchXRayVision's whole DenseNet.

    Both may be a zip archive or the stream of pickles from before torch 1.6.

    Args:
        data: the file.
        source: the file, for messages.

    Raises:
        WeightsCorrupt: not the bytes of a checkpoint.
        UnsafeWeights: the file asks for more than tensors and plain containers.
        WeightsMismatch: there is no dict of tensors in it.
    """
    if data[257:262] == b"ustar":
        raise unsafe(source, "a tar archive, PyTorch's format of before 0.2")
    if holds_module(Archive(data, source).read("data.pkl") if is_zip(data) else data):
        return module_tensors(data, source)
    # Best metrics are saved as np.mean gives them; NumPy's old module name has to be given as a pair.
    scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]
    harmless = [(scalar, "numpy.core.multiarray.scalar"), scalar, np.dtype, type(np.dtype("f8")), type(np.dtype("f4"))]
    try:
        with torch.serialization.safe_globals(harmless):
            content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise unsafe(source, str(error).split("\n")[0][:200]) from error
    # On bytes that are no checkpoint, torch raises nearly every type there is.
    except Exception as error:
        raise WeightsCorrupt(
            f"{source}: expected a PyTorch checkpoint, got bytes that cannot be read as one ({type(error).__name__}). "
            "Get it again."
        ) from error
    return _state_dict(content, source, len(data))


def _state_dict(content: Any, source: str, size: int) -> dict[str, Tensor]:
    """Find the dict of tensors, each of plain numbers that the file of ``size`` bytes can hold."""
    for key in _NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    tensors: dict[str, Tensor] = {}
    if isinstance(content, Mapping):
        tensors = {str(name): value.detach() for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise WeightsMismatch(
            f"{source}: expected a dict of tensors, or one under {', '.join(_NESTED)}, got {type(content).__name__}. "
            "Save model.state_dict()."
        )
    for name, tensor in tensors.items():
        dense = tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        if not dense or type(tensor) is not Tensor or tensor.numel() * tensor.itemsize > size:
            raise WeightsMismatch(
                f"{source}: expected plain tensors, got {name[:100]!a} sparse, quantised, without numbers or larger "
                "than the file. Save it dense, on the CPU."
            )
    return tensors
