"""The cache of preprocessed images on disk: one file for each table and preprocessing, and what is known of its rows.

A folder ``pixels`` in ``MEDZOO_HOME``, which only its user can read, holds::

    <key>.pixels               the rows, one after the other, then a CRC-32 of each
    <key>.json                 shape, type, size and time of that file, and the report on its rows; written last
    <key>.<random>.partial     is being written, by the process that has locked <key>.lock
    index-<format>.sqlite3     see medzoo.data.pixel_index

A key states content and preprocessing, so a file is never out of date, only unused. A file of another size or time than
its JSON states is not used, and each row that is read is compared with its checksum. A reader locks its file, which
keeps it from being removed to make room; where locks do not work, nothing is removed.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from medzoo.data.pixel_file import FORMAT, FileWriter, PixelFile, gigabytes, lock_file, over_quota
from medzoo.errors import DataError
from medzoo.warn import warn
from medzoo.weights.cache import home

__all__ = ["PixelFolder"]

# Seconds without a write after which a builder is taken for dead, where its lock does not show that.
STALE_AFTER = 600.0
_POLL = 0.5


class PixelFolder:
    """The folder of all cached files.

    Args:
        quota: the most bytes of the folder.
    """

    def __init__(self, quota: int) -> None:
        self.path, self.quota = home() / "pixels", quota

    def create(self) -> None:
        """Make the folder, readable by its user alone.

        Raises:
            OSError: it cannot be made or written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.mkdir(mode=0o700, exist_ok=True)
        if self.path.stat().st_mode & 0o077:
            self.path.chmod(0o700)
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self.path))

    def find(self, key: str) -> tuple[PixelFile, Any] | None:
        """Return a finished file, opened, and its report; ``None`` if there is none that can be used."""
        facts = self.path / f"{key}.json"
        try:
            about = json.loads(facts.read_bytes())
            if about["format"] != FORMAT:
                return None
            file = PixelFile(self.path / f"{key}.pixels", about)
            report = about["report"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if not file.open():
            return None
        with suppress(OSError):  # by which the least recently used is found
            os.utime(facts)
        return file, report

    @contextmanager
    def building(self, key: str, who: str) -> Iterator[None]:
        """Lock a key, so that one process builds it; go on without a lock where locks do not work."""
        from filelock import FileLock, Timeout

        lock = FileLock(self.path / f"{key}.lock", mode=0o600)
        since = 0.0
        with suppress(OSError, NotImplementedError):
            while not lock.is_locked:
                try:
                    lock.acquire(timeout=_POLL if since else 0)
                except Timeout:
                    if not since:
                        since = time.time()
                        warn(f"{who}: another process makes the cache of these images. Waiting for it.")
                    if time.time() - max([since, *map(_mtime, self.path.glob(f"{key}.*.partial"))]) > STALE_AFTER:
                        break  # it hangs: this process makes the file as well
        try:
            self._remove_leftovers(key if lock.is_locked else None)
            yield
        finally:
            with suppress(OSError):
                lock.release()

    def _remove_leftovers(self, own: str | None) -> None:
        """Remove the partial files of processes that are gone, and finished files without a JSON."""
        from filelock import FileLock

        alone = [p for p in self.path.glob("*.pixels") if not p.with_suffix(".json").exists()]
        for path in [*self.path.glob("*.partial"), *alone]:
            key = path.name.partition(".")[0]
            with suppress(OSError, NotImplementedError):
                if key == own:
                    path.unlink()
                    continue
                with FileLock(self.path / f"{key}.lock", timeout=0, mode=0o600):  # raises while another builds it
                    if path.suffix == ".partial" or not path.with_suffix(".json").exists():
                        path.unlink()

    def make_room(self, needed: int) -> None:
        """Remove the files that were not used for the longest time until ``needed`` bytes are within the quota.

        Raises:
            DataError: they are not, or the disk has less room.
        """
        if needed > self.quota:
            raise over_quota(needed, self.quota)
        files = [path for pattern in ("*.pixels", "*.json", "*.partial") for path in self.path.glob(pattern)]
        used = sum(map(_size, files))
        for facts in sorted(self.path.glob("*.json"), key=_mtime):
            if used + needed <= self.quota:
                break
            used -= self._evict(facts)
        if used + needed > self.quota:
            raise DataError(
                f"{self.path}: the cache needs {gigabytes(needed)}, and {gigabytes(used)} of the quota of "
                f"{gigabytes(self.quota)} are in use by other trainings. Raise quota_gb, or use cache='off' or "
                "cache='memory'."
            )
        free = shutil.disk_usage(self.path).free
        if free < needed:
            raise DataError(
                f"{self.path}: the cache needs {gigabytes(needed)}, and {gigabytes(free)} are free on this disk. Make "
                "room, set MEDZOO_HOME to a larger disk, or use cache='off' or cache='memory'."
            )

    def _evict(self, facts: Path) -> int:
        """Remove a file that no process reads; return the bytes that this frees."""
        data = facts.with_suffix(".pixels")
        freed = _size(facts) + _size(data)
        with suppress(OSError):
            if not data.exists():
                facts.unlink()
                return freed
            fd = os.open(data, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if lock_file(fd, shared=False) is True:
                    facts.unlink(missing_ok=True)
                    data.unlink(missing_ok=True)
                    return freed
            finally:
                os.close(fd)
        return 0

    def writer(self, key: str, rows: int, size: Sequence[int]) -> FileWriter:
        """Return a writer of a new file.

        Raises:
            OSError: it cannot be made.
        """
        return FileWriter(self.path, key, rows, size, self.quota)

    def disk_error(self, error: OSError) -> DataError:
        """Return the error for a disk that is full or fails while the file is written."""
        return DataError(
            f"{self.path}: the cache of preprocessed images could not be written ({error.strerror or error}). Make "
            "room, set MEDZOO_HOME to another disk, or use cache='off' or cache='memory'."
        )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
