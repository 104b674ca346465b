"""The decoder of last resort in a process of its own: GDCM can crash on a damaged codestream, past any ``except``.

The process is started when it is first needed and kept: starting it takes a fifth of a second, decoding a slice about
10 ms. It reads one path a line and answers with one word a line; the pixels are beside the file it was given.
"""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["decode_apart"]

_PATIENCE = 120.0  # seconds for one file, after which the process is taken to hang
_LOCK = threading.Lock()
_SOUND, _FAULTY = "sound", "faulty"


class _Child:
    """The running process; it belongs to the process that started it, and not to a fork of that."""

    def __init__(self) -> None:
        root = str(Path(__file__).parents[2])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        self.owner = os.getpid()
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "medzoo.io.dicom.decoder"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        )

    def ask(self, path: Path) -> str:
        """Return the answer, or an empty string if the process died or was stopped for taking too long."""
        pipe_in, pipe_out = self.process.stdin, self.process.stdout
        if pipe_in is None or pipe_out is None:
            return ""
        watch = threading.Timer(_PATIENCE, self.process.kill)
        watch.start()
        try:
            pipe_in.write(f"{path}\n")
            pipe_in.flush()
            return pipe_out.readline().strip()
        except OSError:  # it died between two files
            return ""
        finally:
            watch.cancel()

    def stop(self) -> None:
        """End the process and close its pipes."""
        if self.owner == os.getpid():
            self.process.kill()
            self.process.communicate()


_children: dict[int, _Child] = {}
"""By the process that owns it: after a fork each side has its own."""


def decode_apart(path: Path) -> NDArray[Any] | None:
    """Return the pixels of a DICOM file as SimpleITK decodes them, or ``None`` if it cannot, or finds damage.

    Args:
        path: the file, in a folder that may be written to.
    """
    with _LOCK:
        child = _children.get(os.getpid())
        if child is None or child.process.poll() is not None:
            child = _children[os.getpid()] = _Child()
            atexit.register(child.stop)
        answer = child.ask(path)
        if answer not in (_SOUND, _FAULTY):  # it crashed or was stopped; the next file gets a new one
            atexit.unregister(child.stop)
            child.stop()
            del _children[os.getpid()]
    return np.load(_beside(path), allow_pickle=False) if answer == _SOUND else None


def _beside(path: Path) -> Path:
    return path.with_suffix(".npy")


def _serve() -> None:
    """Answer until the pipe is closed, which also happens when the parent dies."""
    import SimpleITK as sitk  # noqa: N813

    from medzoo.io.itk import read_with_itk

    for line in sys.stdin:
        path = Path(line.rstrip("\n"))
        try:
            image, sound = read_with_itk(path, "GDCMImageIO")
            if sound:
                np.save(_beside(path), sitk.GetArrayFromImage(image))
        except (RuntimeError, MemoryError, OSError):  # SimpleITK's own, or no space for the pixels
            sound = False
        sys.stdout.write(f"{_SOUND if sound else _FAULTY}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve()
