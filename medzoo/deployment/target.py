"""The files of an export: their names, which of them may be replaced, and that all are written or none."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from medzoo.deployment.export_report import Format
from medzoo.errors import ConfigError, MedzooError, WeightsUnavailable, did_you_mean

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
            ConfigError: another suffix, or the file or its report is there.
        """
        path = Path(file)
        if path.suffix not in FORMATS:
            near = did_you_mean(path.suffix, FORMATS)
            raise ConfigError(f"export: expected a file name that ends in .onnx or .pt2, got {path.name!r}.{near}")
        target = cls(path, FORMATS[path.suffix])
        for one in (target.path, target.report):
            if one.is_dir():
                raise ConfigError(f"{one}: expected a file or nothing, found a folder. Export to another file.")
            if one.exists() and not overwrite:
                raise ConfigError(
                    f"{one}: expected no such file, found one. Export to another, or replace it with overwrite=True."
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

    def check_golden(self, pair: Mapping[str, npt.NDArray[np.float32]], tolerance: float, overwrite: bool) -> None:
        """Raise ConfigError if the golden pair of another model, or of other weights, is there."""
        if overwrite or not self.golden.exists():
            return
        try:
            with np.load(self.golden) as found:
                same = set(found) == set(pair) and all(
                    np.allclose(found[name], value, rtol=tolerance, atol=tolerance) for name, value in pair.items()
                )
        except (OSError, ValueError):
            same = False
        if not same:
            raise ConfigError(
                f"{self.golden}: expected none, or that of the same weights, found another. Export under another name, "
                "or replace it with overwrite=True."
            )

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """Give a folder whose files move beside the target at the end; on an error, leave nothing.

        Raises:
            WeightsUnavailable: the folder of the target cannot be written.
        """
        parent = self.path.parent
        made = [folder for folder in (parent, *parent.parents) if not folder.exists()]
        try:
            parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=parent, prefix=".medzoo-") as staged:
                yield Path(staged)
                # The file itself is the last: with it the export is complete.
                for path in sorted(Path(staged).iterdir(), key=lambda one: one.name == self.path.name):
                    path.replace(parent / path.name)
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
