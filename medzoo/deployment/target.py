"""The files of an export: their names, which of them may be replaced, and that all are written or none."""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from medzoo.deployment.export_report import Format
from medzoo.errors import ConfigError, MedzooError, WeightsUnavailable, did_you_mean
from medzoo.weights.config import CONFIG_FILE

__all__ = ["ExportTarget"]

FORMATS: dict[str, Format] = {".onnx": "onnx", ".pt2": "pt2"}


class ExportTarget(NamedTuple):
    """Where an export goes.

    Attributes:
        path: the exported file.
        format: by its suffix.
    """

    path: Path
    format: Format

    @classmethod
    def of(cls, file: str | os.PathLike[str], overwrite: bool) -> ExportTarget:
        """Check the name of a file, and that nothing is there that may not be replaced.

        Raises:
            ConfigError: not a path, another suffix, the file is there, or a folder has the name of one of the files.
        """
        given = os.fspath(file) if isinstance(file, os.PathLike) else file
        if not isinstance(given, str) or "\0" in given:
            raise ConfigError(f"export: expected the path of a file, got {file!r}. Such as 'model.onnx'.")
        path = Path(given)
        suffix = path.suffix.lower()
        if suffix not in FORMATS:
            near = did_you_mean(suffix, FORMATS)
            raise ConfigError(f"export: expected a file name that ends in .onnx or .pt2, got {path.name!r}.{near}")
        target = cls(path, FORMATS[suffix])
        for one in (path, target.report, target.golden, path.with_name(CONFIG_FILE)):
            if os.path.isdir(one):  # noqa: PTH112  # Path.is_dir raises for a name that is too long
                raise ConfigError(f"{one}: expected a file or nothing, found a folder. Export to another file.")
        # A report without its file is that of an export that was interrupted, or was removed.
        if os.path.lexists(path) and not overwrite:
            raise ConfigError(
                f"{path}: expected no such file, found one. Export to another, or replace it with overwrite=True."
            )
        return target

    @property
    def report(self) -> Path:
        """``NAME.onnx.json`` or ``NAME.pt2.json``."""
        return self.path.with_name(f"{self.path.name}.json")

    @property
    def golden(self) -> Path:
        """``NAME.golden.npz``, which two formats of one model share."""
        return self.path.with_name(f"{self.path.stem}.golden.npz")

    def replaces_golden(self, pair: Mapping[str, npt.NDArray[Any]], tolerance: float, overwrite: bool) -> bool:
        """Return whether the golden pair is to be written: one of the same weights that is there is kept.

        Raises:
            ConfigError: that of another model, or of other weights, is there.
        """
        if overwrite or not os.path.lexists(self.golden):
            return True
        try:
            with self.golden.open("rb") as file, np.load(file) as found:
                # The digest decides: outputs of the same weights differ by rounding, as between numbers of threads.
                same = set(found) == set(pair) and all(
                    np.array_equal(found[name], value)
                    if name in ("image", "weights")
                    else np.allclose(found[name], value, rtol=tolerance, atol=tolerance)
                    for name, value in pair.items()
                )
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            same = False
        if not same:
            raise ConfigError(
                f"{self.golden}: expected none, or that of the same weights, found another. Export under another name, "
                "or replace it with overwrite=True."
            )
        return False

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """Give a folder whose files move beside the target at the end; on an error, leave what was there.

        Raises:
            WeightsUnavailable: the folder of the target cannot be written.
        """
        parent = self.path.parent
        made: list[Path] = []
        try:
            made += [folder for folder in (parent, *parent.parents) if not folder.exists()]
            parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=parent, prefix=".medzoo-") as staged:
                new, old = Path(staged, "new"), Path(staged, "old")
                new.mkdir()
                old.mkdir()
                yield new
                self._move(new, old)
        except BaseException as error:
            for folder in made:
                with suppress(OSError):  # others may have written to it
                    folder.rmdir()
            if isinstance(error, OSError) and not isinstance(error, MedzooError):
                raise WeightsUnavailable(
                    f"{parent}: the export cannot be written ({error.strerror or error}). Check the path, its "
                    "permissions and the free space."
                ) from error
            raise

    def _move(self, new: Path, old: Path) -> None:
        """Move files beside the target, and those that were there to ``old``; on an error, move them back.

        The file itself goes first and comes last, so that it is never beside the other files of another export.
        """
        parent = self.path.parent
        names = sorted((one.name for one in new.iterdir()), key=lambda name: name == self.path.name)
        try:
            for name in reversed(names):
                if os.path.lexists(parent / name):
                    (parent / name).replace(old / name)
            for name in names:
                (new / name).replace(parent / name)
        except BaseException:
            for name in reversed(names):
                if not (new / name).exists():
                    (parent / name).unlink(missing_ok=True)
            for name in names:
                if os.path.lexists(old / name):
                    (old / name).replace(parent / name)
            raise
