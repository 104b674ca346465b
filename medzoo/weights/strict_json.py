"""JSON as a weight file or a config may hold it: UTF-8, and no key twice."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["parse"]


def parse(data: bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: not UTF-8, not JSON, or a key is given twice.
        RecursionError: nested too deep.

    >>> parse(b'{"a": 1}')
    {'a': 1}
    """
    return json.loads(data.decode("utf-8"), object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # The reader would keep the last of them in silence.
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("a key is given twice")
    return dict(pairs)
