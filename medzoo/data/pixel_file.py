"""A file of preprocessed images, and the same in memory: rows of one type and shape, each with a checksum on disk.

Axes: c channels, s spatial axes.
"""

from __future__ import annotations

import json
import os
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from medzoo.data.pixel_values import encode, widen, wider
from medzoo.errors import DataError

__all__ = ["FORMAT", "FileWriter", "MemoryRows", "PixelFile", "RowWriter", "gigabytes", "lock_file", "over_quota"]

# Raise it when the files change.
FORMAT = 1


class RowWriter(ABC):
    """Takes rows in any type and number of channels, and keeps all of them in the widest.

    Args:
        rows: how many.
        size: of the spatial axes.
    """

    def __init__(self, rows: int, size: Sequence[int]) -> None:
        self.rows, self.size = rows, tuple(size)
        self.kind, self.channels = "", 1

    @property
    def shape(self) -> tuple[int, ...]:
        """``c *s`` of a stored row."""
        return (self.channels, *self.size)

    def put(self, row: int, x: NDArray[np.float32], kind: str) -> None:
        """Store an image ``c *s``; equal channels are stored once."""
        equal = len(x) > 1 and all(np.array_equal(x[0], other) for other in x[1:])
        values = encode(x[:1] if equal else x, kind)
        wide = wider(self.kind, kind) if self.kind else kind
        channels = max(self.channels, len(values))
        if (wide, channels) != (self.kind, self.channels):
            self._change(wide, channels)
        self._store(row, self._fit(values))

    def _fit(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return stored values in the present type and number of channels."""
        values = widen(values, self.kind)
        return np.ascontiguousarray(np.broadcast_to(values, self.shape))

    @abstractmethod
    def _change(self, kind: str, channels: int) -> None:
        """Change the stored type and number of channels, those of the rows that are stored included."""

    @abstractmethod
    def _store(self, row: int, values: NDArray[Any]) -> None:
        """Store values of the present type and number of channels."""


class MemoryRows(RowWriter):
    """Rows in memory; after the last :meth:`put` they are read from here."""

    values: NDArray[Any] | None = None

    def _change(self, kind: str, channels: int) -> None:
        before = self.values
        self.kind, self.channels = kind, channels
        self.values = np.zeros((self.rows, *self.shape), kind)
        for row in range(0 if before is None else self.rows):
            self.values[row] = self._fit(before[row])  # type: ignore[index]  # not None here

    def _store(self, row: int, values: NDArray[Any]) -> None:
        assert self.values is not None  # noqa: S101  # put calls _change first
        self.values[row] = values

    def read(self, row: int) -> NDArray[Any]:
        """Return the stored values of a row."""
        assert self.values is not None  # noqa: S101  # a row that was never put is never read
        values: NDArray[Any] = self.values[row]
        return values

    def close(self) -> None:
        """Do nothing: the rows go when nothing refers to them."""


class FileWriter(RowWriter):
    """Writes rows to a partial file; :meth:`commit` gives it its name."""

    def __init__(self, folder: Path, key: str, rows: int, size: Sequence[int], limit: int | None) -> None:
        super().__init__(rows, size)
        self.folder, self.key, self.limit = folder, key, limit
        self.path = self._new_path()
        self._fd = _create(self.path)
        self._crcs = np.zeros(rows, np.uint32)

    def _new_path(self) -> Path:
        return self.folder / f"{self.key}.{uuid4().hex[:8]}.partial"

    def _change(self, kind: str, channels: int) -> None:
        before, old_fd, old_path = (self.kind, self.shape), self._fd, self.path
        self.kind, self.channels = kind, channels
        needed = _file_size(self.rows, self.shape, kind)
        if self.limit is not None and needed > self.limit:
            raise over_quota(needed, self.limit)
        if not before[0]:
            return
        count = _row_bytes(before[1], before[0])
        written = os.fstat(old_fd).st_size // count
        self.path = self._new_path()
        self._fd = _create(self.path)
        try:
            for row in range(written):
                values = np.frombuffer(os.pread(old_fd, count, row * count), before[0]).reshape(before[1])
                self._store(row, self._fit(values))
        finally:
            os.close(old_fd)
            old_path.unlink(missing_ok=True)

    def _store(self, row: int, values: NDArray[Any]) -> None:
        data = values.reshape(-1).view(np.uint8).data
        self._crcs[row] = zlib.crc32(data)
        _write_all(self._fd, data, row * len(data))

    def commit(self, report: Any) -> None:
        """Finish the file, and give it and its report their names."""
        if not self.kind:
            self.kind = "uint8"
        end = self.rows * _row_bytes(self.shape, self.kind)
        os.ftruncate(self._fd, end)  # rows that were dropped are never read
        _write_all(self._fd, self._crcs.view(np.uint8).data, end)
        os.fsync(self._fd)
        target = self.folder / f"{self.key}.pixels"
        self.path.replace(target)
        facts = os.fstat(self._fd)
        os.close(self._fd)
        self._fd = -1
        about = {
            "format": FORMAT, "rows": self.rows, "shape": self.shape, "dtype": self.kind,
            "size": facts.st_size, "mtime": facts.st_mtime_ns, "report": report,
        }  # fmt: skip
        partial = self._new_path()
        fd = _create(partial)
        try:
            _write_all(fd, memoryview(json.dumps(about).encode()), 0)
            os.fsync(fd)
            partial.replace(self.folder / f"{self.key}.json")
        finally:
            os.close(fd)
            partial.unlink(missing_ok=True)

    def abort(self) -> None:
        """Remove what was written, unless it was committed."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        with suppress(OSError):
            self.path.unlink(missing_ok=True)


class PixelFile:
    """A finished file; it can be pickled, and is opened again by its path.

    Args:
        path: the file.
        about: what its JSON states.
    """

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self.path, self.rows = path, int(about["rows"])
        self.shape, self.dtype = tuple(about["shape"]), np.dtype(about["dtype"])
        self.size, self.mtime = int(about["size"]), int(about["mtime"])
        self._fd = -1
        self._crcs: NDArray[np.uint32] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_fd": -1}

    def __del__(self) -> None:
        self.close()

    def open(self) -> bool:
        """Open and lock the file; return whether it is the one that its JSON describes."""
        if self._fd >= 0:
            return True
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        facts = os.fstat(fd)
        sound = facts.st_size == self.size == _file_size(self.rows, self.shape, self.dtype.name)
        sound = sound and facts.st_mtime_ns == self.mtime and lock_file(fd, shared=True) is not False
        with suppress(OSError):
            sound = sound and self.path.stat().st_ino == facts.st_ino  # not removed before it was locked
        if not sound:
            os.close(fd)
            return False
        if self._crcs is None:
            count = 4 * self.rows
            self._crcs = np.frombuffer(os.pread(fd, count, self.size - count), np.uint32)
        self._fd = fd
        return True

    def read(self, row: int) -> NDArray[Any]:
        """Return the stored values of a row.

        Raises:
            DataError: the file was changed or removed since it was made.
        """
        if not 0 <= row < self.rows:
            raise IndexError(f"row {row} of {self.rows}")
        if not self.open():
            raise self._changed("is not there any more, or is another file")
        count = _row_bytes(self.shape, self.dtype.name)
        data = bytearray(count)
        # Not a memory map: reading behind the end of a file that was cut short would end the process.
        got = os.preadv(self._fd, [data], row * count)
        assert self._crcs is not None  # noqa: S101  # open sets it
        if got != count or zlib.crc32(data) != self._crcs[row]:
            raise self._changed(f"has other values for row {row} than were written")
        return np.frombuffer(data, self.dtype).reshape(self.shape)

    def _changed(self, what: str) -> DataError:
        with suppress(OSError):
            self.path.with_suffix(".json").unlink()
        return DataError(
            f"{self.path}: this cache of preprocessed images {what}. Start again: it is then made from the images."
        )

    def close(self) -> None:
        """Release the file; a later read opens it again."""
        fd, self._fd = getattr(self, "_fd", -1), -1
        if fd >= 0:
            with suppress(OSError):
                os.close(fd)


def _create(path: Path) -> int:
    return os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)


def _write_all(fd: int, data: memoryview, offset: int) -> None:
    while len(data):
        count = os.pwrite(fd, data, offset)
        data, offset = data[count:], offset + count


def lock_file(fd: int, *, shared: bool) -> bool | None:
    """Lock an open file; return whether that worked, or ``None`` where locks do not work."""
    try:
        fcntl = import_module("fcntl")
    except ImportError:  # on Windows
        return None
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _row_bytes(shape: Sequence[int], kind: str) -> int:
    return int(np.prod(shape)) * np.dtype(kind).itemsize


def _file_size(rows: int, shape: Sequence[int], kind: str) -> int:
    return rows * (_row_bytes(shape, kind) + 4)


def gigabytes(size: int) -> str:
    """Return bytes as text for messages."""
    return f"{size / 1e9:.3g} GB"


def over_quota(needed: int, quota: int) -> DataError:
    """Return the error for one file that is larger than the quota."""
    return DataError(
        f"the cache of preprocessed images: {gigabytes(needed)} are needed, more than the quota of "
        f"{gigabytes(quota)}. Raise quota_gb, use a smaller size, or cache='off'."
    )
