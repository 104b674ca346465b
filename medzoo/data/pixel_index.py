"""An index of files that were read before, so that a second run neither hashes nor decodes them again.

A file is known by path, size, and the times of its last change of content and of state. What is not noticed is an edit
that keeps all of them, which takes a change of the clock or of the disk itself. The index is a cache: where it cannot
be used, everything is computed again, and it can be deleted at any time.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections.abc import Iterable
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from medzoo.data.identity import PixelIdentity
from medzoo.version import __version__

__all__ = ["PixelIndex", "decoders", "file_digest"]

# Raise it when the tables change.
FORMAT = 1
_TABLES = """
CREATE TABLE IF NOT EXISTS files (
    path TEXT PRIMARY KEY, size INTEGER, mtime INTEGER, ctime INTEGER, digest TEXT
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS images (
    content TEXT PRIMARY KEY, pixels TEXT, constant INTEGER
) WITHOUT ROWID;
"""
# Seconds to wait for another process that writes.
_TIMEOUT = 5.0
_DECODERS = ("numpy", "pillow", "pydicom", "tifffile", "imagecodecs", "nibabel", "simpleitk")

Stamp = tuple[int, int, int]


def decoders() -> dict[str, str]:
    """Return the version of everything that turns the bytes of a file into pixels."""
    return {"medzoo": __version__} | {name: metadata.version(name) for name in _DECODERS}


def file_digest(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class PixelIndex:
    """The index in a folder; without the folder, or where SQLite cannot be used there, it knows nothing.

    Args:
        folder: where the index is, or is made; ``None`` for none.
        channels: of the model: an image can be read in different ways for different numbers.
    """

    def __init__(self, folder: Path | None, channels: int) -> None:
        self._suffix = hashlib.sha256(f"{channels} {sorted(decoders().items())}".encode()).hexdigest()[:16]
        self._db = None if folder is None else _connect(folder / f"index-{FORMAT}.sqlite3")
        self._pending: list[tuple[str, tuple[object, ...]]] = []
        self._flushed = time.monotonic()

    def __enter__(self) -> PixelIndex:
        return self

    def __exit__(self, *exc: object) -> None:
        self._flush()
        self._give_up()

    def content(self, path: Path) -> str:
        """Return the sha256 of a file, without reading it if it is known.

        Raises:
            OSError: it cannot be read.
        """
        facts = path.stat()
        stamp: Stamp = (facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
        name = os.fsdecode(os.path.abspath(path))  # noqa: PTH100  # resolve() would ask the disk for every folder
        known = self._one("SELECT size, mtime, ctime, digest FROM files WHERE path = ?", (name,))
        if known is not None and tuple(known[:3]) == stamp:
            return str(known[3])
        digest = file_digest(path)
        after = path.stat()
        if (after.st_size, after.st_mtime_ns, after.st_ctime_ns) == stamp:  # not written to in the meantime
            self._write("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", (name, *stamp, digest))
        return digest

    def pixels(self, content: str) -> PixelIdentity | None:
        """Return the identity of the pixels of some content, if it is known."""
        known = self._one("SELECT pixels, constant FROM images WHERE content = ?", (content + self._suffix,))
        return None if known is None else PixelIdentity(str(known[0]), bool(known[1]))

    def remember(self, content: str, identity: PixelIdentity) -> None:
        """Store the identity of the pixels of some content."""
        values = (content + self._suffix, identity.pixels, int(identity.constant))
        self._write("INSERT OR REPLACE INTO images VALUES (?, ?, ?)", values)

    def _one(self, query: str, values: Iterable[object]) -> tuple[object, ...] | None:
        if self._db is None:
            return None
        try:
            found: tuple[object, ...] | None = self._db.execute(query, tuple(values)).fetchone()
        except sqlite3.Error:
            self._give_up()
            return None
        return found

    def _write(self, query: str, values: Iterable[object]) -> None:
        self._pending.append((query, tuple(values)))
        if time.monotonic() - self._flushed > 1.0:
            self._flush()

    def _flush(self) -> None:
        """Write what is pending in one short transaction, so that another process never waits for long."""
        pending, self._pending, self._flushed = self._pending, [], time.monotonic()
        if self._db is None or not pending:
            return
        try:
            with self._db:
                for query, values in pending:
                    self._db.execute(query, values)
        except sqlite3.Error:  # locked for too long, read-only, a full disk, no locks on this filesystem
            self._give_up()

    def _give_up(self) -> None:
        if self._db is not None:
            with suppress(sqlite3.Error):
                self._db.close()
            self._db = None


def _connect(path: Path) -> sqlite3.Connection | None:
    """Open or make the index; a damaged one is made again."""
    for _ in range(2):
        try:
            with suppress(FileExistsError):
                os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o600))
            db = sqlite3.connect(path, timeout=_TIMEOUT)
            try:
                db.executescript(_TABLES)
                return db
            except sqlite3.Error:
                db.close()
                raise
        except sqlite3.OperationalError:
            return None
        except sqlite3.DatabaseError:
            with suppress(OSError):
                path.unlink()
        except OSError:
            return None
    return None
