"""The file of a record: from the cache or its publisher, and in either case what the record states.

The digest of a file is compared with its record here, and nowhere else; what the network delivered is compared once
more by whoever downloaded it, before it enters the cache.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from medzoo.errors import WeightsCorrupt, WeightsUnavailable
from medzoo.weights.cache import cached_files, digest_of, home, stored_file, wrap_disk_errors
from medzoo.weights.http import download_url, is_offline, mirror_url, without_login
from medzoo.weights.hub import download_from_hub, is_intact, remove_blob
from medzoo.weights.record import HubFile, LocalFile, PackagedFile, Weights
from medzoo.weights.safetensors import read_bytes, refuse_substitutes

__all__ = ["fetch_file", "read_verified"]

logger = logging.getLogger("medzoo")

T = TypeVar("T")
# Reads a file once, and returns what is in it and its digest by an algorithm.
Reader = Callable[[Path, str], tuple[T, str]]


def fetch_file(record: Weights, who: str) -> tuple[Path, bytes]:
    """Return the file of a record and its bytes; see :func:`read_verified`."""
    path, data, _ = read_verified(record, who, _read_bytes)
    return path, data


def _read_bytes(path: Path, algorithm: str) -> tuple[bytes, str]:
    data = read_bytes(path)
    return data, digest_of(data, algorithm)


def read_verified(record: Weights, who: str, read: Reader[T]) -> tuple[Path, T, str]:
    """Return the file of a record, what ``read`` makes of it, and the digest, which is the record's.

    A cached file is read once and without any network access. One that is not what the record states is removed and
    downloaded once more. A user's own file, of which nothing is known, is only read.

    Args:
        record: the weights.
        who: the weights, such as ``"densenet121_xray:xrv_all"``, for messages.
        read: what reads the file.

    Raises:
        WeightsUnavailable: it is not cached and cannot be downloaded.
        WeightsCorrupt: it is not what the record states, even after a second download; or what ``read`` raises.
    """
    if not record.is_listed:
        (path,) = cached_files(record)
        return path, *read(path, "sha256")
    fault = ""
    with wrap_disk_errors(who, home(), record.size):
        for path in cached_files(record):
            content, wrong = _read(record, path, read)
            if content is not None:
                return path, content, record.digest
            if isinstance(record.source, (LocalFile, PackagedFile)):
                raise WeightsCorrupt(f"{wrong} The file was changed after it was written; restore or save it again.")
            if _is_another_version(record, path):
                continue
            fault = wrong
            if not is_offline():
                logger.warning("%s: %s Downloading it again.", who, fault)
                _remove(record, path)
        if fault and is_offline():
            raise WeightsCorrupt(
                f"{who}: {fault} HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE forbids downloading it again; unset it once."
            )
        return _download_verified(record, who, read, fault)


def _read(record: Weights, path: Path, read: Reader[T]) -> tuple[T | None, str]:
    """Return what is in a file if it is the record's, else ``None`` and what is wrong with it."""
    algorithm = record.digest.partition(":")[0]
    try:
        size = path.stat().st_size
        if record.size not in (None, size):
            # A text in its place is named as what it is.
            with path.open("rb") as file:
                refuse_substitutes(file.read(256), str(path))
            return None, f"{path}: expected {record.size:,} bytes, got {size:,}."
        content, got = read(path, algorithm)
    except WeightsCorrupt as error:
        return _read_again(record, path, read, error)
    except OSError:  # WeightsUnavailable is one
        if isinstance(record.source, (LocalFile, PackagedFile)) or path.exists():
            read_bytes(path)  # raises what is wrong with it
            raise
        return None, f"{path}: another process removed it."
    return (content, "") if got == record.digest else (None, f"{path}: expected {record.digest}, got {got}.")


def _read_again(record: Weights, path: Path, read: Reader[T], error: WeightsCorrupt) -> tuple[T | None, str]:
    """Return the same for a file that is not valid: it is damaged, or as published, which its digest shows."""
    algorithm = record.digest.partition(":")[0]
    try:
        got = _read_bytes(path, algorithm)[1]
    except (WeightsCorrupt, WeightsUnavailable):
        return None, str(error)
    if got != record.digest:
        return None, f"{path}: expected {record.digest}, got {got}."
    # Another process may have replaced the file by the right one in between.
    return read(path, algorithm)[0], ""


def _is_another_version(record: Weights, path: Path) -> bool:
    """Whether a file in the Hub client's cache is intact but of other content than the record's; it is kept."""
    if not isinstance(record.source, HubFile) or path == stored_file(record.digest):
        return False
    try:
        return is_intact(path, path.read_bytes())
    except OSError:
        return False


def _download_verified(record: Weights, who: str, read: Reader[T], fault: str) -> tuple[Path, T, str]:
    """Download the file, twice at most; a bad one from the cache, whose ``fault`` is given, was the first attempt."""
    for again in (True,) if fault else (False, True):
        try:
            path = _download(record, who, force=again)
        except WeightsCorrupt as error:
            fault = str(error)
            continue
        content, fault = _read(record, path, read)
        if content is not None:
            return path, content, record.digest
        if not _is_another_version(record, path):
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
        return download_from_hub(source, who, size=record.size, force=force)
    if is_offline():
        raise WeightsUnavailable(
            f"{who}: {source} is not in {home()}, and HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE forbids network access. "
            "Run medzoo fetch on a machine with a network, or unset it."
        )
    return download_url(record, who, mirror)


def _remove(record: Weights, path: Path) -> None:
    """Remove a file that failed the check; one in a read-only cache stays, and the download then raises an error."""
    try:
        if path == stored_file(record.digest):
            path.unlink(missing_ok=True)
        else:
            remove_blob(path)
    except OSError as error:
        logger.warning("%s cannot be removed (%s)", path, error.strerror)
