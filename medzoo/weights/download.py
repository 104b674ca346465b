"""From a record to tensors by medzoo's names: downloaded, verified, converted, and the conversion cached."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path

from medzoo.atomic import write_atomically
from medzoo.errors import MedzooError, WeightsCorrupt, WeightsUnavailable
from medzoo.progress import hide_hub_progress
from medzoo.weights.cache import cached_files, converted_folder, digest_of, home, stored_file, wrap_disk_errors
from medzoo.weights.checkpoint import parse_checkpoint
from medzoo.weights.http import download_url, is_offline, mirror_url, without_login
from medzoo.weights.hub import download_from_hub, is_intact, remove_blob
from medzoo.weights.layouts import Converted, convert, strip_wrappers
from medzoo.weights.record import HubFile, LocalFile, PackagedFile, Weights
from medzoo.weights.safetensors import FOREIGN_SUFFIXES, read_bytes, read_safetensors

__all__ = ["fetch_and_convert", "fetch_file", "fetch_tensors", "is_foreign", "save_converted"]

logger = logging.getLogger("medzoo")


def fetch_tensors(record: Weights, who: str) -> Converted:
    """Return the tensors of a record by medzoo's names.

    The parameters of a safetensors file are renamed at every load. A file of another format is converted once; the
    conversion is cached as safetensors under its own digest and read from there afterwards.

    Args:
        record: the weights.
        who: the weights, such as ``"densenet121_xray:xrv_all"``, for messages.

    Raises:
        WeightsUnavailable, WeightsCorrupt: as :func:`fetch_file`.
        UnsafeWeights: a file of another format contains more than tensors.
    """
    if is_foreign(record):
        with wrap_disk_errors(who, home(), None):
            converted = _read_converted(record)
        if converted is not None:
            return converted
    return fetch_and_convert(record, who)[2]


def fetch_and_convert(record: Weights, who: str) -> tuple[Path, bytes, Converted]:
    """Return the verified file, its bytes and its tensors; a new conversion replaces the cached one.

    Raises:
        WeightsUnavailable, WeightsCorrupt, UnsafeWeights: as :func:`fetch_tensors`.
    """
    path, data = fetch_file(record, who)
    if not is_foreign(record):
        tensors, _, _ = read_safetensors(io.BytesIO(data), len(data), str(path))
        return path, data, convert(strip_wrappers(tensors), record.layout)
    converted = convert(strip_wrappers(parse_checkpoint(data, str(path))), record.layout)
    try:
        save_converted(record, converted)
    except OSError as error:
        logger.info("%s: the conversion is not cached and will be repeated at the next load (%s)", who, error)
    return path, data, converted


def is_foreign(record: Weights) -> bool:
    """Whether the file has another format than safetensors."""
    return Path(str(record.source)).suffix.lower() in FOREIGN_SUFFIXES


def save_converted(record: Weights, converted: Converted, root: Path | None = None) -> Path:
    """Write converted tensors as a safetensors file that is named by its own digest.

    Args:
        record: the weights.
        converted: their tensors.
        root: a folder to use instead of :func:`~medzoo.weights.cache.home`.

    Raises:
        OSError: it cannot be written.
    """
    from safetensors.torch import save

    tensors = {name: tensor.contiguous() for name, tensor in sorted(converted.tensors.items())}
    # A single metadata entry: safetensors writes several in random order, and equal content should be equal bytes.
    data = save(tensors, metadata={"medzoo": json.dumps({"source": record.digest, "dropped": converted.dropped})})
    folder = converted_folder(record.digest, record.layout, root)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{digest_of(data).removeprefix('sha256:')}.safetensors"
    write_atomically(path, data)
    for other in folder.glob("*.safetensors"):
        if other != path:
            other.unlink(missing_ok=True)
    return path


def _read_converted(record: Weights) -> Converted | None:
    """Return the cached conversion if its digest is that of its name; remove it if not."""
    for path in sorted(converted_folder(record.digest, record.layout).glob("*.safetensors")):
        try:
            with path.open("rb") as file:
                tensors, metadata, digest = read_safetensors(file, path.stat().st_size, str(path))
            if digest == f"sha256:{path.stem}":
                stated = json.loads(metadata["medzoo"])
                if stated["source"] != record.digest:
                    raise ValueError(f"it was converted from {stated['source']}")
                return Converted(tensors, tuple(stated["dropped"]))
            logger.warning("%s was changed after it was written; converting again", path)
            path.unlink()
        except (MedzooError, OSError, LookupError, ValueError) as error:
            logger.warning("%s cannot be used (%s); converting again", path, error)
    return None


def fetch_file(record: Weights, who: str) -> tuple[Path, bytes]:
    """Return the file of a record and its bytes, read once and checked against digest and size.

    A cached file is used without any network access. A file that fails the check is removed and downloaded once more.

    Args:
        record: the weights.
        who: the weights, such as ``"densenet121_xray:xrv_all"``, for messages.

    Raises:
        WeightsUnavailable: it is not cached and cannot be downloaded.
        WeightsCorrupt: it is not what the record states, even after a second download.
    """
    with wrap_disk_errors(who, home(), record.size):
        return _fetch_file(record, who)


def _fetch_file(record: Weights, who: str) -> tuple[Path, bytes]:
    fault = ""
    for path in cached_files(record):
        data, wrong = _read(record, path)
        if not wrong:
            return path, data
        if isinstance(record.source, (LocalFile, PackagedFile)):
            raise WeightsCorrupt(f"{wrong} The file was changed after it was written; restore or save it again.")
        if _is_another_version(record, path, data):
            continue
        fault = wrong
        if not is_offline():
            logger.warning("%s: %s Downloading it again.", who, fault)
            _remove(record, path)
    if fault and is_offline():
        raise WeightsCorrupt(
            f"{who}: {fault} HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE forbids downloading it again; unset it once."
        )
    # A bad file from the cache counts as the first attempt.
    for again in (True,) if fault else (False, True):
        try:
            path = _download(record, who, force=again)
        except WeightsCorrupt as error:
            fault = str(error)
            continue
        data, fault = _read(record, path)
        if not fault:
            return path, data
        if not _is_another_version(record, path, data):
            _remove(record, path)
    server = without_login(_mirror_of(record) or str(record.source))
    raise WeightsCorrupt(
        f"{who}: {fault} That is what {server} provides: the file was replaced there, or is changed on the way. "
        "Upgrade medzoo, or set MEDZOO_MIRROR to your own server."
    )


def _mirror_of(record: Weights) -> str | None:
    """Return the mirror, which has all but a user's own models on the Hub."""
    mirror = mirror_url()
    return mirror if not isinstance(record.source, HubFile) or record.source.listed else None


def _download(record: Weights, who: str, *, force: bool) -> Path:
    source, mirror = record.source, _mirror_of(record)
    if mirror is None and isinstance(source, HubFile):
        hide_hub_progress()
        return download_from_hub(source, who, size=record.size, force=force)
    if is_offline():
        raise WeightsUnavailable(
            f"{who}: {source} is not in {home()}, and HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE forbids network access. "
            "Run medzoo fetch on a machine with a network, or unset it."
        )
    return download_url(record, who, mirror)


def _is_another_version(record: Weights, path: Path, data: bytes) -> bool:
    """Whether a file in the Hub client's cache is intact but of other content than the record's; it is kept."""
    return isinstance(record.source, HubFile) and path != stored_file(record.digest) and is_intact(path, data)


def _read(record: Weights, path: Path) -> tuple[bytes, str]:
    """Return the bytes of a file, and what is wrong with them."""
    try:
        data = read_bytes(path)
    except WeightsCorrupt as error:
        return b"", str(error)
    except WeightsUnavailable:
        if isinstance(record.source, (LocalFile, PackagedFile)) or path.exists():
            raise
        return b"", f"{path}: another process removed it."
    if record.size is not None and len(data) != record.size:
        return data, f"{path}: expected {record.size:,} bytes, got {len(data):,}."
    got = digest_of(data, record.digest.partition(":")[0])
    return data, "" if got == record.digest else f"{path}: expected {record.digest}, got {got}."


def _remove(record: Weights, path: Path) -> None:
    """Remove a file that failed the check; one in a read-only cache stays, and the download then raises an error."""
    try:
        if path == stored_file(record.digest):
            path.unlink(missing_ok=True)
        else:
            remove_blob(path)
    except OSError as error:
        logger.warning("%s cannot be removed (%s)", path, error.strerror)
