"""Read the tensors out of a foreign checkpoint without running anything from it.

There is one reader, ours (:mod:`medzoo.weights.pickle_reader`): ``torch.load(weights_only=True)`` calls whatever any library
put on its list, which is the whole process's. There is no way to trust a file: of pickles of a whole module,
TorchXRayVision's DenseNet alone is read; the author of another can save its ``state_dict()``.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medzoo.errors import WeightsMismatch
from medzoo.weights.container import Numbers, open_checkpoint
from medzoo.weights.load import read_bytes, read_tensors
from medzoo.weights.pickle_names import DENSENET
from medzoo.weights.pickle_reader import PickleReader, Shell, Storage, StoredTensor, corrupt, unsafe
from medzoo.weights.whole_module import module_tensors

__all__ = ["read_checkpoint", "tensors_in"]

# Where trainers keep the weights among their own state.
_NESTED = ("state_dict", "model_state_dict", "model", "net")
MOST_TENSORS = 100_000  # each costs a kilobyte, however small
# Tensors may share numbers, and an expanded one has the same many times; each is given memory of its own.
MOST_TIMES = 4


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

    Both may be a zip archive or the stream of pickles from before torch 1.6. Each tensor is contiguous, and no other
    has its memory.

    Args:
        data: the file.
        source: the file, for messages.

    Raises:
        WeightsCorrupt: not the bytes of a checkpoint.
        UnsafeWeights: the file asks for more than tensors and plain containers.
        WeightsMismatch: there is no dict of tensors in it.
    """
    reader = PickleReader(source, len(data))
    root, numbers = open_checkpoint(data, reader)
    if type(root) is Shell and root.path == DENSENET:
        stored = module_tensors(root, source)
    elif reader.shells:
        path = min(reader.shells).replace(" ", ".")
        raise unsafe(source, f"a pickled {path!r} that is not all of TorchXRayVision's DenseNet")
    else:
        stored = _state_dict(root, source)
    total = sum(tensor.size for tensor in stored.values())
    if total > MOST_TIMES * len(data) or len(stored) > MOST_TENSORS:
        many = f"{total} bytes of {len(stored)} tensors in a file of {len(data)}"
        raise corrupt(source, f"{many}, as expanded tensors have; save them contiguous")
    return _materialise(stored, numbers)


def _state_dict(content: Any, source: str) -> dict[str, StoredTensor]:
    """Find the dict of tensors."""
    for key in _NESTED:
        if type(content) is dict and type(content.get(key)) is dict:
            content = content[key]
    stored: dict[str, StoredTensor] = {}
    if type(content) is dict:
        stored = {name: value for name, value in content.items() if type(value) is StoredTensor}
    if not stored:
        raise WeightsMismatch(
            f"{source}: expected a dict of tensors, or one under {', '.join(_NESTED)}, got {type(content).__name__}. "
            "Save model.state_dict()."
        )
    return stored


def _materialise(stored: dict[str, StoredTensor], numbers: Numbers) -> dict[str, Tensor]:
    """Copy each storage once, and what is only a part of it once more, so that no tensor keeps more than its own."""
    uses = Counter(tensor.storage.key for tensor in stored.values())
    copies: dict[str, Tensor] = {}

    def flat(storage: Storage) -> Tensor:
        if storage.key not in copies:
            copies[storage.key] = torch.frombuffer(bytearray(numbers(storage)), dtype=torch.uint8)
        return copies[storage.key]

    tensors: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        if 0 in tensor.shape:
            tensors[name] = torch.empty(tensor.shape, dtype=tensor.dtype)
            continue
        itemsize = tensor.dtype.itemsize
        held = flat(tensor.storage)[: tensor.storage.size // itemsize * itemsize].view(tensor.dtype)
        view = held.as_strided(tensor.shape, tensor.stride, tensor.offset)
        alone = uses[tensor.storage.key] == 1 and tensor.size == tensor.storage.size and view.is_contiguous()
        # From one axis, so that the strides are those of a new tensor: convolutions choose their arithmetic by them.
        tensors[name] = held.view(tensor.shape) if alone else view.clone(memory_format=torch.contiguous_format)
    return tensors
