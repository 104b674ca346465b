"""How often the labels of some data were used for an evaluation on this machine.

A test set is only a test the first time: who looks at its figures and changes the model fits it. That cannot be
prevented, so it is counted and printed. ``MEDZOO_HOME/evaluations`` holds a file for each data set, readable by its
user alone, to which each evaluation appends a line of JSON: the time, the model's digest, what was evaluated and the
version of medzoo. There is no path and no patient in it. Evaluations on other machines are not known.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medzoo.errors import ConfigError
from medzoo.evaluation.scores import Scores
from medzoo.io.hashing import hash_text
from medzoo.version import __version__
from medzoo.warn import warn
from medzoo.weights.cache import advisory_lock, home

__all__ = ["Opened", "fingerprint_of", "record_opening"]

LOCK_TIMEOUT = 10.0
"""Seconds to wait for another evaluation that appends its line, before appending without the lock."""
_DIGEST = re.compile(r"(sha256:)?[0-9a-f]{16,64}")


@dataclass(frozen=True)
class Opened:
    """How often the labels of some data were used, as far as this machine knows.

    Attributes:
        times: evaluations, with this one.
        models: different models among them.
        unreadable: lines that could not be read and are not counted.
    """

    times: int
    models: int
    unreadable: int = 0

    def __str__(self) -> str:
        """Return it as a sentence.

        >>> print(Opened(1, 1), Opened(3, 2), sep="; ")
        the first evaluation on this data on this machine; evaluation 3 on this data on this machine, of 2 models
        """
        if self.times == 1 and not self.unreadable:
            return "the first evaluation on this data on this machine"
        models = f"{self.models:,} model{'s' * (self.models != 1)}"
        unread = f"; {self.unreadable:,} damaged lines are not counted" if self.unreadable else ""
        return f"evaluation {self.times:,} on this data on this machine, of {models}{unread}"


def fingerprint_of(scores: Scores, identities: Sequence[str] | NDArray[np.str_] | None = None) -> str:
    """Return what stands for the data of some scores: a sha256 of its images and labels, in any order.

    Neither the scores nor the order and names of rows and columns change it. Other rows do, and so does a label that
    was corrected.

    Args:
        scores: one row for each image.
        identities: the hash of the decoded pixels of each row, as :class:`medzoo.data.identity.Identities` has them.
            Without them an image is known by its id, which is a path as it was given, and may differ elsewhere.

    Raises:
        ConfigError: not one for each row.
    """
    names = scores.ids if identities is None else np.asarray(identities)
    if len(names) != len(scores):
        raise ConfigError(f"fingerprint_of: expected {len(scores):,} identities, one for each row, got {len(names):,}.")
    columns = np.argsort(np.array(scores.labels, dtype=np.str_), kind="stable")
    targets = np.where(np.isnan(scores.targets), 2, scores.targets).astype(np.uint8)[:, columns]
    digests = sorted(
        hashlib.sha256(str(name).encode(errors="backslashreplace") + b"\0" + row.tobytes()).digest()
        for name, row in zip(names.tolist(), targets, strict=True)
    )
    return hashlib.sha256(b"".join(digests)).hexdigest()


def record_opening(fingerprint: str, model: str, what: str) -> Opened | None:
    """Append an evaluation to those of its data, and return how many there are.

    It never stops an evaluation: what cannot be written or read is a warning.

    Args:
        fingerprint: of the data, from :func:`fingerprint_of`.
        model: digest of the model's weights; of any other text only a hash is written.
        what: what was evaluated, in a word or two, such as ``"test"``.

    Returns:
        The count, with this evaluation, or ``None`` if nothing could be written or read.

    Raises:
        ConfigError: not a fingerprint, or a text that is more than a word or two.
    """
    if not re.fullmatch(r"[0-9a-f]{64}", fingerprint):
        raise ConfigError(f"record_opening: expected a fingerprint of 64 hex digits, got {fingerprint[:80]!r}.")
    if not re.fullmatch(r"[\w -]{1,40}", what):
        raise ConfigError(f"record_opening: expected what to be a word or two, such as 'test', got {what[:80]!r}.")
    line = json.dumps({
        "time": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "model": model if _DIGEST.fullmatch(model) else f"text:{hash_text(model, 16)}",
        "what": what,
        "medzoo": __version__,
    })  # fmt: skip
    folder = home() / "evaluations"
    path = folder / f"{fingerprint[:16]}.jsonl"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with advisory_lock(folder / f"{fingerprint[:16]}.lock", LOCK_TIMEOUT, mode=0o600):
            _append(path, line)
            return _count(path.read_bytes())
    except OSError as error:
        warn(
            f"{path}: this evaluation cannot be counted among those of its data ({error.strerror or error}). Set "
            "MEDZOO_HOME to a folder that can be written."
        )
    with suppress(OSError):
        return _count(path.read_bytes() + f"\n{line}\n".encode())
    return None


def _append(path: Path, line: str) -> None:
    """Append a line in one write, after a line break where the last writer was killed within its line."""
    opened = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        size = os.lseek(opened, 0, os.SEEK_END)
        os.lseek(opened, max(0, size - 1), os.SEEK_SET)
        broken = size > 0 and os.read(opened, 1) != b"\n"
        data = f"{chr(10) * broken}{line}\n".encode()
        if os.write(opened, data) != len(data):
            raise OSError("the line was not written completely")
    finally:
        os.close(opened)


def _count(lines: bytes) -> Opened:
    models, times, unreadable = set(), 0, 0
    for line in lines.splitlines():
        if not line.strip():
            continue
        try:
            models.add(str(json.loads(line)["model"]))
            times += 1
        except (ValueError, KeyError, TypeError, RecursionError):
            unreadable += 1
    return Opened(times, len(models), unreadable)
