"""The stored pixels of a DICOM file: pydicom decodes; SimpleITK what pydicom and Pillow cannot.

Axes: f frames, h w rows and columns, s samples of a colour pixel.
"""

from __future__ import annotations

import struct
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medzoo.errors import DataError
from medzoo.io.dicom.decoder import decode_apart
from medzoo.io.files import DEFLATE_LIMIT, check_size, refusing

__all__ = ["frames_of", "load", "stored_pixels"]

_DEFLATED = "1.2.840.10008.1.2.1.99"
_JPEG_12_BIT = "1.2.840.10008.1.2.4.51"
_RLE = "1.2.840.10008.1.2.5"
_ITK_CODECS = frozenset({
    _JPEG_12_BIT,
    "1.2.840.10008.1.2.4.57",  # JPEG lossless
    "1.2.840.10008.1.2.4.70",  # JPEG lossless, selection value 1
    "1.2.840.10008.1.2.4.80",  # JPEG-LS lossless
    "1.2.840.10008.1.2.4.81",  # JPEG-LS near-lossless
})  # fmt: skip
_START_OF_FRAME = (0xC0, 0xC1, 0xC3, 0xF7)  # baseline, extended, lossless, JPEG-LS
_PIXEL_MODULE = (
    "Rows", "Columns", "SamplesPerPixel", "PlanarConfiguration", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation", "NumberOfFrames",
)  # fmt: skip


def load(path: Path, *, max_voxels: int, tags: list[str] | None = None) -> Any:
    """Return the data set of a file with a DICOM preamble; with ``tags``, only those and no pixels.

    Raises:
        DataError: not DICOM, damaged, or deflated to more than the image may hold.
    """
    from pydicom import dcmread
    from pydicom.errors import BytesLengthException, InvalidDicomError

    with refusing(path, "a DICOM file", InvalidDicomError, BytesLengthException) as told:
        _refuse_deflate_bomb(path, max_voxels)
        ds = dcmread(path, stop_before_pixels=tags is not None, specific_tags=tags)
    if any("End of file reached" in words for words in told):  # pydicom is content with what there is
        raise DataError(
            f"{path}: expected a whole DICOM file, found one that is cut short. Copy it again from its source."
        )
    return ds


def frames_of(ds: Any) -> int:
    """Return how many frames the header claims."""
    value = ds.get("NumberOfFrames")
    return int(value) if value not in (None, "") else 1


def stored_pixels(ds: Any, path: Path, frame: int | None, max_voxels: int) -> NDArray[Any]:
    """Decode to ``f h w`` or ``f h w s``: all frames, or one.

    Args:
        ds: the data set, with its pixels.
        path: its file, for messages.
        frame: the frame to decode, or ``None``.
        max_voxels: the most values to decode.

    Raises:
        DataError: no pixels, sizes that the data cannot hold, or a syntax that nothing here decodes.
    """
    pixels = any(keyword in ds for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"))
    if not pixels or "Rows" not in ds or "Columns" not in ds:
        raise DataError(
            f"{path}: expected an image, found a DICOM object without pixels. It is cut short or stripped: export it."
        )
    rows, columns, samples, frames = int(ds.Rows), int(ds.Columns), int(ds.get("SamplesPerPixel") or 1), frames_of(ds)
    wanted = frames if frame is None else 1
    claim = f"{frames} × {rows} × {columns} × {samples}"
    check_size(path, wanted * rows * columns * samples, max_voxels, claim)
    if frames < 1 or samples not in (1, 3):
        raise DataError(f"{path}: expected frames of 1 or 3 samples a pixel, the header says {claim}. Export it anew.")
    if "PixelData" in ds and int(ds.get("HighBit", int(ds.BitsStored) - 1)) != int(ds.BitsStored) - 1:
        raise DataError(
            f"{path}: expected the high bit to be {int(ds.BitsStored) - 1} for {int(ds.BitsStored)} stored bits, "
            f"found {int(ds.HighBit)}. Export the image anew."
        )
    array = _decode(ds, path, frame, max_voxels)
    shape = (wanted, rows, columns) + ((3,) if samples == 3 else ())
    if array.size != np.prod(shape):
        raise DataError(f"{path}: expected pixels {shape}, found {array.size} values. Copy the file again.")
    return array.reshape(shape)


def _decode(ds: Any, path: Path, frame: int | None, max_voxels: int) -> NDArray[Any]:
    from pydicom.pixels import get_decoder, pixel_array

    frames = frames_of(ds)
    syntax = ds.file_meta.get("TransferSyntaxUID")
    if syntax is None:
        raise DataError(f"{path}: expected a transfer syntax in the header, found none. Rewrite the file with dcmconv.")
    try:
        available = bool(get_decoder(syntax).is_available)
    except NotImplementedError:
        available = False
    twelve_bits = syntax == _JPEG_12_BIT and int(ds.BitsAllocated) > 8  # Pillow's JPEG is 8-bit
    if available and not twelve_bits:
        _check_claims(ds, path, syntax, frames)
        # Excess frames would come back unasked, and the header would no longer say what the array is.
        return pixel_array(ds, index=frame, allow_excess_frames=False)
    if syntax in _ITK_CODECS:
        count = frames * int(ds.Rows) * int(ds.Columns) * int(ds.get("SamplesPerPixel") or 1)
        check_size(path, count, max_voxels, f"{frames} frames of {ds.Rows} × {ds.Columns}")  # it decodes them all
        volume = _decode_with_itk(ds, path, frames)
        return volume if frame is None else volume[frame : frame + 1]
    raise DataError(
        f"{path}: expected a transfer syntax that can be decoded, found {syntax.name}. "
        "Decompress it first, for example with dcmdjpeg or gdcmconv --raw."
    )


def _check_claims(ds: Any, path: Path, syntax: str, frames: int) -> None:
    """Hold the header's sizes to the bytes of pixels before memory is set aside for them.

    pydicom does so for uncompressed pixels. RLE cannot shrink below 1/64. JPEG and JPEG 2000 carry their own size,
    which their decoder checks, but each frame needs at least one item.
    """
    if not getattr(syntax, "is_encapsulated", False):
        return
    stored = len(ds.PixelData)
    claimed = frames * int(ds.Rows) * int(ds.Columns) * int(ds.get("SamplesPerPixel") or 1) * int(ds.BitsAllocated) // 8
    if stored < 8 * frames or (syntax == _RLE and claimed > 64 * stored):
        raise DataError(
            f"{path}: the header says {claimed} bytes in {frames} frame(s), more than its {stored} bytes can hold. "
            "It is damaged or cut short: copy it again from its source."
        )


def _decode_with_itk(ds: Any, path: Path, frames: int) -> NDArray[Any]:
    """Decode with SimpleITK, which would also rescale and turn MONOCHROME1 over.

    It is given a file with the pixel module alone, no rescale and MONOCHROME2, so it decodes and does nothing else;
    what the values mean is decided in one place, ``dicom_values``. No patient's data reaches the temporary file.
    """
    from pydicom.encaps import generate_frames

    wanted = (int(ds.Rows), int(ds.Columns), int(ds.get("SamplesPerPixel") or 1))
    found = list(generate_frames(ds.PixelData, number_of_frames=frames))
    for codestream in found:
        whole = codestream.rstrip(b"\0\xff").endswith(b"\xff\xd9")
        # GDCM would write what the codestream says into memory set aside for what the header says.
        if not whole or len(found) != frames or _jpeg_size(codestream) != wanted:
            raise DataError(f"{path}: expected {frames} whole JPEG frame(s), found one cut short or of another size.")
    with tempfile.TemporaryDirectory(prefix="medzoo-") as folder:
        bare = Path(folder) / "pixels.dcm"
        _bare(ds).save_as(bare, enforce_file_format=True)
        pixels = decode_apart(bare)
    if pixels is None:
        raise DataError(f"{path}: expected {frames} sound JPEG frame(s), found damage. Copy the file again.")
    return pixels


def _jpeg_size(codestream: bytes) -> tuple[int, int, int] | None:
    """Return rows, columns and components from the frame header of a JPEG or JPEG-LS, or ``None`` if it has none."""
    if codestream[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 10 <= len(codestream) and codestream[at] == 0xFF:
        marker = codestream[at + 1]
        if marker in _START_OF_FRAME:
            rows, columns = struct.unpack(">HH", codestream[at + 5 : at + 9])
            return rows, columns, codestream[at + 9]
        at += 2 + int(struct.unpack(">H", codestream[at + 2 : at + 4])[0])
    return None


def _bare(ds: Any) -> Any:
    """Return a data set with the pixels of ``ds`` and nothing about whose they are."""
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import SecondaryCaptureImageStorage, generate_uid

    bare = Dataset()
    for keyword in _PIXEL_MODULE:
        if keyword in ds:
            setattr(bare, keyword, ds[keyword].value)
    bare.PhotometricInterpretation = "MONOCHROME2" if int(ds.get("SamplesPerPixel") or 1) == 1 else "RGB"
    bare.SOPClassUID = SecondaryCaptureImageStorage
    bare.SOPInstanceUID = generate_uid()
    bare["PixelData"] = ds["PixelData"]
    bare.file_meta = FileMetaDataset()
    bare.file_meta.TransferSyntaxUID = ds.file_meta.TransferSyntaxUID
    bare.file_meta.MediaStorageSOPClassUID = bare.SOPClassUID
    bare.file_meta.MediaStorageSOPInstanceUID = bare.SOPInstanceUID
    return bare


def _refuse_deflate_bomb(path: Path, max_voxels: int) -> None:
    """Refuse a deflated file that grows beyond what ``max_voxels`` could need: pydicom inflates without a bound."""
    from pydicom.filereader import read_file_meta_info

    meta = read_file_meta_info(path)
    if meta.get("TransferSyntaxUID") != _DEFLATED:
        return
    limit = 8 * max_voxels + 2**26  # 8 bytes a value, and a generous header
    stored = path.stat().st_size
    if stored * DEFLATE_LIMIT <= limit:
        return
    start = 144 + int(meta.FileMetaInformationGroupLength)
    inflate, grown = zlib.decompressobj(-zlib.MAX_WBITS), 0
    with path.open("rb") as file:
        file.seek(start)
        rest = b""
        while rest or (rest := file.read(2**16)):
            grown += len(inflate.decompress(rest, 2**20))
            rest = inflate.unconsumed_tail
            if grown > limit:
                raise DataError(
                    f"{path}: expected at most {max_voxels} values, found a deflated file of more. Copy it again."
                )
