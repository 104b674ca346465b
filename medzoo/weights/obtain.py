"""From a record to tensors by medzoo's names: read, verified and converted, and the conversion cached."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from medzoo.atomic import write_atomically
from medzoo.errors import MedzooError
from medzoo.weights.cache import converted_folder, digest_of, home, wrap_disk_errors
from medzoo.weights.checkpoint import parse_checkpoint
from medzoo.weights.download import fetch_file, read_verified
from medzoo.weights.layouts import convert, strip_wrappers
from medzoo.weights.record import Weights
from medzoo.weights.safetensors import FOREIGN_SUFFIXES, read_safetensors, read_tensors

__all__ = ["Obtained", "is_foreign", "obtain", "save_converted"]

logger = logging.getLogger("medzoo")


class Obtained(NamedTuple):
    """The tensors of weights.

    Attributes:
        tensors: by medzoo's names.
        digest: of the file, which is the record's if it states one.
        path: the file.
        dropped: names in the file that were dropped on purpose.
    """

    tensors: Mapping[str, Tensor]
    digest: str
    path: Path
    dropped: tuple[str, ...] = ()


def obtain(record: Weights, who: str, *, fresh: bool = False) -> Obtained:
    """Return the tensors of a record, on the CPU whatever the default device is.

    The parameters of a safetensors file are renamed at every load. A file of another format is converted once; the
    conversion is cached as safetensors under its own digest and read from there afterwards.

    Args:
        record: the weights.
        who: the weights, such as ``"densenet121_xray:xrv_all"``, for messages.
        fresh: convert again, from the verified file, instead of reading a cached conversion.

    Raises:
        WeightsUnavailable, WeightsCorrupt: as :func:`~medzoo.weights.download.read_verified`.
        UnsafeWeights: a file of another format contains more than tensors, or is not one of a record.
    """
    if not is_foreign(record):
        path, tensors, digest = read_verified(record, who, read_tensors)
        if not record.is_listed:
            return Obtained(tensors, digest, path)
        renamed = convert(strip_wrappers(tensors), record.layout)
        return Obtained(renamed.tensors, digest, path, renamed.dropped)
    if not fresh:
        with wrap_disk_errors(who, home(), None):
            cached = _read_converted(record)
        if cached is not None:
            return cached
    path, data = fetch_file(record, who)
    renamed = convert(strip_wrappers(parse_checkpoint(data, str(path))), record.layout)
    obtained = Obtained(renamed.tensors, record.digest, path, renamed.dropped)
    try:
        save_converted(record, obtained)
    except OSError as error:
        logger.info("%s: the conversion is not cached and will be repeated at the next load (%s)", who, error)
    return obtained


def is_foreign(record: Weights) -> bool:
    """Whether the file of a record has another format than safetensors; a user's own file must not."""
    return record.is_listed and Path(str(record.source)).suffix.lower() in FOREIGN_SUFFIXES


def save_converted(record: Weights, obtained: Obtained, root: Path | None = None) -> Path:
    """Write converted tensors as a safetensors file that is named by its own digest.

    Args:
        record: the weights.
        obtained: their tensors.
        root: a folder to use instead of :func:`~medzoo.weights.cache.home`.

    Raises:
        OSError: it cannot be written.
    """
    from safetensors.torch import save

    tensors = {name: tensor.contiguous() for name, tensor in sorted(obtained.tensors.items())}
    # A single metadata entry: safetensors writes several in random order, and equal content should be equal bytes.
    data = save(tensors, metadata={"medzoo": json.dumps({"source": record.digest, "dropped": obtained.dropped})})
    folder = converted_folder(record.digest, record.layout, root)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{digest_of(data).removeprefix('sha256:')}.safetensors"
    write_atomically(path, data)
    for other in folder.glob("*.safetensors"):
        if other != path:
            other.unlink(missing_ok=True)
    return path


def _read_converted(record: Weights) -> Obtained | None:
    """Return the cached conversion if its digest is that of its name; remove it if not."""
    for path in sorted(converted_folder(record.digest, record.layout).glob("*.safetensors")):
        try:
            with path.open("rb") as file:
                tensors, metadata, digest = read_safetensors(file, path.stat().st_size, str(path))
            if digest == f"sha256:{path.stem}":
                stated = json.loads(metadata["medzoo"])
                if stated["source"] != record.digest:
                    raise ValueError(f"it was converted from {stated['source']}")
                return Obtained(tensors, record.digest, path, tuple(stated["dropped"]))
            logger.warning("%s was changed after it was written; converting again", path)
            path.unlink()
        except (MedzooError, OSError, LookupError, ValueError) as error:
            logger.warning("%s cannot be used (%s); converting again", path, error)
    return None
