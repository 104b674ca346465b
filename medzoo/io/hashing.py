"""``hash_text``: what stands for the id of a patient in messages and in the identity of an image."""

from __future__ import annotations

import hashlib

__all__ = ["hash_text"]


def hash_text(value: str, digits: int = 12) -> str:
    """Return the first hex digits of the SHA-256 of a text, the same in every part of the package.

    It shows whether two texts are the same, and does not protect against someone who can guess the text.

    >>> hash_text("007"), hash_text("007", 8)
    ('629f4cf9337b', '629f4cf9')
    """
    return hashlib.sha256(value.encode(errors="backslashreplace")).hexdigest()[:digits]
