"""Pixels whose header contradicts them, or that are not the image a radiologist sees."""

from __future__ import annotations

import io

import numpy as np
import pytest
from make_images import arrow, dataset, save, write_compressed, write_dicom
from PIL import Image as Pillow
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DigitalXRayImageStorageForProcessing,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
)
from test_stacks import enhanced, item

from medzoo.io.codestream import parse
from medzoo.io.read import read

RGB = np.stack([arrow(16, 24), 255 - arrow(16, 24), arrow(16, 24) // 2], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("declared", ["RGB", "YBR_RCT", "YBR_FULL"])
def test_jpeg_2000_with_its_colour_transform_is_rgb_whatever_the_label(tmp_path, declared):
    path = write_compressed(tmp_path / "x", RGB, JPEG2000Lossless, PhotometricInterpretation=declared)
    with io.BytesIO() as stream:
        Pillow.fromarray(RGB).save(stream, "JPEG2000", no_jp2=True, irreversible=False, mct=1)
        encoded = stream.getvalue()
    assert parse(encoded).colour == "RGB"
    ds = dcmread(path)
    ds.PixelData = encapsulate([encoded])
    save(ds, path)
    if declared == "YBR_FULL":
        with pytest.warns(UserWarning, match="is YBR_FULL, but the JPEG is RGB: read as that"):
            image = read(path)
    else:
        image = read(path)
    np.testing.assert_array_equal(image.array, np.moveaxis(RGB, -1, 0))


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("vr", ["OB", "OW"])
def test_a_palette_of_8_bits_in_either_byte_order(tmp_path, syntax, vr):
    indices = np.arange(200, dtype=np.uint8).reshape(10, 20)
    tables = [(np.arange(200) * k % 256).astype(np.uint8) for k in (1, 3, 7)]
    swapped = syntax == ExplicitVRBigEndian and vr == "OW"
    ds = dataset(indices, Modality="OT", PhotometricInterpretation="PALETTE COLOR", syntax=syntax)
    for colour, table in zip(("Red", "Green", "Blue"), tables, strict=True):
        keyword = f"{colour}PaletteColorLookupTable"
        setattr(ds, f"{keyword}Descriptor", [200, 0, 8])
        ds[f"{keyword}Descriptor"].VR = "US"
        setattr(ds, f"{keyword}Data", (table.reshape(-1, 2)[:, ::-1] if swapped else table).tobytes())
        ds[f"{keyword}Data"].VR = vr
    image = read(save(ds, tmp_path / "x"))
    np.testing.assert_array_equal(image.array, [table[indices] for table in tables])


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"PresentationIntentType": "FOR PROCESSING"}, "FOR PROCESSING: values of the detector"),
        ({"SOPClassUID": DigitalXRayImageStorageForProcessing}, "FOR PROCESSING: values of the detector"),
        ({"PresentationLUTShape": "INVERSE"}, "is MONOCHROME2, but PresentationLUTShape is INVERSE"),
        (
            {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "IDENTITY"},
            "is MONOCHROME1, but PresentationLUTShape is IDENTITY",
        ),
        ({"PresentationIntentType": "FOR PRESENTATION", "PresentationLUTShape": "IDENTITY"}, ""),
        ({"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"}, ""),
        ({"Modality": "US", "PresentationLUTShape": "INVERSE"}, ""),
    ],
)
def test_a_radiograph_that_may_not_be_what_a_radiologist_sees(tmp_path, fields, found):
    path = write_dicom(tmp_path / "x", arrow().astype(np.uint8), **fields)
    if not found:
        assert read(path).warning == ""
        return
    with pytest.warns(UserWarning, match=found):
        read(path)


def test_frames_of_a_ct_with_scales_of_their_own_are_a_warning(tmp_path):
    path = enhanced(tmp_path / "x", [{"z": 2 * i, "value": 10} for i in range(3)], Modality="CT")
    ds = dcmread(path)
    for i, frame in enumerate(ds.PerFrameFunctionalGroupsSequence):
        values = item(RescaleSlope=1, RescaleIntercept=-1024 * (i < 2), RescaleType="HU")
        frame.PixelValueTransformationSequence = [values]
    with pytest.warns(UserWarning, match="2 different pairs of RescaleSlope and RescaleIntercept"):
        read(save(ds, path))
