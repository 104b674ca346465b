"""``PixelStore``: the preprocessed images of a table, cached, and the identity of their pixels.

Axes: n rows, c channels, s spatial axes.
"""

from __future__ import annotations

import hashlib
import json
import logging
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medzoo.data.identity import Dropped, Identities, PixelIdentity, list_rows
from medzoo.data.one_thread import one_thread
from medzoo.data.pixel_file import MemoryRows, PixelFile, RowWriter
from medzoo.data.pixel_folder import PixelFolder
from medzoo.data.pixel_hashes import content_of_row, decode_row, identify_row, name_row
from medzoo.data.pixel_index import PixelIndex, decoders
from medzoo.data.pixel_report import PixelReport
from medzoo.data.pixel_values import decode, storage_type
from medzoo.data.table import Table
from medzoo.errors import ConfigError, DataError, WrongImage
from medzoo.io.image import Image
from medzoo.progress import track
from medzoo.transforms.transform import CheckedImage, Prepared, Transform
from medzoo.warn import warn

__all__ = ["PREPROCESSING_VERSION", "CacheMode", "CachePlan", "PixelStore"]

logger = logging.getLogger("medzoo")

CacheMode = Literal["off", "memory", "disk"]

PREPROCESSING_VERSION = 2
"""Part of the key of every cached file: raise it when the same image gives other preprocessed values."""

# What resamples, beside what decodes.
_RESAMPLERS = ("torch", "torchvision", "monai")
GB = 10**9


@dataclass(frozen=True)
class CachePlan:
    """What a cache will take.

    Attributes:
        bytes: its size, if all images are stored as the first one is.
        dtype: how values are stored; see :mod:`medzoo.data.pixel_values`.
        shape: ``n c *s``; grey that is repeated to several channels is stored once.
    """

    bytes: int
    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.shape[0]:,} images, {self.dtype}, {self.bytes / 1e6:,.1f} MB"


@dataclass(eq=False)
class _OpenImage:
    """A decoded image, which is checked and identified once for all rows that are about points in it."""

    name: str | int
    image: Image
    checked: CheckedImage | None = None
    identity: PixelIdentity | None = None


class PixelStore:
    """The images of a table after preprocessing and before ``Transform.normalise``.

    All images are read once when it is made, with any ``cache``, so that whatever is wrong with any of them is known
    before a training starts. It can be pickled to the workers of a loader, read by several threads, and used as a
    context manager.

    ``"memory"`` and ``"disk"`` store values as :mod:`medzoo.data.pixel_values` describes, and give the same bits.
    ``"off"`` stores none: an image is read and preprocessed each time, without that rounding.

    Args:
        table: the table.
        transform: the preprocessing, from :func:`medzoo.transform`.
        cache: where preprocessed images are kept. ``"disk"`` is the folder ``pixels`` in ``MEDZOO_HOME``, and becomes
            ``"memory"``, with a warning, where that cannot be written.
        quota_gb: the most GB of that folder; those used longest ago are removed.
        unreadable: ``"refuse"`` raises an error that lists the images that cannot be read, ``"drop"`` puts them in
            ``dropped``, which a split leaves out.
        allow_mismatch: accept images of another kind than the model is for.

    Attributes:
        cache: where the images are: ``"off"``, ``"memory"`` or ``"disk"``.
        dropped: the rows of images that cannot be read.
        identities: the hash of the decoded pixels of each row.
        warnings: what is known against an image, by row.
        notes: the same, counted, with an example.
        counts: the same without the example, for a report that others read.

    Raises:
        WrongImage: a DataError; images of another kind, all of them listed.
        DataError: images that cannot be read, all of them listed; or the cache does not fit the quota or the disk.
        ConfigError: an unknown ``cache`` or ``unreadable``.
    """

    def __init__(
        self,
        table: Table,
        transform: Transform,
        *,
        cache: CacheMode = "disk",
        quota_gb: float = 100.0,
        unreadable: Literal["refuse", "drop"] = "refuse",
        allow_mismatch: bool = False,
    ) -> None:
        _check_choice("cache", cache, ("off", "memory", "disk"))
        _check_choice("unreadable", unreadable, ("refuse", "drop"))
        self.table, self.transform, self.cache = table, transform, cache
        self.unreadable, self.allow_mismatch = unreadable, allow_mismatch
        self._values: MemoryRows | PixelFile | None = None
        self._last: _OpenImage | None = None
        self._check_points()
        self._report = self._make(int(quota_gb * GB))
        self._refuse(self._report)  # of a file that was made with another choice
        self._skipped = frozenset((*self._report.unreadable, *self._report.wrong))
        self.dropped = tuple(
            Dropped(row, str(table.ids[row]), f"cannot be used: {text}")
            for row, text in sorted(self._report.unreadable.items())
        )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_last": None}

    def __enter__(self) -> PixelStore:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the cached file, which may then be removed to make room; a later read opens it again."""
        if self._values is not None:
            self._values.close()

    def read(self, row: int) -> Tensor:
        """Return the image of a row, ``c *s`` float32, before ``Transform.normalise``; it is the caller's to change.

        Raises:
            DataError: the row was dropped, the image cannot be read any more, or the cached file was changed.
        """
        if row in self._skipped:
            raise DataError(f"{name_row(self.table, row)}: this image was dropped, as it cannot be read.")
        if self._values is None:
            return self._prepare(row, self._open(row)).tensor
        x = decode(self._values.read(row))
        return torch.from_numpy(x if len(x) == self.transform.channels else x.repeat(self.transform.channels, axis=0))

    @property
    def identities(self) -> Identities:
        """The hash of the decoded pixels of each row, by which a split compares images."""
        constant = np.zeros(len(self.table), bool)
        constant[self._report.constant] = True
        return Identities(np.array(self._report.pixels, dtype=np.str_), constant, self.dropped)

    @property
    def warnings(self) -> dict[int, str]:
        """What is known against an image that is used, by row."""
        return dict(self._report.warnings)

    @property
    def notes(self) -> tuple[str, ...]:
        """How many images were dropped, have warnings or are of another kind, each with an example."""
        return tuple(f"{count}: {rows[min(rows)]}" for count, rows in self._counted())

    @property
    def counts(self) -> tuple[str, ...]:
        """The same without the example, which names an image."""
        return tuple(count for count, _ in self._counted())

    def _counted(self) -> list[tuple[str, dict[int, str]]]:
        """Return what is known against images, and the text of each by row."""
        found = (
            ("cannot be used and were dropped", self._report.unreadable),
            ("have a warning", self._report.warnings),
            ("are of another kind than the model is for, which was allowed", self._report.mismatches),
        )
        n = len(self.table)
        return [(f"{len(rows):,} of {n:,} images {what}", rows) for what, rows in found if rows]

    @staticmethod
    def plan(table: Table, transform: Transform) -> CachePlan:
        """Return the size that a cache will have, without making it; reads the first image that can be read."""
        kind, channels = "float32", transform.channels
        for row in range(len(table)):
            with suppress(DataError):
                image = decode_row(table, row, transform.channels)
                x = transform.pixels(image, table.point(row), allow_mismatch=True).tensor.numpy()
                trial = MemoryRows(1, transform.preprocessing.size)
                trial.put(0, x, storage_type(x, image, transform.preprocessing))
                kind, channels = trial.kind, trial.channels
                break
        shape = (len(table), channels, *transform.preprocessing.size)
        return CachePlan(int(np.prod(shape)) * np.dtype(kind).itemsize + 4 * len(table), kind, shape)

    def _open(self, row: int) -> _OpenImage:
        """Return the image of a row; one that rows after each other are about is read once."""
        if self.table.points is None:
            return _OpenImage(row, decode_row(self.table, row, self.transform.channels))
        name = row if self.table.paths is None else str(self.table.paths[row])
        last = self._last
        if last is None or last.name != name:
            last = self._last = _OpenImage(name, decode_row(self.table, row, self.transform.channels))
        return last

    def _prepare(self, row: int, opened: _OpenImage) -> Prepared:
        if opened.checked is None:
            opened.checked = self.transform.check(opened.image, self.allow_mismatch)
        return self.transform.pixels_of(opened.checked, self.table.point(row))

    def _identify(
        self, row: int, opened: _OpenImage, contents: list[str] | None, index: PixelIndex | None
    ) -> PixelIdentity:  # fmt: skip
        if opened.identity is None:
            opened.identity = identify_row(self.table, row, opened.image, contents, index)
        return opened.identity

    def _order(self) -> NDArray[np.int64]:
        """Return the rows in the order in which they are read: those of one image after each other."""
        rows = np.arange(len(self.table))
        if self.table.points is None or self.table.paths is None:
            return rows
        first: dict[str, int] = {}
        return np.argsort(
            [first.setdefault(str(path), row) for row, path in enumerate(self.table.paths)], kind="stable"
        )

    def _check_points(self) -> None:
        """Raise ConfigError unless the rows have points exactly where the model takes patches around them."""
        who, patch = self.transform.who, self.transform.preprocessing.patch
        if self.table.points is not None and patch is None:
            raise ConfigError(
                f"{self.table.source}: its rows are about points, and {who} takes complete images. State the sides in "
                "mm of the box around a point: data.patch in a recipe, patch= in the model's Preprocessing."
            )
        if self.table.points is None and patch is not None:
            raise ConfigError(
                f"{self.table.source}: {who} takes patches around points, and the rows have none. Give the columns of "
                "the points: data.point in a recipe, point= of Table.from_csv."
            )

    def _make(self, quota: int) -> PixelReport:
        """Find or make the cache, and return the report on the images."""
        n, size = len(self.table), self.transform.preprocessing.size
        if self.cache == "off":
            return self._examine(None, None, None)
        if self.cache == "disk":
            folder = PixelFolder(quota)
            try:
                folder.create()
            except OSError as error:
                warn(
                    f"{folder.path} cannot be written ({error.strerror or error}): preprocessed images are kept in "
                    "memory. Set MEDZOO_HOME to a folder that can be written, or give cache='memory'."
                )
                self.cache = "memory"
            else:
                return self._find_or_build(folder)
        rows = MemoryRows(n, size)
        report = self._examine(rows, None, None)
        self._values = rows
        return report

    def _find_or_build(self, folder: PixelFolder) -> PixelReport:
        with PixelIndex(folder.path, self.transform.channels) as index:
            contents = [
                content_of_row(self.table, row, index) for row in track(range(len(self.table)), "comparing files")
            ]
            key = self._key(contents)
            found = folder.find(key)
            if found is None:
                with folder.building(key, self.table.source):
                    found = folder.find(key) or self._build(folder, key, contents, index)
        self._values, report = found
        return PixelReport.from_json(report, self.table)

    def _build(
        self, folder: PixelFolder, key: str, contents: list[str], index: PixelIndex
    ) -> tuple[PixelFile, dict[str, Any]]:
        """Write the file, completely or not at all."""
        plan = self.plan(self.table, self.transform)
        logger.info("%s: caching %s under %s", self.table.source, plan, folder.path)
        folder.make_room(plan.bytes)
        try:
            writer = folder.writer(key, len(self.table), self.transform.preprocessing.size)
            try:
                report = self._examine(writer, contents, index)
                writer.commit(report.to_json(self.table))
            finally:
                writer.abort()
        except OSError as error:
            raise folder.disk_error(error) from error
        found = folder.find(key)
        if found is None:
            raise folder.disk_error(OSError("the file that was written cannot be read back"))
        return found

    def _examine(self, writer: RowWriter | None, contents: list[str] | None, index: PixelIndex | None) -> PixelReport:
        """Read and preprocess all images, once, and collect what is wrong with them."""
        report = PixelReport()
        with one_thread():
            self._examine_rows(report, writer, contents, index)
        self._last = None
        self._refuse(report)
        return report

    def _examine_rows(
        self, report: PixelReport, writer: RowWriter | None, contents: list[str] | None, index: PixelIndex | None
    ) -> None:
        report.pixels = [""] * len(self.table)
        for row in track(self._order().tolist(), "reading images"):
            identity = PixelIdentity("", False)
            try:
                opened = self._open(row)
                identity = self._identify(row, opened, contents, index)
                found = self._prepare(row, opened)
                x = found.tensor.numpy()
                if writer is not None:
                    writer.put(row, x, storage_type(x, opened.image, self.transform.preprocessing))
                for text, rows in ((found.warning, report.warnings), (found.mismatch, report.mismatches)):
                    if text:
                        rows[row] = text
            except WrongImage as error:
                report.wrong[row] = str(error)
            except DataError as error:
                identity = PixelIdentity("", False)
                report.unreadable[row] = str(error)
            report.pixels[row] = identity.pixels
            report.constant += [row] * identity.constant

    def _refuse(self, report: PixelReport) -> None:
        """Raise one error for all images that cannot be used."""
        faults = report.wrong | (report.unreadable if self.unreadable == "refuse" else {})
        if not faults and (len(report.unreadable) < len(self.table) or not len(self.table)):
            return
        faults |= report.unreadable
        listed = list_rows([f"{name_row(self.table, row)}: {faults[row]}" for row in sorted(faults)], "\n  ")
        advice = ["Correct or remove them"]
        if report.unreadable and self.unreadable == "refuse":
            advice.append("give unreadable='drop' to leave out those that cannot be read")
        if report.wrong:
            advice.append("give allow_mismatch=True to use those of another kind")
        kind = WrongImage if not report.unreadable else DataError
        raise kind(
            f"{self.table.source}: {len(faults):,} of {len(self.table):,} images cannot be used. "
            f"{', or '.join(advice)}.\n  {listed}"
        )

    def _key(self, contents: list[str]) -> str:
        """Return the name of the cached file: everything that its values and its report depend on."""
        about = {
            "version": PREPROCESSING_VERSION,
            "libraries": decoders() | {name: metadata.version(name) for name in _RESAMPLERS},
            "preprocessing": asdict(self.transform.preprocessing),
            "channels": self.transform.channels,
            "model": self.transform.who,
            "intended_use": repr(self.transform.intended_use),
            "allow_mismatch": self.allow_mismatch,
            "images": contents,
        }
        if self.table.points is not None:
            about["points"] = hashlib.sha256(self.table.points.astype("<f8").tobytes()).hexdigest()
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _check_choice(name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"PixelStore: expected {name} to be {', '.join(map(repr, known))}, got {value!r}.")
