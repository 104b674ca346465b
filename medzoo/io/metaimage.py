"""MHD and MHA through SimpleITK, in the closest canonical orientation, held to what the files really contain.

ITK prints to stderr and may hand back what memory held when a file is cut short, so the header is checked here first.

Axes: x y z grow to the patient's right, front and head; a 2D image is h w.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medzoo.errors import DataError
from medzoo.io.arrays import as_real, settle_nan
from medzoo.io.files import DEFLATE_LIMIT, check_size, refusing
from medzoo.io.image import Image
from medzoo.io.itk import read_with_itk
from medzoo.io.nifti import canonical

__all__ = ["read_metaimage"]

_MOST_HEADER = 2**16
_BYTES = {
    "MET_CHAR": 1, "MET_UCHAR": 1, "MET_SHORT": 2, "MET_USHORT": 2, "MET_INT": 4, "MET_UINT": 4, "MET_LONG": 4,
    "MET_ULONG": 4, "MET_LONG_LONG": 8, "MET_ULONG_LONG": 8, "MET_FLOAT": 4, "MET_DOUBLE": 8,
}  # fmt: skip
_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class _Claims:
    """What the header says about the voxels, checked.

    Attributes:
        size: voxels along x, y and, of a volume, z.
        bytes: of all voxels, uncompressed.
        data: the file that holds them, the header's own for ``LOCAL``.
        start: their first byte in it.
        compressed: by zlib.
        spaced: the header gives a spacing; ITK would make up 1 mm.
    """

    size: tuple[int, ...]
    bytes: int
    data: Path
    start: int
    compressed: bool
    spaced: bool


def read_metaimage(path: Path, *, frame: int | None, nan: str, max_voxels: int) -> Image:
    """Read a volume ``1 x y z``, or a 2D image ``1 h w``.

    Args:
        path: the ``.mhd`` or ``.mha`` file.
        frame: refused: a MetaImage has none.
        nan: ``"raise"`` or ``"zero"``.
        max_voxels: the most voxels.

    Raises:
        DataError: the voxels are missing, cut short or outside the folder; the header is contradictory; colour.
    """
    if frame is not None:
        raise DataError(f"{path}: a MetaImage has no frames, got frame={frame}. Leave frame out.")
    notes: list[str] = []
    with refusing(path, "a MetaImage"):
        claims = _claims(path, max_voxels)
        _check_voxels(path, claims)
        values, affine = _with_itk(path, claims)
        spacing: tuple[float, ...] | None = None
        place: NDArray[np.float64] | None = None
        if not claims.spaced:
            notes.append("the file gives no spacing: axes left as stored")
        elif len(claims.size) == 2:  # no third axis: a 2D MetaImage has no place in the patient
            spacing = tuple(float(s) for s in np.linalg.norm(affine[:2, :2], axis=0))[::-1]
        else:
            values, place = canonical(values, affine, notes)
            spacing = tuple(float(s) for s in np.linalg.norm(place[:3, :3], axis=0))
    values, mended = settle_nan(as_real(values)[None], path, nan)
    return Image(values, place, spacing, identity={"file": str(path)}, notes=(*notes, *mended))


def _claims(path: Path, max_voxels: int) -> _Claims:
    """Parse and check the header; every line is ``Key = value``, the last is ElementDataFile."""
    fields, start = _fields(path)

    def wrong(what: str) -> DataError:
        return DataError(f"{path}: the MetaImage header {what}. Export the image anew.")

    try:
        size = tuple(int(n) for n in fields["DimSize"].split())
        dims, channels = int(fields["NDims"]), int(fields.get("ElementNumberOfChannels", "1"))
        width = _BYTES[fields["ElementType"]]
        skip = int(fields.get("HeaderSize", "0"))
        for key in ("ElementSpacing", "ElementSize", "Offset", "Origin", "Position", "TransformMatrix", "Orientation"):
            if not all(math.isfinite(float(n)) for n in fields.get(key, "").split()):
                raise wrong(f"has a {key} that is not finite")
        if any(float(n) <= 0 for n in fields.get("ElementSpacing", "").split()):
            raise wrong("has an ElementSpacing that is not positive")
    except KeyError as missing:
        raise wrong(f"lacks {missing.args[0]}, or has a type that is not read") from None
    except ValueError as error:
        raise error if isinstance(error, DataError) else wrong("has a number that is none") from None
    if dims not in (2, 3) or len(size) != dims:
        raise wrong(f"says {dims} axes and {len(size)} sizes, where 2 or 3 of both are expected")
    if channels != 1:
        raise wrong(f"says {channels} channels, where 1 is expected")
    if fields.get("BinaryData", "True").lower() not in ("true", "1"):
        raise wrong("says that the voxels are text, where binary is expected")
    check_size(path, math.prod(size) if min(size) > 0 else 0, max_voxels, " × ".join(map(str, size)))
    compressed = fields.get("CompressedData", "False").lower() in ("true", "1")
    data = _data_file(path, fields["ElementDataFile"])
    total = math.prod(size) * width
    if data == path:
        skip = start
    elif skip == -1 and not compressed:
        skip = data.stat().st_size - total
    if skip < 0:
        raise wrong(f"says {total} bytes of voxels, more than {data.name} has")
    spaced = "ElementSpacing" in fields or "ElementSize" in fields
    return _Claims(size, total, data, skip, compressed, spaced)


def _fields(path: Path) -> tuple[dict[str, str], int]:
    """Return the lines up to ElementDataFile, and where the next byte is."""
    with path.open("rb") as file:
        head = file.read(_MOST_HEADER)
    fields: dict[str, str] = {}
    at = 0
    while "ElementDataFile" not in fields:
        end = head.find(b"\n", at)
        line = head[at : end if end >= 0 else None].decode("ascii", errors="replace")
        key, equals, value = (part.strip() for part in line.partition("="))
        if not equals or key in fields or not value.isprintable() or not key.isidentifier():
            raise DataError(
                f"{path}: expected a MetaImage header of lines 'Key = value', each key once and ElementDataFile last, "
                f"found another line {len(fields) + 1}. Export the image anew."
            )
        fields[key] = value
        at = end + 1 if end >= 0 else len(head)
    return fields, at


def _data_file(path: Path, name: str) -> Path:
    """Return the file with the voxels, which must lie in the folder of the header or below.

    Raises:
        DataError: absent, elsewhere, or more than one file.
    """
    if name.upper() == "LOCAL":
        return path
    data = path.parent / name
    if name.upper().startswith("LIST") or "%" in name:
        raise DataError(f"{path}: expected one file of voxels, found a list of them. Write the volume as one .mha.")
    # Links are followed: an archive must not be able to name a file elsewhere. A store that keeps both files under
    # other names links the two to one folder, which is as good.
    homes = (path.parent.resolve(), path.resolve().parent)
    if Path(name).is_absolute() or ".." in Path(name).parts or "\\" in name or ":" in name:
        raise DataError(f"{path}: expected ElementDataFile inside its folder, found a path that leaves it.")
    if not any(data.resolve().is_relative_to(home) for home in homes):
        raise DataError(f"{path}: expected ElementDataFile inside its folder, found a link that leaves it.")
    if not data.is_file():
        raise DataError(f"{path}: expected its voxels in {name}, found no such file. Copy both files together.")
    return data


def _check_voxels(path: Path, claims: _Claims) -> None:
    """Hold the file of voxels to the header; compressed ones are inflated once to see that they are whole."""
    stored = claims.data.stat().st_size - claims.start
    if not claims.compressed:
        if stored != claims.bytes:
            raise DataError(
                f"{path}: expected {claims.bytes} bytes of voxels in {claims.data.name}, found {stored}. "
                "It is cut short or belongs to another header: copy both files again."
            )
        return
    inflate, grown = zlib.decompressobj(), 0
    with claims.data.open("rb") as file:
        file.seek(claims.start)
        rest = b""
        while claims.bytes <= stored * DEFLATE_LIMIT and not inflate.eof and (rest or (rest := file.read(2**16))):
            grown += len(inflate.decompress(rest, 2**22))
            rest = inflate.unconsumed_tail
            if grown > claims.bytes:
                break
    if grown != claims.bytes or not inflate.eof:
        raise DataError(
            f"{path}: expected {claims.bytes} bytes after inflating, found {min(grown, claims.bytes + 1)}. "
            "It is cut short, or the header is wrong: copy it again."
        )


def _with_itk(path: Path, claims: _Claims) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Read voxels and geometry, ``x y z`` (``h w`` in 2D) and a 4 x 4 in RAS mm."""
    import SimpleITK as sitk  # noqa: N813

    image, sound = read_with_itk(path, "MetaImageIO")
    if not sound:
        raise DataError(f"{path}: expected a sound MetaImage, found damage in its header or voxels. Copy it again.")
    if tuple(image.GetSize()) != claims.size:
        raise DataError(f"{path}: the header says {claims.size}, SimpleITK reads {image.GetSize()}. Export it anew.")
    values = sitk.GetArrayFromImage(image)
    dims = len(claims.size)
    affine = np.eye(4)
    affine[:dims, :dims] = np.array(image.GetDirection()).reshape(dims, dims) * image.GetSpacing()
    affine[:dims, 3] = image.GetOrigin()
    if abs(np.linalg.det(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0))) < 1e-3:
        raise DataError(f"{path}: expected three independent axes, found a singular TransformMatrix. Export it anew.")
    return (values.transpose(2, 1, 0) if dims == 3 else values), _TO_RAS @ affine
