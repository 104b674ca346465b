"""Where weight files are on this machine: ``MEDZOO_HOME``, the Hub client's cache, and what a full disk means.

``MEDZOO_HOME``, by default a folder ``medzoo`` in the user's cache folder, holds::

    files/sha256/<digest>          a file as its publisher provides it, named by its digest
    converted/<key>/<digest>       the same tensors under medzoo's names, as safetensors, named by its own digest
    .locks/<digest>.lock           an empty file, locked by the process that downloads that file

A name states what the content must be, so damage is detected and any number of processes can share the folder. Whoever
can write to it can replace a conversion; ``medzoo verify`` converts again from the verified file.

Every file appears by a rename, so a lock is never needed for the right bytes. It saves a second download of the same
file, and keeps :func:`remove_entries` away from a running one; where locks do not work, everything else still does.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from medzoo.errors import MedzooError, WeightsUnavailable
from medzoo.weights.record import HubFile, LocalFile, PackagedFile, Weights

__all__ = [
    "CacheEntry",
    "advisory_lock",
    "cache_entries",
    "cached_files",
    "check_room",
    "converted_folder",
    "digest_of",
    "disk_error",
    "download_lock",
    "home",
    "hub_files",
    "hub_folder",
    "remove_entries",
    "stored_file",
    "wrap_disk_errors",
]

ASSETS = Path(__file__).parents[1] / "assets"
# Part of the folder name of a conversion: raise it when a conversion changes.
CONVERSION = 1
# Seconds without a write after which a partial file counts as left over.
STALE_AFTER = 3600
# Seconds to wait for another process that downloads the same file, before downloading it as well.
LOCK_TIMEOUT = 120.0
# The files that medzoo writes to its folder; any other is the user's.
OWN_FILE = re.compile(
    r"files/(md5/[0-9a-f]{32}|sha256/[0-9a-f]{64})"
    r"|converted/(md5|sha256)-[0-9a-f]+-[\w.-]+/[0-9a-f]{64}\.safetensors"
)
PARTIAL_FILE = re.compile(
    r"(files/(md5|sha256)|converted/(md5|sha256)-[0-9a-f]+-[\w.-]+)/(tmp\w+|\.\d+\.\d+\.partial)"
    r"|archive-\w{8}/(archive\.zip|tmp\w+|\.\d+\.\d+\.partial)"
)
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
        what: the weights it belongs to, ``"MODEL:TAG"``, separated by commas; empty if no record knows it.
        state: ``"file"``, ``"converted"``, ``"stale"`` (of no record of this medzoo), ``"downloading"``, or ``"left
            over"`` (from a download that was killed).
        last_used: when it was last read or written, in seconds since the epoch. Not every filesystem records reads;
            most that do record one a day.
    """

    path: Path
    size: int
    what: str
    state: str
    last_used: float

    @property
    def unused(self) -> bool:
        """Whether no registered weights refer to it, and no download writes it."""
        return self.state in ("stale", "left over")

    @property
    def removable(self) -> bool:
        """Whether :func:`remove_entries` may remove it: not the Hub client's, and not being downloaded."""
        return _is_ours(self.path) and self.state != "downloading"


def cache_entries(records: Iterable[tuple[str, Weights]]) -> list[CacheEntry]:
    """Return the weight files in :func:`home`, and those of the records in the Hub client's cache.

    Args:
        records: every known record with its name, ``"MODEL:TAG"``.
    """
    names: dict[Path, list[str]] = {}
    hub_names: dict[Path, list[str]] = {}
    for who, record in records:
        for place in (stored_file(record.digest), converted_folder(record.digest, record.layout)):
            names.setdefault(place, []).append(who)
        for place in hub_files(record.source) if isinstance(record.source, HubFile) else ():
            hub_names.setdefault(place, []).append(who)
    entries = []
    ours = chain.from_iterable(sorted(home().glob(part)) for part in ("files/*/*", "converted/*/*", "archive-*/*"))
    for path in chain(filter(_is_ours, ours), hub_names):
        try:
            facts = path.stat()
        except FileNotFoundError:  # another process removed it
            continue
        known = hub_names.get(path) or names.get(path) or names.get(path.parent) or []
        if _is_partial(path):
            state = "downloading" if time.time() - facts.st_mtime < STALE_AFTER else "left over"
            known = []
        else:
            state = "stale" if not known else "converted" if path.parent in names else "file"
        last_used = max(facts.st_atime, facts.st_mtime)
        entries.append(CacheEntry(path, facts.st_size, ", ".join(known), state, last_used))
    return entries


def _is_ours(path: Path) -> bool:
    """Whether medzoo wrote a file in :func:`home`; other files of the user's there are not medzoo's to list."""
    return path.is_file() and (_is_partial(path) or OWN_FILE.fullmatch(_name(path)) is not None)


def _is_partial(path: Path) -> bool:
    return PARTIAL_FILE.fullmatch(_name(path)) is not None


def _name(path: Path) -> str:
    """Return the path below :func:`home`, or an empty string."""
    return path.relative_to(home()).as_posix() if path.is_relative_to(home()) else ""


def remove_entries(entries: Iterable[CacheEntry]) -> list[CacheEntry]:
    """Remove files of medzoo's in :func:`home`, and return the entries of those that were removed.

    The Hub client's files stay, and a file that is being downloaded, and one that cannot be removed. A process that
    loads one of the files at the moment has read it, or downloads it again.
    """
    root = home().resolve()
    return [
        entry
        for entry in entries
        # A subfolder may be a symbolic link to a folder that is not medzoo's.
        if entry.removable and entry.path.parent.resolve().is_relative_to(root) and _remove(entry)
    ]


def _remove(entry: CacheEntry) -> bool:
    """Remove a file unless a process downloads it, and the folder it was in if that is empty now."""
    from filelock import FileLock

    folder = entry.path.parent
    stored = folder.parent == home() / "files"
    if _is_partial(entry.path):
        # Its name does not contain the digest of what was to become of it.
        locks = sorted((home() / ".locks").glob("*.lock"))
    else:
        locks = [_lock_path(f"{folder.name}:{entry.path.name}")] if stored else []
    with ExitStack() as held, suppress(OSError):
        for path in filter(Path.exists, locks):
            with suppress(NotImplementedError):  # no locks on this filesystem
                held.enter_context(FileLock(path, timeout=0))
        entry.path.unlink()
        if not stored:
            with suppress(OSError):
                folder.rmdir()
        return True
    return False


@contextmanager
def download_lock(digest: str) -> Iterator[None]:
    """Lock a file while it is downloaded; see :func:`advisory_lock`.

    Args:
        digest: ``"algorithm:hex"`` of the file.
    """
    with advisory_lock(_lock_path(digest), LOCK_TIMEOUT):
        yield


@contextmanager
def advisory_lock(path: Path, timeout: float, **options: Any) -> Iterator[None]:
    """Lock a file; go on without a lock after ``timeout`` seconds, or where locks do not work.

    Args:
        path: of the lock, which is an empty file.
        timeout: seconds to wait for another process that holds it.
        options: of ``filelock.FileLock``.
    """
    from filelock import FileLock

    lock = FileLock(path, **options)
    # A read-only folder, a filesystem without locks, or a Timeout, which is an OSError.
    with suppress(OSError, NotImplementedError):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=timeout)
    try:
        yield
    finally:
        with suppress(OSError):
            lock.release()


def _lock_path(digest: str) -> Path:
    """Return the lock of a file with this digest."""
    return home() / ".locks" / f"{digest.replace(':', '-')}.lock"


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
