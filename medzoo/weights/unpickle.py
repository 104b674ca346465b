"""Read the tensors out of a foreign checkpoint without running anything from it.

A state dict is read by ``torch.load(weights_only=True)``, which skips NumPy's scalars, and TorchXRayVision's
pickles of a whole DenseNet by :mod:`medzoo.weights.whole_module`. There is no way to trust a file: any other pickle of
a whole module is refused; its author can save the ``state_dict()``.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medzoo.errors import WeightsCorrupt, WeightsMismatch
from medzoo.weights.inert import unsafe
from medzoo.weights.load import read_bytes, read_tensors
from medzoo.weights.whole_module import Archive, holds_module, is_zip, module_tensors

__all__ = ["read_checkpoint", "tensors_in"]

# Where trainers keep the weights among their own state.
_NESTED = ("state_dict", "model_state_dict", "model", "net")


class _Ignored:
    """Stands for NumPy's scalars, in which trainers keep their best metric.

    NumPy's own would be called with what the file says, and a damaged state of a dtype ends the process.
    """

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


_IGNORED: list[Any] = [
    (_Ignored, "numpy.dtype"),
    (_Ignored, "numpy.core.multiarray.scalar"),  # before NumPy 2
    (_Ignored, "numpy._core.multiarray.scalar"),
]


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
    if holds_module(Archive(data, source).first_bytes() if is_zip(data) else data):
        return module_tensors(data, source)
    try:
        with torch.serialization.safe_globals(_IGNORED), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of protocols and formats that are refused below
            content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # Torch's own message advises to trust the file.
        name = re.search(r"GLOBAL (\S{1,200})", str(error))
        raise unsafe(source, f"the name {name[1]!a}" if name else "a call or an opcode of no state dict") from None
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
        # By dict's own methods: a pickled OrderedDict may hold others under their names.
        if isinstance(content, dict) and isinstance(dict.get(content, key), dict):
            content = dict.get(content, key)
    tensors: dict[str, Tensor] = {}
    if isinstance(content, dict):
        tensors = {str(name): value.detach() for name, value in dict.items(content) if isinstance(value, Tensor)}
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
