"""What every reader needs before it opens a file: which format the bytes are, and how to refuse them in words.

A format is told by content, never by the name alone: hospitals rename files, and archives name them ``IM0001``.
"""

from __future__ import annotations

import gzip
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medzoo.errors import DataError, MedzooError

__all__ = ["DEFLATE_LIMIT", "MAX_VOXELS", "check_size", "existing", "identify", "looks_like_image", "refusing"]

MAX_VOXELS = 2**29
"""Most values in one image unless the caller says otherwise: a 512 × 512 × 2048 CT, 2 GiB as float32."""

DEFLATE_LIMIT = 1032
"""The most bytes that one byte of a deflate stream can stand for."""

# What Python, NumPy and the format libraries raise when bytes are hostile. Programming errors such as AttributeError
# are among them because the libraries meet missing fields that way; the reader tests keep ours from hiding here.
_FAULTS = (
    ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError, OSError, RuntimeError,
    StopIteration, SyntaxError, TypeError, ValueError, struct.error, zlib.error,
)  # fmt: skip

_FORMATS = "PNG, JPEG, TIFF, DICOM, NIfTI, MHD, MHA or NPY"
_HEAD = 352  # a NIfTI-1 header and its extension flag
_IMAGE_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".dcm", ".dicom", ".ima", ".nii", ".nii.gz", ".mhd", ".mha", ".npy",
)  # fmt: skip
_OTHERS = {
    b"GIF8": "a GIF", b"BM": "a BMP", b"PK\x03\x04": "a zip archive (.npz or .zip)", b"%PDF": "a PDF",
    b"version https://git-lfs": "a Git LFS pointer (run git lfs pull)", b"\x89HDF": "an HDF5 file", b"NRRD": "an NRRD",
    b"<": "a web page or XML", b"\x00\x00\x00\x0cjP": "a bare JPEG 2000", b"RIFF": "a WebP or other RIFF",
}  # fmt: skip


def existing(path: str | os.PathLike[str]) -> Path:
    """Return the path if something readable is there.

    Raises:
        DataError: nothing there, no permission, or an empty file.
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
    if size is not None and not here.is_file():  # a pipe or a device could be read for ever
        raise DataError(f"{here}: expected a file or folder, found a pipe or device. Copy its content to a file.")
    if not os.access(here, os.R_OK if size is not None else os.R_OK | os.X_OK):
        raise DataError(f"{here}: expected a readable file or folder, permission is denied. Ask for read access.")
    if size == 0:
        raise DataError(f"{here}: expected {_FORMATS}, found an empty file (0 bytes). Copy it again from its source.")
    return here


@contextmanager
def refusing(path: Path, what: str, *more: type[Exception]) -> Iterator[list[str]]:
    """Raise DataError for whatever a library raises on the bytes of ``path``; yield the warnings it gave.

    The library's own words are left out: a DICOM or MetaImage message may quote a patient's name or id.

    Args:
        path: the file, for the message.
        what: what was expected of it, such as ``"a PNG image"``.
        more: the library's exceptions that derive from ``Exception`` alone.
    """
    told: list[str] = []
    # Not thread-safe before Python 3.14, as all of ``warnings``: threads that read at once may see a warning escape.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield told
        except MedzooError:
            raise
        except MemoryError:
            raise DataError(
                f"{path}: expected {what} that fits into memory, found one that does not. Free some memory."
            ) from None
        except _FAULTS + more as error:
            raise DataError(
                f"{path}: expected {what}, found bytes that cannot be read as one ({type(error).__name__}). "
                "The file is damaged or cut short: copy it again from its source, or export it anew."
            ) from None
        finally:
            told.extend(str(w.message) for w in caught)


def check_size(path: Path, count: int, max_voxels: int, claim: str) -> None:
    """Refuse an image of ``count`` values before memory is set aside for it.

    Raises:
        DataError: more than ``max_voxels``, or none at all.
    """
    if count <= 0:
        raise DataError(f"{path}: expected an image with at least one pixel, the header says {claim}. Export it anew.")
    if count > max_voxels:
        raise DataError(
            f"{path}: expected at most {max_voxels} values, the header says {claim}, that is {count}. "
            f"If that is right, allow it with max_voxels={count}."
        )


def identify(path: Path) -> str:
    """Return the format of a file by its first bytes: ``"png"``, ``"dicom"``..., or ``""`` for none of them."""
    with refusing(path, _FORMATS), path.open("rb") as file:
        head = file.read(_HEAD)
    if head.startswith(b"\x1f\x8b"):
        try:
            with gzip.open(path) as file:
                head = file.read(_HEAD)
        except (OSError, EOFError, zlib.error):  # a broken .nii.gz is still meant to be one, and is refused as one
            return "nifti.gz" if path.name.lower().endswith(".nii.gz") else ""
        return "nifti.gz" if _is_nifti(head) else ""
    return _format_of(head)


def looks_like_image(path: Path) -> bool:
    """Say whether the name claims an image, whatever the bytes are: a broken one is to be reported, not passed over."""
    return path.name.lower().endswith(_IMAGE_SUFFIXES)


def unknown(path: Path) -> DataError:
    """Return the error for a file that is none of the formats."""
    with refusing(path, _FORMATS), path.open("rb") as file:
        head = file.read(_HEAD)
    found = next((name for magic, name in _OTHERS.items() if head.lstrip().startswith(magic)), "other bytes")
    if head[:2] in (b"\x08\x00", b"\x02\x00", b"\x00\x08", b"\x00\x02"):
        return DataError(
            f"{path}: expected {_FORMATS}, "
            "found what may be DICOM without its preamble, which leaves its encoding a guess. "
            "Rewrite it as a DICOM file, for example with dcmconv +F of DCMTK."
        )
    return DataError(f"{path}: expected {_FORMATS}, found {found}. Convert it to one of these, or copy it again.")


def _format_of(head: bytes) -> str:
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
    first = head.lstrip().split(b"=")[0].strip()
    return "metaimage" if first in (b"ObjectType", b"NDims", b"Comment", b"ObjectSubType") and b"=" in head else ""


def _is_nifti(head: bytes) -> bool:
    if len(head) < 348:
        return False
    size = {struct.unpack(order + "i", head[:4])[0] for order in "<>"}
    return (348 in size and head[344:347] in (b"n+1", b"ni1")) or (540 in size and head[4:7] in (b"n+2", b"ni2"))
