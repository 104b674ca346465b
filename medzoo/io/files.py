"""What every reader needs: the format of a file from its bytes, limits on its size, and errors that name the file.

The format is decided by content, not by the file name: hospitals rename files, and archives name them ``IM0001``.
"""

from __future__ import annotations

import gzip
import os
import re
import struct
import sys
import threading
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from medzoo.errors import DataError, MedzooError

__all__ = [
    "DEFLATE_LIMIT", "MAX_VOXELS", "check_frame", "check_size", "existing", "has_image_suffix", "identify",
    "inflated_size", "is_outside_readers", "join_sizes", "select_page", "unknown_format", "wrap_read_errors",
]  # fmt: skip

MAX_VOXELS = 2**29
"""Default limit on the values of one image: a 512 × 512 × 2048 CT, 2 GiB as float32."""

DEFLATE_LIMIT = 1032
"""The most bytes that one byte of a deflate stream can expand to."""

# What Python, NumPy and the format libraries raise on malformed bytes. Programming errors such as AttributeError are
# included because the libraries raise them on missing fields; the reader tests make sure that ours are not hidden here.
_LIBRARY_ERRORS = (
    ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError, OSError, RuntimeError,
    StopIteration, SyntaxError, TypeError, ValueError, struct.error, zlib.error,
)  # fmt: skip

_FORMATS = "PNG, JPEG, TIFF, DICOM, NIfTI, MHD, MHA or NPY"
_HEAD = 352  # a NIfTI-1 header and its extension flag
_IMAGE_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".dcm", ".dicom", ".ima", ".nii", ".nii.gz", ".mhd", ".mha", ".npy",
)  # fmt: skip
_METAIMAGE_KEYS = {
    b"ObjectType", b"ObjectSubType", b"NDims", b"Comment", b"DimSize", b"ElementType", b"ElementSpacing", b"BinaryData",
    b"BinaryDataByteOrderMSB", b"ElementByteOrderMSB", b"CompressedData", b"TransformMatrix", b"Offset",
}  # fmt: skip
_OTHER_FORMATS = {
    b"GIF8": "a GIF", b"BM": "a BMP", b"PK\x03\x04": "a zip archive (.npz or .zip)", b"%PDF": "a PDF",
    b"version https://git-lfs": "a Git LFS pointer (run git lfs pull)", b"\x89HDF": "an HDF5 file", b"NRRD": "an NRRD",
    b"<": "a web page or XML", b"\x00\x00\x00\x0cjP": "a bare JPEG 2000", b"RIFF": "a WebP or other RIFF",
    b"\x1f\x8b": "a gzip file that holds no NIfTI", b"CDF\x01": "a NetCDF or MINC file",
}  # fmt: skip


def existing(path: str | os.PathLike[str]) -> Path:
    """Return the path of a readable file or folder.

    Raises:
        DataError: it does not exist, is not readable, or is an empty file.
    """
    here = Path(path)
    if not os.fspath(path):
        raise DataError("expected a path, got an empty one. Give a file or folder.")
    if "\0" in str(here):
        raise DataError(f"{str(here)!r}: expected a path, got one with a NUL character. Check how it was made.")
    try:
        size = None if here.is_dir() else here.stat().st_size
    except FileNotFoundError:
        raise DataError(f"{here}: expected a file or folder, found nothing there. Check the path.") from None
    except OSError as error:
        raise DataError(f"{here}: cannot be opened ({error.strerror}). Check the path and its permissions.") from None
    if size is not None and not here.is_file():  # reading a pipe or device may never end
        raise DataError(f"{here}: expected a file or folder, found a pipe or device. Copy its content to a file.")
    if not os.access(here, os.R_OK if size is not None else os.R_OK | os.X_OK):
        raise DataError(f"{here}: expected a readable file or folder, permission is denied. Ask for read access.")
    if size == 0:
        raise DataError(f"{here}: expected {_FORMATS}, found an empty file (0 bytes). Copy it again from its source.")
    return here


class _Readers(threading.local):
    """How many readers the thread is in; as the pattern of a filter of warnings, it matches while there is one."""

    count = 0

    def match(self, _: str) -> bool:
        """Return whether to drop a warning; called as the method of a compiled pattern."""
        return self.count > 0


_readers = _Readers()
_FILTER: Any = ("ignore", _readers, Warning, None, 0)


def is_outside_readers(_: object) -> bool:
    """Return whether to keep a message of a library, as a filter of its logger: not while its thread is in a reader."""
    return _readers.count == 0


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Drop the warnings that this thread issues, and no other's.

    ``warnings.catch_warnings`` does so where it is aware of contexts (an option of Python 3.14). Elsewhere it replaces
    the filters of the process, and two threads that leave it in the order they entered leave them replaced; so there a
    filter is put in front of them, once, that matches in threads which are in a reader alone.
    """
    if getattr(sys.flags, "context_aware_warnings", False):
        with warnings.catch_warnings(action="ignore"):
            yield
        return
    filters: Any = warnings.filters
    if not filters or filters[0] is not _FILTER:
        with suppress(ValueError):  # not there, or another thread has just taken it out
            filters.remove(_FILTER)
        filters.insert(0, _FILTER)
    yield


@contextmanager
def wrap_read_errors(path: Path, what: str, *more: type[Exception]) -> Iterator[None]:
    """Raise DataError for any exception of a library that reads ``path``, and drop the warnings that it issues.

    The library's own messages are left out: in DICOM they may quote a patient's name or id.

    Args:
        path: the file, for the message.
        what: what was expected of it, such as ``"a PNG image"``.
        more: exceptions of the library that derive directly from ``Exception``.
    """
    _readers.count += 1
    try:
        with _without_warnings():
            yield
    except MedzooError:
        raise
    except MemoryError:
        raise DataError(
            f"{path}: expected {what} that fits into memory, found one that does not. Free some memory."
        ) from None
    except _LIBRARY_ERRORS + more as error:
        raise DataError(
            f"{path}: expected {what}, found bytes that cannot be read as one ({type(error).__name__}). "
            "The file is damaged or cut short: copy it again from its source, or export it again."
        ) from None
    finally:
        _readers.count -= 1


def join_sizes(sizes: Sequence[int]) -> str:
    """Format sizes as text.

    >>> join_sizes((512, 512, 30))
    '512 × 512 × 30'
    """
    return " × ".join(str(int(size)) for size in sizes)


def check_size(path: Path, count: int, max_voxels: int, sizes: str) -> None:
    """Check the number of values that a header declares before memory is allocated for them.

    Raises:
        DataError: ``count`` is more than ``max_voxels``, or 0.
    """
    if count <= 0:
        raise DataError(
            f"{path}: expected an image with at least one pixel, the header declares {sizes}. Export it again."
        )
    if count > max_voxels:
        raise DataError(
            f"{path}: expected at most {max_voxels} values, the header declares {sizes}, that is {count}. "
            f"If that is right, allow it with max_voxels={count}."
        )


def check_frame(path: Path, frame: int | None, count: int) -> None:
    """Raise DataError unless ``frame`` is ``None`` or the index of one of ``count`` frames, pages or volumes."""
    if frame is not None and frame >= count:
        raise DataError(f"{path}: expected frame below {count}, got frame={frame}. Count frames from 0.")


def select_page(path: Path, count: int, frame: int | None) -> int:
    """Return the index of the page or frame to read.

    Raises:
        DataError: there are several and none is chosen, or it does not exist.
    """
    if count > 1 and frame is None:
        raise DataError(f"{path}: expected one picture, found {count} pages or frames. Choose one: frame=0.")
    check_frame(path, frame, count)
    return frame or 0


def inflated_size(path: Path, start: int, limit: int, wbits: int = zlib.MAX_WBITS) -> tuple[int, bool]:
    """Return how many bytes the zlib stream from byte ``start`` inflates to, and whether its end was reached.

    Counting stops above ``limit``. ``wbits`` is as :func:`zlib.decompressobj` takes it, negative for raw deflate.
    """
    inflate, size, pending = zlib.decompressobj(wbits), 0, b""
    with path.open("rb") as file:
        file.seek(start)
        while size <= limit and not inflate.eof and (pending or (pending := file.read(2**16))):
            size += len(inflate.decompress(pending, 2**20))
            pending = inflate.unconsumed_tail
    return size, inflate.eof


def identify(path: Path) -> str:
    """Return the format of a file by its first bytes: ``"png"``, ``"dicom"``..., or ``""`` for an unknown one."""
    with wrap_read_errors(path, _FORMATS), path.open("rb") as file:
        head = file.read(_HEAD)
    if head.startswith(b"\x1f\x8b"):
        try:
            with gzip.open(path) as file:
                head = file.read(_HEAD)
        except (OSError, EOFError, zlib.error):  # a damaged .nii.gz is reported by the NIfTI reader
            return "nifti.gz" if path.name.lower().endswith(".nii.gz") else ""
        return "nifti.gz" if _is_nifti(head) else ""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head[128:132] == b"DICM":  # before TIFF: a DICOM preamble may hold a TIFF header (dual-personality files)
        return "dicom"
    if head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "tiff"
    if head.startswith(b"\x93NUMPY"):
        return "npy"
    if _is_nifti(head):
        return "nifti"
    keys = set(re.findall(rb"^[ \t]*(\w+)[ \t]*[=:]", head, re.MULTILINE))
    named = path.name.lower().endswith((".mhd", ".mha"))
    return "metaimage" if len(keys & _METAIMAGE_KEYS) >= (1 if named else 2) else ""


def has_image_suffix(path: Path) -> bool:
    """Return whether the file name is an image's: such a file is reported when it is damaged, not skipped."""
    return path.name.lower().endswith(_IMAGE_SUFFIXES)


def unknown_format(path: Path) -> DataError:
    """Return the error for a file of none of the supported formats."""
    with wrap_read_errors(path, _FORMATS), path.open("rb") as file:
        head = file.read(_HEAD)
    found = next((name for magic, name in _OTHER_FORMATS.items() if head.lstrip().startswith(magic)), "other bytes")
    if len(head) >= 348 and 348 in struct.unpack("<i", head[:4]) + struct.unpack(">i", head[:4]):
        found = "an Analyze 7.5 header, which does not say where left is"
    if path.name.lower().endswith((".img", ".img.gz")):
        found = "voxels without a header (give the .hdr file of a pair)"
    if head[:2] in (b"\x08\x00", b"\x02\x00", b"\x00\x08", b"\x00\x02"):
        return DataError(
            f"{path}: expected {_FORMATS}, found what may be DICOM without its preamble, whose encoding is not known. "
            "Rewrite it as a DICOM file, for example with dcmconv +F of DCMTK."
        )
    return DataError(f"{path}: expected {_FORMATS}, found {found}. Convert it to one of these, or copy it again.")


def _is_nifti(head: bytes) -> bool:
    if len(head) < 348:
        return False
    size = {struct.unpack(order + "i", head[:4])[0] for order in "<>"}
    return (348 in size and head[344:347] in (b"n+1", b"ni1")) or (540 in size and head[4:7] in (b"n+2", b"ni2"))
