"""From a record to tensors under our names: fetched, checked, converted, and the conversion kept."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from medzoo.atomic import write_atomically
from medzoo.errors import MedzooError
from medzoo.weights.cache import converted_folder, digest_of, home
from medzoo.weights.fetch_file import verified
from medzoo.weights.layouts import LAYOUTS, unwrapped
from medzoo.weights.load import FOREIGN_SUFFIXES
from medzoo.weights.record import Weights
from medzoo.weights.retry import telling_of_the_disk
from medzoo.weights.safetensors import read_safetensors

__all__ = ["Obtained", "is_foreign", "keep_converted", "obtain", "obtain_anew"]

logger = logging.getLogger("medzoo")


@dataclass(frozen=True)
class Obtained:
    """Tensors under our names.

    Attributes:
        tensors: by name.
        dropped: upstream's names of what has no place here, left behind on purpose.
    """

    tensors: Mapping[str, Tensor]
    dropped: tuple[str, ...] = ()


def obtain(record: Weights, who: str) -> Obtained:
    """Return the tensors of a record.

    A safetensors file is renamed on the way. A foreign one is read by a closed reader once, and kept as safetensors
    beside the files, under its own digest, from where it is read ever after.

    Args:
        record: which weights.
        who: for messages.

    Raises:
        WeightsUnavailable, WeightsCorrupt: as :func:`~medzoo.weights.fetch_file.verified`.
        UnsafeWeights: a foreign file asks for more than tensors.
    """
    if is_foreign(record):
        with telling_of_the_disk(who, home(), None):
            kept = _read_converted(record)
        if kept is not None:
            return kept
    _, _, made = obtain_anew(record, who)
    return made


def obtain_anew(record: Weights, who: str) -> tuple[Path, bytes, Obtained]:
    """Return the checked file, its bytes and its tensors; a conversion takes the place of what was kept.

    Raises:
        WeightsUnavailable, WeightsCorrupt, UnsafeWeights: as :func:`obtain`.
    """
    path, data = verified(record, who)
    if not is_foreign(record):
        tensors, _, _ = read_safetensors(io.BytesIO(data), len(data), str(path))
        return path, data, _renamed(record, tensors)
    from medzoo.weights.checkpoint import tensors_in

    made = _renamed(record, tensors_in(data, str(path)))
    try:
        keep_converted(record, made)
    except OSError as error:
        logger.info("%s: the conversion is not kept, so the next load makes it again (%s)", who, error)
    return path, data, made


def is_foreign(record: Weights) -> bool:
    """Whether the file is of another format than safetensors."""
    return Path(record.source.name).suffix.lower() in FOREIGN_SUFFIXES


def _renamed(record: Weights, flat: Mapping[str, Tensor]) -> Obtained:
    converted = LAYOUTS[record.layout](unwrapped(flat))
    return Obtained(converted.tensors, converted.dropped)


def keep_converted(record: Weights, made: Obtained, root: Path | None = None) -> Path:
    """Write converted tensors as a safetensors file that bears its own digest as its name.

    Args:
        record: which weights.
        made: the tensors.
        root: a folder in the place of :func:`~medzoo.weights.cache.home`.

    Raises:
        OSError: it cannot be written.
    """
    from safetensors.torch import save

    tensors = {name: tensor.contiguous() for name, tensor in sorted(made.tensors.items())}
    # One entry alone: safetensors writes several in an order of chance, and equal content should be equal bytes.
    data = save(tensors, metadata={"medzoo": json.dumps({"source": record.digest, "dropped": made.dropped})})
    folder = converted_folder(record.digest, record.layout, root)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{digest_of(data).partition(':')[2]}.safetensors"
    write_atomically(path, data)
    for other in folder.glob("*.safetensors"):
        if other != path:
            other.unlink(missing_ok=True)
    return path


def _read_converted(record: Weights) -> Obtained | None:
    """Return what was kept, if it is what its name says; else drop it."""
    for path in sorted(converted_folder(record.digest, record.layout).glob("*.safetensors")):
        try:
            with path.open("rb", buffering=0) as file:
                tensors, metadata, digest = read_safetensors(file, path.stat().st_size, str(path))
            if digest == f"sha256:{path.stem}":
                told = json.loads(metadata["medzoo"])
                if told["source"] != record.digest:
                    raise ValueError(f"it was made from {told['source']}")
                return Obtained(tensors, tuple(told["dropped"]))
            logger.warning("%s was changed after it was written; it is made again", path)
            path.unlink()
        except (MedzooError, OSError, LookupError, ValueError) as error:
            logger.warning("%s cannot be used (%s); it is made again", path, error)
    return None
