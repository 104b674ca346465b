"""``Pseudonyms``: what stands for a patient or an image in a report that others read.

A plain hash of a patient id can be undone by hashing all ids there may be. These are keyed with a secret of the project
that stays on this machine, in ``MEDZOO_HOME/projects``, readable by its user alone.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import time
from contextlib import suppress
from pathlib import Path

from medzoo.data.identity import pseudonym
from medzoo.errors import ConfigError
from medzoo.warn import warn
from medzoo.weights.cache import home

__all__ = ["Pseudonyms"]

_BYTES = 32
# Seconds in which another process that has created the key writes it.
_PATIENCE = 2.0
# Keys of projects that could not be stored.
_OF_THIS_PROCESS: dict[str, bytes] = {}


class Pseudonyms:
    """The pseudonyms of a project: the same for a patient in each report of it, and others in another project.

    Whoever has the key and can guess an id can compute its pseudonym, so the key is not to be shared with a report.

    Args:
        project: its name, of letters, digits, ``_`` and ``-``. Its key is made the first time. Where it cannot be
            stored, there is a warning, and pseudonyms are the same within this process alone.

    Raises:
        ConfigError: another name.
    """

    def __init__(self, project: str = "default") -> None:
        if not isinstance(project, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", project):
            raise ConfigError(
                f"Pseudonyms: expected the name of a project of 1 to 64 letters, digits, '_' and '-', got {project!r}."
            )
        self.project = project
        self._key = _key(project)

    def of(self, text: str) -> str:
        """Return what stands for an id: 10 hex digits.

        A patient of a run, which is hashed already, has the same one as the id that was hashed. Two of 10,000 patients
        have the same one with a probability of 0.005 %.
        """
        return hmac.new(self._key, pseudonym(text).encode(errors="backslashreplace"), hashlib.sha256).hexdigest()[:10]


def _key(project: str) -> bytes:
    """Return the key of a project, made if there is none."""
    path = home() / "projects" / f"{project}.key"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            _create(path)
        return _read(path)
    except OSError as error:
        warn(
            f"{path}: the key of the project's pseudonyms cannot be used ({error.strerror or error}). Those of this "
            "process will not be those of another. Set MEDZOO_HOME to a folder that can be written."
        )
        return _OF_THIS_PROCESS.setdefault(project, secrets.token_bytes(_BYTES))


def _create(path: Path) -> None:
    """Write a key, complete or not at all, unless another process is first."""
    partial = path.with_name(f".{secrets.token_hex(8)}.partial")
    try:
        _write(partial)
        try:
            os.link(partial, path)  # unlike a rename it never replaces a key
        except FileExistsError:
            return
        except OSError:  # a filesystem without links
            with suppress(FileExistsError):
                _write(path)
    finally:
        partial.unlink(missing_ok=True)


def _write(path: Path) -> None:
    opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
    with os.fdopen(opened, "wb") as file:
        file.write(secrets.token_bytes(_BYTES))
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path) -> bytes:
    """Return a key; one of another length is being written by another process, or damaged."""
    ends = time.monotonic() + _PATIENCE
    while len(key := path.read_bytes()) != _BYTES:
        if time.monotonic() > ends:
            raise OSError(f"expected {_BYTES} bytes, got {len(key)}: remove the file, and a new key is made")
        time.sleep(0.05)
    if path.stat().st_mode & 0o077 and os.name == "posix":
        path.chmod(0o600)
    return key
