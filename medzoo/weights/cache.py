"""Where weight files lie on this machine, apart from those in huggingface_hub's cache.

``MEDZOO_HOME``, or a folder ``medzoo`` under the user's cache folder, holds::

    files/sha256/<digest>          a file as its publisher gives it, named by its digest
    converted/<key>/<digest>       the same tensors under our names, as safetensors, named by its own digest

A name says what the content must be, so that damage is found, and any number of processes can share the folder. Who can
write to it can put another conversion in the place of one; ``medzoo verify`` makes each again from the checked file.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

__all__ = ["converted_folder", "digest_of", "home", "stored_file"]

# Part of the name of what is converted: raise it when a conversion changes.
CONVERSION = 1
ALGORITHMS: dict[str, Callable[[bytes], str]] = {
    "sha256": lambda data: hashlib.sha256(data).hexdigest(),
    # MD5 is the only digest that some publishers give; it is not used as a guard against forgery.
    "md5": lambda data: hashlib.md5(data, usedforsecurity=False).hexdigest(),
}


def home() -> Path:
    """Return the folder, which need not be there yet."""
    given = os.environ.get("MEDZOO_HOME")
    if given:
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "medzoo"


def stored_file(digest: str, root: Path | None = None) -> Path:
    """Return the place of a file with a digest ``"algorithm:hex"``.

    >>> stored_file("md5:900150983cd24fb0d6963f7d28e17f72", Path("/weights")).as_posix()
    '/weights/files/md5/900150983cd24fb0d6963f7d28e17f72'
    """
    algorithm, _, digits = digest.partition(":")
    return (root or home()) / "files" / algorithm / digits


def converted_folder(digest: str, layout: str, root: Path | None = None) -> Path:
    """Return the folder of what a file was converted to."""
    algorithm, _, digits = digest.partition(":")
    return (root or home()) / "converted" / f"{algorithm}-{digits}-{layout}-{CONVERSION}"


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    """Return ``"algorithm:hex"`` of some bytes.

    >>> digest_of(b"abc", "md5")
    'md5:900150983cd24fb0d6963f7d28e17f72'
    """
    return f"{algorithm}:{ALGORITHMS[algorithm](data)}"
