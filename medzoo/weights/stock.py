"""The weight files on this machine: fetch them ahead, hold them to their records, and say what is there."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from medzoo.atomic import write_atomically
from medzoo.contract import InputSpec
from medzoo.errors import ConfigError, WeightsCorrupt, WeightsUnavailable, did_you_mean
from medzoo.factory import create
from medzoo.registry import ModelSpec, describe, list_models
from medzoo.weights import hub
from medzoo.weights.cache import converted_folder, home, stored_file
from medzoo.weights.download import is_foreign, keep_converted, obtain_anew
from medzoo.weights.load import LoadReport
from medzoo.weights.record import HubFile, Weights

__all__ = ["Holding", "fetch", "golden_input", "holdings", "listed", "verify"]

# How far outputs may lie from the recorded ones on another machine or version of torch.
GOLDEN_TOLERANCE = 1e-4
# Seconds after which a partial file that nobody wrote to counts as left over.
ARRIVING = 3600

Listed = tuple[ModelSpec, Weights]


def listed(names: Iterable[str] = ()) -> list[Listed]:
    """Return the records that names ``"MODEL"`` (its default) or ``"MODEL:TAG"`` mean; all of them for no name.

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


def fetch(spec: ModelSpec, record: Weights, to: Path | None = None) -> Path:
    """Have the weights ready on this machine: fetched, checked, and converted where they are not safetensors.

    Args:
        spec: the model.
        record: its weights.
        to: a folder to fill as well, which ``MEDZOO_HOME`` can then name on a machine without a network.

    Returns:
        The file.

    Raises:
        WeightsUnavailable, WeightsCorrupt: it cannot be had, or is not what its record says.
    """
    who = f"{spec.name}:{record.tag}"
    path, data, made = obtain_anew(record, who)
    if to is None:
        return path
    target = stored_file(record.digest, to)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, data)
        if is_foreign(record):
            keep_converted(record, made, to)
    except OSError as error:
        raise WeightsUnavailable(
            f"{who}: {to} cannot be written ({error.strerror or error}). Check the path, its permissions and the "
            "free space."
        ) from error
    return target


def verify(spec: ModelSpec, record: Weights) -> tuple[Path, LoadReport, str]:
    """Hold the file to its digest, convert and load it anew, and compare golden outputs where there are any.

    Returns:
        The file, what became of its tensors, and what the golden input showed.

    Raises:
        WeightsUnavailable, WeightsCorrupt, WeightsMismatch: it cannot be had, or is not what its record says.
    """
    who = f"{spec.name}:{record.tag}"
    path, _, _ = obtain_anew(record, who)
    model = create(spec.name, pretrained=record.tag, num_classes=0 if record.part == "encoder" else None)
    report = model.load_report
    if report is None:
        raise WeightsCorrupt(f"{who}: expected a load report, got none. Tell the authors of medzoo.")
    if not record.golden:
        return path, report, "no golden outputs are recorded"
    with torch.inference_mode():
        got = model(golden_input(model.input_spec)).flatten()[: len(record.golden)]
    distance = float((got - torch.tensor(record.golden)).abs().max())
    if not distance <= GOLDEN_TOLERANCE:
        raise WeightsCorrupt(
            f"{who}: expected the outputs {record.golden} for the golden input, got {tuple(got.tolist())}. "
            "This torch or this machine computes otherwise; tell the authors of medzoo."
        )
    return path, report, f"golden outputs agree within {distance:.1g}"


def golden_input(spec: InputSpec) -> Tensor:
    """Return an input that is the same on every machine, ``1 c *s``: a wave through all of its values.

    >>> golden_input(InputSpec("b c h w", channels=1, size=(2, 2)))[0, 0]
    tensor([[0.0000, 0.0998],
            [0.1987, 0.2955]])
    """
    count = spec.channels
    for side in spec.size:
        count *= side
    wave = torch.sin(torch.arange(count, dtype=torch.float64) / 10)
    return wave.float().view(1, spec.channels, *spec.size)


@dataclass(frozen=True)
class Holding:
    """A file of weights on this machine.

    Attributes:
        path: where it lies.
        size: its bytes.
        what: the weights it belongs to, ``"MODEL:TAG"``; empty where no record knows it.
        state: ``"file"``, ``"converted"``, ``"stale"`` (of no record of this medzoo), ``"arriving"``, or ``"left
            over"`` (of a download that was killed).
    """

    path: Path
    size: int
    what: str
    state: str


def holdings() -> list[Holding]:
    """Return what lies in :func:`~medzoo.weights.cache.home`, and the recorded files in the Hub's cache."""
    records = [(f"{spec.name}:{record.tag}", record) for spec, record in listed()]
    files = {stored_file(record.digest): who for who, record in records}
    converted = {converted_folder(record.digest, record.layout): who for who, record in records}
    found = []
    for path in _files(home()):
        if path in files:
            who, state = files[path], "file"
        elif path.parent in converted and path.suffix == ".safetensors":
            who, state = converted[path.parent], "converted"
        elif path.name.startswith(("tmp", ".")) or path.relative_to(home()).parts[0].startswith("archive-"):
            who, state = "", "arriving" if time.time() - path.stat().st_mtime < ARRIVING else "left over"
        else:
            who, state = "", "stale"
        found.append(Holding(path, path.stat().st_size, who, state))
    for who, record in records:
        if isinstance(record.source, HubFile):
            found += [Holding(path, path.stat().st_size, who, "file") for path in hub.cached(record.source)]
    return found


def _files(folder: Path) -> Iterator[Path]:
    """Yield what medzoo put into its home; other things of the user's are not ours to list."""
    for part in ("files/*/*", "converted/*/*", "archive-*/*"):
        yield from sorted(path for path in folder.glob(part) if path.is_file())
