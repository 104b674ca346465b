"""The header of a DICOM file as a scan reads it: as pydicom does, without the patient, and what is kept for reading."""

from __future__ import annotations

import gc
import io
import pickle
import struct
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from make_images import SERIES, STUDY, arrow, dataset, save, slice_fields, write_compressed, write_dicom, write_series
from pydicom.uid import (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    MRImageStorage,
)

from medzoo.errors import DataError
from medzoo.io.dicom.layout import dataset_of, read_layout
from medzoo.io.dicom.pixels import load
from medzoo.io.dicom.read import read_dicom
from medzoo.io.dicom.record import EXCLUDING_KEYWORDS, READ_KEYWORDS
from medzoo.io.dicom.scanned import read_header
from medzoo.io.folder import scan
from medzoo.io.hashing import hash_text
from medzoo.io.options import ReadOptions
from medzoo.io.read import read_scanned

SLICE = arrow(12, 16, top=2000)
VOLUME = np.stack([SLICE + 100 * i for i in range(5)]).astype(np.uint16)
MR = {"Modality": "MR", "SOPClassUID": MRImageStorage, "RescaleSlope": None, "RescaleIntercept": None}


def test_a_record_holds_every_element_that_reading_looks_at(tmp_path, monkeypatch):
    asked = set()
    real = {name: getattr(pydicom.Dataset, name) for name in ("get", "__contains__", "__getitem__", "get_item")}

    def noting(name):
        def method(self, key, *args):
            if isinstance(self, pydicom.FileDataset):
                asked.add(pydicom.datadict.keyword_for_tag(key) if not isinstance(key, str) else key)
            return real[name](self, key, *args)

        return method

    paths = [
        *write_series(tmp_path / "ct", VOLUME[:1], PatientAge="044Y"),
        *write_series(tmp_path / "mr", VOLUME[:1], **MR),
    ]
    paths += [write_dicom(tmp_path / "dx", SLICE, WindowCenter=900, WindowWidth=400, ViewPosition="PA")]
    paths += [write_dicom(tmp_path / "dx1", SLICE, PhotometricInterpretation="MONOCHROME1", StudyDate="20200101")]
    paths += [write_dicom(tmp_path / "bits", SLICE, BitsStored=12, HighBit=11)]
    paths += [write_compressed(tmp_path / "j2k", SLICE.astype(np.uint8), JPEG2000Lossless)]
    for name in real:
        monkeypatch.setattr(pydicom.Dataset, name, noting(name))
    for path in paths:
        read_dicom(path, ReadOptions())
    asked.discard("")
    kept = {*READ_KEYWORDS, *EXCLUDING_KEYWORDS, "PixelData", "FloatPixelData", "DoubleFloatPixelData"}
    assert {"Rows", "RescaleSlope", "PatientAge", "WindowCenter", "PresentationLUTShape"} < asked
    assert asked <= kept, asked - kept


REFUSED = {
    "a modality LUT": lambda ds: setattr(ds, "ModalityLUTSequence", [lut()]),
    "a VOI LUT": lambda ds: setattr(ds, "VOILUTSequence", [lut()]),
    "an overlay": lambda ds: ds.add_new(0x60000102, "US", 15),
    "colour": lambda ds: setattr(ds, "SamplesPerPixel", 3),
    "frames": lambda ds: setattr(ds, "NumberOfFrames", 2),
    "a region without a part": lambda ds: setattr(ds, "AnatomicRegionSequence", [region()]),
    "a long text": lambda ds: setattr(ds, "BodyPartExamined", "CHEST" * 1000),
}


def lut():
    ds = pydicom.Dataset()
    ds.LUTDescriptor, ds.LUTData = [256, 0, 8], bytes(range(256))
    return ds


def region():
    ds = pydicom.Dataset()
    ds.CodeMeaning = "Chest"
    return ds


@pytest.mark.parametrize("what", REFUSED)
def test_a_header_with_more_than_is_kept_has_no_record(tmp_path, what):
    ds = dataset(SLICE, **slice_fields((0.0, 0.0, 0.0)))
    assert read_header(save(ds, tmp_path / "usual"), 2**20).record is not None
    with pydicom.config.disable_value_validation():
        REFUSED[what](ds)
        assert read_header(save(ds, tmp_path / "x"), 2**20).record is None
    ds = dataset(SLICE, **slice_fields((0.0, 0.0, 0.0), BodyPartExamined="CHEST"))
    ds.AnatomicRegionSequence = [region()]
    assert read_header(save(ds, tmp_path / "both"), 2**20).record is not None


@pytest.mark.parametrize("space", ["RGB", "YBR_FULL"])
def test_colour_without_its_number_of_samples_is_read_after_a_scan(tmp_path, space):
    pixels = np.arange(8 * 6 * 3, dtype=np.uint8).reshape(8, 6, 3)
    path = write_dicom(tmp_path / "colour", pixels, PhotometricInterpretation=space, SamplesPerPixel=None)
    (item,) = scan(tmp_path)
    assert item.headers[0].record is None
    np.testing.assert_array_equal(
        read_scanned(item.headers, ReadOptions()).array, read_dicom(path, ReadOptions()).array
    )


@pytest.mark.parametrize(("tag", "vr"), [(b"\x28\0\x02\0US", b"LO"), (b"\x10\0\x10\x10AS", b"FD")])
def test_an_element_that_cannot_be_read_is_reported_by_reading(tmp_path, tag, vr):
    """SamplesPerPixel and PatientAge: a scan lists the slice with its series, as it does not look at them."""
    paths = write_series(tmp_path, VOLUME, PatientAge="044Y")
    data = paths[2].read_bytes()
    assert data.count(tag) == 1
    paths[2].write_bytes(data.replace(tag, tag[:4] + vr))
    (item,) = scan(tmp_path)
    assert len(item.paths) == 5
    with pytest.raises(DataError, match=f"{paths[2].name}: expected"):
        read_scanned(item.headers, ReadOptions())


def test_a_record_has_no_patient_id(tmp_path):
    path = write_dicom(tmp_path / "x", SLICE, **slice_fields((0.0, 0.0, 0.0), PatientAge="044Y", StudyDate="19860201"))
    (item,) = scan(path)
    held = pickle.dumps(item.headers)
    for value in (b"MRN-0042", b"DOE^JANE", b"19420101", b"19860201", b"044Y"):
        assert value in path.read_bytes()
        assert value not in held
    image, expected = read_scanned(item.headers, ReadOptions()), read_dicom(path, ReadOptions())
    assert (image.identity, image.age, image.body_part) == (expected.identity, expected.age, expected.body_part)
    assert image.age == 44
    assert item.headers[0].record is not None


def test_a_scan_compares_the_bytes_of_an_id(tmp_path):
    """As before there were records: whose text takes the character set, and the first of several ids."""
    fields = slice_fields((0.0, 0.0, 0.0), SpecificCharacterSet="ISO_IR 192", PatientID=["MÜ", "7"])
    path = write_dicom(tmp_path / "x", SLICE, **fields)
    (item,) = scan(path)
    assert item.headers[0].of("patient") == hash_text("MÜ\\7".encode().decode("latin-1"))
    assert item.headers[0].record.patient == hash_text("MÜ") == read_dicom(path, ReadOptions()).identity["patient"]


def test_sequences_are_stepped_over(tmp_path):
    ds = dataset(SLICE, **slice_fields((0.0, 0.0, 0.0)))
    inner, outer = pydicom.Dataset(), pydicom.Dataset()
    inner.Modality, inner.Rows, inner.PixelSpacing = "US", 7, [1, 1]
    inner.is_undefined_length_sequence_item = True
    outer.ReferencedImageSequence, outer.Rows = [inner, inner], 9
    outer["ReferencedImageSequence"].is_undefined_length = True
    ds.SourceImageSequence = [outer, inner]
    ds["SourceImageSequence"].is_undefined_length = True
    for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
        ds.file_meta.TransferSyntaxUID = syntax
        path = tmp_path / syntax
        ds.save_as(path, enforce_file_format=True)
        scanned = read_header(path, 2**20)
        assert scanned.record is not None
        expected = pydicom.dcmread(path)
        for keyword in ("Rows", "Modality", "PixelSpacing", "SeriesInstanceUID", "StudyInstanceUID", "RescaleSlope"):
            assert scanned.ds.get(keyword) == expected.get(keyword)
        assert (scanned.ds.SeriesInstanceUID, scanned.ds.StudyInstanceUID) == (SERIES, STUDY)
        restored = scanned.record.load(path)
        assert restored.PixelData == expected.PixelData
        assert restored["PixelData"].VR == expected["PixelData"].VR
        assert restored.original_encoding == expected.original_encoding


def test_a_position_of_zero_has_no_sign(tmp_path):
    paths = write_series(tmp_path, VOLUME, ImagePositionPatient=[0.0, 0.0, 0.0])
    (item,) = scan(paths[0])
    assert not np.signbit(item.headers[0].plane.origin).any()


def test_an_object_without_a_class_is_known_by_its_file_meta_information(tmp_path):
    ds = dataset(SLICE, **slice_fields((0.0, 0.0, 0.0), SOPClassUID=None, Modality=None))
    ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.88.11"
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    (item,) = scan(save(ds, tmp_path / "x"))
    assert (item.kind, item.reason) == ("skip", "a structured report")


def encoded(*elements):
    """Return a file of elements (group, number, VR, value), of undefined length where there is none."""
    ds = dataset(SLICE)
    with io.BytesIO() as file:
        ds.save_as(file, enforce_file_format=True)
        start = file.getvalue()
    data = start[: start.index(b"\x08\x00\x16\x00UI")]
    for group, number, vr, value in elements:
        data += struct.pack("<HH2s", group, number, vr)
        data += struct.pack("<HL", 0, 0xFFFFFFFF) if vr in (b"UN", b"SQ") else struct.pack("<H", len(value))
        data += value
    return data + struct.pack("<HH2sHL", 0x7FE0, 0x10, b"OW", 0, 2) + bytes(2)


DELIMITER = struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
ROWS, MODALITY = (0x28, 0x10, b"US", b"\1\0"), (0x08, 0x60, b"CS", b"CT")
ITEM = struct.pack("<HHLHH2sHHHL", 0xFFFE, 0xE000, 0xFFFFFFFF, 0x08, 0x60, b"CS", 2, 0x5858, 0xFFFE, 0)
UNUSUAL = {
    "a repeated element": ([MODALITY, (0x08, 0x60, b"CS", b"MR"), ROWS], True),
    "a wrong order": ([ROWS, MODALITY], True),
    "an unknown VR": ([MODALITY, (0x09, 0x10, b"ZZ", b"XX"), ROWS], True),
    "UN of undefined length": ([MODALITY, (0x09, 0x10, b"UN", DELIMITER), ROWS], True),
    "an empty sequence": ([MODALITY, (0x08, 0x1140, b"SQ", DELIMITER), ROWS], False),
    "a wanted sequence": ([MODALITY, ROWS, (0x5200, 0x9230, b"SQ", DELIMITER)], True),
    "a sequence that does not end": ([MODALITY, (0x08, 0x1140, b"SQ", b""), ROWS], True),
}


@pytest.mark.parametrize("what", UNUSUAL)
def test_what_is_not_laid_out_as_usual_is_left_to_pydicom(what):
    elements, left = UNUSUAL[what]
    layout = read_layout(io.BytesIO(encoded(*elements)), {0x00080060, 0x00280010, 0x52009230}, set())
    assert (layout is None) == left
    if layout is not None:
        assert layout.elements == {0x00080060: (0x00080060, "CS", b"CT"), 0x00280010: (0x00280010, "US", b"\1\0")}


def test_damaged_headers_are_read_as_pydicom_reads_them(tmp_path):
    ds = dataset(SLICE, **slice_fields((0.0, 0.0, 0.0), PatientAge="044Y", SpecificCharacterSet="ISO_IR 100"))
    ds.ReferencedImageSequence = [region(), region()]
    ds["ReferencedImageSequence"].is_undefined_length = True
    original, rng = save(ds, tmp_path / "x").read_bytes(), np.random.default_rng(7)
    tags = {int(element.tag) for element in ds if element.VR != "SQ" and element.tag != 0x7FE00010}
    usual = 0
    for _ in range(400):
        data = bytearray(original)
        for at in rng.integers(300, len(data) - SLICE.size * 2, rng.integers(1, 4)):
            data[at] = rng.integers(256)
        layout = read_layout(io.BytesIO(data), tags, set())
        if layout is None:
            continue
        with warnings.catch_warnings(action="ignore"):
            try:
                found = dataset_of(layout.syntax, layout.elements.values())
            except (LookupError, ValueError):  # a character set, which pydicom refuses too
                continue
            expected = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True, specific_tags=sorted(tags))
        assert list(found.keys()) == list(expected.keys())
        for tag in set(expected.keys()) - {0x00080005}:
            assert found.get_item(tag)[:4] == expected.get_item(tag)[:4]
        assert found.original_character_set == expected.original_character_set
        usual += 1
    assert usual > 100


def test_headers_longer_than_the_first_bytes(tmp_path):
    ds = dataset(SLICE, **slice_fields((0.0, 0.0, 0.0)))
    for size in (2**13, 2**14 - 700, 2**15, 2**18, 2**21):  # the last is left to pydicom
        ds.add_new(0x00191010, "OB", bytes(size))
        path = save(ds, tmp_path / f"{size}")
        scanned = read_header(path, 2**20)
        assert scanned.complete
        assert (scanned.record is None) == (size > 2**20)
        assert scanned.ds.Rows == 12


def test_a_scan_holds_little_of_each_file(tmp_path):
    volume = np.zeros((100, 4, 4), np.uint16) + np.arange(100, dtype=np.uint16)[:, None, None]
    write_series(tmp_path, volume, PatientAge="044Y", BodyPartExamined="CHEST", WindowCenter=40, WindowWidth=400)
    scan(tmp_path)  # imports, and tables that are made once
    gc.collect()
    tracemalloc.start()
    items = scan(tmp_path)
    gc.collect()
    held, most = (size / 100 for size in tracemalloc.get_traced_memory())
    tracemalloc.stop()
    assert len(items[0].headers) == 100
    assert (held < 1800, most < 4000) == (True, True), (held, most)


def test_headers_are_read_as_pydicom_reads_them():
    """The files of pydicom's own tests, as far as they are laid out as usual."""
    usual = 0
    for path in sorted(Path(pydicom.__file__).parent.glob("data/test_files/*.dcm")):
        try:
            scanned = read_header(path, 2**26)
        except DataError:
            continue
        if scanned.record is None:
            continue
        expected, restored = load(path, max_voxels=2**26), scanned.record.load(path)
        if restored is None:  # bytes behind compressed pixels
            continue
        usual += 1
        assert restored.PixelData == expected.PixelData, path
        for element in restored:
            assert element == expected[element.tag], path
    assert usual >= 10
