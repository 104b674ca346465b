"""Decode DICOM pixels with SimpleITK in a separate process: GDCM can crash on a damaged codestream.

The process starts at the first call and stays: starting it takes a fifth of a second, decoding a slice about 10 ms. It
reads one path per line and answers with one word per line; the pixels are written next to the file it was given.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["decode_in_subprocess"]

_TIMEOUT = 120.0  # seconds for one file, after which the process is killed
_LOCK = threading.Lock()
_SOUND, _DAMAGED = "sound", "damaged"


class _Decoder:
    """The running process; it belongs to the process that started it, and not to a fork of that."""

    def __init__(self) -> None:
        paths = filter(None, [str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH")])
        self.owner = os.getpid()
        env = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        command = [sys.executable, "-P", "-m", "medzoo.io.dicom.decoder"]
        self.process = Popen(command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, text=True, env=env)

    def ask(self, path: Path) -> str:
        """Return the answer, or an empty string if the process died or was killed after the timeout."""
        timer = threading.Timer(_TIMEOUT, self.process.kill)
        timer.start()
        try:
            print(path, file=self.process.stdin, flush=True)
            return self.process.stdout.readline().strip() if self.process.stdout else ""
        except OSError:  # it died between two files
            return ""
        finally:
            timer.cancel()

    def stop(self) -> None:
        """End the process and close its pipes."""
        if self.owner == os.getpid():
            self.process.kill()
            self.process.communicate()


_decoders: dict[int, _Decoder] = {}
"""By the process that owns it: after a fork each process has its own."""


def decode_in_subprocess(path: Path) -> NDArray[Any] | None:
    """Return the pixels of a DICOM file as SimpleITK decodes them, or ``None`` if it cannot, or finds damage.

    Args:
        path: the file, in a folder that can be written to.
    """
    with _LOCK:
        decoder = _decoders.get(os.getpid())
        if decoder is None or decoder.process.poll() is not None:
            decoder = _decoders[os.getpid()] = _Decoder()
            atexit.register(decoder.stop)
        answer = decoder.ask(path)
        if answer not in (_SOUND, _DAMAGED):  # it crashed or was killed; the next file gets a new one
            atexit.unregister(decoder.stop)
            decoder.stop()
            del _decoders[os.getpid()]
    return np.load(path.with_suffix(".npy"), allow_pickle=False) if answer == _SOUND else None


def _serve() -> None:
    """Answer until the pipe is closed, which also happens when the parent process dies."""
    import SimpleITK as sitk  # noqa: N813

    from medzoo.io.metaimage import read_with_itk

    for line in sys.stdin:
        path = Path(line.rstrip("\n"))
        try:
            image, sound = read_with_itk(path, "GDCMImageIO")
            if sound:
                np.save(path.with_suffix(".npy"), sitk.GetArrayFromImage(image))
        except (RuntimeError, MemoryError, OSError):  # SimpleITK's own, or no space for the pixels
            sound = False
        sys.stdout.write(f"{_SOUND if sound else _DAMAGED}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve()
