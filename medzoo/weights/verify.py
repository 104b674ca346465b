"""Weights of the registry: fetch them ahead of use, verify them against their records, and list the cached files."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from medzoo.assembly import assemble
from medzoo.atomic import write_atomically
from medzoo.errors import ConfigError, WeightsCorrupt, WeightsUnavailable, did_you_mean
from medzoo.input_spec import InputSpec
from medzoo.registry import ModelSpec, describe, list_models
from medzoo.resolve import request
from medzoo.weights.cache import CacheEntry, cache_entries, stored_file
from medzoo.weights.download import fetch_file
from medzoo.weights.load import LoadReport
from medzoo.weights.obtain import is_foreign, obtain, save_converted
from medzoo.weights.record import Weights

__all__ = ["fetch_weights", "find_records", "golden_input", "list_cache", "verify_weights"]

# Largest difference from the recorded outputs on another machine or version of torch.
GOLDEN_TOLERANCE = 1e-4


def find_records(names: Iterable[str] = ()) -> list[tuple[ModelSpec, Weights]]:
    """Return the records for names ``"MODEL"`` (its default) or ``"MODEL:TAG"``; all records for no name.

    Raises:
        UnknownModelError: no model of that name.
        ConfigError: no weights of that tag, or no default.
    """
    wanted = list(names)
    if not wanted:
        specs = map(describe, list_models(pretrained=True))
        return [(spec, record) for spec in specs for record in spec.weights.values()]
    found = []
    for name in wanted:
        model, colon, tag = name.partition(":")
        spec = describe(model)
        record = spec.weights.get(tag) if colon else spec.default_weights
        if record is None:
            tags = ", ".join(spec.weights) or "none yet"
            what = f"no weights {tag!r}.{did_you_mean(tag, spec.weights)}" if colon else "no default weights."
            raise ConfigError(f"{model}: {what} Tags: {tags}.")
        found.append((spec, record))
    return found


def list_cache() -> list[CacheEntry]:
    """Return the weight files in ``MEDZOO_HOME``, and those of the registry in the Hub client's cache."""
    return cache_entries((f"{spec.name}:{record.tag}", record) for spec, record in find_records())


def fetch_weights(spec: ModelSpec, record: Weights, to: Path | None = None) -> Path:
    """Download, verify and, for formats other than safetensors, convert weights, so that later loads need no network.

    Args:
        spec: the model.
        record: its weights.
        to: a folder to fill as well; a machine without a network sets ``MEDZOO_HOME`` to a copy of it.

    Returns:
        The file.

    Raises:
        WeightsUnavailable, WeightsCorrupt: it cannot be downloaded or written, or is not what its record states.
    """
    who = f"{spec.name}:{record.tag}"
    obtained = obtain(record, who, fresh=True)
    if to is None:
        return obtained.path
    _, data = fetch_file(record, who)
    target = stored_file(record.digest, to)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, data)
        if is_foreign(record):
            save_converted(record, obtained, to)
    except OSError as error:
        raise WeightsUnavailable(
            f"{who}: {to} cannot be written ({error.strerror or error}). Check the path, its permissions and the "
            "free space."
        ) from error
    return target


def verify_weights(spec: ModelSpec, record: Weights) -> tuple[Path, LoadReport, str]:
    """Check the digest of the file, convert and load it again, and compare golden outputs if there are any.

    Returns:
        The file, the load report, and the result for the golden input.

    Raises:
        WeightsUnavailable, WeightsCorrupt, WeightsMismatch: it cannot be downloaded, or is not what its record states.
    """
    who = f"{spec.name}:{record.tag}"
    obtained = obtain(record, who, fresh=True)
    model = assemble(request(spec, record, {}, num_classes=0 if record.part == "encoder" else None), obtained)
    path, report = obtained.path, cast(LoadReport, model.load_report)
    if not record.golden:
        return path, report, "no golden outputs are recorded"
    with torch.inference_mode():
        got = model(golden_input(model.input_spec)).flatten()[: len(record.golden)]
    distance = float((got - torch.tensor(record.golden)).abs().max())
    if not distance <= GOLDEN_TOLERANCE:
        raise WeightsCorrupt(
            f"{who}: expected the outputs {record.golden} for the golden input, got {tuple(got.tolist())}. This torch "
            "or this machine computes differently; report this to the authors of medzoo."
        )
    return path, report, f"golden outputs agree within {distance:.1g}"


def golden_input(spec: InputSpec) -> Tensor:
    """Return an input that is the same on every machine, ``1 c *s``: a sine over all of its values.

    >>> golden_input(InputSpec("b c h w", channels=1, size=(2, 2)))[0, 0]
    tensor([[0.0000, 0.0998],
            [0.1987, 0.2955]])
    """
    shape = (1, spec.channels, *spec.size)
    return torch.sin(torch.arange(math.prod(shape), dtype=torch.float64) / 10).float().view(shape)
