"""Decoding DICOM pixels: which decoder reads what, in which order and process, and the steps after each of them."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from make_images import dataset, save, write_dicom, write_jpeg_lossless
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate
from pydicom.pixels import convert_color_space
from pydicom.uid import (
    ExplicitVRBigEndian,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from medzoo.errors import DataError
from medzoo.io import codestream
from medzoo.io.dicom import decoder, decoders
from medzoo.io.options import ReadOptions
from medzoo.io.read import read, read_image

GREY8 = np.add.outer(np.arange(13), np.arange(17)).astype(np.uint8) * 8
GREY12 = np.add.outer(np.arange(13), np.arange(17)).astype(np.uint16) * 140
RED = np.full((8, 8, 3), (200, 30, 60), np.uint8)


def write_frames(path, pixels, syntax, streams, **fields):
    """Write compressed frames with the header of ``pixels``."""
    ds = dataset(pixels, Modality="US", **fields)
    ds.file_meta.TransferSyntaxUID = syntax
    ds.PixelData = encapsulate(streams)
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    return save(ds, path)


def run(code, *arguments, **options):
    """Run Python code in a process of its own, and return what it wrote to the file that it gets as an argument."""
    with tempfile.NamedTemporaryFile() as file:
        command = [sys.executable, "-W", "ignore", "-c", code, file.name, *arguments]
        done = subprocess.run(command, timeout=120, check=False, **options)
        assert done.returncode == 0
        return Path(file.name).read_text()


READ = """
import os, signal, sys
from pathlib import Path
from medzoo.io.options import ReadOptions
from medzoo.io.read import read_image
out = open(sys.argv[1], "w")
path = Path(sys.argv[2])
"""


@pytest.mark.parametrize("closed", [(2,), (1, 2), (0, 1, 2)])
def test_120_the_decoder_needs_no_standard_files(closed):
    code = READ + "out.write(str(read_image(path, ReadOptions()).array.sum()))"
    path = get_testdata_file("JPGExtended.dcm")
    assert run(f"import os\nfor fd in {closed}: os.close(fd)\n{code}", path) == "3767007"


def test_120_the_decoder_works_in_threads_and_after_a_fork_in_another_thread():
    """A fork copies a lock that another thread holds, and pipes that are another process's."""
    code = (
        READ
        + """
from concurrent.futures import ThreadPoolExecutor
def total(_): return int(read_image(path, ReadOptions()).array.sum())
total(0)  # a fork amid an import would wait for it for ever
with ThreadPoolExecutor(4) as pool:
    results = [pool.submit(total, i) for i in range(20)]
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # ends it if it waits for ever
        out.write(f"{total(0)} ")
        out.flush()
        os._exit(0)
    os.waitpid(child, 0)
    totals = {result.result() for result in results}
out.write(f"{totals}")
"""
    )
    assert run(code, get_testdata_file("JPGExtended.dcm")) == "3767007 {3767007}"


def test_120_the_stderr_of_the_process_is_not_touched(tmp_path, capfd):
    path = Path(get_testdata_file("JPGExtended.dcm"))
    stop = threading.Event()

    def chat():
        while not stop.is_set():
            os.write(2, b"a line of another thread\n")

    thread = threading.Thread(target=chat)
    thread.start()
    try:
        totals = {int(read_image(path, ReadOptions()).array.sum()) for _ in range(5)}
    finally:
        stop.set()
        thread.join()
    assert totals == {3767007}
    assert set(capfd.readouterr().err.splitlines()) == {"a line of another thread"}


def test_120_a_decoder_that_dies_again_and_again_leaves_nothing_behind(tmp_path, monkeypatch):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    path = write_jpeg_lossless(tmp_path / "x", GREY12, BitsStored=12)
    read(path)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208  a folder of this process
    for _ in range(4):
        decoder._state.decoder.process.kill()
        decoder._state.decoder.process.wait()
        read(path)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    assert list(temporary.iterdir()) == []


def test_120_warnings_as_errors_in_the_environment_do_not_stop_the_decoder():
    code = READ + "out.write(str(read_image(path, ReadOptions()).array.sum()))"
    env = os.environ | {"PYTHONWARNINGS": "error"}
    assert run(code, get_testdata_file("JPGExtended.dcm"), env=env) == "3767007"


@pytest.mark.parametrize(("name", "warns"), [("JPGExtended.dcm", False), ("JPEG-lossy.dcm", False)])
def test_129_a_decoder_that_prints_and_succeeds_has_succeeded(name, warns):
    """GDCM tries its 8-bit libjpeg first, which prints "Unsupported JPEG data precision 12" about a sound file.

    The second file differs in a parameter of its scan that baseline JPEG does not use.
    """
    image = read(get_testdata_file(name))
    assert (image.array.shape, image.array.dtype) == ((1, 1024, 256), np.uint16)
    assert (int(image.array.max()), int(image.array.sum())) == (264, 3767007)


@pytest.mark.parametrize("cut", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("syntax", [JPEGExtended12Bit, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless])
def test_129_damage_is_found_though_pixels_are_returned(tmp_path, syntax, cut):
    """A codestream that lost a part of its middle, and still has an end."""
    noisy = np.random.default_rng(0).integers(0, 4096, (64, 64)).astype(np.uint16)
    stream = {
        JPEGExtended12Bit: lambda: imagecodecs.jpeg8_encode(noisy, level=95, bitspersample=12),
        JPEGLosslessSV1: lambda: imagecodecs.jpeg8_encode(noisy, lossless=True, predictor=1, bitspersample=12),
        JPEGLSLossless: lambda: imagecodecs.jpegls_encode(noisy),
        JPEG2000Lossless: lambda: imagecodecs.jpeg2k_encode(noisy, codecformat="J2K", bitspersample=12),
    }[syntax]()
    damaged = stream[: int(cut * len(stream))] + b"\xff\xd9"
    path = write_frames(tmp_path / "x", noisy, syntax, [damaged], BitsStored=12)
    with pytest.raises(DataError, match=r"expected sound frames of .*, found damage"):
        read(path)


def test_129_the_next_decoder_that_supports_it_is_tried(tmp_path, monkeypatch):
    """pydicom raises for Pillow what a decoder of its own would read."""
    from pydicom.pixels.decoders import pillow

    stream = imagecodecs.jpeg8_encode(GREY8, level=95)
    path = write_frames(tmp_path / "x", GREY8, JPEGBaseline8Bit, [stream])
    want = read(path).array

    def fail(*_):
        raise RuntimeError("broken")

    monkeypatch.setattr(pillow, "_decode_frame", fail)
    decoders._pydicom_decoder.cache_clear()
    try:
        np.testing.assert_array_equal(read(path).array, want)  # SimpleITK's libjpeg
        monkeypatch.setattr(decoders, "_decode_frame", fail)
        decoders._pydicom_decoder.cache_clear()
        with pytest.raises(DataError, match="found damage: pillow and simpleitk cannot decode them"):
            read(path)
    finally:
        decoders._pydicom_decoder.cache_clear()


def test_129_what_no_installed_decoder_reads_is_not_called_damaged(tmp_path):
    stream = imagecodecs.jpeg8_encode(GREY8 // 4, lossless=True, predictor=1, bitspersample=6)
    path = write_frames(tmp_path / "six", GREY8 // 4, JPEGLosslessSV1, [stream], BitsStored=6)
    with pytest.raises(DataError, match=r"of 6 bits in 1 component\(s\), which none of .*pip install pylibjpeg"):
        read(path)


@pytest.mark.parametrize("colour", [False, True])
def test_129_high_throughput_jpeg_2000(tmp_path, colour):
    pixels = np.stack([GREY8, GREY8[::-1], GREY8 // 2], -1) if colour else GREY12
    stream = imagecodecs.htj2k_encode(pixels)
    fields = {"PhotometricInterpretation": "YBR_RCT"} if colour else {"BitsStored": 12}
    image = read(write_frames(tmp_path / "x", pixels, HTJ2KLossless, [stream], **fields))
    np.testing.assert_array_equal(image.array, np.moveaxis(pixels, -1, 0) if colour else pixels[None])
    stream = stream[: len(stream) // 2] + b"\xff\xd9"
    with pytest.raises(DataError, match="damaged, or it is too old: run pip install pylibjpeg pylibjpeg-openjpeg"):
        read(write_frames(tmp_path / "x", pixels, HTJ2KLossless, [stream], **fields))


def test_129_a_private_transfer_syntax_is_named(tmp_path):
    path = write_dicom(tmp_path / "x", GREY8)
    data = path.read_bytes()
    private = b"1.2.840.113619.5.2\0\0"  # as long as the one that it replaces
    path.write_bytes(data.replace(b"1.2.840.10008.1.2.1\0", private))
    with pytest.raises(DataError, match=r"expected a transfer syntax of the DICOM standard, found another 1\.2\.840"):
        read(path)


def test_129_a_codestream_of_another_size_is_not_called_damaged(tmp_path):
    stream = imagecodecs.jpeg8_encode(GREY8[:, :9], level=95)
    path = write_frames(tmp_path / "x", GREY8, JPEGBaseline8Bit, [stream])
    with pytest.raises(DataError, match="header declares 13 × 17 × 1, the codestream of frame 0 13 × 9 × 1"):
        read(path)


@pytest.mark.parametrize("names", [b"\1\2\3", b"RGB"])
@pytest.mark.parametrize("transform", [None, 0, 1])
@pytest.mark.parametrize("declared", ["RGB", "YBR_FULL_422"])
def test_124_a_jpeg_that_declares_its_own_colours(tmp_path, names, transform, declared):
    """Names of components come first, then Adobe's conversion, then the DICOM header."""
    plain = imagecodecs.jpeg8_encode(RED, level=100, colorspace="RGB", outcolorspace="RGB")
    ycbcr = imagecodecs.jpeg8_encode(RED, level=100, colorspace="RGB", outcolorspace="YCBCR", subsampling="444")
    is_rgb = names == b"RGB" or (transform != 1 and declared == "RGB")
    stream = bytearray(codestream.declare_rgb(plain if is_rgb else ycbcr))
    for marker, first, step in ((b"\xff\xc0", 10, 3), (b"\xff\xda", 5, 2)):
        at = stream.index(marker) + first
        stream[at : at + 3 * step : step] = names
    if transform is None:
        del stream[2:18]
    else:
        stream[17] = transform
    path = write_frames(tmp_path / "x", RED, JPEGBaseline8Bit, [bytes(stream)], PhotometricInterpretation=declared)
    image = read_image(path, ReadOptions())
    assert np.abs(image.array[:, 4, 4].astype(int) - RED[0, 0]).max() <= 3
    contradicted = is_rgb != (declared == "RGB")
    assert bool(image.warning) == contradicted


def test_124_ybr_in_jpeg_ls_and_rle_and_planes_is_rgb(tmp_path):
    ybr = convert_color_space(RED.copy(), "RGB", "YBR_FULL")
    want = np.moveaxis(convert_color_space(ybr.copy(), "YBR_FULL", "RGB"), -1, 0)
    fields = {"PhotometricInterpretation": "YBR_FULL"}
    paths = [write_frames(tmp_path / "jls", ybr, JPEGLSLossless, [imagecodecs.jpegls_encode(ybr)], **fields)]
    rle = dataset(ybr, Modality="US", **fields)
    rle.compress(RLELossless)
    paths.append(save(rle, tmp_path / "rle"))
    planes = dataset(ybr, Modality="US", PlanarConfiguration=1, **fields)
    planes.PixelData = np.ascontiguousarray(np.moveaxis(ybr, -1, 0)).tobytes()
    paths.append(save(planes, tmp_path / "planes"))
    for path in paths:
        np.testing.assert_array_equal(read(path).array, want)


@pytest.mark.parametrize(("photometric", "reversible"), [("YBR_RCT", True), ("YBR_ICT", False)])
@pytest.mark.parametrize("bits", [8, 12])
def test_124_the_colours_of_jpeg_2000_are_converted_once(tmp_path, photometric, reversible, bits):
    """Pillow reads 8 bits, and SimpleITK what has more."""
    pixels = RED if bits == 8 else RED.astype(np.uint16) * 16
    stream = imagecodecs.jpeg2k_encode(pixels, codecformat="J2K", bitspersample=bits, reversible=reversible, level=0)
    fields = {"PhotometricInterpretation": photometric, "BitsStored": bits}
    image = read(write_frames(tmp_path / "x", pixels, JPEG2000Lossless, [stream], **fields))
    assert np.abs(np.moveaxis(image.array, 0, -1).astype(int) - pixels).max() <= (0 if reversible else 2)
    assert image.value_range == (0, 2**bits - 1)


def test_124_the_colours_of_jpeg_2000_outside_of_it_are_refused(tmp_path):
    path = write_dicom(tmp_path / "x", RED, PhotometricInterpretation="YBR_RCT")
    with pytest.raises(DataError, match=r"PhotometricInterpretation \(0028,0004\) is YBR_RCT, which only JPEG 2000"):
        read(path)


def palette(ds, tables, first, bits, segmented=False):
    """Add a palette of three tables of bytes."""
    prefix = "Segmented" if segmented else ""
    for colour, table in zip(("Red", "Green", "Blue"), tables, strict=True):
        setattr(
            ds, f"{colour}PaletteColorLookupTableDescriptor", [4 if segmented else 8 * len(table) // bits, first, bits]
        )
        ds[f"{colour}PaletteColorLookupTableDescriptor"].VR = "SS" if first < 0 else "US"
        setattr(ds, f"{prefix}{colour}PaletteColorLookupTableData", table)
    return ds


def test_124_a_palette_in_segments_or_of_8_bits_or_with_an_offset(tmp_path):
    fields = {"Modality": "US", "PhotometricInterpretation": "PALETTE COLOR"}
    indices = np.array([[0, 5, 6, 7, 8, 9]], np.uint8)
    # a run of two values, a line of two steps; and the same with a repeat of the run
    line = np.array([0, 2, 10, 20, 1, 2, 40], "<u2").tobytes()
    repeat = np.array([0, 2, 10, 20, 2, 1, 0, 0], "<u2").tobytes()
    image = read(save(palette(dataset(indices, **fields), [line, repeat, line], 5, 16, True), tmp_path / "segments"))
    np.testing.assert_array_equal(
        image.array[:, 0], [[10, 10, 20, 30, 40, 40], [10, 10, 20, 10, 20, 20], [10, 10, 20, 30, 40, 40]]
    )
    tables = [bytes([1, 2, 3, 4]), bytes([9, 8, 7, 6]), bytes([0, 0, 255, 255])]
    image = read(save(palette(dataset(indices, **fields), tables, 6, 8), tmp_path / "bytes"))
    np.testing.assert_array_equal(image.array[:, 0], [[1, 1, 1, 2, 3, 4], [9, 9, 9, 8, 7, 6], [0, 0, 0, 0, 255, 255]])
    assert (image.unit, image.value_range) == ("8-bit", (0, 255))
    signed = np.array([[-3, -2, -1, 0, 1, 2]], np.int8)
    ds = palette(dataset(signed, **fields), tables, -2, 8)
    ds.AlphaPaletteColorLookupTableData = bytes(4)
    image = read(save(ds, tmp_path / "signed"))
    np.testing.assert_array_equal(image.array[0, 0], [1, 1, 2, 3, 4, 4])
    assert image.array.shape[0] == 3


def test_124_a_palette_of_a_big_endian_file(tmp_path):
    """pydicom reads its 16-bit entries as little-endian."""
    ds = dataset(np.array([[0, 1]], np.uint8), syntax=ExplicitVRBigEndian, PhotometricInterpretation="PALETTE COLOR")
    tables = [np.array([1, 515], ">u2").tobytes(), np.array([2, 3], ">u2").tobytes(), np.array([4, 5], ">u2").tobytes()]
    image = read(save(palette(ds, tables, 0, 16), tmp_path / "x"))
    np.testing.assert_array_equal(image.array[:, 0], [[1, 515], [2, 3], [4, 5]])


@pytest.mark.parametrize(("faulty", "why"), [
    ({"GreenPaletteColorLookupTableData": None}, r"GreenPaletteColorLookupTableData \(0028,1202\) is missing"),
    ({"RedPaletteColorLookupTableDescriptor": None}, r"RedPaletteColorLookupTableDescriptor \(0028,1101\) does not"),
    ({"BluePaletteColorLookupTableData": b"\0\0"}, r"BluePaletteColorLookupTableData \(0028,1203\) has 2 entries"),
])  # fmt: skip
def test_124_a_faulty_palette_is_named(tmp_path, faulty, why):
    ds = dataset(np.array([[0, 1, 2, 3]], np.uint8), PhotometricInterpretation="PALETTE COLOR")
    palette(ds, [bytes(4)] * 3, 0, 8)
    for keyword, value in faulty.items():
        delattr(ds, keyword) if value is None else setattr(ds, keyword, value)
    with pytest.raises(DataError, match=why):
        read(save(ds, tmp_path / "x"))


ENCODERS = {
    "raw": None,
    "RLE": RLELossless,
    "JPEG lossless": JPEGLosslessSV1,
    "JPEG-LS": JPEGLSLossless,
    "JPEG 2000": JPEG2000Lossless,
}


@pytest.mark.parametrize("codec", ENCODERS)
@pytest.mark.parametrize("signed", [False, True])
def test_126_an_overlay_in_unused_bits_is_masked(tmp_path, codec, signed):
    """An overlay of old files, in bit 12 of samples of 12 bits, and something else in bit 15."""
    values = GREY12.astype(np.int32) - (2048 if signed else 0)
    stored = (values & 0x0FFF).astype(np.uint16)
    stored[::2] |= 0x1000
    stored[::3] |= 0x8000
    ds = dataset(stored.view(np.int16) if signed else stored, Modality="OT", BitsStored=12)
    ds.add_new(0x60000010, "US", 13)
    ds.add_new(0x60000011, "US", 17)
    ds.add_new(0x60000100, "US", 16)
    ds.add_new(0x60000102, "US", 12)
    if codec == "RLE":
        ds.compress(RLELossless)
    elif codec != "raw":
        encode = {
            "JPEG lossless": lambda: imagecodecs.jpeg8_encode(stored, lossless=True, predictor=1, bitspersample=16),
            "JPEG-LS": lambda: imagecodecs.jpegls_encode(stored),
            "JPEG 2000": lambda: imagecodecs.jpeg2k_encode(stored, codecformat="J2K", mct=False),
        }[codec]
        ds.file_meta.TransferSyntaxUID = ENCODERS[codec]
        ds.PixelData = encapsulate([encode()])
        ds["PixelData"].is_undefined_length = True
    path = save(ds, tmp_path / "x")
    image = read(path)
    np.testing.assert_array_equal(image.array[0], values)
    assert image.value_range == ((-2048, 2047) if signed else (0, 4095))
    for element in (0x60000010, 0x60000011, 0x60000100, 0x60000102):
        del ds[element]
    ds.RescaleType = "US"
    image = read_image(save(ds, tmp_path / "undeclared"), ReadOptions())
    np.testing.assert_array_equal(image.array[0], values)
    assert image.warning == "Values need more than the 12 bits of BitsStored: the rest was cut off."


def test_126_a_codec_with_loss_is_clipped_at_the_range(tmp_path):
    """JPEG-LS of 16 bits may go beyond the 12 that are stored, and a mask would make black of white."""
    white = np.random.default_rng(0).integers(4080, 4096, (13, 17)).astype(np.uint16)
    stream = imagecodecs.jpegls_encode(white, level=5)
    assert imagecodecs.jpegls_decode(stream).max() > 4095
    path = write_frames(tmp_path / "x", white, "1.2.840.10008.1.2.4.81", [stream], BitsStored=12)
    image = read(path)
    assert np.abs(image.array[0].astype(int) - white).max() <= 5
    assert image.array.max() == 4095


def test_126_samples_in_the_high_bits_are_shifted(tmp_path):
    path = write_dicom(tmp_path / "x", GREY12 << 4, BitsStored=12, HighBit=15)
    image = read(path)
    np.testing.assert_array_equal(image.array[0], GREY12)
    assert (image.unit, image.value_range) == ("12-bit", (0, 4095))
    signed = (GREY12.astype(np.int16) - 2048) << 4
    image = read(write_dicom(tmp_path / "s", signed, BitsStored=12, HighBit=15))
    np.testing.assert_array_equal(image.array[0], signed >> 4)


def test_126_one_bit_per_pixel(tmp_path):
    bits = np.random.default_rng(0).integers(0, 2, (2, 5, 7)).astype(np.uint8)
    ds = dataset(bits, Modality="OT", BitsAllocated=1, BitsStored=1)
    packed = np.packbits(bits.ravel(), bitorder="little").tobytes()
    ds.PixelData = packed + b"\0" * (len(packed) % 2)
    image = read(save(ds, tmp_path / "x"))
    np.testing.assert_array_equal(image.array[0], bits)
    assert (image.unit, image.value_range) == ("1-bit", (0, 1))


@pytest.mark.parametrize("width", [np.uint32, np.int32])
def test_126_32_bits(tmp_path, width):
    info = np.iinfo(width)
    pixels = np.array([[info.min, 0, info.max]], width)
    image = read(write_dicom(tmp_path / "x", pixels, Modality="OT"))
    np.testing.assert_array_equal(image.array[0], pixels)
    assert image.value_range == (info.min, info.max)


def test_readers_in_threads_share_one_decoder(tmp_path):
    path = write_jpeg_lossless(tmp_path / "x", GREY12, BitsStored=12)
    with ThreadPoolExecutor(4) as pool:
        arrays = list(pool.map(lambda _: read_image(path, ReadOptions()).array, range(12)))
    for array in arrays:
        np.testing.assert_array_equal(array[0], GREY12)


def test_no_patient_reaches_the_temporary_file(tmp_path, monkeypatch):
    seen = []
    original = decoder._write_frame

    def spy(file, *rest):
        original(file, *rest)
        seen.append(file.read_bytes())

    monkeypatch.setattr(decoder, "_write_frame", spy)
    read(write_jpeg_lossless(tmp_path / "x", GREY12, BitsStored=12))
    assert seen
    for secret in (b"DOE", b"MRN-0042", b"1942"):
        assert secret not in seen[0]
