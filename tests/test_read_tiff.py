"""Reading TIFF by its tags, on files written by tifffile, Pillow and byte by byte."""

from __future__ import annotations

import itertools
import random
import struct
import zlib
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from make_images import arrow
from PIL import Image as Pillow

from medzoo.errors import DataError
from medzoo.io.read import read

SHAPE = (37, 45)  # neither a multiple of a strip's rows nor of a tile's sides
AXES = {
    "dtype": ["u1", "u2", "u4", "i1", "i2", "i4", "f2", "f4", "f8"],
    "photometric": ["minisblack", "miniswhite", "rgb"],
    "byteorder": ["<", ">"],
    "layout": ["one strip", "strips", "tiles", "planar strips", "planar tiles"],
    "compression": [None, "lzw", "zlib", "packbits", "lzma", "zstd"],
    "predictor": [False, True],
    "pages": [1, 3],
    "bigtiff": [False, True],
}


def pairwise(axes: dict[str, list[Any]], seed: int = 0) -> list[dict[str, Any]]:
    """Return cases that together hold each pair of values of two axes."""
    dice = random.Random(seed)
    left = {((a, x), (b, y)) for a, b in itertools.combinations(axes, 2) for x in axes[a] for y in axes[b]}
    cases = []
    while left:
        options = [{name: dice.choice(values) for name, values in axes.items()} for _ in range(30)]
        (a, x), (b, y) = min(left, key=repr)
        for case in options:
            case |= {a: x, b: y}
        pairs = [set(itertools.combinations(case.items(), 2)) & left for case in options]
        best = max(range(len(options)), key=lambda i: len(pairs[i]))
        left -= pairs[best]
        cases.append(options[best])
    return cases


def write_case(path, case) -> np.ndarray:
    """Write a case of the matrix, and return its pages ``p h w`` or ``p h w 3``."""
    rng = np.random.default_rng(0)
    dtype = np.dtype(case["dtype"])
    planar = case["layout"].startswith("planar") and case["photometric"] == "rgb"
    shape = (case["pages"], *SHAPE) + (3,) * (case["photometric"] == "rgb")
    if dtype.kind == "f":
        pages = rng.normal(0, 100, shape).astype(dtype)
    else:
        info = np.iinfo(dtype)
        pages = rng.integers(info.min, info.max, shape, dtype, endpoint=True)
        pages[:, : SHAPE[0] // 2] //= 64  # runs of equal values, for the compressions
    options = {"photometric": case["photometric"], "compression": case["compression"], "metadata": None}
    options["predictor"] = case["predictor"] and case["compression"] in ("lzw", "zlib", "lzma", "zstd")
    if "tiles" in case["layout"]:
        options["tile"] = (16, 32)
    elif case["layout"] != "one strip":
        options["rowsperstrip"] = 5
    if case["photometric"] == "rgb":
        options["planarconfig"] = "separate" if planar else "contig"
    with tifffile.TiffWriter(path, byteorder=case["byteorder"], bigtiff=case["bigtiff"]) as file:
        for page in pages:
            file.write(np.moveaxis(page, -1, 0) if planar else page, **options)
    return pages


@pytest.mark.parametrize("case", pairwise(AXES), ids=lambda case: "-".join(map(str, case.values())))
def test_127_the_values_are_those_that_the_tags_define(tmp_path, case):
    path = tmp_path / "a.tif"
    pages = write_case(path, case)
    frame = case["pages"] - 1
    frame_option = frame if case["pages"] > 1 else None
    if case["photometric"] == "miniswhite" and pages.dtype.kind == "f":
        with pytest.raises(DataError, match=r"not read: white-is-zero floats, whose black is not defined"):
            read(path, frame=frame_option)
        return
    image = read(path, frame=frame_option)
    want = pages[frame]
    if case["photometric"] == "miniswhite":
        info = np.iinfo(want.dtype)
        want = (info.max + info.min - want.astype(np.int64)).astype(want.dtype)
    want = np.moveaxis(want, -1, 0) if want.ndim == 3 else want[None]
    np.testing.assert_array_equal(image.array, want)
    assert image.array.dtype == (np.float32 if want.dtype == np.float16 else want.dtype)
    assert image.array.flags.c_contiguous
    bits = 8 * want.dtype.itemsize
    if want.dtype.kind == "u" and bits <= 16:
        assert (image.unit, image.value_range) == (f"{bits}-bit", (0.0, 2.0**bits - 1))
    elif want.dtype.kind == "i" and bits <= 16:
        assert (image.unit, image.value_range) == ("raw", (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1))
    else:
        assert (image.unit, image.value_range) == ("raw", None)
    assert image.warning == ""


def test_127_the_matrix_holds_every_pair():
    cases = pairwise(AXES)
    pairs = {pair for case in cases for pair in itertools.combinations(case.items(), 2)}
    assert len(pairs) == sum(len(AXES[a]) * len(AXES[b]) for a, b in itertools.combinations(AXES, 2))
    assert len(cases) < 100


def tiff(tags: dict[int, Any], *segments: bytes, order: str = "<") -> bytes:
    """Return a TIFF of one page with any tags, also ones that no library writes; strips follow the tags."""
    letters = {"H": 3, "I": 4}
    tags = {256: 4, 257: 3, 258: 8, 259: 1, 262: 1, 277: 1, 278: 3} | tags
    starts, counts = 273 if 322 not in tags else 324, 279 if 322 not in tags else 325
    size = 8 + 2 + 12 * (len(tags) + 2) + 4
    extra, blobs = b"", {}
    for tag, value in {**tags, starts: [0] * len(segments), counts: [len(s) for s in segments]}.items():
        if isinstance(value, bytes):
            kind, count, packed = (2 if tag == 270 else 7), len(value), value
        else:
            values = value if isinstance(value, (list, tuple)) else [value]
            letter = "I" if tag in (starts, counts) or max(values) > 65535 else "H"
            kind, count, packed = letters[letter], len(values), struct.pack(f"{order}{len(values)}{letter}", *values)
        blobs[tag] = [kind, count, packed]
    at = size + sum(len(packed) for _, _, packed in blobs.values() if len(packed) > 4)
    offsets = [at + sum(map(len, segments[:i])) for i in range(len(segments))]
    blobs[starts][2] = struct.pack(f"{order}{len(segments)}I", *offsets)
    entries = b""
    for tag in sorted(blobs):
        kind, count, packed = blobs[tag]
        field = packed.ljust(4, b"\0")
        if len(packed) > 4:
            field = struct.pack(order + "I", size + len(extra))
            extra += packed
        entries += struct.pack(order + "HHI", tag, kind, count) + field
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    return head + struct.pack(order + "H", len(blobs)) + entries + bytes(4) + extra + b"".join(segments)


def write_tiff(path, tags, *segments, order="<"):
    path.write_bytes(tiff(tags, *segments, order=order))
    return path


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 10, 12, 14])
@pytest.mark.parametrize("compression", [1, 5, 8, 32773])
@pytest.mark.parametrize("order", ["<", ">"])
def test_127_few_bits_are_unpacked(tmp_path, bits, compression, order):
    """Bits are packed from the highest down in either byte order, and each row begins at a byte."""
    pixels = np.random.default_rng(0).integers(0, 2**bits, SHAPE)
    rows = np.packbits((pixels[..., None] >> np.arange(bits - 1, -1, -1) & 1).reshape(SHAPE[0], -1), axis=1).tobytes()
    encode = {1: bytes, 5: imagecodecs.lzw_encode, 8: zlib.compress, 32773: imagecodecs.packbits_encode}[compression]
    tags = {256: SHAPE[1], 257: SHAPE[0], 278: SHAPE[0], 258: bits, 259: compression}
    image = read(write_tiff(tmp_path / "a.tif", tags, encode(rows), order=order))
    np.testing.assert_array_equal(image.array[0], pixels)
    assert (image.unit, image.value_range) == (f"{bits}-bit", (0.0, 2.0**bits - 1))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "I;16", "I", "F", "RGBX"])
@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_127_what_pillow_writes_reads_as_pillow_reads_it(tmp_path, mode, compression):
    path = tmp_path / "a.tif"
    colour = Pillow.fromarray(np.random.default_rng(0).integers(0, 256, (*SHAPE, 3), dtype=np.uint8))
    if mode == "I;16":
        picture = Pillow.fromarray(arrow(top=60000))
    else:
        picture = colour.convert("RGB" if mode == "RGBX" else "L" if mode == "LA" else mode)
        picture = picture.convert(mode) if mode in ("RGBX", "LA") else picture
    picture.save(path, compression=compression)
    image = read(path)
    stored = picture.convert("RGB") if mode in ("P", "RGBA", "CMYK", "YCbCr", "RGBX") else picture
    stored = picture.convert("L") if mode == "LA" else stored
    want = np.asarray(stored)
    want = np.moveaxis(want, -1, 0) if want.ndim == 3 else want[None]
    np.testing.assert_array_equal(image.array, want)


@pytest.mark.parametrize("stored", ["minisblack", "rgb", "ycbcr"])
@pytest.mark.parametrize("layout", [{"rowsperstrip": 16}, {"tile": (32, 16)}])
def test_127_jpeg_in_a_tiff_is_decoded_by_its_photometric(tmp_path, stored, layout):
    """The stream does not say whether its three samples are RGB or YCbCr; the TIFF does."""
    pixels = np.zeros((*SHAPE, 3), np.uint8)
    pixels[..., 0], pixels[..., 2] = 200, np.arange(SHAPE[1]) * 3
    pixels = pixels if stored != "minisblack" else pixels[..., 2]
    options = {} if stored == "minisblack" else {"photometric": "rgb", "subsampling": (1, 1)}
    arguments = {"level": 95, "outcolorspace": stored} if options else {"level": 95}
    tifffile.imwrite(tmp_path / "a.tif", pixels, compression="jpeg", compressionargs=arguments, **options, **layout)
    image = read(tmp_path / "a.tif")
    want, near = (np.moveaxis(np.atleast_3d(a), -1, 0) for a in (tifffile.imread(tmp_path / "a.tif"), pixels))
    assert np.abs(image.array.astype(int) - want).max() <= 1  # two builds of libjpeg
    assert np.abs(image.array.astype(int) - near).max() <= 12
    assert image.unit == "8-bit"


def test_127_jpeg_by_libtiff_has_its_tables_in_a_tag(tmp_path):
    picture = Pillow.fromarray(
        np.moveaxis(np.stack([arrow(top=200)] * 3) * [[[1]], [[0.5]], [[0.2]]], 0, -1).astype("u1")
    )
    picture.save(tmp_path / "a.tif", compression="jpeg", quality=95)
    with Pillow.open(tmp_path / "a.tif") as stored:
        np.testing.assert_array_equal(
            read(tmp_path / "a.tif").array, np.moveaxis(np.asarray(stored.convert("RGB")), -1, 0)
        )


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_127_each_orientation_is_upright(tmp_path, dtype, orientation):
    upright = arrow().astype(dtype)
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.T,
        6: np.rot90(upright), 7: upright[::-1, ::-1].T, 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    extra = [(274, 3, 1, orientation, True)]
    tifffile.imwrite(tmp_path / "a.tif", np.ascontiguousarray(stored), extratags=extra)
    np.testing.assert_array_equal(read(tmp_path / "a.tif").array[0], upright)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize("meaning", ["unassalpha", "assocalpha", "unspecified"])
def test_127_extra_samples_are_alpha_or_refused(tmp_path, dtype, colours, meaning):
    path, photometric = tmp_path / "a.tif", "rgb" if colours == 3 else "minisblack"
    pixels = np.random.default_rng(0).integers(0, 200, (*SHAPE, colours + 1)).astype(dtype)
    options = {"photometric": photometric, "planarconfig": "contig", "extrasamples": [meaning]}
    tifffile.imwrite(path, pixels, **options)
    found = f"of which the tags explain {colours}" if meaning == "unspecified" else "found transparency"
    with pytest.raises(DataError, match=found):
        read(path)
    pixels[..., -1] = 1 if dtype == np.float32 else np.iinfo(dtype).max
    tifffile.imwrite(path, pixels, **options)
    image = read(path)
    np.testing.assert_array_equal(image.array, np.moveaxis(pixels[..., :colours], -1, 0))
    assert image.notes == (
        "constant sample without a meaning dropped" if meaning == "unspecified" else "opaque alpha dropped",
    )


def test_127_channels_without_a_meaning_are_refused_for_that(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.random.default_rng(0).random((5, *SHAPE)).astype(np.float32),
                     photometric="minisblack", planarconfig="separate")  # fmt: skip
    with pytest.raises(DataError, match="5 samples a pixel, of which the tags explain 1"):
        read(tmp_path / "a.tif")


def test_127_reduced_copies_are_no_pages(tmp_path):
    """A pyramid has them in SubIFDs or as pages with a bit of NewSubfileType."""
    path, pixels = tmp_path / "a.tif", arrow(top=60000)
    for subifds in (2, None):
        with tifffile.TiffWriter(path) as file:
            file.write(pixels, subifds=subifds, metadata=None)
            for step in (2, 4):
                file.write(pixels[::step, ::step], subfiletype=1, metadata=None)
        np.testing.assert_array_equal(read(path).array[0], pixels)


@pytest.mark.parametrize("imagej", [True, False])
def test_127_hyperstacks_are_read_by_frame(tmp_path, imagej):
    stack = np.random.default_rng(0).integers(0, 65535, (6, *SHAPE), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", stack, imagej=imagej, ome=not imagej)
    with pytest.raises(DataError, match="found 6 pages or frames"):
        read(tmp_path / "a.tif")
    np.testing.assert_array_equal(read(tmp_path / "a.tif", frame=4).array[0], stack[4])


def test_127_an_imagej_stack_whose_first_image_alone_has_tags(tmp_path):
    """ImageJ writes stacks above 4 GB so; a reader that looks at the tags alone sees one image."""
    stack = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    path = write_tiff(tmp_path / "a.tif", {270: b"ImageJ=1.53t\nimages=2\nslices=2\n\0"}, stack.tobytes())
    np.testing.assert_array_equal(read(path, frame=1).array[0], stack[1])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="found one image of the 2 that it declares"):
        read(path, frame=0)


def test_127_a_metamorph_stack_whose_first_image_alone_has_tags(tmp_path):
    stack = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    path = write_tiff(tmp_path / "a.stk", {33628: [0] * 4, 33629: bytes(48)}, stack.tobytes())
    blob = bytearray(path.read_bytes())
    at = blob.index(struct.pack("<HHI", 33629, 7, 48))
    blob[at : at + 8] = struct.pack("<HHI", 33629, 5, 2)  # six numbers a plane, counted as one
    at = blob.index(struct.pack("<HHI", 33628, 3, 4))
    blob[at : at + 8] = struct.pack("<HHI", 33628, 4, 1)
    path.write_bytes(blob)
    for frame in (0, 1):
        np.testing.assert_array_equal(read(path, frame=frame).array[0], stack[frame])
    with pytest.raises(DataError, match="found 2 pages or frames"):
        read(path)
    path.write_bytes(blob[:-1])
    with pytest.raises(DataError, match="found one image of the 2 that it declares"):
        read(path, frame=0)


def test_127_tags_have_their_defaults(tmp_path):
    """SampleFormat, BitsPerSample, RowsPerStrip and the size of the only strip may be absent."""
    rows = bytes([0b10100000, 0b01010000, 0b11110000])
    blob = bytearray(tiff({258: 1, 278: 3, 296: 3, 280: 7, 281: 9}, rows))
    path = tmp_path / "a.tif"
    for tag in (258, 278, 279):
        at = blob.index(struct.pack("<H", tag), 8)
        blob[at : at + 2] = struct.pack("<H", 65000)
    path.write_bytes(blob)
    np.testing.assert_array_equal(read(path).array[0], [[1, 0, 1, 0], [0, 1, 0, 1], [1, 1, 1, 1]])


def test_127_bits_in_reverse_order(tmp_path):
    path = write_tiff(tmp_path / "a.tif", {258: 1, 266: 2}, bytes([0b0101, 0b1010, 0b0001]))
    np.testing.assert_array_equal(read(path).array[0], [[1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 0, 0]])


def test_127_a_missing_photometric_interpretation_is_a_warning(tmp_path):
    blob = bytearray(tiff({}, bytes(range(12))))
    at = blob.index(struct.pack("<HH", 262, 3))
    blob[at : at + 2] = struct.pack("<H", 65001)
    (tmp_path / "a.tif").write_bytes(blob)
    with pytest.warns(UserWarning, match="gives no photometric interpretation: 0 is taken as black"):
        assert read(tmp_path / "a.tif").array.max() == 11


@pytest.mark.parametrize("factor", [257, 256, 1])
def test_127_a_palette_of_8_bits_is_stored_in_three_ways(tmp_path, factor):
    palette = np.arange(768).reshape(3, 256) % 256
    path = write_tiff(tmp_path / "a.tif", {262: 3, 320: (palette * factor).ravel().tolist()}, bytes(range(12)))
    np.testing.assert_array_equal(read(path).array[0].ravel(), np.arange(12))


def test_127_a_palette_of_16_bits_is_kept(tmp_path):
    palette = np.random.default_rng(0).integers(0, 65536, (3, 16))
    path = write_tiff(tmp_path / "a.tif", {258: 4, 262: 3, 320: palette.ravel().tolist()}, bytes([0x01, 0x23] * 3))
    image = read(path)
    np.testing.assert_array_equal(image.array[:, 0], palette[:, :4])
    assert (image.unit, image.value_range) == ("16-bit", (0.0, 65535.0))


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ({262: 8, 277: 3, 258: [8] * 3}, r"not read: CIE L\*a\*b\* colours"),
        ({262: 32803}, "not read: the colour filter array of a camera"),
        ({262: 4}, "not read: a transparency mask"),
        ({262: 77}, "not read: photometric interpretation 77"),
        ({258: 64, 339: 6}, "not read: complex samples"),
        ({258: 32, 339: 5}, "not read: complex samples"),
        ({258: 24}, "not read: 24-bit unsigned samples"),
        ({258: 24, 339: 3}, "not read: 24-bit float samples"),
        ({258: 12, 339: 2}, "not read: 12-bit signed samples"),
        ({258: [1] * 3, 277: 3, 262: 2}, "not read: 1-bit samples of several channels together"),
        ({258: [5, 6, 5], 277: 3, 262: 2}, "not read: samples of different types"),
        ({262: 5, 277: 4, 258: [16] * 4}, "not read: palette, CMYK or YCbCr of 16 bits"),
        ({262: 5, 277: 4, 258: [8] * 4, 332: 2}, "not read: inks other than"),
        ({262: 6, 277: 3, 258: [8] * 3}, "not read: YCbCr with subsampled colours outside JPEG"),
        ({262: 2}, "not read: 1 samples a pixel where its colours need 3"),
        ({259: 4, 258: 1}, r"not read: compressed with CCITT T\.6 \(code 4\)"),
        ({259: 6}, "not read: compressed with old-style JPEG"),
        ({259: 12345}, r"not read: compressed with an unknown method \(code 12345\)"),
        ({259: 8, 317: 2, 258: 4}, "not read: predictor 2 of 4-bit samples"),
        ({259: 8, 317: 7}, "not read: predictor 7 of 8-bit samples"),
        ({32997: 4}, r"not read: a volume in one page \(ImageDepth\)"),
        ({262: 0, 258: 32, 339: 3}, "not read: white-is-zero floats"),
    ],
)
def test_127_a_kind_that_is_not_read_is_named(tmp_path, tags, found):
    """The file is sound; it is never called damaged."""
    with pytest.raises(DataError, match=found) as caught:
        read(write_tiff(tmp_path / "a.tif", tags, bytes(4000)))
    assert "damaged" not in str(caught.value)
    assert "Convert it to grey or RGB" in str(caught.value)


@pytest.mark.parametrize("compression", ["jpeg2000", "webp", "png", "jpegxl", "lerc"])
@pytest.mark.parametrize("layout", [{}, {"rowsperstrip": 16}, {"tile": (32, 16)}])
@pytest.mark.parametrize("samples", [1, 3])
def test_127_compressions_of_pictures(tmp_path, compression, layout, samples):
    path, pixels = tmp_path / "a.tif", np.stack([arrow().astype(np.uint8)] * samples, -1)
    if samples == 3:
        pixels[..., 1] //= 2
    elif compression == "webp":
        pytest.skip("WebP has no grey")
    options = {"compressionargs": {"lossless": True}} if compression in ("webp", "jpegxl") else {}
    photometric = "rgb" if samples == 3 else "minisblack"
    tifffile.imwrite(path, pixels.squeeze(), compression=compression, photometric=photometric, **options, **layout)
    np.testing.assert_array_equal(read(path).array, np.moveaxis(pixels, -1, 0))
    with tifffile.TiffFile(path) as file:
        tag = file.pages[0].tags["TileByteCounts" if "tile" in layout else "StripByteCounts"]
        start, at, count = file.pages[0].dataoffsets[0], tag.valueoffset, tag.value[0]
    blob = bytearray(path.read_bytes())
    if compression == "jpeg2000":  # imagecodecs 2024.6.1 writes further bytes behind its end marker
        count = blob.index(b"\xff\xd9", start) + 2 - start
    blob[at : at + (2 if tag.dtype == 3 else 4)] = struct.pack("<H" if tag.dtype == 3 else "<I", count - 20)
    path.write_bytes(blob)
    with pytest.raises(DataError, match=r"a strip or tile that is .* cut short or damaged"):
        read(path)


@pytest.mark.parametrize("compression", ["jpeg", "jpeg2000", "webp", "png", "lerc"])
def test_127_a_picture_larger_than_its_strip_is_not_decoded(tmp_path, compression):
    """The limit on values is checked against the tags; the picture in a strip has a size of its own."""
    large = np.zeros((3000, 3000, 3), np.uint8)
    function = {"jpeg": "jpeg8", "jpeg2000": "jpeg2k"}.get(compression, compression)
    code = {"jpeg": 7, "jpeg2000": 34712, "webp": 50001, "png": 34933, "jpegxl": 50002, "lerc": 34887}
    tags = {258: [8] * 3, 259: code[compression], 262: 2, 277: 3}
    path = write_tiff(tmp_path / "a.tif", tags, getattr(imagecodecs, f"{function}_encode")(large))
    with pytest.raises(DataError, match=r"3000 × 3000 in a strip|that is not .* of its size"):
        read(path, max_voxels=1000)


def test_127_jpeg_of_12_bits(tmp_path):
    pixels = arrow(top=4000)
    path = write_tiff(tmp_path / "a.tif", {256: pixels.shape[1], 257: pixels.shape[0], 278: 512, 258: 12, 259: 7},
                      imagecodecs.jpeg8_encode(pixels, level=98, bitspersample=12))  # fmt: skip
    image = read(path)
    assert np.abs(image.array[0].astype(int) - pixels).max() < 60
    assert (image.array.dtype, image.unit, image.value_range) == (np.uint16, "12-bit", (0.0, 4095.0))


def test_127_a_jpeg_that_is_cut_short(tmp_path):
    """libjpeg fills what is missing with grey, and imagecodecs does not report that."""
    pixels = arrow(top=200).astype(np.uint8)
    whole = imagecodecs.jpeg8_encode(pixels)
    tags = {256: pixels.shape[1], 257: pixels.shape[0], 278: 512, 259: 7}
    assert read(write_tiff(tmp_path / "a.tif", tags, whole)).array[0].shape == pixels.shape
    for end in (-1, -10, len(whole) // 2):
        with pytest.raises(DataError, match=r"no complete JPEG. It is cut short or damaged"):
            read(write_tiff(tmp_path / "a.tif", tags, whole[:end]))


def test_127_damaged_tables_of_jpeg_are_damage(tmp_path):
    """They are in a tag, for all strips; libjpeg replaces the Huffman tables that it finds none of."""
    Pillow.fromarray(arrow(top=200).astype(np.uint8)).save(tmp_path / "a.tif", compression="jpeg")
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        tag = file.pages[0].tags["JPEGTables"]
    whole = (tmp_path / "a.tif").read_bytes()
    for at, value in ((0, 0), (2, 0), (5, 0x20), (tag.count - 1, 0)):
        blob = bytearray(whole)
        blob[tag.valueoffset + at] = value
        (tmp_path / "a.tif").write_bytes(blob)
        with pytest.raises(DataError, match="no complete JPEG"):
            read(tmp_path / "a.tif")


@pytest.mark.parametrize("layout", ["planar", "alpha"])
def test_127_ycbcr_as_jpeg_that_is_not_converted_is_refused(tmp_path, layout):
    grey, together = arrow(top=200).astype(np.uint8), {"planar": 1, "alpha": 4}[layout]
    tags = {256: grey.shape[1], 257: grey.shape[0], 278: 512, 259: 7, 262: 6}
    tags |= {258: [8] * 3, 277: 3, 284: 2} if layout == "planar" else {258: [8] * 4, 277: 4, 338: 0}
    stream = imagecodecs.jpeg8_encode(np.stack([grey] * together, -1).squeeze())
    with pytest.raises(DataError, match="not read: YCbCr as JPEG with each component apart, or with further samples"):
        read(write_tiff(tmp_path / "a.tif", tags, *[stream] * (3 if layout == "planar" else 1)))


@pytest.mark.parametrize("compression", ["lzw", "zlib", "packbits", "lzma", "zstd", None])
def test_127_a_short_strip_is_damage(tmp_path, compression):
    """Libraries fill what is missing with zeros, or with what was in memory."""
    pixels = np.random.default_rng(0).integers(0, 9, SHAPE, dtype=np.uint16)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, compression=compression)
    with tifffile.TiffFile(path) as file:
        tag = file.pages[0].tags["StripByteCounts"]
        count, at = tag.value[0], tag.offset + 8
    whole = path.read_bytes()
    for less in (1, 7, count // 2):
        path.write_bytes(whole[:at] + struct.pack("<I", count - less) + whole[at + 4 :])
        if compression == "lzw" and less == 1:
            continue  # the end code alone
        if compression == "lzma" and less < count // 2:  # the index behind the data, whose checksum is before it
            np.testing.assert_array_equal(read(path).array[0], pixels)
            continue
        with pytest.raises(DataError, match=r"expected a sound TIFF, found .* cut short or damaged|strip or tile"):
            read(path)


@pytest.mark.parametrize("compression", ["lzw", "zlib", "lzma"])
def test_127_flipped_bits_of_a_compressed_strip(tmp_path, compression):
    """LZW alone has no checksum: damage is found where the length changes, or a code is impossible."""
    pixels = np.cumsum(np.random.default_rng(0).integers(-3, 4, SHAPE), axis=1).astype(np.int16)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, compression=compression)
    with tifffile.TiffFile(path) as file:
        start, count = file.pages[0].dataoffsets[0], file.pages[0].databytecounts[0]
    whole, missed = path.read_bytes(), 0
    for at in range(start, start + count, 7):
        mutant = bytearray(whole)
        mutant[at] ^= 16
        path.write_bytes(mutant)
        try:
            missed += not np.array_equal(read(path).array[0], pixels)
        except DataError:
            continue
    assert missed == 0 if compression != "lzw" else missed < count / 7 / 2


def test_127_a_sparse_file_is_refused_for_that(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", shape=(64, 64), dtype=np.uint8, tile=(16, 16), data=iter([b""] * 16),
                     compression="zlib")  # fmt: skip
    with pytest.raises(DataError, match=r"strip or tile 0 has no data \(a sparse file\)"):
        read(tmp_path / "a.tif")


def test_127_padded_strips_and_private_tags_are_accepted(tmp_path):
    """Some writers pad the last strip to the rows of the others, and some strips have bytes after their last."""
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    padded = zlib.compress(pixels[:2].tobytes()), zlib.compress(pixels[2:].tobytes() + bytes(4))
    path = write_tiff(tmp_path / "a.tif", {259: 8, 278: 2, 65000: b"private", 330: 9}, *padded)
    np.testing.assert_array_equal(read(path).array[0], pixels)
    path = write_tiff(tmp_path / "a.tif", {}, pixels.tobytes() + b"tail")
    np.testing.assert_array_equal(read(path).array[0], pixels)


def test_127_damaged_tags_are_damage(tmp_path):
    path = tmp_path / "a.tif"
    for tags in ({256: 0}, {277: 0}, {278: 0}):
        with pytest.raises(DataError, match="expected a sound TIFF"):
            read(write_tiff(path, tags, bytes(12)))
    with pytest.raises(DataError, match="1 strips or tiles where 3 are expected"):
        read(write_tiff(path, {278: 1}, bytes(12)))
    with pytest.raises(DataError, match="expected at most"):
        read(write_tiff(path, {256: 60000, 257: 60000, 278: 60000}, bytes(12)))
    circle = bytearray(tiff({}, bytes(12)))
    count = struct.unpack("<H", circle[8:10])[0]
    circle[10 + 12 * count : 14 + 12 * count] = struct.pack("<I", 8)
    path.write_bytes(circle)
    with pytest.raises(DataError, match="follow each other in a circle"):
        read(path)


def test_127_a_page_or_tag_that_tifffile_skips_is_damage(tmp_path):
    """It logs that, and goes on with fewer pages, or with the default of the tag."""
    path, pixels = tmp_path / "a.tif", arrow(top=60000)
    with tifffile.TiffWriter(path) as file:
        for _ in range(2):
            file.write(pixels, metadata=None, contiguous=False)
    whole = path.read_bytes()
    with tifffile.TiffFile(path) as file:
        second = file.pages[1].offset
        assert second > len(whole) // 3
    link = whole.index(struct.pack("<I", second))
    for offset in (len(whole) + 100, len(whole) - 1):
        path.write_bytes(whole[:link] + struct.pack("<I", offset) + whole[link + 4 :])
        with pytest.raises(DataError, match="damaged"):
            read(path, frame=0)
    blob = bytearray(tiff({262: 2, 277: 3, 258: [16] * 3, 339: [2] * 3}, bytes(72)))
    at = blob.index(struct.pack("<HHI", 339, 3, 3))
    blob[at + 8 : at + 12] = struct.pack("<I", 10**6)
    path.write_bytes(blob)
    with pytest.raises(DataError, match="tag 339 whose value is not in the file"):
        read(path)


def test_127_what_tifffile_logs_is_dropped_in_readers_alone(tmp_path, caplog):
    path = write_tiff(tmp_path / "a.tif", {50000: [7] * 9}, bytes(12))
    blob = bytearray(path.read_bytes())
    at = blob.index(struct.pack("<HHI", 50000, 3, 9))
    blob[at + 8 : at + 12] = struct.pack("<I", 10**6)
    path.write_bytes(blob)
    assert read(path).array.shape == (1, 3, 4)
    assert caplog.records == []
    tifffile.TiffFile(path).close()
    assert "invalid value offset" in caplog.text
