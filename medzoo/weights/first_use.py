"""Files whose publisher states no digest: it is recorded when one is first downloaded, and compared ever after."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from medzoo.atomic import write_atomically
from medzoo.errors import ConfigError, DataError, MedzooError
from medzoo.weights.cache import advisory_lock, digest_of, home, wrap_disk_errors
from medzoo.weights.http import download_unlisted

__all__ = ["fetch_unlisted", "other_than_recorded"]

LOCK_SECONDS = 10.0

T = TypeVar("T")


def fetch_unlisted(url: str, name: str, to: Path, check: Callable[[bytes, str], T], most_bytes: int) -> tuple[T, str]:
    """Download a file, unless it is there, and return what ``check`` returns, and its digest.

    Nothing is kept of a file that fails a check, and no file is overwritten.

    Args:
        url: of the publisher.
        name: of the file in messages and of its record, ``MEDZOO_HOME/recorded/NAME.json``.
        to: the file.
        check: takes the bytes and their place, for messages; raises DataError for another kind of file.
        most_bytes: of the file.

    Raises:
        ConfigError: ``to`` cannot be read or written, is no file, or is larger.
        DataError: it is another file than the first one was, or of another kind.
        WeightsUnavailable, WeightsCorrupt: as :func:`~medzoo.weights.http.download_unlisted`.
    """
    there = to.exists()
    where = f"{name}: {to if there else url}"
    try:
        if there:
            data = _read(to, most_bytes)
        elif not to.parent.is_dir():
            raise ConfigError(f"{to}: expected a file in a folder that exists, {to.parent} does not. Make it.")
        else:
            data = download_unlisted(
                url, name, most_bytes=most_bytes, elsewhere=f"copy it from another machine to {to}"
            )
        found = check(data, where)
        digest = _compare(name, data, where)
        if not there:
            write_atomically(to, data)
    except MedzooError:
        raise
    except OSError as error:
        raise ConfigError(f"{to} cannot be used ({error.strerror or error}). Choose another file.") from error
    return found, digest


def other_than_recorded(name: str, path: Path) -> str | None:
    """Return the digest that was recorded when a file was first used, if that of ``path`` is another.

    ``None`` where they are the same, or none was recorded.

    Raises:
        DataError: the record cannot be read.
    """
    known = _recorded(name, str(path))
    return known if known is not None and digest_of(path.read_bytes()) != known else None


def _read(path: Path, most_bytes: int) -> bytes:
    """Return the bytes of a file, of which no more is read than is allowed."""
    if not path.is_file():
        raise ConfigError(f"{path}: expected a file, found a folder, pipe or device. Choose another file.")
    with path.open("rb") as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise ConfigError(f"{path}: expected at most {most_bytes:,} bytes, found more. Choose another file.")
    return data


def _compare(name: str, data: bytes, where: str) -> str:
    """Return the digest of a file, which is the one that was recorded before, or is recorded now."""
    path, got = _path(name), digest_of(data)
    with advisory_lock(path.with_suffix(".lock"), LOCK_SECONDS):
        known = _recorded(name, where)
        if known is None:
            text = json.dumps({"digest": got, "date": datetime.date.today().isoformat()}) + "\n"
            with wrap_disk_errors(where, path.parent, None):
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(path, text.encode())
            return got
    if known != got:
        raise DataError(
            f"{where}: expected {known}, as recorded when the file was first used, got {got}. Its publisher has "
            "changed it since, or it is changed on the way: what was made by the first one cannot be made again by "
            f"this one. Compare both; to accept the new one from now on, remove {path}."
        )
    return got


def _recorded(name: str, where: str) -> str | None:
    """Return the digest that was recorded, or ``None``; one that cannot be read must not be forgotten in silence."""
    path = _path(name)
    try:
        found = json.loads(path.read_bytes())["digest"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{where}: {path}, the digest of its first use, cannot be read ({type(error).__name__}). Restore it, or "
            "remove it to trust the next file."
        ) from error
    return str(found)


def _path(name: str) -> Path:
    return home() / "recorded" / f"{name}.json"
