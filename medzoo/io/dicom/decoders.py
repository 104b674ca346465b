"""Which decoders read which transfer syntax, in which order, and the decoding with the first that succeeds.

Every decoder returns the samples as they were compressed, without a conversion of colours other than the one that is
part of JPEG 2000. What follows is the same after each of them: see :func:`~medzoo.io.dicom.pixels.decode_pixels`.

Those that medzoo depends on come first, so that the values do not depend on what else is installed.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from medzoo.errors import DataError
from medzoo.io.codestream import Codestream, parse
from medzoo.io.dicom import decoder

__all__ = ["DECODER_DEPENDENCIES", "SYNTAXES", "Syntax", "decode_encapsulated", "is_available"]


@dataclass(frozen=True)
class Syntax:
    """How a compressed transfer syntax is decoded.

    Attributes:
        decoders: names of pydicom's decoding plugins, in the order in which they are tried.
        packages: what to install for the decoders that medzoo does not depend on.
        lossy: the compression always loses something.
        partial: SimpleITK reads it only if it is new enough, so that its failure does not prove damage.
    """

    decoders: tuple[str, ...]
    packages: str = ""
    lossy: bool = False
    partial: bool = False


_LIBJPEG = "pylibjpeg pylibjpeg-libjpeg"
_OPENJPEG = "pylibjpeg pylibjpeg-openjpeg"
_JPEG_LS = ("simpleitk", "pyjpegls", "pylibjpeg", "gdcm")
_JPEG = ("pillow", "simpleitk", "pylibjpeg", "gdcm")  # and JPEG 2000
_LOSSLESS = ("simpleitk", "pylibjpeg", "gdcm")

SYNTAXES = {
    "1.2.840.10008.1.2.5": Syntax(("pydicom", "pylibjpeg")),  # RLE
    "1.2.840.10008.1.2.4.50": Syntax(_JPEG, _LIBJPEG, lossy=True),  # JPEG baseline, 8 bits
    "1.2.840.10008.1.2.4.51": Syntax(_JPEG, _LIBJPEG, lossy=True),  # JPEG extended, 8 or 12 bits
    "1.2.840.10008.1.2.4.57": Syntax(_LOSSLESS, _LIBJPEG),  # JPEG lossless
    "1.2.840.10008.1.2.4.70": Syntax(_LOSSLESS, _LIBJPEG),  # JPEG lossless, first-order prediction
    "1.2.840.10008.1.2.4.80": Syntax(_JPEG_LS, "pyjpegls"),
    "1.2.840.10008.1.2.4.81": Syntax(_JPEG_LS, "pyjpegls"),
    "1.2.840.10008.1.2.4.90": Syntax(_JPEG, _OPENJPEG),  # JPEG 2000
    "1.2.840.10008.1.2.4.91": Syntax(_JPEG, _OPENJPEG),
    "1.2.840.10008.1.2.4.201": Syntax(("simpleitk", "pylibjpeg"), _OPENJPEG, partial=True),  # high-throughput JPEG 2000
    "1.2.840.10008.1.2.4.202": Syntax(("simpleitk", "pylibjpeg"), _OPENJPEG, partial=True),
    "1.2.840.10008.1.2.4.203": Syntax(("simpleitk", "pylibjpeg"), _OPENJPEG, partial=True),
}
"""The compressed transfer syntaxes that can be decoded, by UID."""

_JPEG_2000 = frozenset(uid for uid in SYNTAXES if uid.startswith("1.2.840.10008.1.2.4.") and int(uid[20:]) >= 90)
_JPEG_2000_LOSSLESS = "1.2.840.10008.1.2.4.90"
_JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
_VIDEO = tuple(f"1.2.840.10008.1.2.4.10{number}" for number in range(10))

_PLUGINS = {name: f"pydicom.pixels.decoders.{name}" for name in ("gdcm", "pillow", "pyjpegls", "pylibjpeg")} | {
    "pydicom": "pydicom.pixels.decoders.rle", "simpleitk": __name__,
}  # fmt: skip
"""The module of each decoder, with its function ``_decode_frame``."""

DECODER_DEPENDENCIES = {uid: ("SimpleITK>=2.3",) for uid, row in SYNTAXES.items() if "simpleitk" in row.decoders}
"""What pydicom asks of a module with a decoding plugin, as :func:`is_available` and ``_decode_frame``."""


def is_available(uid: str) -> bool:
    """Return whether SimpleITK decodes a transfer syntax."""
    return uid in DECODER_DEPENDENCIES


def _decode_frame(frame: bytes, runner: Any) -> bytes:
    """Decode one frame with SimpleITK, as a decoding plugin of pydicom does."""
    form = parse(frame)
    if form is None:
        raise ValueError("not a JPEG, JPEG-LS or JPEG 2000 codestream")
    syntax = str(runner.transfer_syntax)
    # GDCM does not know the syntaxes of high-throughput JPEG 2000; its OpenJPEG reads them as JPEG 2000.
    samples = decoder.decode_frame(frame, form, _JPEG_2000_LOSSLESS if SYNTAXES[syntax].partial else syntax)
    runner.set_option("bits_allocated", 8 * samples.dtype.itemsize)
    runner.set_option("planar_configuration", 0)
    if runner.transfer_syntax in _JPEG_2000 and str(runner.photometric_interpretation) in ("YBR_RCT", "YBR_ICT"):
        runner.set_option("photometric_interpretation", "RGB")  # the conversion is part of the codestream
    return samples.tobytes()


@functools.cache
def _pydicom_decoder(uid: str) -> Any:
    """Return a decoder of pydicom with the plugins of the table; pydicom's own instance is not changed."""
    from pydicom.pixels.decoders.base import Decoder
    from pydicom.uid import UID

    known = Decoder(UID(uid))
    for name in SYNTAXES[uid].decoders:
        known.add_plugin(name, (_PLUGINS[name], "_decode_frame"))
    return known


def _supports(name: str, form: Codestream, uid: str, signed: bool) -> bool:
    """Return whether a decoder reads a codestream, and reads it right.

    Args:
        name: the decoder.
        form: the header of the codestream.
        uid: the transfer syntax.
        signed: the DICOM header declares signed samples.
    """
    if name == "pillow" and uid in _JPEG_2000:  # it shifts signed samples, and reads colour of over 8 bits as 8
        return signed >= form.signed and form.precision <= (8 if form.samples > 1 else 16)
    if name == "pillow":  # by Adobe's marker it converts to RGB, and pydicom then converts once more
        return form.precision == 8 and not (form.samples == 3 and form.adobe)
    if name == "simpleitk":
        return 8 <= form.precision <= 16
    return name != "gdcm" or form.precision != 12 or uid != _JPEG_EXTENDED


def decode_encapsulated(
    data: bytes,
    options: dict[str, Any],
    syntax: Any,
    path: Path,
    frame: int | None,
    forms: list[Codestream | None],
) -> tuple[NDArray[Any], str]:
    """Decode one frame, or with ``None`` all, with the first decoder that succeeds.

    Args:
        data: the encapsulated pixels.
        options: the pixel module, as options of pydicom's decoders.
        syntax: the UID of the transfer syntax.
        path: the file, for messages.
        frame: which frame.
        forms: the header of each codestream that is decoded; ``None`` for RLE.

    Returns:
        The samples ``h w``, ``f h w``, ``h w s`` or ``f h w s``, and the photometric interpretation that they have.

    Raises:
        DataError: no installed decoder supports the codestream, or each of those that do fails.
    """
    if syntax not in SYNTAXES:
        video = "It is a video: export its frames as images."
        advice = video if syntax.startswith(_VIDEO) else "Decompress it first, for example with gdcmconv --raw."
        raise DataError(f"{path}: expected a transfer syntax that can be decoded, found {syntax.name}. {advice}")
    row, decoder = SYNTAXES[syntax], _pydicom_decoder(str(syntax))
    signed = bool(options.get("pixel_representation"))
    failed = []
    for name in row.decoders:
        supported = all(_supports(name, form, syntax, signed) for form in forms if form)
        if name not in decoder.available_plugins or not supported:
            continue
        try:
            array, found = decoder.as_array(data, index=frame, decoding_plugin=name, **options)
        except MemoryError:
            raise
        except Exception:  # whatever a decoder raises, the next may read it
            failed.append(name)
            continue
        return array, str(found["photometric_interpretation"])
    if failed == ["simpleitk"] and row.partial:
        raise DataError(
            f"{path}: expected frames of {syntax.name} that can be decoded, but SimpleITK cannot decode them. "
            f"They are damaged, or it is too old: run pip install {row.packages}, or copy the file again."
        )
    if failed:
        raise DataError(
            f"{path}: expected sound frames of {syntax.name}, found damage: {' and '.join(failed)} cannot decode them. "
            "Copy the file again from its source."
        )
    raise DataError(
        f"{path}: expected a transfer syntax that can be decoded, found {syntax.name}{_bits(forms)}, which none of the "
        f"installed decoders reads. Run pip install {row.packages}, or decompress it first."
    )


def _bits(forms: list[Codestream | None]) -> str:
    first = next(filter(None, forms), None)
    return f" of {first.precision} bits in {first.samples} component(s)" if first else ""
