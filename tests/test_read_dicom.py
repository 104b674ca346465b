"""Reading one DICOM file, on files written by pydicom, Pillow and SimpleITK."""

from __future__ import annotations

import base64
import hashlib
import re
import signal

import numpy as np
import pydicom
import pytest
from make_images import (
    PATIENT_ID,
    PATIENT_NAME,
    arrow,
    dataset,
    save,
    slice_fields,
    write_compressed,
    write_dicom,
    write_jpeg_lossless,
)
from pydicom.dataset import Dataset
from pydicom.uid import (
    MPEG2MPML,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

from medzoo.errors import DataError
from medzoo.io.dicom import decoder
from medzoo.io.options import ReadOptions
from medzoo.io.read import read, read_image

GREY8 = arrow().astype(np.uint8)
GREY12 = arrow(top=4000)


def lut(entries: list[int], first: int, bits: int) -> Dataset:
    item = Dataset()
    item.LUTDescriptor = [len(entries), first, bits]
    item["LUTDescriptor"].VR = "SS" if first < 0 else "US"
    item.LUTData = entries
    item["LUTData"].VR = "US"
    return item


@pytest.mark.parametrize("modality", ["CR", "DX", "XA", "RF", "MG", "OT", None])
def test_74_monochrome1_with_inverted_pixels_reads_equal(tmp_path, modality):
    two = read(write_dicom(tmp_path / "2", GREY8, Modality=modality))
    one = read(write_dicom(tmp_path / "1", 255 - GREY8, Modality=modality, PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_array_equal(one.array, two.array)
    np.testing.assert_array_equal(two.array[0], GREY8)
    assert one.value_range == two.value_range == (0.0, 255.0)
    assert one.unit == "8-bit"
    assert "MONOCHROME1 inverted" in one.notes


def test_74_monochrome1_is_inverted_after_rescale_and_window(tmp_path):
    """A window of a MONOCHROME1 file is mirrored with its pixels: centre c becomes 2^bits - c."""
    common = {"BitsStored": 12, "RescaleSlope": 1, "RescaleIntercept": 0, "WindowWidth": 1000}
    two = read(write_dicom(tmp_path / "2", GREY12, WindowCenter=1500, **common))
    one = read(
        write_dicom(
            tmp_path / "1", 4095 - GREY12, WindowCenter=4096 - 1500, PhotometricInterpretation="MONOCHROME1", **common
        )
    )
    np.testing.assert_allclose(one.array, two.array, atol=1e-3)
    assert two.value_range == (0.0, 4095.0)
    assert two.array.min() == 0
    assert two.array.max() == 4095
    assert one.notes[-2:] == ("MONOCHROME1 inverted", "no pixel spacing")
    assert "window centre 2596 width 1000 applied" in one.notes


def test_74_the_same_pixels_called_monochrome1_are_the_exact_inverse(tmp_path):
    two = read(write_dicom(tmp_path / "2", GREY12, BitsStored=12))
    one = read(write_dicom(tmp_path / "1", GREY12, BitsStored=12, PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_array_equal(one.array, 4095 - two.array)


def test_74_a_ct_is_never_inverted_or_windowed(tmp_path):
    pixels = GREY12.astype(np.int16)
    fields = slice_fields((0, 0, 0), PhotometricInterpretation="MONOCHROME1", WindowCenter=40, WindowWidth=400)
    image = read(write_dicom(tmp_path / "ct", pixels, **fields))
    np.testing.assert_array_equal(image.array[0], pixels - 1024)
    assert (image.unit, image.value_range) == ("HU", None)
    assert "MONOCHROME1 ignored: the values are measurements" in image.notes


def test_74_mr_is_inverted_but_not_windowed(tmp_path):
    fields = {"Modality": "MR", "BitsStored": 12, "WindowCenter": 100, "WindowWidth": 50}
    two = read(write_dicom(tmp_path / "2", GREY12, **fields))
    one = read(write_dicom(tmp_path / "1", 4095 - GREY12, PhotometricInterpretation="MONOCHROME1", **fields))
    np.testing.assert_array_equal(two.array[0], GREY12)
    np.testing.assert_array_equal(one.array, two.array)
    assert (two.unit, two.value_range) == ("raw", None)


def test_74_a_16_bit_picture_is_inverted_without_overflow(tmp_path):
    pixels = np.linspace(0, 65535, 48).reshape(6, 8).astype(np.uint16)
    image = read(write_dicom(tmp_path / "x", pixels, PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_array_equal(image.array[0], 65535 - pixels)


def test_75_rescale_is_applied_once_and_exactly(tmp_path):
    pixels = np.array([[0, 1], [1024, 4095]], np.uint16)
    image = read(write_dicom(tmp_path / "ct", pixels, **slice_fields((0, 0, 0), BitsStored=12)))
    assert image.array.dtype == np.int16
    np.testing.assert_array_equal(image.array[0], pixels.astype(int) - 1024)
    halves = slice_fields((0, 0, 0), RescaleSlope=0.5, RescaleIntercept=-1000.25)
    image = read(write_dicom(tmp_path / "ct", pixels, **halves))
    assert image.array.dtype == np.float32
    np.testing.assert_allclose(image.array[0], pixels * 0.5 - 1000.25)


def test_75_a_missing_rescale_leaves_a_ct_without_hu(tmp_path):
    fields = slice_fields((0, 0, 0), RescaleSlope=None, RescaleIntercept=None)
    image = read(write_dicom(tmp_path / "ct", GREY12, **fields))
    assert image.unit == "raw"
    assert "no rescale: values as stored" in image.notes
    np.testing.assert_array_equal(image.array[0], GREY12)


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"RescaleSlope": 0}, "expected a RescaleSlope other than 0"),
        ({"RescaleSlope": None}, "expected RescaleSlope and RescaleIntercept together"),
        ({"RescaleIntercept": None}, "expected RescaleSlope and RescaleIntercept together"),
        ({"RescaleSlope": "nan"}, "expected 1 finite number in RescaleSlope, found nan"),
        ({"RescaleIntercept": "inf"}, "expected 1 finite number in RescaleIntercept, found inf"),
    ],
)
def test_75_an_invalid_rescale_is_refused(tmp_path, fields, found):
    path = _with_raw_numbers(tmp_path / "ct", slice_fields((0, 0, 0)) | fields)
    with pytest.raises(DataError, match=found):
        read(path)


def test_75_a_negative_slope_keeps_the_window_the_right_way_round(tmp_path):
    """pydicom's own windowing inverts such an image."""
    pixels = np.arange(0, 256, dtype=np.uint8).reshape(16, 16)
    fields = {"RescaleSlope": -1, "RescaleIntercept": 255, "WindowCenter": 128, "WindowWidth": 256}
    image = read(write_dicom(tmp_path / "x", pixels, **fields))
    np.testing.assert_allclose(image.array[0], 255 - pixels.astype(float), atol=1e-3)


def test_75_a_modality_lut_may_start_below_zero(tmp_path):
    """16-bit signed pixels minus a first entry of -32768 overflow in pydicom's own function."""
    pixels = np.array([[-32768, -32767], [0, 32767]], np.int16)
    entries = list(range(0, 40000, 10))
    ds = dataset(pixels, Modality="OT")
    ds.ModalityLUTSequence = [lut(entries, -32768, 16)]
    ds.ModalityLUTSequence[0].ModalityLUTType = "US"
    image = read(save(ds, tmp_path / "x"))
    np.testing.assert_array_equal(image.array[0], [[0, 10], [39990, 39990]])
    assert image.value_range == (0.0, 65535.0)


def test_75_a_ct_in_another_unit_is_not_called_hu(tmp_path):
    image = read(write_dicom(tmp_path / "ct", GREY12, **slice_fields((0, 0, 0), RescaleType="US")))
    assert image.unit == "raw"
    assert "rescaled to a unit other than HU" in image.notes


@pytest.mark.parametrize("words", [False, True])
def test_75_a_voi_lut_sets_the_range(tmp_path, words):
    pixels = np.array([[0, 1, 2, 3, 200]], np.uint8)
    ds = dataset(pixels, WindowCenter=1, WindowWidth=2)
    ds.VOILUTSequence = [lut([0, 100, 200, 1023], 1, 10)]
    if words:
        ds.VOILUTSequence[0].LUTData = np.array([0, 100, 200, 1023], "<u2").tobytes()
        ds.VOILUTSequence[0]["LUTData"].VR = "OW"
    image = read(save(ds, tmp_path / "x"))
    np.testing.assert_array_equal(image.array[0], [[0, 0, 100, 200, 1023]])
    assert (image.unit, image.value_range) == ("10-bit", (0.0, 1023.0))
    assert "VOI LUT applied" in image.notes


@pytest.mark.parametrize(
    ("function", "values"),
    [
        ("LINEAR", [0, 0, 127.5 / 3 * 1, 127.5 / 3 * 3, 127.5 / 3 * 5, 255]),
        ("LINEAR_EXACT", [0, 0, 0.25 * 255, 0.5 * 255, 0.75 * 255, 255]),
        ("SIGMOID", [255 / (1 + np.exp(-4 * (v - 100) / 4)) for v in (90, 98, 99, 100, 101, 110)]),
    ],
)
def test_75_windows_follow_the_standard(tmp_path, function, values):
    """PS3.3 C.11.2.1.2 and C.11.2.1.3, by hand: LINEAR of centre 100 and width 4 runs from 98 to 101."""
    pixels = np.array([[90, 98, 99, 100, 101, 110]], np.uint8)
    fields = {"WindowCenter": [100, 40], "WindowWidth": [4, 80], "VOILUTFunction": function}
    image = read(write_dicom(tmp_path / "x", pixels, **fields))
    if function == "LINEAR":
        values = [0, 0, 85, 170, 255, 255]
    np.testing.assert_allclose(image.array[0, 0], values, atol=1e-3)
    assert "window centre 100 width 4 applied, the first of 2" in image.notes


@pytest.mark.parametrize(("fields", "found"), [
    ({"VOILUTFunction": "CUBIC"}, r"VOILUTFunction \(0028,1056\) is none of LINEAR, LINEAR_EXACT, SIGMOID"),
    ({"WindowCenter": "nan"}, r"WindowCenter \(0028,1050\) is not a finite number"),
    ({"WindowWidth": "wide"}, r"WindowWidth \(0028,1051\) holds text that is not a number"),
])  # fmt: skip
def test_75_an_invalid_window_is_refused(tmp_path, fields, found):
    given = {"WindowCenter": "100", "WindowWidth": "10"} | fields
    with pytest.raises(DataError, match=found):
        read(_with_raw_numbers(tmp_path / "x", given))


def test_76_signed_12_in_16_bits(tmp_path):
    """Two's complement in 12 of 16 bits, with and without the sign carried into the unused bits."""
    values = np.array([[-2048, -1], [0, 2047]], np.int16)
    fields = slice_fields((0, 0, 0), BitsStored=12, RescaleSlope=1, RescaleIntercept=0)
    for stored in (values, values & 0x0FFF):
        image = read(write_dicom(tmp_path / "ct", stored, **fields))
        np.testing.assert_array_equal(image.array[0], values)
        assert image.array.dtype == np.int16


def test_76_12_of_16_bits_set_the_range(tmp_path):
    image = read(write_dicom(tmp_path / "x", GREY12, BitsStored=12))
    assert (image.unit, image.value_range, image.array.dtype) == ("12-bit", (0.0, 4095.0), np.uint16)


def test_76_a_signed_picture_has_a_signed_range(tmp_path):
    image = read(write_dicom(tmp_path / "x", np.array([[-5, 5]], np.int16), BitsStored=12))
    assert (image.unit, image.value_range) == ("raw", (-2048.0, 2047.0))


def test_76_bits_that_do_not_start_at_zero_are_refused(tmp_path):
    """The low bits that HighBit leaves out are set, so either it or BitsStored is wrong."""
    with pytest.raises(DataError, match=r"HighBit \(0028,0102\) is 15 for 12 stored bits, but bits below them are set"):
        read(write_dicom(tmp_path / "x", GREY12, BitsStored=12, HighBit=15))


def test_77_frames_come_first_and_in_order(tmp_path):
    frames = np.stack([GREY8 // (i + 1) for i in range(5)])
    path = write_dicom(tmp_path / "x", frames, Modality="XA")
    image = read(path)
    assert image.array.shape == (1, 5, 48, 64)
    np.testing.assert_array_equal(image.array[0], frames)
    assert image.affine is None
    one = read(path, frame=3)
    np.testing.assert_array_equal(one.array[0], frames[3])
    assert "frame 3 of 5" in one.notes
    with pytest.raises(DataError, match="expected frame below 5, got frame=5"):
        read(path, frame=5)


@pytest.mark.parametrize("shuffled", [False, True])
def test_77_frames_of_an_enhanced_image_have_a_position(tmp_path, shuffled):
    places = [0.0, 5.0, 2.5] if shuffled else [0.0, 2.5, 5.0]
    ds = dataset(np.stack([GREY12, GREY12 // 2, GREY12 // 3]), Modality="CT", BitsStored=12)
    shared, measures, orientation, value = (Dataset() for _ in range(4))
    measures.PixelSpacing = [0.7, 0.9]
    orientation.ImageOrientationPatient = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    value.RescaleSlope, value.RescaleIntercept, value.RescaleType = 1, -1000, "HU"
    shared.PixelMeasuresSequence = [measures]
    shared.PlaneOrientationSequence = [orientation]
    shared.PixelValueTransformationSequence = [value]
    ds.SharedFunctionalGroupsSequence = [shared]
    ds.PerFrameFunctionalGroupsSequence = []
    for z in places:
        frame, position = Dataset(), Dataset()
        position.ImagePositionPatient = [-10.0, -20.0, z]
        frame.PlanePositionSequence = [position]
        ds.PerFrameFunctionalGroupsSequence.append(frame)
    image = read(save(ds, tmp_path / "x"))
    np.testing.assert_array_equal(image.array[0, 0], GREY12.astype(int) - 1000)
    assert image.unit == "HU"
    np.testing.assert_array_equal(image.array[0, 1], GREY12.astype(int) // (3 if shuffled else 2) - 1000)
    assert ("frames sorted by position" in image.notes) == shuffled
    assert image.orientation == "SPL"
    np.testing.assert_allclose(image.spacing, (2.5, 0.7, 0.9))
    np.testing.assert_allclose(image.affine @ [2, 1, 1, 1], [10 - 0.9, 20 - 0.7, 5, 1])


@pytest.mark.parametrize(("syntax", "near"), [(JPEGBaseline8Bit, 8), (JPEG2000Lossless, 0)])
def test_78_compressed_pictures(tmp_path, syntax, near):
    frames = np.stack([GREY8, GREY8[::-1]])
    for pixels in (GREY8, frames):
        image = read_image(write_compressed(tmp_path / "x", pixels, syntax), ReadOptions())
        assert np.abs(image.array[0].astype(int) - pixels).max() <= near


def test_78_rle_deflated_and_big_endian(tmp_path):
    want = GREY12.astype(np.int16) - 1024
    for i, syntax in enumerate(
        [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless]
    ):
        ds = dataset(
            GREY12, syntax=syntax if syntax != RLELossless else ImplicitVRLittleEndian, **slice_fields((0, 0, 0))
        )
        if syntax == RLELossless:
            ds.compress(RLELossless)
        image = read(save(ds, tmp_path / f"{i}"))
        np.testing.assert_array_equal(image.array[0], want)
        assert image.array.dtype.isnative


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_78_simpleitk_decodes_and_does_nothing_else(tmp_path, photometric):
    """Called directly, SimpleITK rescales and inverts MONOCHROME1, which would then be done twice."""
    pixels = np.random.default_rng(0).integers(0, 4096, (48, 64)).astype(np.uint16)
    fields = {"BitsStored": 12, "PhotometricInterpretation": photometric, "RescaleSlope": 2, "RescaleIntercept": -10}
    image = read(write_jpeg_lossless(tmp_path / "x", pixels, **fields))
    plain = read(write_dicom(tmp_path / "plain", pixels, **fields))
    np.testing.assert_array_equal(image.array, plain.array)
    want = 2 * pixels.astype(int) - 10
    np.testing.assert_array_equal(image.array[0], want if photometric == "MONOCHROME2" else 8170 - want)


def test_78_the_decoder_may_die_and_is_started_again(tmp_path):
    path = write_jpeg_lossless(tmp_path / "x", GREY12, BitsStored=12)
    read(path)
    first = decoder._state.decoder
    first.process.kill()
    first.process.wait()
    np.testing.assert_array_equal(read(path).array[0], GREY12)  # it died before this file
    first.stop()


def test_78_a_decoder_that_crashes_or_hangs_is_a_data_error(tmp_path, monkeypatch):
    path = write_jpeg_lossless(tmp_path / "x", GREY12, BitsStored=12)
    read(path)
    stopped = decoder._state.decoder.process
    monkeypatch.setattr(decoder, "_TIMEOUT", 0.2)
    stopped.send_signal(signal.SIGSTOP)
    with pytest.raises(DataError, match="found damage: simpleitk cannot decode them"):
        read(path)
    assert stopped.returncode == -signal.SIGKILL
    monkeypatch.undo()
    np.testing.assert_array_equal(read(path).array[0], GREY12)


def test_78_jpeg_ls(tmp_path):
    """A codestream of CharLS (through pyjpegls), because none of medzoo's dependencies writes JPEG-LS."""
    pixels = arrow(8, 12, top=4000)
    stream = base64.b64decode(
        "/9j/9wALDAAIAAwBAREA/9oACAEBAAAAAB+gQQQgAAAAAD8/AMAwGAwGFAgghAgQhCIhRERBBESSBJJBBJJAAAAAAYh4DAYDAYAAAAACdAYGBgYGBZJI"
        "QqqAaqEKqgNVCFVA/9k="
    )
    fields = {"BitsStored": 12, "PhotometricInterpretation": "MONOCHROME1", "RescaleSlope": 1, "RescaleIntercept": 5}
    ds = dataset(pixels, **fields)
    ds.file_meta.TransferSyntaxUID = JPEGLSLossless
    ds.PixelData = pydicom.encaps.encapsulate([stream])
    ds["PixelData"].VR = "OB"
    image = read(save(ds, tmp_path / "x"))
    np.testing.assert_array_equal(image.array[0], 4095 + 10 - (pixels + 5))


def test_78_missing_frames_are_an_error(tmp_path):
    path = write_jpeg_lossless(tmp_path / "x", GREY12, NumberOfFrames=3)
    with pytest.raises(DataError):
        read(path)
    with pytest.raises(DataError):
        read(path, frame=2)


def test_78_a_cut_frame_is_not_given_to_simpleitk(tmp_path):
    """It would return an image with undefined pixels."""
    path = write_jpeg_lossless(tmp_path / "x", GREY12)
    ds = pydicom.dcmread(path)
    ds.PixelData = pydicom.encaps.encapsulate([next(pydicom.encaps.generate_frames(ds.PixelData))[:-90]])
    save(ds, path)
    with pytest.raises(DataError, match="found damage: simpleitk cannot decode them"):
        read(path)


def test_78_a_syntax_that_nothing_decodes_is_named(tmp_path):
    ds = dataset(GREY8)
    ds.PixelData = pydicom.encaps.encapsulate([b"\0\0\1\xb3" + bytes(60)])
    ds["PixelData"].VR = "OB"
    ds.file_meta.TransferSyntaxUID = MPEG2MPML
    with pytest.raises(DataError, match=r"found MPEG2 Main Profile.*It is a video"):
        read(save(ds, tmp_path / "x"))


def test_79_no_pixels(tmp_path):
    ds = dataset(GREY8)
    del ds.PixelData
    with pytest.raises(DataError, match="found a DICOM object without pixels"):
        read(save(ds, tmp_path / "x"))


@pytest.mark.parametrize("modality", ["SR", "PR", "SEG", "RTSTRUCT", "KO"])
def test_79_what_is_no_image_is_named(tmp_path, modality):
    with pytest.raises(DataError, match=rf"expected an image, found a[a-z ]+ \({modality}\)"):
        read(write_dicom(tmp_path / "x", GREY8, Modality=modality))


@pytest.mark.parametrize("part", [0.05, 0.2, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("compressed", [False, True])
def test_79_a_cut_file_is_refused(tmp_path, part, compressed):
    path = tmp_path / "x"
    write_compressed(path, GREY8, JPEG2000Lossless) if compressed else write_dicom(path, GREY8)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(DataError):
        read(path)


def test_79_no_preamble(tmp_path):
    path = write_dicom(tmp_path / "x", GREY8)
    path.write_bytes(path.read_bytes()[132:])
    with pytest.raises(DataError, match="what may be DICOM without its preamble"):
        read(path)


def test_79_no_transfer_syntax(tmp_path):
    ds = dataset(GREY8)
    path = save(ds, tmp_path / "x")
    data = path.read_bytes()
    at = data.index(b"\x02\x00\x10\x00")  # the element of the transfer syntax
    path.write_bytes(data[:at] + b"\x02\x00\x99\x00" + data[at + 4 :])
    with pytest.warns(UserWarning, match="TransferSyntaxUID is missing: read as Explicit VR Little Endian"):
        image = read(path)
    np.testing.assert_array_equal(image.array[0], GREY8)


def test_79_random_bytes_behind_a_preamble(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(bytes(128) + b"DICM" + np.random.default_rng(0).bytes(4000))
    with pytest.raises(DataError):
        read(path)


@pytest.mark.parametrize(
    "fields",
    [
        {"PixelSpacing": ["nan", "0.7"]},
        {"PixelSpacing": ["inf", "0.7"]},
        {"ImageOrientationPatient": ["nan", "0", "0", "0", "1", "0"]},
        {"ImagePositionPatient": ["0", "inf", "0"]},
        {"ImageOrientationPatient": ["1", "0", "0", "1", "0", "0"]},
        {"ImageOrientationPatient": ["0", "0", "0", "0", "0", "0"]},
        {"ImageOrientationPatient": ["1", "0", "0"]},
    ],
)
def test_80_invalid_geometry_is_refused(tmp_path, fields):
    path = _with_raw_numbers(tmp_path / "ct", slice_fields((0, 0, 0)) | fields)
    with pytest.raises(DataError, match=next(iter(fields))):
        read(path)


def test_80_a_spacing_of_zero_is_unknown(tmp_path):
    image = read(write_dicom(tmp_path / "x", GREY8, PixelSpacing=[0, 0]))
    assert image.spacing is None
    assert "no pixel spacing" in image.notes


def test_a_slice_keeps_its_position(tmp_path):
    image = read(write_dicom(tmp_path / "ct", GREY12, **slice_fields((-20.0, -30.0, 100.0))))
    assert image.array.shape == (1, 48, 64)
    assert image.spacing == (0.7, 0.9)
    np.testing.assert_allclose(image.affine @ [0, 0, 0, 1], [20, 30, 100, 1])
    np.testing.assert_allclose(image.affine @ [10, 0, 0, 1], [20, 23, 100, 1])  # ten rows down: to the back
    np.testing.assert_allclose(image.affine @ [0, 10, 0, 1], [11, 30, 100, 1])  # ten columns on: to the left
    np.testing.assert_allclose(image.affine[:3, 2], [0, 0, 1])


def test_a_missing_modality_is_taken_from_the_sop_class(tmp_path):
    image = read(write_dicom(tmp_path / "ct", GREY12, **slice_fields((0, 0, 0), Modality=None)))
    assert (image.modality, image.unit) == ("CT", "HU")


def test_colour_and_palette(tmp_path):
    colour = np.stack([GREY8, GREY8 // 2, 255 - GREY8], -1)
    image = read(write_dicom(tmp_path / "rgb", colour, Modality="US"))
    np.testing.assert_array_equal(image.array, np.moveaxis(colour, -1, 0))
    grey = read(write_dicom(tmp_path / "grey", np.stack([GREY8] * 3, -1), Modality="US"))
    assert grey.array.shape == (1, 48, 64)
    ds = dataset(np.array([[0, 1, 2]], np.uint8), Modality="US", PhotometricInterpretation="PALETTE COLOR")
    for name, values in (("Red", [255, 0, 0]), ("Green", [0, 255, 0]), ("Blue", [0, 0, 255])):
        setattr(ds, f"{name}PaletteColorLookupTableDescriptor", [3, 0, 16])
        table = np.array(values, np.uint16) * 257
        setattr(ds, f"{name}PaletteColorLookupTableData", table.tobytes())
    image = read(save(ds, tmp_path / "palette"))
    np.testing.assert_array_equal(image.array[:, 0], 65535 * np.eye(3))


def test_a_colour_jpeg_is_rgb(tmp_path):
    """Stored as YBR_FULL_422, whose first channel alone is no red."""
    colour = np.zeros((48, 64, 3), np.uint8)
    colour[:, :32], colour[:, 32:] = (200, 30, 30), (30, 30, 200)
    fields = {"Modality": "US", "PhotometricInterpretation": "YBR_FULL_422"}
    image = read(write_compressed(tmp_path / "x", colour, JPEGBaseline8Bit, **fields))
    assert image.array.shape == (3, 48, 64)
    assert np.abs(image.array[:, 10, [10, 50]].T.astype(int) - [[200, 30, 30], [30, 30, 200]]).max() < 8


def test_float_pixels(tmp_path):
    ds = dataset(GREY8, Modality="MR", BitsStored=None, HighBit=None, PixelRepresentation=None, BitsAllocated=32)
    del ds.PixelData
    values = np.linspace(-1, 1, GREY8.size, dtype=np.float32)
    ds.FloatPixelData = values.tobytes()
    image = read(save(ds, tmp_path / "x"))
    np.testing.assert_array_equal(image.array.ravel(), values)
    values[7] = np.nan
    ds.FloatPixelData = values.tobytes()
    with pytest.raises(DataError, match="found 1 of 3072 NaN"):
        read(save(ds, tmp_path / "x"))
    assert read(tmp_path / "x", nan="zero").array.ravel()[7] == 0


def test_the_header_is_checked_against_max_voxels_before_decoding(tmp_path):
    path = write_compressed(tmp_path / "x", GREY8, JPEG2000Lossless, Rows=60000, Columns=60000)
    with pytest.raises(DataError, match=re.escape("the header declares 1 × 60000 × 60000 × 1, that is 3600000000")):
        read(path)


def test_a_deflate_bomb_is_refused(tmp_path):
    ds = dataset(GREY8, syntax=DeflatedExplicitVRLittleEndian)
    ds.ImageComments = "x"
    block = ds.private_block(0x0099, "medzoo test", create=True)
    block.add_new(0x01, "OB", bytes(2**27))
    path = save(ds, tmp_path / "bomb")
    assert path.stat().st_size < 2**18
    with pytest.raises(DataError, match="found a deflated file of more"):
        read(path, max_voxels=10_000)


def test_no_patient_in_repr_identity_or_notes(tmp_path):
    path = write_dicom(tmp_path / "x", GREY8, ViewPosition="PA")
    image = read(path)
    assert image.identity["patient"] == hashlib.sha256(PATIENT_ID.encode()).hexdigest()[:12]
    assert image.identity["view"] == "PA"
    assert set(image.identity) == {"file", "study", "series", "sop", "view", "patient"}
    text = f"{image!r} {image.identity} {image.notes}"
    for secret in (PATIENT_ID, PATIENT_NAME, "DOE", "1942"):
        assert secret not in text


def test_no_patient_in_an_error_of_a_library(tmp_path):
    """A name in a numeric field would be quoted by pydicom's own message."""
    path = _with_raw_numbers(tmp_path / "x", slice_fields((0, 0, 0)) | {"RescaleSlope": PATIENT_NAME})
    with pytest.raises(DataError) as raised:
        read(path)
    assert "DOE" not in str(raised.value)
    assert raised.value.__cause__ is None


def _with_raw_numbers(path, fields):
    """Write a file whose decimal strings are not validated, as some scanners do."""
    raw = {k: v for k, v in fields.items() if isinstance(v, str | list) and any(isinstance(x, str) for x in v)}
    ds = dataset(GREY12.astype(np.int16), **{k: v for k, v in fields.items() if k not in raw})
    for keyword, value in raw.items():
        if keyword in ("SOPClassUID", "SOPInstanceUID", "Modality", "VOILUTFunction"):
            setattr(ds, keyword, value)
            continue
        text = "\\".join(value) if isinstance(value, list) else value
        padded = text.encode() + b" " * (len(text) % 2)
        tag = pydicom.tag.Tag(keyword)
        ds[tag] = pydicom.dataelem.RawDataElement(tag, "DS", len(padded), padded, 0, False, True, True)
    return save(ds, path)
