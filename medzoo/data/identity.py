"""Who a row is: its patient, hashed; the content of its files; and the pixels that they decode to.

Axes: n rows.
"""

from __future__ import annotations

import hashlib
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medzoo.errors import DataError
from medzoo.io.files import identify
from medzoo.io.hashing import hash_text

__all__ = [
    "Dropped", "Identities", "PixelIdentity", "files_of_image", "hashed", "join_digests", "list_rows",
    "names_patients", "pixel_identity", "pseudonym",
]  # fmt: skip

# What these hold is in one file. Others may be a header whose voxels are in a file beside it.
_SINGLE_FILES = (".png", ".jpg", ".jpeg", ".dcm", ".nii", ".nii.gz", ".mha", ".npy", ".tif", ".tiff")
# Rows that a message lists.
LISTED = 10


def hashed(patient: str) -> str:
    """Return the 8 hex digits by which a message names a patient.

    >>> hashed("007") == hashed("7")
    False
    """
    return hash_text(patient, 8)


def pseudonym(patient: str) -> str:
    """Return what stands for a patient id in a file: 16 hex digits, the same everywhere, enough that no two meet.

    What stands for a patient already, as in the table of a run, is returned as it is. Whoever can guess an id can
    compute it, so a file with pseudonyms is to be kept as the data is.

    >>> pseudonym("007"), pseudonym(pseudonym("007"))
    ('sha256:629f4cf9337b0d0c', 'sha256:629f4cf9337b0d0c')
    """
    if re.fullmatch(r"sha256:[0-9a-f]{16}", patient):
        return patient
    return f"sha256:{hash_text(patient, 16)}"


def names_patients(values: NDArray[Any], patients: NDArray[Any] | None) -> bool:
    """Whether a column comes near to naming patients, so that it is neither written nor shown.

    Names, dates and accession numbers differ for most patients; a site, a view, a sex or an age does not.
    """
    count = len(values) if patients is None else len(np.unique(patients))
    return len(np.unique(values)) > max(3, count // 2)


@dataclass(frozen=True)
class Dropped:
    """A row that is not used, and why."""

    row: int
    id: str
    reason: str


@dataclass(frozen=True)
class PixelIdentity:
    """Two images with the same ``pixels`` are the same, unless they are ``constant``: blank images all look alike."""

    pixels: str
    constant: bool


def pixel_identity(array: NDArray[Any]) -> PixelIdentity:
    """Return the identity of a decoded image: the sha256 of its dtype, shape and bytes.

    >>> pixel_identity(np.zeros((1, 2, 2), np.uint8)).constant
    True
    """
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return PixelIdentity(digest.hexdigest(), bool((array == array.flat[0]).all()))


@dataclass(frozen=True, eq=False)
class Identities:
    """The identity of the pixels of every row of a table.

    Attributes:
        pixels: sha256 of each row's decoded image; empty for a dropped row.
        constant: whether all values of the image are equal.
        dropped: rows whose image cannot be used.
    """

    pixels: NDArray[np.str_]
    constant: NDArray[np.bool_]
    dropped: tuple[Dropped, ...] = ()

    @property
    def compared(self) -> NDArray[np.str_]:
        """The hashes by which images are known to be the same, ``n``; empty for constant and dropped ones."""
        return np.where(self.constant, "", self.pixels)


def files_of_image(image: Path | tuple[Path, ...]) -> list[Path]:
    """Return every file that an image is read from: of a series, a folder, or a header with its voxels beside it."""
    if isinstance(image, tuple):
        return list(image)
    if image.is_dir():
        return sorted(path for path in image.rglob("*") if path.is_file())
    return [image, *_companions(image)]


def _companions(path: Path) -> list[Path]:
    if path.name.lower().endswith(_SINGLE_FILES):
        return []
    found: list[Path] = []
    with suppress(DataError, OSError):  # reading the image reports what is wrong with it
        kind = identify(path)
        if kind == "metaimage":
            from medzoo.io.metaimage_header import read_header

            header = read_header(path)
            found = [] if header.start is not None else list(header.files)
        elif kind in ("nifti", "nifti.gz"):
            stem = path.name.lower().removesuffix(".gz").removesuffix(".hdr")
            found = [p for p in path.parent.iterdir() if p.name.lower() in (f"{stem}.img", f"{stem}.img.gz")]
    return sorted(found)


def join_digests(digests: list[str]) -> str:
    """Return one digest for the files of an image: that of the file, if it is one."""
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def list_rows(texts: list[str], separator: str = "; ") -> str:
    """Join the first :data:`LISTED` texts, and count the rest.

    >>> list_rows([str(i) for i in range(12)], ", ")
    '0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more'
    """
    rest = len(texts) - LISTED
    return separator.join(texts[:LISTED]) + (f" and {rest} more" if rest > 0 else "")
