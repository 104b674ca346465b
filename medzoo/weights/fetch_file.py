"""From a record to the checked bytes of its file: out of the package, a cache, a mirror, the Hub or a URL."""

from __future__ import annotations

import logging
from pathlib import Path

from medzoo.errors import WeightsCorrupt, WeightsUnavailable
from medzoo.weights import http as web
from medzoo.weights import hub
from medzoo.weights.cache import digest_of, home, stored_file
from medzoo.weights.load import read_bytes
from medzoo.weights.record import HubFile, LocalFile, PackagedFile, Weights
from medzoo.weights.retry import offline, shown, telling_of_the_disk

__all__ = ["ASSETS", "cached", "verified"]

logger = logging.getLogger("medzoo")

ASSETS = Path(__file__).parent.parent / "assets"


def verified(record: Weights, who: str) -> tuple[Path, bytes]:
    """Return the file of a record and its bytes, read once and held to digest and size.

    What is in a cache is used without asking any network. A file that is not what it should be is dropped and fetched
    once more.

    Args:
        record: which file.
        who: the weights, such as ``"densenet121_xray:xrv_all"``, for messages.

    Raises:
        WeightsUnavailable: it is not here and cannot be had.
        WeightsCorrupt: it is not what the record says, fetched again or not.
    """
    with telling_of_the_disk(who, home(), record.size):
        return _verified(record, who)


def _verified(record: Weights, who: str) -> tuple[Path, bytes]:
    fault = ""
    for path in cached(record):
        data, wrong = _read(record, path)
        if not wrong:
            return path, data
        if isinstance(record.source, (LocalFile, PackagedFile)):
            raise WeightsCorrupt(f"{wrong} The file was changed after it was written; get it again.")
        if _is_another_version(record, path, data):
            continue
        fault = wrong
        if not offline():
            logger.warning("%s: %s Fetching it again.", who, fault)
            _discard(record, path)
    if fault and offline():
        raise WeightsCorrupt(f"{who}: {fault} HF_HUB_OFFLINE forbids to fetch it again; unset it once.")
    # A file from the cache that was wrong has had its first chance.
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
            _discard(record, path)
    raise WeightsCorrupt(
        f"{who}: {fault} That is what {_server(record)} gives: the file was replaced there, or something "
        "on the way changes it. Upgrade medzoo, or set MEDZOO_MIRROR to a server of your own."
    )


def cached(record: Weights) -> list[Path]:
    """Return where the file of a record lies on this machine, unread; asks no network."""
    source = record.source
    if isinstance(source, PackagedFile):
        return [ASSETS / source.name]
    if isinstance(source, LocalFile):
        return [source.path]
    ours = [path for path in (stored_file(record.digest),) if path.exists()]
    return ours + (hub.cached(source) if isinstance(source, HubFile) else [])


def _download(record: Weights, who: str, *, force: bool) -> Path:
    source = record.source
    mirrored = web.mirror() and not (isinstance(source, HubFile) and not source.listed)
    if offline() and (mirrored or not isinstance(source, HubFile)):
        raise WeightsUnavailable(
            f"{who}: {source} is not in {home()}, and HF_HUB_OFFLINE forbids to ask a network. Run medzoo fetch where "
            "there is one, or unset HF_HUB_OFFLINE."
        )
    if mirrored:
        return web.from_mirror(record, who)
    if isinstance(source, HubFile):
        return hub.download(source, who, size=record.size, force=force)
    return web.download(record, who)


def _is_another_version(record: Weights, path: Path, data: bytes) -> bool:
    """Whether a file of the Hub's cache is whole, but of another content than the record's: the user's, not ours."""
    return isinstance(record.source, HubFile) and path != stored_file(record.digest) and hub.is_sound(path, data)


def _server(record: Weights) -> str:
    """Say where the file came from."""
    mirror = web.mirror()
    listed = not isinstance(record.source, HubFile) or record.source.listed
    return shown(mirror) if mirror and listed else str(record.source)


def _read(record: Weights, path: Path) -> tuple[bytes, str]:
    """Return the bytes of a file, and what is wrong with them."""
    try:
        data = read_bytes(path)
    except WeightsCorrupt as error:
        return b"", str(error)
    except WeightsUnavailable:
        if isinstance(record.source, (LocalFile, PackagedFile)) or path.exists():
            raise
        return b"", f"{path}: another process dropped it."
    if record.size is not None and len(data) != record.size:
        return data, f"{path}: expected {record.size:,} bytes, got {len(data):,}."
    got = digest_of(data, record.digest.partition(":")[0])
    return data, "" if got == record.digest else f"{path}: expected {record.digest}, got {got}."


def _discard(record: Weights, path: Path) -> None:
    """Drop a file that is not what it should be; a read-only cache keeps it, and the download then says so."""
    try:
        if path == stored_file(record.digest):
            path.unlink(missing_ok=True)
        else:
            hub.discard(path)
    except OSError as error:
        logger.warning("%s cannot be removed (%s)", path, error.strerror)
