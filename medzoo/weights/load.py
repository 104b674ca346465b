"""Load tensors into a model strictly, and report what became of each.

This module knows no model: it takes a plain ``nn.Module`` built on the meta device, the tensors, and what may be new.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from medzoo.errors import ConfigError, WeightsCorrupt, WeightsMismatch
from medzoo.provenance import UNSTATED, IntendedUse
from medzoo.warn import warn

__all__ = ["CLASSIFIER", "LoadReport", "Loaded", "input_kernel", "load_tensors"]

logger = logging.getLogger("medzoo")

CLASSIFIER = ("head.classifier.weight", "head.classifier.bias")
# Names that a message lists before it counts the rest.
MAX_LISTED = 5
# A file may have this many times the tensors of its model, as a complete network whose encoder is used does.
MAX_TENSOR_RATIO = 4


@dataclass(frozen=True)
class LoadReport:
    """What became of every tensor of a model and of a weight file.

    Attributes:
        source: tag or file of the weights.
        digest: ``sha256:...`` of the bytes that were read.
        loaded: names of tensors that were loaded unchanged.
        adapted: how each changed tensor was changed, by name.
        new: names of tensors that are randomly initialised.
        dropped: names of tensors in the file that are not in the model.
        notes: differences between the model and the contract of the weights, as sentences.
        channels: meaning of each input channel, in order, if the weights state it.
        license: licence of the weights.
        trained_on: their training data, in a sentence.
        intended_use: the images and patients they were made for.
        changed: how each tensor was changed after loading, by name: it is no longer that of the weights.
        is_published: whether ``source`` names published weights, not a file of the user, whose name may be private.
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
    intended_use: IntendedUse = UNSTATED
    changed: Mapping[str, str] = field(default_factory=dict)
    is_published: bool = False

    def with_new(self, gone: Collection[str], new: Collection[str]) -> LoadReport:
        """Return the report after a head was replaced: ``gone`` no longer exist, ``new`` are random.

        The new outputs are for the images that they will be trained on.
        """
        return replace(
            self,
            loaded=tuple(name for name in self.loaded if name not in gone),
            new=tuple(sorted({*(name for name in self.new if name not in gone), *new})),
            intended_use=UNSTATED,
            changed={name: how for name, how in self.changed.items() if name not in gone},
        )

    def with_changed(self, names: Collection[str], how: str) -> LoadReport:
        """Return the report after loaded tensors were changed in a known way; those that are new stay so."""
        known = [name for name in names if name in self.loaded or name in self.adapted or name in self.changed]
        return replace(
            self,
            loaded=tuple(name for name in self.loaded if name not in known),
            adapted={name: done for name, done in self.adapted.items() if name not in known},
            changed={**self.changed, **dict.fromkeys(known, how)},
        )

    def __str__(self) -> str:
        loaded = len(self.loaded) + len(self.adapted) + len(self.changed)
        lines = [
            f"{self.source} ({self.digest[:19]}…)",
            f"{loaded} of {loaded + len(self.new)} tensors loaded, {len(self.new)} random",
        ]
        lines += [f"adapted {name}: {how}" for name, how in self.adapted.items()]
        lines += [f"changed after loading {name}: {how}" for name, how in self.changed.items()]
        if self.new:
            lines.append(f"random: {_list_names(self.new)}")
        if self.dropped:
            lines.append(f"dropped: {_list_names(self.dropped)}")
        if self.channels:
            lines.append(f"channels, in this order: {', '.join(self.channels)}")
        if self.intended_use != UNSTATED:
            lines.append(f"made for: {self.intended_use}")
        lines += self.notes
        return "\n".join(lines)


class Loaded(NamedTuple):
    """What :func:`load_tensors` did, in the terms of :class:`LoadReport`."""

    loaded: tuple[str, ...]
    adapted: Mapping[str, str]
    new: tuple[str, ...]
    dropped: tuple[str, ...]


def load_tensors(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    source: str,
    kernel: str,
    part: str = "model",
    device: torch.device | str = "cpu",
) -> Loaded:
    """Load tensors into a model on ``device``; what they lack is randomly initialised if it is on the meta device.

    Only ``head.classifier`` may differ in size, and only weights of an encoder may lack the head.

    Args:
        model: a module with the children ``encoder`` and ``head``.
        tensors: tensors by the model's own names.
        source: tag or file of the weights, for messages.
        kernel: name of the first kernel, whose input channels may be adapted; see :func:`input_kernel`.
        part: ``"model"``, or ``"encoder"`` if the head is new.
        device: device of the loaded tensors.

    Raises:
        WeightsMismatch: a missing or unexpected tensor, or one of another shape or of an incompatible dtype.
        WeightsCorrupt: NaN or infinity in a tensor, or a variance below 0.
        ConfigError: a buffer is not stored with the weights, and its module cannot compute it.
    """
    expected = model.state_dict()
    if len(tensors) > MAX_TENSOR_RATIO * len(expected):
        raise WeightsMismatch(
            f"{source} does not fit the model: expected {len(expected)} tensors, got {len(tensors):,}. Check the file."
        )
    required = {name for name in expected if part == "model" or name.startswith("encoder.")}
    new_classifier = _differ_only_along(0, expected.get(CLASSIFIER[0]), tensors.get(CLASSIFIER[0]))
    if any(name.startswith("head.") for name in expected):
        dropped = tuple(name for name in CLASSIFIER if new_classifier and name in tensors)
    else:
        dropped = tuple(name for name in tensors if name.startswith("head."))
    taken = {name: tensors[name] for name in expected if name in tensors and name not in dropped}
    missing = required - taken.keys() - (set(CLASSIFIER) if new_classifier else set())
    unexpected = tensors.keys() - expected.keys() - set(dropped)
    if missing or unexpected:
        raise WeightsMismatch(_key_message(source, missing, unexpected))

    adapted: dict[str, str] = {}
    if kernel in taken and taken[kernel].ndim > 2 and _differ_only_along(1, taken[kernel], expected[kernel]):
        adapted[kernel] = f"{taken[kernel].shape[1]} input channels to {expected[kernel].shape[1]}"
        taken[kernel] = adapt_channels(taken[kernel], expected[kernel].shape[1])
    _check_shapes(source, taken, expected)
    ready = _match_dtypes(source, taken, expected)
    for name, tensor in ready.items():
        if not _all_finite(tensor):
            raise WeightsCorrupt(f"{source}: {name} contains NaN or infinity, expected finite values. Check the file.")
        if name.endswith("running_var") and bool((tensor < 0).any()):
            raise WeightsCorrupt(f"{source}: {name} contains a variance below 0, expected none. Check the file.")

    new = tuple(sorted(expected.keys() - ready.keys()))
    for owner in sorted({name.rpartition(".")[0] for name in new}):
        module: Any = model.get_submodule(owner)
        if next(module.parameters()).is_meta:
            module.to_empty(device=device)
            module.reset_parameters()
    model.load_state_dict({name: t.to(device) for name, t in ready.items()}, strict=False, assign=True)
    if part == "model" and new_classifier:
        warn(
            f"{source}: {' and '.join(CLASSIFIER)} are randomly initialised, because the weights have "
            f"{tensors[CLASSIFIER[0]].shape[0]} outputs and the model has {expected[CLASSIFIER[0]].shape[0]}. "
            "Train it before use."
        )
    left = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    if left and torch.device(device).type != "meta":
        raise ConfigError(
            f"{source}: {', '.join(left)} are not stored with the weights and were not computed again. "
            "Give their module a method rebuild_buffers(device)."
        )
    return Loaded(tuple(name for name in ready if name not in adapted), adapted, new, dropped)


def _all_finite(tensor: Tensor) -> bool:
    """Whether there is no NaN and no infinity: either makes the sum non-finite, and the sum reads the tensor once."""
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def _differ_only_along(axis: int, ours: Tensor | None, theirs: Tensor | None) -> bool:
    """Whether two tensors have the same number of axes and differ in size along one axis alone."""
    if ours is None or theirs is None or ours.ndim != theirs.ndim:
        return False
    return [i for i in range(ours.ndim) if ours.shape[i] != theirs.shape[i]] == [axis]


def input_kernel(model: nn.Module, channels: int) -> str:
    """Return the name of the encoder's first kernel over ``channels`` input channels, or an empty string."""
    for name, parameter in model.named_parameters():
        if name.startswith("encoder.") and parameter.ndim > 2 and parameter.shape[1] == channels:
            return name
    return ""


def adapt_channels(kernel: Tensor, channels: int) -> Tensor:
    """Change the input channels of a first kernel, ``o c *k -> o channels *k``.

    To one channel the kernels are summed, which equals a grey image repeated over the old channels. Otherwise they are
    repeated cyclically and scaled by old / new, which keeps the magnitude of the response.

    >>> adapt_channels(torch.ones(1, 3, 1, 1), 1).flatten().tolist()
    [3.0]
    >>> adapt_channels(torch.ones(1, 1, 1, 1), 4).flatten().tolist()
    [0.25, 0.25, 0.25, 0.25]
    """
    if channels == 1:
        return kernel.sum(1, keepdim=True)
    old = kernel.shape[1]
    return kernel[:, [i % old for i in range(channels)]] * (old / channels)


def _check_shapes(source: str, taken: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    wrong = [
        f"{name} is {tuple(tensor.shape)} in the file, {tuple(expected[name].shape)} in the model"
        for name, tensor in taken.items()
        if tensor.shape != expected[name].shape
    ]
    if wrong:
        listed = _list_names(wrong, "; ")
        raise WeightsMismatch(
            f"{source} does not fit the model: {listed}. Create it with the options it was saved with."
        )


def _match_dtypes(source: str, taken: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Cast floating-point tensors to the model's dtype, with one log line; refuse any other dtype."""
    plain = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
    cast: set[str] = set()
    for name, tensor in taken.items():
        want = expected[name].dtype
        if tensor.dtype != want:
            if not {tensor.dtype, want} <= plain:
                raise WeightsMismatch(f"{source}: expected {name} to be {want}, got {tensor.dtype}. Convert the file.")
            cast.add(str(tensor.dtype))
    if cast:
        logger.info("%s: cast from %s", source, ", ".join(sorted(cast)))
    return {name: tensor.to(expected[name].dtype) for name, tensor in taken.items()}


def _key_message(source: str, missing: set[str], unexpected: set[str]) -> str:
    if missing and all(name.startswith("head.") for name in missing) and not unexpected:
        return (
            f"{source} contains only an encoder, without {_list_names(sorted(missing))}: create the model with "
            "num_classes=0, then call model.reset_classifier(n)."
        )
    message = f"{source} does not fit the model:"
    if missing:
        message += f" missing {_list_names(sorted(missing))};"
    if unexpected:
        message += f" unexpected {_list_names(sorted(unexpected))};"
    prefixes = {name.partition(".")[0] for name in unexpected}
    for prefix in ("module", "_orig_mod"):
        if prefix in prefixes:
            return message + f" every name must start with 'encoder.' or 'head.': strip the prefix {prefix + '.'!r}."
    if not prefixes & {"encoder", "head"} and unexpected:
        return message + " no name starts with 'encoder.' or 'head.', as those of medzoo's models do: rename them."
    return message + " create it with the options it was saved with."


def _list_names(names: Sequence[str], separator: str = ", ") -> str:
    """Join the first names, and count the rest."""
    more = f", and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return separator.join(names[:MAX_LISTED]) + more
