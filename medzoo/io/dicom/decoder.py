"""Decode one compressed frame with SimpleITK in a separate process: GDCM can crash on a damaged codestream.

The process starts at the first call and stays: starting it takes a fifth of a second, decoding a slice about 10 ms. It
reads one path per line and answers with one word per line; the samples are written next to the file it was given.

GDCM's libjpeg returns a picture whose data are damaged, and reports that on stderr only, among lines about data that
are sound. The stderr of the separate process is its own, so collecting it redirects nothing in the caller's.
"""

from __future__ import annotations

import atexit
import os
import sys
import tempfile
import threading
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medzoo.io.codestream import Codestream, declare_rgb

__all__ = ["decode_frame"]

_TIMEOUT = 120.0  # seconds for one frame, after which the process is killed
_SOUND, _FAILED = "sound", "failed"

_DAMAGE = (
    "Corrupt JPEG data", "Premature end of JPEG file", "Inconsistent progression sequence",  # libjpeg
    "tile part", "tile-part", "Tile-part", "segment too long", "truncated", "Failed to decode",  # OpenJPEG
)  # fmt: skip
"""What a codec prints about damaged data. Other lines are printed about sound ones, such as "Unsupported JPEG data
precision 12" by the first of the three libjpegs that GDCM tries."""


class _Decoder:
    """The running process; it belongs to the process that started it, and not to a fork of that."""

    def __init__(self) -> None:
        paths = filter(None, [str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH")])
        env = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        command = [sys.executable, "-P", "-W", "ignore", "-m", "medzoo.io.dicom.decoder"]
        self.owner = os.getpid()
        # Unbuffered: a buffer has a lock, which a fork could copy while another thread holds it.
        self.process = Popen(command, bufsize=0, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env=env)

    def ask(self, path: Path) -> str:
        """Return the answer, or an empty string if the process died or was killed after the timeout."""
        timer = threading.Timer(_TIMEOUT, self.process.kill)
        timer.daemon = True
        timer.start()
        try:
            if self.process.stdin and self.process.stdout:
                self.process.stdin.write(os.fsencode(path) + b"\n")
                return self.process.stdout.readline().decode().strip()
        except OSError:  # it died between two frames
            pass
        finally:
            timer.cancel()
        return ""

    def stop(self) -> None:
        """End the process and close its pipes."""
        if self.owner == os.getpid():
            self.process.kill()
            self.process.communicate()

    def forget(self) -> None:
        """Close a fork's copies of the pipes; the process itself is another's."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                pipe.close()
        self.process.returncode = 0  # no warning that it still runs


class _State:
    """The one process, and the lock that gives it one frame at a time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.decoder: _Decoder | None = None

    def restart_after_fork(self) -> None:
        """Give a fork a lock of its own, since another thread may have held this one, and no process."""
        if self.decoder is not None:
            self.decoder.forget()
        self.lock, self.decoder = threading.Lock(), None


_state = _State()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_state.restart_after_fork)


def decode_frame(codestream: bytes, form: Codestream, syntax: str) -> NDArray[Any]:
    """Return the samples of one frame as they were compressed, ``h w`` or ``h w s``.

    Args:
        codestream: the compressed frame.
        form: what its header declares.
        syntax: the UID of its transfer syntax.

    Raises:
        ValueError: SimpleITK cannot decode it, or finds damage.
    """
    if not form.complete:
        raise ValueError("the codestream has no end")  # GDCM would return undefined samples
    with tempfile.TemporaryDirectory(prefix="medzoo-") as folder:
        file = Path(folder) / "frame.dcm"
        _write_frame(file, declare_rgb(codestream) if form.samples == 3 else codestream, form, syntax)
        if _ask(file) != _SOUND:
            raise ValueError("SimpleITK cannot decode the codestream, or finds damage in it")
        samples = np.load(file.with_suffix(".npy"), allow_pickle=False)
    shape = (form.rows, form.columns) + ((form.samples,) if form.samples > 1 else ())
    if samples.size != np.prod(shape):
        raise ValueError("SimpleITK returns another number of samples than the codestream declares")
    return np.asarray(samples.reshape(shape))


def _ask(file: Path) -> str:
    """Ask the process, which is started where there is none; a process that gave no answer is ended."""
    with _state.lock:
        decoder = _state.decoder
        if decoder is None or decoder.process.poll() is not None:
            if decoder is not None:
                _end(decoder)
            decoder = _state.decoder = _Decoder()
            atexit.register(decoder.stop)
        answer = decoder.ask(file)
        if answer not in (_SOUND, _FAILED):  # it crashed or was killed; the next frame gets a new one
            _end(decoder)
            _state.decoder = None
        return answer


def _end(decoder: _Decoder) -> None:
    atexit.unregister(decoder.stop)
    decoder.stop()


def _write_frame(file: Path, codestream: bytes, form: Codestream, syntax: str) -> None:
    """Write a DICOM file of one frame, with nothing about the patient.

    It declares what the codestream does: GDCM writes an image of the codestream's size into memory allocated for the
    header's. Grey and RGB, and no rescale, so that it only decodes, and does not convert or invert.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import SecondaryCaptureImageStorage, generate_uid

    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    ds.Rows, ds.Columns, ds.SamplesPerPixel = form.rows, form.columns, form.samples
    ds.PhotometricInterpretation = "MONOCHROME2" if form.samples == 1 else "RGB"
    if form.samples > 1:
        ds.PlanarConfiguration = 0
    ds.BitsAllocated = 8 if form.precision <= 8 else 16
    ds.BitsStored, ds.HighBit, ds.PixelRepresentation = form.precision, form.precision - 1, int(form.signed)
    ds.PixelData = encapsulate([codestream])
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.save_as(file, enforce_file_format=True)


def _serve() -> None:
    """Answer until the pipe is closed, which also happens when the parent process dies."""
    import SimpleITK as sitk  # noqa: N813

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    with tempfile.TemporaryFile() as printed:
        os.dup2(printed.fileno(), 2)  # of this process alone
        for line in sys.stdin.buffer:
            path = Path(os.fsdecode(line.rstrip(b"\n")))
            printed.seek(0)
            printed.truncate()
            try:
                reader.SetFileName(str(path))
                samples = sitk.GetArrayFromImage(reader.Execute())
                printed.seek(0)
                text = printed.read().decode(errors="replace")
                sound = not any(message in text for message in _DAMAGE)
                if sound:
                    np.save(path.with_suffix(".npy"), samples)
            except (RuntimeError, MemoryError, OSError):  # SimpleITK's own, or no space for the samples
                sound = False
            sys.stdout.write(f"{_SOUND if sound else _FAILED}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    _serve()
