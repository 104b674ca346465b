"""The header of a compressed frame: JPEG, JPEG-LS, or JPEG 2000."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Codestream", "declare_rgb", "parse"]

_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}  # 0xF7: JPEG-LS
_LOSSLESS_JPEG = frozenset({0xC3, 0xC7, 0xCB, 0xCF})
_J2K_START = b"\xff\x4f\xff\x51"  # start of codestream, then the sizes
_CODING_STYLE = b"\xff\x52"
_ADOBE_RGB = b"\xff\xee\x00\x0eAdobe\x00\x64" + bytes(5)  # transform 0: the samples are RGB


@dataclass(frozen=True)
class Codestream:
    """What the header of a compressed frame declares.

    Attributes:
        rows: its height.
        columns: its width.
        samples: how many components.
        precision: bits of a sample.
        signed: samples are signed; only JPEG 2000 can declare that.
        lossless: nothing was lost in compression.
        complete: its end was found.
        colour: ``"RGB"`` or ``"YBR_FULL"`` where the codestream itself declares one, else ``""``. JPEG 2000 declares
            RGB by its multiple component transform, which decoders revert.
        adobe: Adobe's marker declares the conversion to YBR that JPEG commonly uses.
    """

    rows: int
    columns: int
    samples: int
    precision: int
    signed: bool = False
    lossless: bool = True
    complete: bool = True
    colour: str = ""
    adobe: bool = False


def parse(frame: bytes) -> Codestream | None:
    """Return what the header of a JPEG, JPEG-LS or JPEG 2000 frame declares, or ``None`` if it is none of them."""
    complete = frame.rstrip(b"\0\xff").endswith(b"\xff\xd9") or frame.endswith(b"\xff\xd9")
    if frame[:2] == b"\xff\xd8":
        return _parse_jpeg(frame, complete)
    start = frame.find(_J2K_START, 0, 2**16)  # some are wrapped in the boxes of a JP2 file
    return _parse_j2k(frame[start:], complete) if start >= 0 else None


def declare_rgb(frame: bytes) -> bytes:
    """Return a JPEG of three components that declares RGB, so that libjpeg returns the samples as they are.

    Anything else is returned as it is; JPEG-LS, which starts as a JPEG does, converts nothing.
    """
    if frame[:2] != b"\xff\xd8":
        return frame
    kept, at = [frame[:2], _ADOBE_RGB], 2
    while at + 4 <= len(frame) and frame[at] == 0xFF and frame[at + 1] not in _START_OF_FRAME:
        end = at + 2 + int.from_bytes(frame[at + 2 : at + 4])
        if frame[at + 1] not in (0xE0, 0xEE):
            kept.append(frame[at:end])
        at = end
    return frame if frame[at + 1 : at + 2] == b"\xf7" else b"".join(kept) + frame[at:]


def _parse_jpeg(frame: bytes, complete: bool) -> Codestream | None:
    at, apps = 2, b""
    while at + 10 <= len(frame) and frame[at] == 0xFF:
        marker, length = frame[at + 1], int.from_bytes(frame[at + 2 : at + 4])
        if marker == 0xFF:  # fill before a marker
            at += 1
            continue
        if marker in (0xE0, 0xEE):
            apps += frame[at + 4 : at + 2 + length] + b"|"
        if marker in _START_OF_FRAME:
            rows, columns = int.from_bytes(frame[at + 5 : at + 7]), int.from_bytes(frame[at + 7 : at + 9])
            samples = frame[at + 9]
            ids = frame[at + 10 : at + 10 + 3 * samples : 3]
            lossless = marker in _LOSSLESS_JPEG or (marker == 0xF7 and _near(frame, at + 2 + length) == 0)
            adobe = apps.find(b"Adobe")
            converted = adobe >= 0 and apps[adobe + 11 : adobe + 12] == b"\1"
            colour = _colour(ids, apps, converted) if samples == 3 else ""
            return Codestream(rows, columns, samples, frame[at + 4], False, lossless, complete, colour, converted)
        at += 2 + length
    return None


def _colour(ids: bytes, apps: bytes, converted: bool) -> str:
    """Return the colour space by the names of the components, by JFIF or by Adobe's marker, in this order."""
    if ids in (b"RGB", b"rgb"):
        return "RGB"
    if apps.startswith(b"JFIF") or b"|JFIF" in apps:
        return "YBR_FULL"
    return "YBR_FULL" if converted else ""


def _near(frame: bytes, at: int) -> int:
    """Return the error that a JPEG-LS scan allows, from the markers behind byte ``at``; 0 is lossless."""
    while at + 6 <= len(frame) and frame[at] == 0xFF:
        if frame[at + 1] == 0xDA:
            parameters = at + 5 + 2 * frame[at + 4]
            return frame[parameters] if parameters < len(frame) else 0
        at += 2 + int.from_bytes(frame[at + 2 : at + 4])
    return 0


def _parse_j2k(stream: bytes, complete: bool) -> Codestream | None:
    if len(stream) < 45:
        return None

    def number(at: int) -> int:
        return int.from_bytes(stream[at : at + 4])

    rows, columns = number(12) - number(20), number(8) - number(16)
    depth = stream[42]
    style = stream.find(_CODING_STYLE, 42)
    lossless = 0 <= style < len(stream) - 13 and stream[style + 13] == 1  # the 5-3 wavelet is reversible
    samples = int.from_bytes(stream[40:42])
    transformed = 0 <= style < len(stream) - 13 and stream[style + 8] == 1  # decoding it returns RGB
    colour = "RGB" if samples == 3 and transformed else ""
    return Codestream(rows, columns, samples, (depth & 0x7F) + 1, depth > 0x7F, lossless, complete, colour)
