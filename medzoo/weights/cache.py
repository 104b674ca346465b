"""Where weight files are on this machine: ``MEDZOO_HOME``, the Hub client's cache, and what a full disk means.

``MEDZOO_HOME``, by default a folder ``medzoo`` in the user's cache folder, holds::

    files/sha256/<digest>          a file as its publisher provides it, named by its digest
    converted/<key>/<digest>       the same tensors under medzoo's names, as safetensors, named by its own digest

A name states what the content must be, so damage is detected and any number of processes can share the folder. Whoever
can write to it can replace a conversion; ``medzoo verify`` converts again from the verified file.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from medzoo.errors import MedzooError, WeightsUnavailable
from medzoo.weights.record import HubFile, LocalFile, PackagedFile, Weights

__all__ = [
    "CacheEntry",
    "cache_entries",
    "cached_files",
    "check_room",
    "converted_folder",
    "digest_of",
    "disk_error",
    "home",
    "hub_files",
    "hub_folder",
    "stored_file",
    "wrap_disk_errors",
]

ASSETS = Path(__file__).parents[1] / "assets"
# Part of the folder name of a conversion: raise it when a conversion changes.
CONVERSION = 1
# Seconds without a write after which a partial file counts as left over.
STALE_AFTER = 3600
DISK_FULL = frozenset({errno.ENOSPC, errno.EFBIG, errno.EDQUOT})
NOT_PERMITTED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


def home() -> Path:
    """Return the folder ``MEDZOO_HOME``, which need not exist yet."""
    given = os.environ.get("MEDZOO_HOME")
    if given:
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "medzoo"


def stored_file(digest: str, root: Path | None = None) -> Path:
    """Return the path of a file with a digest ``"algorithm:hex"``.

    >>> stored_file("md5:900150983cd24fb0d6963f7d28e17f72", Path("/weights")).as_posix()
    '/weights/files/md5/900150983cd24fb0d6963f7d28e17f72'
    """
    return (root or home()).joinpath("files", *digest.split(":"))


def converted_folder(digest: str, layout: str, root: Path | None = None) -> Path:
    """Return the folder with the conversion of a file."""
    return (root or home()) / "converted" / f"{digest.replace(':', '-')}-{layout}-{CONVERSION}"


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    """Return ``"algorithm:hex"`` of some bytes.

    >>> digest_of(b"abc", "md5")
    'md5:900150983cd24fb0d6963f7d28e17f72'
    """
    # MD5 is the only digest that some publishers provide; it is not used as a guard against forgery.
    return f"{algorithm}:{hashlib.new(algorithm, data, usedforsecurity=False).hexdigest()}"


def cached_files(record: Weights) -> list[Path]:
    """Return the copies of a record's file on this machine, unread; accesses no network."""
    source = record.source
    if isinstance(source, PackagedFile):
        return [ASSETS / source.name]
    if isinstance(source, LocalFile):
        return [source.path]
    stored = stored_file(record.digest)
    ours = [stored] if stored.exists() else []
    return ours + (hub_files(source) if isinstance(source, HubFile) else [])


def hub_files(source: HubFile) -> list[Path]:
    """Return the copies of a file in the Hub client's cache: at the pinned commit, or at any commit without one."""
    snapshots = hub_folder(source) / "snapshots"
    found = [snapshots / source.revision] if source.revision else sorted(snapshots.glob("*"))
    return [path for folder in found if (path := folder / source.file).exists()]


def hub_folder(source: HubFile) -> Path:
    """Return the folder of a file's repository in the Hub client's cache."""
    from huggingface_hub import constants

    # The layout of the cache is documented: models--owner--name/snapshots/<commit>/<file>.
    return Path(constants.HF_HUB_CACHE) / f"models--{source.repo.replace('/', '--')}"


@dataclass(frozen=True)
class CacheEntry:
    """A weight file on this machine.

    Attributes:
        path: path of the file.
        size: its bytes.
        what: the weights it belongs to, ``"MODEL:TAG"``; empty if no record knows it.
        state: ``"file"``, ``"converted"``, ``"stale"`` (of no record of this medzoo), ``"downloading"``, or ``"left
            over"`` (from a download that was killed).
    """

    path: Path
    size: int
    what: str
    state: str


def cache_entries(records: Iterable[tuple[str, Weights]]) -> list[CacheEntry]:
    """Return the weight files in :func:`home`, and those of the records in the Hub client's cache.

    Args:
        records: every known record with its name, ``"MODEL:TAG"``.
    """
    records = list(records)
    files = {stored_file(record.digest): who for who, record in records}
    converted = {converted_folder(record.digest, record.layout): who for who, record in records}
    entries = []
    # Other files of the user's in this folder are not medzoo's to list.
    found = chain.from_iterable(sorted(home().glob(part)) for part in ("files/*/*", "converted/*/*", "archive-*/*"))
    for path in filter(Path.is_file, found):
        if path in files:
            who, state = files[path], "file"
        elif path.parent in converted and path.suffix == ".safetensors":
            who, state = converted[path.parent], "converted"
        elif path.name.startswith(("tmp", ".")) or path.relative_to(home()).parts[0].startswith("archive-"):
            who, state = "", "downloading" if time.time() - path.stat().st_mtime < STALE_AFTER else "left over"
        else:
            who, state = "", "stale"
        entries.append(CacheEntry(path, path.stat().st_size, who, state))
    for who, record in records:
        if isinstance(record.source, HubFile):
            entries += [CacheEntry(path, path.stat().st_size, who, "file") for path in hub_files(record.source)]
    return entries


def _free_space(folder: Path) -> tuple[int, Path]:
    """Return the free bytes of a disk, and the nearest existing parent of the folder."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free, folder


def check_room(who: str, folder: Path, size: int | None) -> None:
    """Raise WeightsUnavailable if the disk of a folder has fewer than ``size`` free bytes."""
    if size is not None and _free_space(folder)[0] < size:
        raise _no_room(who, folder, size)


def _no_room(who: str, folder: Path, size: int | None) -> WeightsUnavailable:
    """Return the error for a disk with too little room."""
    free, folder = _free_space(folder)
    need = f"{size:,} bytes are needed" if size is not None else "more room is needed"
    return WeightsUnavailable(
        f"{who}: {need} and {free:,} are free under {folder}. Make room, or set HF_HOME and MEDZOO_HOME to a larger "
        "disk."
    )


@contextmanager
def wrap_disk_errors(who: str, folder: Path, size: int | None) -> Iterator[None]:
    """Raise WeightsUnavailable, naming the folder, in place of an OSError of the disk."""
    try:
        yield
    except MedzooError:
        raise
    except OSError as error:
        raise disk_error(who, error, folder, size) or WeightsUnavailable(
            f"{who}: {error.filename or folder} cannot be used ({error.strerror or error}). MEDZOO_HOME and HF_HOME "
            "must be folders, or not exist yet."
        ) from error


def disk_error(who: str, error: OSError, folder: Path, size: int | None) -> WeightsUnavailable | None:
    """Return the error for a full or read-only disk, or ``None`` if ``error`` has another cause."""
    if error.errno in DISK_FULL:
        problem = f"the disk is full or the file too large for it ({os.strerror(error.errno)})"
        return _no_room(f"{who}: {problem}", folder, size)
    # pooch raises a PermissionError without an errno.
    if error.errno in NOT_PERMITTED or isinstance(error, PermissionError):
        reason = os.strerror(error.errno or errno.EACCES)
        return WeightsUnavailable(
            f"{who}: {error.filename or folder} cannot be written ({reason}). Set HF_HOME and MEDZOO_HOME to writable "
            "folders, or fill them with medzoo fetch on another machine."
        )
    return None
