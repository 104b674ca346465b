"""Small tables and pixels that tests of loading share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from medzoo.contract import Preprocessing
from medzoo.data.pixels import CacheMode, PixelStore
from medzoo.data.split import _MADE, Part
from medzoo.data.table import Table
from medzoo.transforms.transform import Transform


def drawn_part(n: int, *, size: int = 8, folder: Path | None = None) -> Part:
    """Return n volumes of random values for training, in files of ``folder`` if one is given."""
    images = np.random.default_rng(3).random((n, 1, size, size, size), np.float32)
    table = Table(
        ids=np.array([f"array {i}" for i in range(n)], str),
        targets=(np.arange(n) % 2)[:, None].astype(np.float32),
        labels=("found",),
        task="binary",
        arrays=images,
        patients=np.array([f"p{i}" for i in range(n)], str),
        lines=np.arange(n),
        source="the table",
    )
    if folder is not None:
        names = [f"{i}.npy" for i in range(n)]
        for name, image in zip(names, images, strict=True):
            np.save(folder / name, image)
        table = replace(table, arrays=None, ids=np.array(names), paths=np.array([str(folder / name) for name in names]))
    return Part(table, np.arange(n), "train", made=_MADE)


def stored(part: Part, *, size: int = 8, cache: CacheMode = "memory", **options: Any) -> PixelStore:
    """Return the pixels of volumes, as z-scores."""
    how = Preprocessing(**{"size": (size,) * 3, "orientation": "SPL", "intensity": "zscore"} | options)
    return PixelStore(part.table, Transform(how, 1, "model"), cache=cache if len(part) else "off")
