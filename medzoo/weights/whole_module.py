"""Find the tensors in TorchXRayVision's checkpoints, which are pickles of a whole module."""

from __future__ import annotations

import re
from typing import Any

from medzoo.weights.pickle_reader import NameSet, Shell, StoredTensor, corrupt

__all__ = ["module_tensors"]

PLAIN = re.compile(r"[A-Za-z0-9_]{1,100}")
MOST_DEPTH = 32
MOST_PASSING = 100  # buffers of one module that are not kept; upstream has none


def module_tensors(root: Shell, source: str) -> dict[str, StoredTensor]:
    """Return the tensors of a module as it was read, by the names and in the order of its ``state_dict()``.

    Args:
        root: the module.
        source: the file, for messages.

    Raises:
        WeightsCorrupt: not what a module is made of.
    """
    stored: dict[str, StoredTensor] = {}
    _walk(root, (), stored, set(), source)
    return stored


def _walk(shell: Shell, path: tuple[str, ...], stored: dict[str, StoredTensor], seen: set[int], source: str) -> None:
    if id(shell) in seen or len(path) > MOST_DEPTH:
        raise corrupt(source, f"a module that is in two places, or nested deeper than {MOST_DEPTH}")
    seen.add(id(shell))
    state = shell.state or {}
    parts: list[Any] = [state.get(part) for part in ("_parameters", "_buffers", "_modules")]
    passing = state.get("_non_persistent_buffers_set", NameSet([]))  # not there before torch 1.6
    whole = all(type(part) is dict for part in parts) and type(passing) is NameSet
    if not whole or len(passing.names) > MOST_PASSING:
        raise corrupt(source, f"a module without parameters, buffers or modules ({'.'.join(path) or 'the root'})")
    parameters, buffers, modules = parts
    kept = {name: value for name, value in buffers.items() if name not in passing.names}
    for kind, entries in ((StoredTensor, parameters), (StoredTensor, kept), (Shell, modules)):
        for name, value in entries.items():
            inner = (*path, name)
            if not PLAIN.fullmatch(name) or ".".join(inner) in stored:
                raise corrupt(source, f"a name given twice, or one that is no name: {name[:40]!a}")
            if value is None:
                continue
            if type(value) is not kind:
                raise corrupt(source, f"a {type(value).__name__} at {'.'.join(inner)}")
            if isinstance(value, Shell):
                _walk(value, inner, stored, seen, source)
            else:
                stored[".".join(inner)] = value
