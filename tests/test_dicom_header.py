"""What a DICOM header says of the values, for each frame; and what is read, noted or refused where it is at fault."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
from make_images import PATIENT_NAME, arrow, dataset, save, slice_fields, write_dicom
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian, generate_uid

from medzoo.errors import DataError
from medzoo.io.options import ReadOptions
from medzoo.io.read import read, read_image

RAMP = np.tile(np.arange(0, 4096, 16, dtype=np.uint16), (8, 1))
GREY12 = arrow(top=4000)
DX = {"Modality": "DX", "BitsStored": 12}


def item(**fields):
    ds = Dataset()
    for keyword, value in fields.items():
        setattr(ds, keyword, value)
    return ds


def enhanced(path, frames, shared=None, per_frame=None, **fields):
    """Write a multi-frame file with functional groups, each a sequence of one item by its keyword."""
    ds = dataset(frames, **({"BitsStored": 12} | fields))
    if shared:
        ds.SharedFunctionalGroupsSequence = [item(**{k: [v] for k, v in shared.items()})]
    if per_frame:
        ds.PerFrameFunctionalGroupsSequence = [item(**{k: [v] for k, v in group.items()}) for group in per_frame]
    return save(ds, path)


def with_text(path, ds, **texts):
    """Write elements as text that pydicom would not write."""
    for keyword, text in texts.items():
        tag = pydicom.tag.Tag(keyword)
        padded = text.encode() + b" " * (len(text) % 2)
        vr = pydicom.datadict.dictionary_VR(tag)
        ds[tag] = pydicom.dataelem.RawDataElement(tag, vr, len(padded), padded, 0, False, True, True)
    return save(ds, path)


WINDOW = {"WindowCenter": 2048, "WindowWidth": 1000}


@pytest.mark.parametrize("where", ["top", "shared", "per frame"])
def test_125_a_window_is_applied_wherever_it_is(tmp_path, where):
    frames = np.stack([RAMP] * 2)
    voi = {"FrameVOILUTSequence": item(**WINDOW)}
    path = {
        "top": lambda: enhanced(tmp_path / "x", frames, Modality="XA", **WINDOW),
        "shared": lambda: enhanced(tmp_path / "x", frames, shared=voi, Modality="XA"),
        "per frame": lambda: enhanced(tmp_path / "x", frames, per_frame=[voi, voi], Modality="XA"),
    }[where]()
    image = read(path)
    for frame in range(2):
        np.testing.assert_allclose(image.array[0, frame, 0, [62, 128, 188]], [0, 2049.5, 4095], atol=1)
    assert "window centre 2048 width 1000 applied" in image.notes
    np.testing.assert_array_equal(read(path, frame=1).array, image.array[:, 1])


def test_125_each_frame_has_its_own_window(tmp_path):
    groups = [
        {"FrameVOILUTSequence": item(WindowCenter=1000, WindowWidth=500)},
        {"FrameVOILUTSequence": item(WindowCenter=[3000, 5], WindowWidth=[200, 5], VOILUTFunction="LINEAR_EXACT")},
        {"FrameVOILUTSequence": item(WindowCenter=2048, WindowWidth=1000, VOILUTFunction="SIGMOID")},
    ]
    path = enhanced(tmp_path / "x", np.stack([RAMP] * 3), per_frame=groups, Modality="XA")
    image = read(path)
    x = RAMP[0].astype(float)
    np.testing.assert_allclose(image.array[0, 0, 0], 4095 * np.clip((x - 999.5) / 499 + 0.5, 0, 1), atol=1e-3)
    np.testing.assert_allclose(image.array[0, 1, 0], 4095 * np.clip((x - 3000) / 200 + 0.5, 0, 1), atol=1e-3)
    np.testing.assert_allclose(image.array[0, 2, 0], 4095 / (1 + np.exp(-4 * (x - 2048) / 1000)), atol=1e-3)
    assert image.value_range == (0, 4095)
    assert "each frame by values of its own" in image.notes
    for frame in range(3):
        np.testing.assert_array_equal(read(path, frame=frame).array, image.array[:, frame])


def test_125_a_voi_lut_of_a_frame(tmp_path):
    lut = item(LUTDescriptor=[3, 10, 8], LUTData=[0, 100, 255])
    lut["LUTData"].VR = "US"
    group = {"FrameVOILUTSequence": item(VOILUTSequence=[lut])}
    frames = np.array([[[9, 10, 11, 12, 13]]] * 2, np.uint8)
    path = enhanced(tmp_path / "x", frames, per_frame=[group, group], Modality="XA", BitsStored=8)
    np.testing.assert_array_equal(read(path).array[0, 1, 0], [0, 0, 100, 255, 255])


@pytest.mark.parametrize("modality", ["MR", "PT"])
def test_125_each_frame_has_its_own_rescale(tmp_path, modality):
    slopes = [2.0, 0.5, 3.0]
    groups = [
        {"PixelValueTransformationSequence": item(RescaleSlope=s, RescaleIntercept=-10 * i, RescaleType="US")}
        for i, s in enumerate(slopes)
    ]
    path = enhanced(tmp_path / "x", np.stack([GREY12] * 3), per_frame=groups, Modality=modality)
    with pytest.warns(UserWarning, match="The frames have no position"):
        image = read(path)
    for i, slope in enumerate(slopes):
        np.testing.assert_allclose(image.array[0, i], GREY12 * slope - 10 * i)
        np.testing.assert_allclose(read(path, frame=i).array[0], GREY12 * slope - 10 * i)


def test_125_windows_of_frames_that_are_rescaled_share_one_range(tmp_path):
    """The same window is the same grey in each frame, though the frames' own ranges differ."""
    groups = [
        {
            "PixelValueTransformationSequence": item(RescaleSlope=slope, RescaleIntercept=0, RescaleType="US"),
            "FrameVOILUTSequence": item(WindowCenter=1000, WindowWidth=2001),
        }
        for slope in (1, 2)
    ]
    image = read(enhanced(tmp_path / "x", np.stack([RAMP, RAMP // 2]), per_frame=groups, Modality="XA"))
    assert image.value_range == (0, 8190)
    np.testing.assert_allclose(image.array[0, 0], image.array[0, 1], atol=1e-3)


def test_125_spacing_and_orientation_of_a_frame(tmp_path):
    groups = [
        {
            "PixelMeasuresSequence": item(PixelSpacing=[0.5 + i, 0.25]),
            "PlanePositionSequence": item(ImagePositionPatient=[0, 0, 5.0 * i]),
        }
        for i in range(2)
    ]
    shared = {"PlaneOrientationSequence": item(ImageOrientationPatient=[0, 1, 0, 0, 0, -1])}
    path = enhanced(tmp_path / "x", np.stack([GREY12] * 2), shared, groups, Modality="MR")
    for i in range(2):
        image = read(path, frame=i)
        assert image.spacing == (0.5 + i, 0.25)
        np.testing.assert_allclose(image.affine[:3, 0], [0, 0, -(0.5 + i)])


def test_131_a_decimal_comma_is_a_decimal_point(tmp_path):
    ds = dataset(GREY12, **DX, WindowWidth=4096)
    image = read(with_text(tmp_path / "x", ds, PixelSpacing="0,143\\0,25", WindowCenter="2047,5", PatientAge="042Y"))
    assert image.spacing == (0.143, 0.25)
    assert "window centre 2047.5 width 4096 applied" in image.notes
    ds = dataset(GREY12, **slice_fields((0, 0, 0)))
    image = read(with_text(tmp_path / "ct", ds, RescaleSlope="0,5", RescaleIntercept="-1024,25"))
    np.testing.assert_allclose(image.array[0], GREY12 * 0.5 - 1024.25)


@pytest.mark.parametrize("text", ["1.5,2", "1,5,2", "0.5mm", "one"])
def test_131_what_is_no_number_is_named(tmp_path, text):
    path = with_text(tmp_path / "x", dataset(GREY12, **slice_fields((0, 0, 0))), RescaleSlope=text)
    with pytest.raises(DataError, match=r"RescaleSlope \(0028,1053\) holds text that is not a number"):
        read(path)


@pytest.mark.parametrize(
    "keyword",
    ["Rows", "Columns", "BitsStored", "PixelRepresentation", "PhotometricInterpretation"],
)
def test_131_a_missing_element_is_named(tmp_path, keyword):
    tag = str(pydicom.tag.Tag(keyword)).replace("(", r"\(").replace(")", r"\)").replace(" ", "").upper()
    with pytest.raises(DataError, match=rf"x: expected a DICOM image, but {keyword} {tag} is missing\. Correct"):
        read(
            write_dicom(
                tmp_path / "x", GREY12, **DX | {keyword: None}, **{} if keyword != "BitsStored" else {"HighBit": 11}
            )
        )


@pytest.mark.parametrize(("keyword", "note"), [
    ("SamplesPerPixel", "SamplesPerPixel is missing; the rest of the header gives 1"),
    ("HighBit", "HighBit is missing; BitsStored gives 11"),
    ("BitsAllocated", "BitsAllocated is missing; the length of the pixels gives 16"),
])  # fmt: skip
def test_131_a_missing_element_that_the_others_give_is_noted(tmp_path, keyword, note):
    image = read(write_dicom(tmp_path / "x", GREY12, **DX | {keyword: None}))
    np.testing.assert_array_equal(image.array[0], GREY12)
    assert note in image.notes


def test_131_planes_that_are_not_declared_are_refused(tmp_path):
    colour = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(DataError, match=r"PlanarConfiguration \(0028,0006\) is missing"):
        read(write_dicom(tmp_path / "x", colour, PlanarConfiguration=None))


@pytest.mark.parametrize(("fields", "why"), [
    ({"BitsAllocated": 12}, r"BitsAllocated \(0028,0100\) is 12; 1, 8, 16, 32 and 64 are supported"),
    ({"BitsStored": 0, "HighBit": 11}, r"BitsStored \(0028,0101\) is 0"),
    ({"PixelRepresentation": 2}, r"PixelRepresentation \(0028,0103\) is neither 0, unsigned, nor 1, signed"),
    ({"SamplesPerPixel": 4}, r"SamplesPerPixel \(0028,0002\) is 4; 1 and 3 are supported"),
    ({"PhotometricInterpretation": "HSV"}, r"PhotometricInterpretation \(0028,0004\) is none of MONOCHROME1"),
    ({"NumberOfFrames": -1}, r"NumberOfFrames \(0028,0008\) is -1"),
    ({"NumberOfFrames": 4}, "expected 24576 bytes of pixels, found 6144"),
])  # fmt: skip
def test_131_an_element_that_cannot_be_used_is_named(tmp_path, fields, why):
    with pytest.raises(DataError, match=why):
        read(write_dicom(tmp_path / "x", GREY12, **DX | fields))


@pytest.mark.parametrize(("fields", "warning"), [
    ({"BitsStored": 20, "HighBit": 19}, "BitsStored is 20, more than BitsAllocated: read as 16 bits."),
    ({"BitsAllocated": 8, "BitsStored": 12}, "BitsAllocated is 8, but the pixels have 16 bits: read as that."),
    ({"HighBit": 5}, "HighBit is 5, which the other elements contradict: read as 11."),
    ({"SamplesPerPixel": 3}, "SamplesPerPixel is 3, but MONOCHROME2 and the pixels have 1."),
    ({"PhotometricInterpretation": "RGB"},
     "PhotometricInterpretation is RGB, with 1 sample(s) per pixel: read as MONOCHROME2."),
])  # fmt: skip
def test_131_a_contradiction_that_the_pixels_resolve_is_a_warning(tmp_path, fields, warning):
    image = read_image(write_dicom(tmp_path / "x", GREY12, **DX | fields), ReadOptions())
    np.testing.assert_array_equal(image.array[0], GREY12)
    assert image.warning == warning


def test_131_more_pixels_than_frames_is_a_warning(tmp_path):
    ds = dataset(GREY12, **DX)
    ds.PixelData = ds.PixelData * 2
    image = read_image(save(ds, tmp_path / "x"), ReadOptions())
    np.testing.assert_array_equal(image.array[0], GREY12)
    assert image.warning == "NumberOfFrames is 1, but there are 6144 bytes more, enough for another."
    ds.PixelData = ds.PixelData[: 6144 + 128]
    image = read_image(save(ds, tmp_path / "x"), ReadOptions())
    assert image.warning == ""
    assert "128 bytes behind the pixels ignored" in image.notes


def test_131_full_colours_are_not_read_as_subsampled(tmp_path):
    colour = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(
        DataError, match=r"PhotometricInterpretation .* is YBR_FULL_422, but the pixels are not subsampled"
    ):
        read(write_dicom(tmp_path / "x", colour, PhotometricInterpretation="YBR_FULL_422"))


def test_131_pairs_of_columns_need_even_columns(tmp_path):
    ds = dataset(np.zeros((3, 3, 3), np.uint8), PhotometricInterpretation="YBR_FULL_422")
    ds.PixelData = bytes(18)
    with pytest.raises(DataError, match=r"Columns \(0028,0011\) is 3, odd"):
        read(save(ds, tmp_path / "x"))


def test_131_a_window_of_one_number_is_ignored(tmp_path):
    image = read_image(write_dicom(tmp_path / "x", GREY12, **DX, WindowCenter=10), ReadOptions())
    np.testing.assert_array_equal(image.array[0], GREY12)
    assert image.warning.startswith("WindowCenter and WindowWidth are not both given")


def test_131_tiles_are_not_slices(tmp_path):
    tiles = np.zeros((4, 8, 8), np.uint8)
    path = write_dicom(tmp_path / "x", tiles, Modality="SM", TotalPixelMatrixColumns=16, TotalPixelMatrixRows=16)
    assert "tiles of one large image" in read_image(path, ReadOptions()).warning
    assert read(path, frame=1).warning == ""


def test_131_a_width_below_one_is_exact(tmp_path):
    """Values from 0 to 1, whose window runs from 0 to 0.4; LINEAR needs a width of 1."""
    fields = {"RescaleSlope": 1 / 4095, "RescaleIntercept": 0, "WindowCenter": 0.2, "WindowWidth": 0.4}
    image = read_image(write_dicom(tmp_path / "x", GREY12, **DX, **fields), ReadOptions())
    np.testing.assert_allclose(image.array[0], np.clip(GREY12 / 4095 / 0.4, 0, 1), atol=1e-5)
    assert image.warning == "WindowWidth is 0.4, below the 1 that LINEAR needs: applied as LINEAR_EXACT."


@pytest.mark.parametrize("width", [0, -5])
def test_131_a_width_of_zero_is_no_window(tmp_path, width):
    image = read_image(write_dicom(tmp_path / "x", GREY12, **DX, WindowCenter=10, WindowWidth=width), ReadOptions())
    np.testing.assert_array_equal(image.array[0], GREY12)
    assert image.warning == f"WindowWidth is {width}, which is no window: the values are shown without one."


GEOMETRY = [
    ({"ImageOrientationPatient": "0\\0\\0\\0\\0\\0", "ImagePositionPatient": "0\\0\\0"}, "ImageOrientationPatient"),
    ({"ImageOrientationPatient": "1\\0\\0"}, "ImageOrientationPatient"),
    ({"ImagePositionPatient": "nan\\0\\0"}, "ImagePositionPatient"),
    ({"PixelSpacing": "-0.7\\-0.7"}, "PixelSpacing"),
    ({"PixelSpacing": "0\\0"}, "PixelSpacing"),
    ({"PixelSpacing": "nan\\0.7"}, "PixelSpacing"),
    ({"PixelSpacing": "wide"}, "PixelSpacing"),
]


@pytest.mark.parametrize(("fields", "keyword"), GEOMETRY)
@pytest.mark.parametrize("modality", ["DX", "CR", "MG", "XA", "US", "OT"])
def test_131_a_picture_needs_no_geometry(tmp_path, modality, fields, keyword):
    ds = dataset(GREY12, Modality=modality, BitsStored=12)
    image = read(with_text(tmp_path / "x", ds, **fields))
    np.testing.assert_array_equal(image.array[0], GREY12)
    assert image.affine is None
    assert f"{keyword} is invalid and ignored" in image.notes


@pytest.mark.parametrize(("fields", "keyword"), GEOMETRY)
@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_131_a_slice_needs_its_geometry(tmp_path, modality, fields, keyword):
    ds = dataset(GREY12, **slice_fields((0, 0, 0), Modality=modality))
    with pytest.raises(DataError, match=keyword):
        read(with_text(tmp_path / "x", ds, **fields))


@pytest.mark.parametrize(
    ("kind", "unit"), [("HU", "HU"), (None, "HU"), ("US", "raw"), ("HU_MOD", "raw"), ("OD", "raw")]
)
def test_131_the_unit_follows_the_rescale_type(tmp_path, kind, unit):
    image = read(write_dicom(tmp_path / "x", GREY12, **slice_fields((0, 0, 0), RescaleType=kind)))
    np.testing.assert_array_equal(image.array[0], GREY12.astype(int) - 1024)
    assert image.unit == unit
    assert any("HU_MOD" in note for note in image.notes) == (kind == "HU_MOD")


@pytest.mark.parametrize(("sop_class", "kind", "advice"), [
    ("1.2.840.10008.1.3.10", "a DICOMDIR", "Give the files it lists"),
    ("1.2.840.10008.5.1.4.1.1.104.1", "a PDF document", "Give the images"),
    ("1.2.840.10008.5.1.4.1.1.104.3", "a 3D model", "Give the images"),
    ("1.2.840.10008.5.1.4.1.1.9.1.1", "a waveform", "Give the images"),
    ("1.2.840.10008.5.1.4.1.1.66.4", "a segmentation", "Give the images that it marks"),
    ("1.2.840.10008.5.1.4.1.1.88.33", "a structured report", "Give the images it refers to"),
    ("1.2.840.10008.5.1.4.1.1.11.1", "a presentation state", "Give the images it refers to"),
    ("1.2.840.10008.5.1.4.1.1.481.2", "a dose map", "Give the images the dose was planned on"),
    ("1.2.840.10008.5.1.4.1.1.4.2", "a spectroscopy", "Give the images"),
    ("1.2.840.10008.5.1.4.39.1", "a colour palette", "Give the images that use it"),
])  # fmt: skip
def test_131_an_object_of_another_kind_is_named(tmp_path, sop_class, kind, advice):
    ds = dataset(np.zeros((4, 4), np.uint8), SOPClassUID=sop_class, Modality=None)
    with pytest.raises(DataError, match=rf"expected an image, found {kind}\. {advice}"):
        read(save(ds, tmp_path / "x"))


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_131_a_missing_transfer_syntax_is_a_warning(tmp_path, syntax):
    ds = dataset(GREY12, syntax=syntax, **DX)
    path = save(ds, tmp_path / "x")
    data = path.read_bytes()
    at = data.index(b"\x02\x00\x10\x00")
    path.write_bytes(data[:at] + b"\x02\x00\x99\x00" + data[at + 4 :])
    image = read_image(path, ReadOptions())
    np.testing.assert_array_equal(image.array[0], GREY12)
    assert image.warning.startswith(f"TransferSyntaxUID is missing: read as {syntax.name}")


@pytest.mark.parametrize("keyword", ["RescaleSlope", "PixelSpacing", "WindowWidth", "ImagePositionPatient"])
def test_131_no_message_quotes_a_value(tmp_path, keyword):
    ds = dataset(GREY12, **slice_fields((0, 0, 0), SOPInstanceUID=generate_uid()))
    if keyword == "WindowWidth":
        ds.Modality, ds.WindowCenter = "DX", 5
    with pytest.raises(DataError, match=keyword) as raised:
        read(with_text(tmp_path / "x", ds, **{keyword: PATIENT_NAME}))
    assert "DOE" not in str(raised.value)


def test_131_values_of_the_wrong_length_are_named(tmp_path):
    """Three bytes where a number of two is declared."""
    path = write_dicom(tmp_path / "x", GREY12, **DX)
    data = path.read_bytes()
    element = b"\x28\x00\x01\x01US"
    path.write_bytes(data.replace(element + b"\2\0\x0c\0", element + b"\3\0\x0c\0\0"))
    with pytest.raises(DataError, match=r"BitsStored \(0028,0101\) cannot be read"):
        read(path)
