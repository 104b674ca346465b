"""The reader of MHD and MHA, through SimpleITK, in the closest canonical orientation.

ITK may return uninitialised memory for a file that is cut short, so header and voxels are checked here first.

Axes: x y z grow to the patient's right, front and head; a 2D image is h w.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medzoo.errors import DataError
from medzoo.io.files import DEFLATE_LIMIT, capture_stderr, check_size, inflated_size, join_sizes, wrap_read_errors
from medzoo.io.image import Image, as_native, handle_nan, has_independent_axes, to_closest_ras, voxel_sizes
from medzoo.io.options import ReadOptions

__all__ = ["read_metaimage", "read_with_itk"]

_MAX_HEADER = 2**16
_BYTES = {
    "MET_CHAR": 1, "MET_UCHAR": 1, "MET_SHORT": 2, "MET_USHORT": 2, "MET_INT": 4, "MET_UINT": 4, "MET_LONG": 4,
    "MET_ULONG": 4, "MET_LONG_LONG": 8, "MET_ULONG_LONG": 8, "MET_FLOAT": 4, "MET_DOUBLE": 8,
}  # fmt: skip
_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read_metaimage(path: Path, options: ReadOptions) -> Image:
    """Read a volume ``1 x y z``, or a 2D image ``1 h w``.

    Raises:
        DataError: the voxels are missing, cut short or outside the folder; the header is contradictory; colour.
    """
    options.refuse(path, "a MetaImage", "frame", "stack", "channel_axis")
    notes: list[str] = []
    spacing: tuple[float, ...] | None = None
    affine: NDArray[np.float64] | None = None
    with wrap_read_errors(path, "a MetaImage"):
        size, has_spacing = _check_header(path, options.max_voxels)
        values, stored_affine = _values_and_affine(path, size)
        if not has_spacing:  # ITK assumes 1 mm
            notes.append("the file gives no spacing: axes left as stored")
        elif len(size) == 2:  # without a third axis there is no position in the patient
            spacing = voxel_sizes(stored_affine)[:2][::-1]
        else:
            values, affine = to_closest_ras(values, stored_affine, notes)
            spacing = voxel_sizes(affine)
    values = handle_nan(as_native(values)[None], path, options.nan, notes)
    return Image(values, affine, spacing, identity={"file": str(path)}, notes=tuple(notes))


def read_with_itk(path: Path, reader: str) -> tuple[Any, bool]:
    """Return the SimpleITK image of a file, and whether it was read without complaint.

    GDCM's libjpeg and MetaIO return an image whose data are damaged, and report that on stderr only.

    Args:
        path: the file.
        reader: the name of the ITK reader, so that ITK does not guess.
    """
    import SimpleITK as sitk  # noqa: N813

    warned = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        with capture_stderr() as printed:
            image = sitk.ReadImage(str(path), imageIO=reader)
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(warned)
    return image, not printed


def _check_header(path: Path, max_voxels: int) -> tuple[tuple[int, ...], bool]:
    """Check the header, and the size of the voxels against it.

    Returns:
        The number of voxels along x, y and, of a volume, z; and whether the header gives a spacing.
    """
    fields, start = _header_fields(path)

    def wrong(what: str) -> DataError:
        return DataError(f"{path}: the MetaImage header {what}. Export the image again.")

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
        raise wrong(f"lacks {missing.args[0]}, or has a type that is not supported") from None
    except ValueError as error:
        raise error if isinstance(error, DataError) else wrong("has a value that is not a number") from None
    if dims not in (2, 3) or len(size) != dims:
        raise wrong(f"declares {dims} axes and {len(size)} sizes, where 2 or 3 of both are expected")
    if channels != 1:
        raise wrong(f"declares {channels} channels, where 1 is expected")
    if fields.get("BinaryData", "True").lower() not in ("true", "1"):
        raise wrong("declares voxels stored as text, where binary is expected")
    check_size(path, math.prod(size) if min(size) > 0 else 0, max_voxels, join_sizes(size))
    compressed = fields.get("CompressedData", "False").lower() in ("true", "1")
    data = _data_file(path, fields["ElementDataFile"])
    total = math.prod(size) * width
    if data == path:
        skip = start
    elif skip == -1 and not compressed:
        skip = data.stat().st_size - total
    if skip < 0:
        raise wrong(f"declares {total} bytes of voxels, more than {data.name} has")
    _check_voxels(path, data, skip, total, compressed)
    return size, "ElementSpacing" in fields or "ElementSize" in fields


def _header_fields(path: Path) -> tuple[dict[str, str], int]:
    """Return the fields ``Key = value``, one a line, up to ElementDataFile, and the position of the next byte."""
    fields: dict[str, str] = {}
    with path.open("rb") as file:
        while "ElementDataFile" not in fields:
            line = file.readline(_MAX_HEADER - file.tell()).decode("ascii", errors="replace")
            key, equals, value = (part.strip() for part in line.partition("="))
            if not equals or key in fields or not value.isprintable() or not key.isidentifier():
                raise DataError(
                    f"{path}: expected a MetaImage header of lines 'Key = value', each key once and ElementDataFile "
                    f"last, found another line {len(fields) + 1}. Export the image again."
                )
            fields[key] = value
        return fields, file.tell()


def _data_file(path: Path, name: str) -> Path:
    """Return the file with the voxels, which must be in the folder of the header or below it.

    Raises:
        DataError: absent, elsewhere, or more than one file.
    """
    if name.upper() == "LOCAL":
        return path
    data = path.parent / name
    if name.upper().startswith("LIST") or "%" in name:
        raise DataError(f"{path}: expected one file of voxels, found a list of them. Write the volume as one .mha.")
    if Path(name).is_absolute() or ".." in Path(name).parts or "\\" in name or ":" in name:
        raise DataError(f"{path}: expected ElementDataFile inside its folder, found a path that leaves it.")
    # Links are resolved, so that an archive cannot name a file elsewhere. A content-addressed store that links header
    # and voxels to files of other names in one folder is accepted.
    folders = (path.parent.resolve(), path.resolve().parent)
    if not any(data.resolve().is_relative_to(folder) for folder in folders):
        raise DataError(f"{path}: expected ElementDataFile inside its folder, found a link that leaves it.")
    if not data.is_file():
        raise DataError(f"{path}: expected its voxels in {name}, found no such file. Copy both files together.")
    return data


def _check_voxels(path: Path, data: Path, start: int, size: int, compressed: bool) -> None:
    """Check that ``data`` has ``size`` bytes of voxels from byte ``start``; compressed ones are inflated for that."""
    stored = data.stat().st_size - start
    if compressed:
        found, complete = inflated_size(data, start, size) if size <= stored * DEFLATE_LIMIT else (0, False)
        if found != size or not complete:
            raise DataError(
                f"{path}: expected {size} bytes after inflating, found {min(found, size + 1)}. "
                "It is cut short, or the header is wrong: copy it again."
            )
    elif stored != size:
        raise DataError(
            f"{path}: expected {size} bytes of voxels in {data.name}, found {stored}. "
            "It is cut short or belongs to another header: copy both files again."
        )


def _values_and_affine(path: Path, size: tuple[int, ...]) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Return the voxels, ``x y z`` (``h w`` in 2D), and the 4 x 4 affine in RAS mm."""
    import SimpleITK as sitk  # noqa: N813

    image, sound = read_with_itk(path, "MetaImageIO")
    if not sound:
        raise DataError(f"{path}: expected a sound MetaImage, found damage in its header or voxels. Copy it again.")
    if tuple(image.GetSize()) != size:
        raise DataError(f"{path}: the header declares {size}, SimpleITK reads {image.GetSize()}. Export it again.")
    values = sitk.GetArrayFromImage(image)
    dims = len(size)
    affine = np.eye(4)
    affine[:dims, :dims] = np.array(image.GetDirection()).reshape(dims, dims) * image.GetSpacing()
    affine[:dims, 3] = image.GetOrigin()
    if not has_independent_axes(affine):
        raise DataError(f"{path}: expected three independent axes, found a singular TransformMatrix. Export it again.")
    return (values.transpose(2, 1, 0) if dims == 3 else values), _TO_RAS @ affine
