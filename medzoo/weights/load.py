"""Put tensors into a model strictly, and prove that every one arrived.

Knows no model: it is given a plain ``nn.Module`` built on the meta device, the tensors, and what may be new.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medzoo.errors import MedzooError, UnsafeWeights, WeightsCorrupt, WeightsMismatch, WeightsUnavailable
from medzoo.weights.safetensors import read_safetensors, refuse_substitutes

__all__ = [
    "FOREIGN_SUFFIXES",
    "LoadReport",
    "input_kernel",
    "load_tensors",
    "read_bytes",
    "read_tensors",
    "stored_channels",
]

logger = logging.getLogger("medzoo")

# Formats that hold pickles, programs or other than a flat dict of tensors.
FOREIGN_SUFFIXES = frozenset({".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pt2", ".ts", ".npz"})
CLASSIFIER = ("head.classifier.weight", "head.classifier.bias")
SHOWN = 5
# A file may have this many times the tensors of the model it is for, as an encoder of a whole network does.
MOST_TIMES = 4


@dataclass(frozen=True)
class LoadReport:
    """What became of every tensor.

    Attributes:
        source: the weights' tag or file.
        digest: ``sha256:...`` of the bytes that were read.
        loaded: names of tensors taken as they are.
        adapted: how each changed tensor was changed, by name.
        new: names of tensors that start from random numbers.
        dropped: names of tensors in the file that the model has no place for.
        notes: how the model differs from the contract of the weights, in words.
        channels: what each channel of the input is, in order, where the weights say so.
        license: of the weights.
        trained_on: their data, in a sentence.
    """

    source: str
    digest: str
    loaded: tuple[str, ...]
    adapted: Mapping[str, str]
    new: tuple[str, ...]
    dropped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    license: str = "not stated"
    trained_on: str = "not stated"

    def renewed(self, gone: Collection[str], new: Collection[str]) -> LoadReport:
        """Return the report after a head was replaced: ``gone`` are no longer loaded, ``new`` are random."""
        return replace(
            self,
            loaded=tuple(name for name in self.loaded if name not in gone),
            new=tuple(sorted({*(name for name in self.new if name not in gone), *new})),
        )

    def leaving(self, names: Collection[str]) -> LoadReport:
        """Return the report with more names that were left behind."""
        return replace(self, dropped=(*self.dropped, *names))

    def __str__(self) -> str:
        arrived = len(self.loaded) + len(self.adapted)
        lines = [
            f"{self.source} ({self.digest[:19]}…)",
            f"{arrived} of {arrived + len(self.new)} tensors loaded, {len(self.new)} random",
        ]
        lines += [f"adapted {name}: {how}" for name, how in self.adapted.items()]
        if self.new:
            lines.append(f"random: {_some(self.new)}")
        if self.dropped:
            lines.append(f"dropped: {_some(self.dropped)}")
        if self.channels:
            lines.append(f"channels, in this order: {', '.join(self.channels)}")
        lines += self.notes
        return "\n".join(lines)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], str]:
    """Read a safetensors file once, and return the tensors of those bytes and their digest.

    Raises:
        UnsafeWeights: another format, which could run code.
        WeightsUnavailable: no such file, or it cannot be read.
        WeightsCorrupt: not the bytes of a safetensors file.
    """
    if path.suffix.lower() in FOREIGN_SUFFIXES:
        raise UnsafeWeights(
            f"{path}: expected a .safetensors file, got {path.suffix}, a format that can run code when it is read. "
            "Turn your own checkpoint into a folder with medzoo convert, which reads no more of it than tensors."
        )
    try:
        with path.open("rb", buffering=0) as file:
            tensors, _, digest = read_safetensors(file, path.stat().st_size, str(path))
    except OSError as error:
        if isinstance(error, MedzooError):
            raise
        raise WeightsUnavailable(
            f"{path}: the weight file cannot be read ({error.strerror or error}). Check the path."
        ) from error
    return tensors, digest


def read_bytes(path: Path) -> bytes:
    """Read a weight file once, and refuse what a broken download leaves in its place.

    Raises:
        WeightsUnavailable: no such file, or it cannot be read.
        WeightsCorrupt: empty, a Git LFS pointer, or a web page.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise WeightsUnavailable(
            f"{path}: the weight file cannot be read ({error.strerror or error}). Check the path."
        ) from error
    refuse_substitutes(data[:256], str(path))
    return data


def load_tensors(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    source: str,
    digest: str,
    kernel: str,
    part: str = "model",
    device: torch.device | str = "cpu",
) -> LoadReport:
    """Give a model its tensors, on ``device``; on the meta device, what they lack is drawn at random there.

    Only ``head.classifier`` may differ in size, and the whole head may be missing where the weights are an encoder's.

    Args:
        model: has the roots ``encoder.`` and ``head.``.
        tensors: by the model's own names.
        source: the weights' tag or file, for the report and messages.
        digest: of the bytes the tensors came from, for the report.
        kernel: name of the first kernel, whose input channels may be adapted; see :func:`input_kernel`.
        part: ``"model"``, or ``"encoder"`` when the head is new.
        device: where the tensors end up.

    Raises:
        WeightsMismatch: a missing, unexpected or misshapen tensor, or one of another kind of number.
        WeightsCorrupt: NaN or infinity in a tensor.
    """
    places = model.state_dict()
    if len(tensors) > MOST_TIMES * len(places):
        raise WeightsMismatch(
            f"{source} does not fit the model: expected {len(places)} tensors, got {len(tensors):,}. Check the file."
        )
    needed = {name for name in places if part == "model" or name.startswith("encoder.")}
    new_classifier = _classifier_differs(places, tensors)
    if any(name.startswith("head.") for name in places):
        dropped = tuple(name for name in CLASSIFIER if new_classifier and name in tensors)
    else:
        dropped = tuple(name for name in tensors if name.startswith("head."))
    taken = {name: tensors[name] for name in places if name in tensors and name not in dropped}
    missing = needed - taken.keys() - (set(CLASSIFIER) if new_classifier else set())
    unexpected = tensors.keys() - places.keys() - set(dropped)
    if missing or unexpected:
        raise WeightsMismatch(_key_message(source, missing, unexpected))

    adapted: dict[str, str] = {}
    if kernel in taken and _only_channels_differ(taken[kernel], places[kernel]):
        adapted[kernel] = f"{taken[kernel].shape[1]} input channels to {places[kernel].shape[1]}"
        taken[kernel] = adapt_channels(taken[kernel], places[kernel].shape[1])
    _check_shapes(source, taken, places)
    ready = _match_dtypes(source, taken, places)
    for name, tensor in ready.items():
        if not _all_finite(tensor):
            raise WeightsCorrupt(f"{source}: {name} holds NaN or infinity, expected finite numbers. Use another file.")
        if name.endswith("running_var") and bool((tensor < 0).any()):
            raise WeightsCorrupt(f"{source}: {name} holds a variance below 0, expected none. Use another file.")

    new = tuple(sorted(places.keys() - ready.keys()))
    for owner in sorted({name.rpartition(".")[0] for name in new}):
        module: Any = model.get_submodule(owner)
        if next(module.parameters()).is_meta:
            module.to_empty(device=device)
            module.reset_parameters()
    model.load_state_dict({name: t.to(device) for name, t in ready.items()}, strict=False, assign=True)
    if part == "model" and new_classifier:
        warnings.warn(
            f"{source}: {' and '.join(CLASSIFIER)} start from random numbers, because the weights have "
            f"{tensors[CLASSIFIER[0]].shape[0]} outputs and the model has {places[CLASSIFIER[0]].shape[0]}. "
            "Train it before use.",
            stacklevel=4,
        )
    loaded = tuple(name for name in ready if name not in adapted)
    return LoadReport(source, digest, loaded, adapted, new, dropped)


def _all_finite(tensor: Tensor) -> bool:
    """Whether there is no NaN and no infinity: either would make the sum one, which reads the tensor once."""
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def _classifier_differs(places: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> bool:
    """Whether the last layer is another size here than in the file, and nothing but that size."""
    ours, theirs = places.get(CLASSIFIER[0]), tensors.get(CLASSIFIER[0])
    if ours is None or theirs is None:
        return False
    return ours.ndim == theirs.ndim and ours.shape[1:] == theirs.shape[1:] and ours.shape[0] != theirs.shape[0]


def _only_channels_differ(tensor: Tensor, place: Tensor) -> bool:
    """Whether a first kernel fits but for the number of input channels."""
    return (
        tensor.ndim == place.ndim
        and tensor.ndim > 2
        and tensor.shape[1] != place.shape[1]
        and (tensor.shape[0], *tensor.shape[2:]) == (place.shape[0], *place.shape[2:])
    )


def input_kernel(model: nn.Module, channels: int) -> str:
    """Return the name of the encoder's first kernel over ``channels`` input channels, or an empty string."""
    for name, parameter in model.named_parameters():
        if name.startswith("encoder.") and parameter.ndim > 2 and parameter.shape[1] == channels:
            return name
    return ""


def stored_channels(tensors: Mapping[str, Tensor], kernel: str, otherwise: int) -> int:
    """Return the input channels of the stored kernel, or another number where there is none."""
    stored = tensors.get(kernel)
    return stored.shape[1] if stored is not None and stored.ndim > 2 else otherwise


def adapt_channels(kernel: Tensor, channels: int) -> Tensor:
    """Change the input channels of a first kernel, ``o c *k -> o channels *k``.

    To one channel the kernels are summed, as a grey image repeated over the old channels would give. Otherwise they
    are repeated in turn and scaled by old over new, which keeps the size of the response.

    >>> adapt_channels(torch.ones(1, 3, 1, 1), 1).flatten().tolist()
    [3.0]
    >>> adapt_channels(torch.ones(1, 1, 1, 1), 4).flatten().tolist()
    [0.25, 0.25, 0.25, 0.25]
    """
    if channels == 1:
        return kernel.sum(1, keepdim=True)
    old = kernel.shape[1]
    return kernel[:, [i % old for i in range(channels)]] * (old / channels)


def _check_shapes(source: str, taken: Mapping[str, Tensor], places: Mapping[str, Tensor]) -> None:
    wrong = [name for name in taken if taken[name].shape != places[name].shape]
    if wrong:
        shown = "; ".join(
            f"{name} is {tuple(taken[name].shape)} in the file, {tuple(places[name].shape)} in the model"
            for name in wrong[:SHOWN]
        )
        more = f", and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise WeightsMismatch(
            f"{source} does not fit the model: {shown}{more}. Create it with the options it was saved with."
        )


def _match_dtypes(source: str, taken: Mapping[str, Tensor], places: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Cast floating tensors to the model's precision, with one log line; refuse another kind of number."""
    cast: set[torch.dtype] = set()
    ready = {}
    for name, tensor in taken.items():
        want = places[name].dtype
        if tensor.dtype != want:
            plain = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
            if tensor.dtype not in plain or want not in plain:
                raise WeightsMismatch(f"{source}: expected {name} to be {want}, got {tensor.dtype}. Convert the file.")
            cast.add(tensor.dtype)
            tensor = tensor.to(want)
        ready[name] = tensor
    if cast:
        logger.info("%s: cast from %s", source, ", ".join(sorted(map(str, cast))))
    return ready


def _key_message(source: str, missing: set[str], unexpected: set[str]) -> str:
    message = f"{source} does not fit the model:"
    if missing and all(name.startswith("head.") for name in missing) and not unexpected:
        return (
            f"{source} holds an encoder alone, without {_some(sorted(missing))}: create the model with num_classes=0, "
            "then model.reset_classifier(n)."
        )
    if missing:
        message += f" missing {_some(sorted(missing))};"
    if unexpected:
        message += f" unexpected {_some(sorted(unexpected))};"
    prefixes = {name.partition(".")[0] for name in unexpected}
    for prefix in ("module", "_orig_mod"):
        if prefix in prefixes:
            return message + f" every name must start with 'encoder.' or 'head.': strip the prefix {prefix + '.'!r}."
    if not prefixes & {"encoder", "head"} and unexpected:
        return message + " no name starts with 'encoder.' or 'head.', as those of medzoo's models do: rename them."
    return message + " create it with the options it was saved with."


def _some(names: tuple[str, ...] | list[str]) -> str:
    """Join the first few names, and count the rest."""
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
