"""The stored pixels of a DICOM file: decoded, in the bits that hold them, and colour as RGB.

Axes: f frames, h w rows and columns, s samples of a colour pixel.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from medzoo.errors import DataError
from medzoo.io.codestream import Codestream, parse
from medzoo.io.dicom.colour import apply_palette, to_rgb
from medzoo.io.dicom.decoders import SYNTAXES, decode_encapsulated
from medzoo.io.dicom.elements import ElementError, text
from medzoo.io.dicom.header import frame_count, wrap_dicom_errors
from medzoo.io.dicom.module import PIXEL_KEYWORDS, PixelModule, native_length, pixel_module, stored_bits
from medzoo.io.files import DEFLATE_LIMIT, check_size, inflated_size

__all__ = ["Pixels", "decode_pixels", "load"]

_DEFLATED = "1.2.840.10008.1.2.1.99"
_RLE = "1.2.840.10008.1.2.5"


@dataclass(frozen=True, eq=False)
class Pixels:
    """Decoded pixels.

    Attributes:
        array: ``f h w`` of grey, or ``f h w 3`` of RGB.
        low: the lowest value that the storage could hold.
        high: the highest.
        photometric: ``"MONOCHROME1"``, ``"MONOCHROME2"`` or ``"RGB"``.
        notes: what was done to them.
        warnings: what is known against them.
    """

    array: NDArray[Any]
    low: float
    high: float
    photometric: str
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def load(path: Path, *, max_voxels: int, tags: list[str] | None = None) -> Any:
    """Return the data set of a file with a DICOM preamble; with ``tags``, only those and no pixels.

    Raises:
        DataError: not DICOM, damaged, or a deflated file of more than ``max_voxels`` could need.
    """
    from pydicom import dcmread

    with wrap_dicom_errors(path, "a DICOM file"):
        _check_inflated_size(path, max_voxels)
        return dcmread(path, stop_before_pixels=tags is not None, specific_tags=tags)


def decode_pixels(ds: Any, path: Path, frame: int | None, max_voxels: int) -> Pixels:
    """Decode one frame, or with ``None`` all.

    Raises:
        DataError: no pixels, sizes that the data cannot hold, or a transfer syntax that cannot be decoded.
        ElementError: an element of the pixel module is missing or contradicts the others.
    """
    if not any(keyword in ds for keyword in PIXEL_KEYWORDS):
        raise DataError(
            f"{path}: expected an image, found a DICOM object without pixels. It is cut or stripped: export it again."
        )
    warnings: list[str] = []
    notes: list[str] = []
    syntax = _transfer_syntax(ds, path, warnings)
    native = not syntax.is_encapsulated
    codestreams = [] if native else _codestreams(ds, path)
    forms = [None if syntax == _RLE or syntax not in SYNTAXES else parse(stream) for stream in codestreams]
    first = forms[0] if forms else None
    module = pixel_module(ds, first, native, warnings, notes)
    wanted = module.frames if frame is None else 1
    sizes = f"{module.frames} × {module.rows} × {module.columns} × {module.samples}"
    check_size(path, wanted * module.rows * module.columns * module.samples, max_voxels, sizes)
    if native:
        _check_length(ds, path, module, warnings, notes)
    else:
        _check_codestreams(path, module, codestreams, forms, syntax, frame)
        if len(codestreams) > module.frames:
            warnings.append(f"NumberOfFrames is {module.frames}, but there are pixels of {len(codestreams)} frames.")
    array, photometric = _decode(ds, path, module, syntax, frame, forms)
    shape = (wanted, module.rows, module.columns) + ((3,) if module.samples == 3 else ())
    lossless = (not first or first.lossless) and not (syntax in SYNTAXES and SYNTAXES[syntax].lossy)
    array = stored_bits(array.reshape(shape), module, lossless, warnings)
    low, high = module.range
    if module.samples == 3:
        space = _colour_space(module.photometric, photometric, first, warnings)
        array, photometric = to_rgb(array, space, module.signed, high), "RGB"
    elif photometric == "PALETTE COLOR":
        if not lossless:
            raise ElementError("PhotometricInterpretation", "is PALETTE COLOR, whose indices were compressed with loss")
        array, high = apply_palette(array, ds, module.signed)
        low, photometric = 0.0, "RGB"
        notes.append("palette converted to RGB")
    return Pixels(array, low, high, photometric, tuple(notes), tuple(warnings))


def _colour_space(declared: str, decoded: str, first: Codestream | None, warnings: list[str]) -> str:
    """Return the colour space of decoded samples, which a JPEG may declare other than its DICOM header.

    By the names of its components, JFIF or Adobe's marker, as pydicom decides it; of JPEG 2000, by its transform.
    """
    if not first or not first.colour or not declared.startswith(("RGB", "YBR_FULL")):
        return decoded
    if declared.removesuffix("_422") != first.colour:
        warnings.append(f"PhotometricInterpretation is {declared}, but the JPEG is {first.colour}: read as that.")
    return first.colour


def _transfer_syntax(ds: Any, path: Path, warnings: list[str]) -> Any:
    """Return the transfer syntax, for uncompressed pixels also where the header names none."""
    from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    if named := text(ds.file_meta, "TransferSyntaxUID"):
        syntax = UID(named)
        if syntax.is_private or not syntax.is_transfer_syntax:
            shown = f" {named}" if named.replace(".", "").isdigit() else ""
            raise DataError(
                f"{path}: expected a transfer syntax of the DICOM standard, found another{shown}. Export it again."
            )
        return syntax
    implicit, little = ds.original_encoding
    element = ds[next(keyword for keyword in PIXEL_KEYWORDS if keyword in ds)]
    if element.is_undefined_length:  # compressed, and nothing says how
        raise ElementError("TransferSyntaxUID", "is missing")
    syntax = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    warnings.append(f"TransferSyntaxUID is missing: read as {syntax.name}, in which the header is written.")
    return syntax


def _codestreams(ds: Any, path: Path) -> list[bytes]:
    """Return the compressed frames."""
    from pydicom.encaps import generate_frames

    frames = frame_count(ds)
    if len(ds.PixelData) < 8 * frames:  # before memory is allocated for them: each needs at least one item
        raise _too_many(path, frames, len(ds.PixelData))
    if not _is_complete(ds.PixelData):  # of a file that is cut short, pydicom returns what there is
        raise DataError(
            f"{path}: expected a complete DICOM file, found one that is cut short. Copy it again from its source."
        )
    offsets = None
    if "ExtendedOffsetTable" in ds and "ExtendedOffsetTableLengths" in ds:
        offsets = (ds.ExtendedOffsetTable, ds.ExtendedOffsetTableLengths)
    try:
        return list(generate_frames(ds.PixelData, number_of_frames=frames, extended_offsets=offsets))
    except MemoryError:
        raise
    except Exception:
        raise DataError(
            f"{path}: expected {frames} compressed frame(s), found fragments that do not divide into them. "
            "It is damaged or cut short: copy it again from its source."
        ) from None


def _is_complete(data: bytes) -> bool:
    """Return whether encapsulated pixels end where an item of them does, but for padding."""
    at = 0
    while at + 8 <= len(data):
        at += 8 + int.from_bytes(data[at + 4 : at + 8], "little")
    return at <= len(data) and not any(data[at:])


def _too_many(path: Path, frames: int, stored: int) -> DataError:
    return DataError(
        f"{path}: the header declares more than its {stored} bytes of pixels can hold, in {frames} frame(s). "
        "It is damaged or cut short: copy it again from its source."
    )


def _check_length(ds: Any, path: Path, module: PixelModule, warnings: list[str], notes: list[str]) -> None:
    """Check the length of uncompressed pixels against the header."""
    count = module.rows * module.columns * module.samples
    expected = native_length(count * module.frames, module.allocated, module.photometric)
    found = len(ds[module.keyword].value)
    if found < expected:
        raise DataError(
            f"{path}: expected {expected} bytes of pixels, found {found}. "
            "It is damaged or cut short: copy it again from its source."
        )
    if module.photometric == "YBR_FULL_422" and found >= native_length(count * module.frames, module.allocated, ""):
        raise ElementError(
            "PhotometricInterpretation", "is YBR_FULL_422, but the pixels are not subsampled: RGB or YBR_FULL"
        )
    extra = found - expected
    if extra >= native_length(count, module.allocated, module.photometric) > 1:
        warnings.append(f"NumberOfFrames is {module.frames}, but there are {extra} bytes more, enough for another.")
    elif extra > 1:
        notes.append(f"{extra} bytes behind the pixels ignored")


def _check_codestreams(
    path: Path,
    module: PixelModule,
    codestreams: list[bytes],
    forms: list[Codestream | None],
    syntax: Any,
    frame: int | None,
) -> None:
    """Check the compressed frames against the header, before memory is allocated for what it declares."""
    if syntax not in SYNTAXES:
        return  # refused by name
    if len(codestreams) < module.frames:
        raise DataError(
            f"{path}: expected {module.frames} frames, found pixels of {len(codestreams)}. "
            "It is cut short, or NumberOfFrames is wrong: copy it again from its source."
        )
    size = module.rows * module.columns * module.samples * module.allocated // 8
    declared = (module.rows, module.columns, module.samples)
    for index in range(module.frames) if frame is None else [frame]:
        form = forms[index]
        if syntax == _RLE:  # cannot shrink below 1/64
            if size > 64 * len(codestreams[index]):
                raise _too_many(path, module.frames, len(codestreams[index]))
        elif form is None:
            raise DataError(
                f"{path}: expected {syntax.name} in frame {index}, found bytes without its header. "
                "It is damaged: copy it again from its source."
            )
        elif (form.rows, form.columns, form.samples) != declared:
            raise DataError(
                f"{path}: the header declares {' × '.join(map(str, declared))}, the codestream of frame {index} "
                f"{form.rows} × {form.columns} × {form.samples}. Export the image again."
            )


def _decode(
    ds: Any, path: Path, module: PixelModule, syntax: Any, frame: int | None, forms: list[Codestream | None]
) -> tuple[NDArray[Any], str]:
    """Return the samples as stored, and the photometric interpretation that they have."""
    from pydicom.pixels import get_decoder

    data, options = ds[module.keyword].value, _options(ds, module)
    if syntax.is_encapsulated:
        chosen = forms if frame is None else forms[frame : frame + 1]
        return decode_encapsulated(data, options, syntax, path, frame, chosen)
    array, found = get_decoder(syntax).as_array(data, index=frame, **options)
    return array, str(found["photometric_interpretation"])


def _options(ds: Any, module: PixelModule) -> dict[str, Any]:
    """Return the checked pixel module as options of pydicom's decoders.

    Excess frames would be returned too, and the array would no longer match the header. Bits beyond the stored ones are
    handled after every decoder, and so are colours (``raw``).
    """
    options: dict[str, Any] = {
        "rows": module.rows, "columns": module.columns, "samples_per_pixel": module.samples,
        "number_of_frames": module.frames, "bits_allocated": module.allocated, "pixel_keyword": module.keyword,
        "photometric_interpretation": module.photometric, "planar_configuration": int(module.planar),
        "pixel_vr": ds[module.keyword].VR, "raw": True, "allow_excess_frames": False, "correct_unused_bits": False,
    }  # fmt: skip
    if module.keyword == "PixelData":
        options |= {"bits_stored": module.stored, "pixel_representation": int(module.signed)}
    if "ExtendedOffsetTable" in ds and "ExtendedOffsetTableLengths" in ds:
        options["extended_offsets"] = (ds.ExtendedOffsetTable, ds.ExtendedOffsetTableLengths)
    return options


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
