"""The stored pixels of a DICOM file: pydicom decodes them, SimpleITK those that pydicom and Pillow cannot.

Axes: f frames, h w rows and columns, s samples of a colour pixel.
"""

from __future__ import annotations

import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medzoo.errors import DataError
from medzoo.io.dicom.decoder import decode_in_subprocess
from medzoo.io.dicom.header import frame_count, sample_count, wrap_dicom_errors
from medzoo.io.files import DEFLATE_LIMIT, check_size, inflated_size

__all__ = ["decode_pixels", "load"]

_DEFLATED = "1.2.840.10008.1.2.1.99"
_JPEG_12_BIT = "1.2.840.10008.1.2.4.51"
_RLE = "1.2.840.10008.1.2.5"
# JPEG extended, JPEG lossless with any selection value and with value 1, JPEG-LS lossless and near-lossless.
_ITK_SYNTAXES = frozenset(f"1.2.840.10008.1.2.4.{number}" for number in (51, 57, 70, 80, 81))
_START_OF_FRAME = (0xC0, 0xC1, 0xC3, 0xF7)  # baseline, extended, lossless, JPEG-LS
_PIXEL_MODULE = (
    "Rows", "Columns", "SamplesPerPixel", "PlanarConfiguration", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation", "NumberOfFrames",
)  # fmt: skip


def load(path: Path, *, max_voxels: int, tags: list[str] | None = None) -> Any:
    """Return the data set of a file with a DICOM preamble; with ``tags``, only those and no pixels.

    Raises:
        DataError: not DICOM, damaged, or a deflated file of more than ``max_voxels`` could need.
    """
    from pydicom import dcmread

    with wrap_dicom_errors(path, "a DICOM file") as issued:
        _check_inflated_size(path, max_voxels)
        ds = dcmread(path, stop_before_pixels=tags is not None, specific_tags=tags)
    if any("End of file reached" in str(warning.message) for warning in issued):  # pydicom returns what there is
        raise DataError(
            f"{path}: expected a complete DICOM file, found one that is cut short. Copy it again from its source."
        )
    return ds


def decode_pixels(ds: Any, path: Path, frame: int | None, max_voxels: int) -> NDArray[Any]:
    """Decode one frame, or with ``None`` all, to ``f h w`` or ``f h w s``.

    Raises:
        DataError: no pixels, sizes that the data cannot hold, or a transfer syntax that cannot be decoded.
    """
    stored = any(keyword in ds for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"))
    if not stored or "Rows" not in ds or "Columns" not in ds:
        raise DataError(
            f"{path}: expected an image, found a DICOM object without pixels. It is cut or stripped: export it again."
        )
    rows, columns, samples, frames = int(ds.Rows), int(ds.Columns), sample_count(ds), frame_count(ds)
    wanted = frames if frame is None else 1
    sizes = f"{frames} × {rows} × {columns} × {samples}"
    check_size(path, wanted * rows * columns * samples, max_voxels, sizes)
    if frames < 1 or samples not in (1, 3):
        raise DataError(
            f"{path}: expected frames of 1 or 3 samples per pixel, the header declares {sizes}. Export it again."
        )
    if "PixelData" in ds and int(ds.get("HighBit", int(ds.BitsStored) - 1)) != int(ds.BitsStored) - 1:
        raise DataError(
            f"{path}: expected the high bit to be {int(ds.BitsStored) - 1} for {int(ds.BitsStored)} stored bits, "
            f"found {int(ds.HighBit)}. Export the image again."
        )
    array = _decode(ds, path, frame, max_voxels)
    shape = (wanted, rows, columns) + ((3,) if samples == 3 else ())
    if array.size != np.prod(shape):
        raise DataError(f"{path}: expected pixels {shape}, found {array.size} values. Copy the file again.")
    return array.reshape(shape)


def _decode(ds: Any, path: Path, frame: int | None, max_voxels: int) -> NDArray[Any]:
    from pydicom.pixels import get_decoder, pixel_array

    frames = frame_count(ds)
    syntax = ds.file_meta.get("TransferSyntaxUID")
    if syntax is None:
        raise DataError(f"{path}: expected a transfer syntax in the header, found none. Rewrite the file with dcmconv.")
    try:
        available = bool(get_decoder(syntax).is_available)
    except NotImplementedError:
        available = False
    count = frames * int(ds.Rows) * int(ds.Columns) * sample_count(ds)
    if available and not (syntax == _JPEG_12_BIT and int(ds.BitsAllocated) > 8):  # Pillow's JPEG is 8-bit
        if getattr(syntax, "is_encapsulated", False):
            _check_encapsulated_size(ds, path, syntax, frames, count * int(ds.BitsAllocated) // 8)
        # Excess frames would be returned too, and the array would no longer match the header.
        return pixel_array(ds, index=frame, allow_excess_frames=False)
    if syntax in _ITK_SYNTAXES:
        check_size(path, count, max_voxels, f"{frames} frames of {ds.Rows} × {ds.Columns}")  # it decodes them all
        volume = _decode_with_itk(ds, path, frames)
        return volume if frame is None else volume[frame : frame + 1]
    raise DataError(
        f"{path}: expected a transfer syntax that can be decoded, found {syntax.name}. "
        "Decompress it first, for example with dcmdjpeg or gdcmconv --raw."
    )


def _check_encapsulated_size(ds: Any, path: Path, syntax: str, frames: int, size: int) -> None:
    """Check the size in bytes that a header declares against compressed pixels, before memory is allocated.

    pydicom itself checks uncompressed pixels. RLE cannot shrink below 1/64. JPEG and JPEG 2000 carry their own size,
    which their decoder checks, but each frame needs at least one item.
    """
    stored = len(ds.PixelData)
    if stored < 8 * frames or (syntax == _RLE and size > 64 * stored):
        raise DataError(
            f"{path}: the header declares {size} bytes in {frames} frame(s), more than its {stored} bytes can hold. "
            "It is damaged or cut short: copy it again from its source."
        )


def _decode_with_itk(ds: Any, path: Path, frames: int) -> NDArray[Any]:
    """Decode with SimpleITK, which by itself would also rescale and invert MONOCHROME1.

    It gets a file with the pixel module alone, no rescale and MONOCHROME2, so that it only decodes. No patient data
    reaches the temporary file.
    """
    from pydicom.encaps import generate_frames

    expected = (int(ds.Rows), int(ds.Columns), sample_count(ds))
    codestreams = list(generate_frames(ds.PixelData, number_of_frames=frames))
    for codestream in codestreams:
        complete = codestream.rstrip(b"\0\xff").endswith(b"\xff\xd9")
        # GDCM would write an image of the codestream's size into memory allocated for the header's.
        if not complete or len(codestreams) != frames or _jpeg_shape(codestream) != expected:
            raise DataError(
                f"{path}: expected {frames} complete JPEG frame(s), found one cut short or of another size. Copy the "
                "file again."
            )
    with tempfile.TemporaryDirectory(prefix="medzoo-") as folder:
        file = Path(folder) / "pixels.dcm"
        _without_patient(ds).save_as(file, enforce_file_format=True)
        pixels = decode_in_subprocess(file)
    if pixels is None:
        raise DataError(f"{path}: expected {frames} sound JPEG frame(s), found damage. Copy the file again.")
    return pixels


def _jpeg_shape(codestream: bytes) -> tuple[int, int, int] | None:
    """Return rows, columns and components from the frame header of a JPEG or JPEG-LS, or ``None`` if it has none."""
    if codestream[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 10 <= len(codestream) and codestream[at] == 0xFF:
        if codestream[at + 1] in _START_OF_FRAME:
            rows, columns = codestream[at + 5 : at + 7], codestream[at + 7 : at + 9]
            return int.from_bytes(rows), int.from_bytes(columns), codestream[at + 9]
        at += 2 + int.from_bytes(codestream[at + 2 : at + 4])
    return None


def _without_patient(ds: Any) -> Any:
    """Return a data set with the pixels of ``ds``, as plain grey or RGB, and nothing about the patient."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import SecondaryCaptureImageStorage, generate_uid

    bare = Dataset()
    for keyword in _PIXEL_MODULE:
        if keyword in ds:
            setattr(bare, keyword, ds[keyword].value)
    bare.PhotometricInterpretation = "MONOCHROME2" if sample_count(ds) == 1 else "RGB"
    bare.SOPClassUID = SecondaryCaptureImageStorage
    bare.SOPInstanceUID = generate_uid()
    bare["PixelData"] = ds["PixelData"]
    bare.file_meta = FileMetaDataset()
    bare.file_meta.TransferSyntaxUID = ds.file_meta.TransferSyntaxUID
    return bare


def _check_inflated_size(path: Path, max_voxels: int) -> None:
    """Refuse a deflated file that expands beyond what ``max_voxels`` could need: pydicom inflates without a limit."""
    from pydicom.filereader import read_file_meta_info

    meta = read_file_meta_info(path)
    limit = 8 * max_voxels + 2**26  # 8 bytes per value, and a large header
    if meta.get("TransferSyntaxUID") != _DEFLATED or path.stat().st_size * DEFLATE_LIMIT <= limit:
        return
    start = 144 + int(meta.FileMetaInformationGroupLength)
    if inflated_size(path, start, limit, -zlib.MAX_WBITS)[0] > limit:
        raise DataError(f"{path}: expected at most {max_voxels} values, found a deflated file of more. Copy it again.")
