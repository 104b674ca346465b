"""Every photometric interpretation in every codec, bit depth and number of frames, against the array it was made of.

Encoded by imagecodecs and pydicom, which medzoo does not decode with except for RLE. A combination that the standard
does not allow is refused with its cause, and one that a codec cannot hold is not written.

Axes: f frames, h w rows and columns, s samples of a colour pixel.
"""

from __future__ import annotations

import itertools

import imagecodecs
import numpy as np
import pytest
from make_images import dataset, save
from pydicom.encaps import encapsulate
from pydicom.pixels import convert_color_space
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.uid import (
    JPEG2000,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from medzoo.errors import DataError
from medzoo.io.options import ReadOptions
from medzoo.io.read import read_image

GREY = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
PHOTOMETRIC = (*GREY, "RGB", "YBR_FULL", "YBR_FULL_422")
CODECS = {
    "raw": ExplicitVRLittleEndian, "RLE": RLELossless, "JPEG": JPEGBaseline8Bit, "JPEG 12": JPEGExtended12Bit,
    "JPEG lossless": JPEGLosslessSV1, "JPEG-LS": JPEGLSLossless, "JPEG-LS near": JPEGLSNearLossless,
    "J2K": JPEG2000Lossless, "J2K lossy": JPEG2000,
}  # fmt: skip
DEPTHS = {"8": (8, np.uint8), "12 in 16": (12, np.uint16), "16 signed": (16, np.int16)}
LOSSY = {"JPEG": 0.03, "JPEG 12": 0.03, "JPEG-LS near": 0, "J2K lossy": 0.01}
"""The most that a value may differ by, as a part of the range; JPEG-LS has a bound of its own, ``NEAR``."""
NEAR = 2


def cannot_be_written(photometric: str, codec: str, depth: str) -> bool:
    """Return whether a codec has no room for a depth, or, for RLE, pydicom refuses to write it (PS3.5 8.2.2)."""
    if codec == "RLE":
        return (photometric.startswith("YBR") and depth != "8") or (
            photometric in ("RGB", "PALETTE COLOR") and depth == "16 signed"
        )
    return (codec == "JPEG" and depth != "8") or (codec == "JPEG 12" and depth != "12 in 16")


def cause(photometric: str, codec: str, depth: str) -> str:
    """Return why a combination is refused, as a pattern of the message; ``""`` where it is read."""
    if photometric.startswith("YBR") and depth != "8":
        return r"PhotometricInterpretation \(0028,0004\) is YBR_FULL(_422)?, which is defined for 8 unsigned bits alone"
    if photometric == "PALETTE COLOR" and codec in LOSSY:
        return r"PhotometricInterpretation \(0028,0004\) is PALETTE COLOR, whose indices were compressed with loss"
    return ""


MATRIX = [
    combination
    for combination in itertools.product(PHOTOMETRIC, CODECS, DEPTHS, (1, 3))
    if not cannot_be_written(*combination[:3])
]


@pytest.mark.parametrize(("photometric", "codec", "depth", "frames"), MATRIX)
def test_124_126_the_matrix(tmp_path, photometric, codec, depth, frames):
    bits, dtype = DEPTHS[depth]
    path, expected = write(tmp_path / "x", photometric, codec, bits, dtype, frames)
    if why := cause(photometric, codec, depth):
        with pytest.raises(DataError, match=why):
            read_image(path, ReadOptions())
        return
    image = read_image(path, ReadOptions())
    assert image.warning == ""
    found = image.array if frames > 1 else image.array[:, None]
    assert found.shape == expected.shape
    near = LOSSY.get(codec, 0) * 2**bits + (NEAR if codec == "JPEG-LS near" else 0)
    near *= 3 if photometric not in GREY else 1  # a colour is a sum of three samples
    assert np.abs(found.astype(np.int64) - expected).max() <= near
    low, high = image.value_range
    assert low <= found.min() <= found.max() <= high
    bits = 16 if photometric == "PALETTE COLOR" else bits
    signed = dtype == np.int16 and photometric != "PALETTE COLOR"
    assert (low, high) == ((-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1))
    for frame in range(frames if frames > 1 else 0):
        np.testing.assert_array_equal(read_image(path, ReadOptions(frame=frame)).array, image.array[:, frame])


def test_the_matrix_has_every_combination_that_can_be_written():
    refused = [combination for combination in MATRIX if cause(*combination[:3])]
    assert (len(MATRIX), len(refused)) == (264, 68)


def write(path, photometric, codec, bits, dtype, frames):
    """Write one file; return its path, and the values ``c f h w`` that a reader should return."""
    rows, columns = (13, 18) if photometric == "YBR_FULL_422" else (13, 17)  # pairs of columns share their colour
    smooth = np.add.outer(np.arange(rows), np.arange(columns)) / (rows + columns)
    if codec in LOSSY and dtype == np.int16:  # an error at the ends of the range would go around it
        smooth = 0.01 + 0.98 * smooth
    grey = np.stack([np.roll(smooth, 2 * f, axis=0) * (0.9 - 0.1 * f) for f in range(frames)])
    low = -(2 ** (bits - 1)) if dtype == np.int16 else 0
    scale = 2**bits - 1
    if photometric in GREY:
        stored = (low + np.round(grey * scale)).astype(dtype)
        expected = stored.astype(np.int64)[None]
        if photometric == "MONOCHROME1":
            expected = 2 * low + scale - expected
    else:
        rgb = np.stack([grey, 1 - grey, grey * 0.5 + 0.2], -1)
        stored = (low + np.round(rgb * scale)).astype(dtype)
        if photometric.startswith("YBR") and bits == 8:  # others are refused
            stored = convert_color_space(stored, "RGB", "YBR_FULL")
            if photometric == "YBR_FULL_422":
                stored[..., 1::2, 1:] = stored[..., ::2, 1:]
            expected = convert_color_space(stored.copy(), "YBR_FULL", "RGB")
        else:
            expected = stored
        expected = np.moveaxis(expected.astype(np.int64), -1, 0)
    ds = dataset(stored if frames > 1 else stored[0], Modality="US", BitsStored=bits)
    ds.PhotometricInterpretation = photometric
    if photometric == "PALETTE COLOR":
        expected = add_palette(ds, stored, low)
    if codec != "raw":
        ds.file_meta.TransferSyntaxUID = CODECS[codec]
        ds.PixelData = encapsulate([encode(frame, codec, bits, photometric, ds) for frame in stored])
        ds["PixelData"].VR = "OB"
        ds["PixelData"].is_undefined_length = True
    elif photometric == "YBR_FULL_422":  # two luminances, then the colour that they share
        pairs = np.stack([stored[..., ::2, 0], stored[..., 1::2, 0], stored[..., ::2, 1], stored[..., ::2, 2]], -1)
        ds.PixelData = pairs.tobytes()
    return save(ds, path), expected


def add_palette(ds, indices, low):
    """Add a palette of 16 bits from the lowest index on, shorter than the indices; return the colours of these."""
    entries = 200
    tables = np.stack([np.arange(entries) * 300, 60000 - np.arange(entries) * 200, np.arange(entries) % 7 * 1000])
    for table, colour in zip(tables, ("Red", "Green", "Blue"), strict=True):
        setattr(ds, f"{colour}PaletteColorLookupTableDescriptor", [entries, low, 16])
        ds[f"{colour}PaletteColorLookupTableDescriptor"].VR = "SS" if low < 0 else "US"
        setattr(ds, f"{colour}PaletteColorLookupTableData", table.astype("<u2").tobytes())
    return tables[:, np.clip(indices.astype(np.int64) - low, 0, entries - 1)]


def encode(frame, codec, bits, photometric, ds):
    """Return the codestream of one frame ``h w`` or ``h w s``, whose samples are compressed as they are."""
    if codec == "RLE":
        return RLELosslessEncoder.encode(
            np.ascontiguousarray(frame), rows=ds.Rows, columns=ds.Columns, samples_per_pixel=ds.SamplesPerPixel,
            bits_allocated=ds.BitsAllocated, bits_stored=ds.BitsStored, number_of_frames=1, planar_configuration=0,
            pixel_representation=ds.PixelRepresentation,
            photometric_interpretation="YBR_FULL" if photometric == "YBR_FULL_422" else photometric,
        )  # fmt: skip
    unsigned = frame.view(np.uint16) if frame.dtype == np.int16 else frame
    if codec.startswith("JPEG-LS"):
        return imagecodecs.jpegls_encode(unsigned, level=NEAR if codec == "JPEG-LS near" else 0)
    if codec.startswith("J2K"):  # the colour transform is part of the codestream where RGB is declared
        lossy = {} if codec == "J2K" else {"reversible": False, "level": 70}
        return imagecodecs.jpeg2k_encode(frame, codecformat="J2K", bitspersample=bits, mct=False, **lossy)
    if photometric.startswith("YBR") and codec == "JPEG lossless":  # libjpeg-turbo writes it with the wrong tables
        stream = imagecodecs.jpeg8_encode(unsigned, lossless=True, predictor=1, bitspersample=bits, colorspace="RGB")
        return without_names(stream)
    space = {}
    if photometric not in GREY:
        space = dict.fromkeys(("colorspace", "outcolorspace"), "RGB" if photometric == "RGB" else "YCBCR")
        space["subsampling"] = "444"
    if codec == "JPEG lossless":
        return imagecodecs.jpeg8_encode(unsigned, lossless=True, predictor=1, bitspersample=bits, **space)
    return imagecodecs.jpeg8_encode(unsigned, level=97, bitspersample=bits, **space)


def without_names(stream):
    """Return a JPEG of components R, G and B with components 1, 2 and 3, and without Adobe's marker."""
    start, adobe = stream.index(b"\xff\xc3"), stream.index(b"\xff\xee")
    body = stream[:adobe] + stream[adobe + 16 :] if adobe < start else stream
    for marker, first, step in ((b"\xff\xc3", 10, 3), (b"\xff\xda", 5, 2)):
        at = body.index(marker) + first
        body = bytearray(body)
        body[at : at + 3 * step : step] = b"\1\2\3"
    return bytes(body)
