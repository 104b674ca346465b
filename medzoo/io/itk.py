"""SimpleITK, and other code in C, without its noise: what it prints may be the only word on damage it passed over."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["listening", "read_with_itk"]

_ONE_AT_A_TIME = threading.Lock()


@contextmanager
def listening() -> Iterator[list[str]]:
    """Keep what is printed to stderr from C away from the user, and yield it, filled when the block ends.

    The file descriptor belongs to the whole process, so one thread listens at a time. Lines that are mere warnings,
    such as libtiff's on a private tag, are dropped.
    """
    heard: list[str] = []
    with _ONE_AT_A_TIME, tempfile.TemporaryFile() as sink:
        sys.stderr.flush()
        kept = os.dup(2)
        try:
            os.dup2(sink.fileno(), 2)
            yield heard
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            sink.seek(0)
            lines = sink.read().decode(errors="replace").splitlines()
            heard.extend(line for line in lines if "warning" not in line.lower())


def read_with_itk(path: Path, reader: str) -> tuple[Any, bool]:
    """Return the SimpleITK image of a file, and whether its parts are content with it.

    GDCM's libjpeg and MetaIO hand back an image whose data are damaged, and say so only on stderr.

    Args:
        path: the file.
        reader: the name of the ITK reader, so that ITK does not guess.
    """
    import SimpleITK as sitk  # noqa: N813

    warned = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        with listening() as heard:
            image = sitk.ReadImage(str(path), imageIO=reader)
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(warned)
    return image, not heard
