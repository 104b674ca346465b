"""A series is read from one parse of each header, and its pixels straight into the volume: the same, bit for bit."""

from __future__ import annotations

import os
import pickle
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pydicom
import pytest
from make_images import arrow, save, slice_fields, write_compressed, write_dicom, write_series
from pydicom.uid import (
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    MRImageStorage,
    NuclearMedicineImageStorage,
    PositronEmissionTomographyImageStorage,
)

import medzoo
from medzoo.errors import DataError
from medzoo.io.dicom.direct import fill_alike
from medzoo.io.dicom.read import read_dicom
from medzoo.io.dicom.scanned import read_header
from medzoo.io.dicom.series import read_series
from medzoo.io.folder import scan
from medzoo.io.options import ReadOptions
from medzoo.io.read import read_scanned

SLICE = arrow(12, 16, top=2000)
VOLUME = np.stack([SLICE + 100 * i for i in range(5)]).astype(np.uint16)
MR = {"Modality": "MR", "SOPClassUID": MRImageStorage, "RescaleSlope": None, "RescaleIntercept": None}
PET = {"Modality": "PT", "SOPClassUID": PositronEmissionTomographyImageStorage}


@pytest.fixture
def parses(monkeypatch):
    """Count, by file name, how often a header is parsed, by pydicom or without it."""
    counts = Counter()
    partial, layout = pydicom.filereader.read_partial, read_header.__globals__["read_layout"]

    def counting_partial(file, *args, **kwargs):
        counts[os.path.basename(file.name)] += 1  # noqa: PTH119  it may be a string
        return partial(file, *args, **kwargs)

    def counting_layout(file, *args):
        found = layout(file, *args)
        counts[os.path.basename(file.name)] += found is not None  # noqa: PTH119
        return found

    monkeypatch.setattr("pydicom.filereader.read_partial", counting_partial)
    monkeypatch.setattr("medzoo.io.dicom.scanned.read_layout", counting_layout)
    return counts


@pytest.fixture
def slow(monkeypatch):
    """Return the names of the slices of a series that are decoded one by one."""
    names = []
    real = read_dicom

    def noting(path, *args):
        names.append(path.name)
        return real(path, *args)

    monkeypatch.setattr("medzoo.io.dicom.series.read_dicom", noting)
    return names


@pytest.fixture(scope="module")
def model():
    return medzoo.create("cnn3d_small", **medzoo.describe("cnn3d_small").tiny).eval()


def write_ct(folder):
    """Write five slices that a model of volumes takes."""
    return write_series(folder, np.random.default_rng(0).integers(0, 2000, (5, 40, 40)).astype(np.uint16))


def plain(paths, options=None):
    """Read slices one by one, each with a parse of its own, and stack them."""
    images = [read_dicom(path, options or ReadOptions()) for path in paths]
    images.sort(key=lambda image: image.affine[2, 3])
    return images, np.stack([image.array for image in images], axis=1)


WAYS = {
    "read": lambda model, folder, paths: medzoo.read(folder),
    "read, with a folder below": lambda model, folder, paths: [(folder / "below").mkdir(), medzoo.read(folder)],
    "transform": lambda model, folder, paths: medzoo.transform(model)(folder),
    "predict": lambda model, folder, paths: medzoo.predict(model, folder, allow_untrained=True),
    "predict a tree": lambda model, folder, paths: medzoo.predict(model, folder.parent, allow_untrained=True),
    "predict a list": lambda model, folder, paths: medzoo.predict(model, list(map(str, paths)), allow_untrained=True),
    "explain": lambda model, folder, paths: medzoo.explain(model, folder, allow_untrained=True).cells,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.filterwarnings("ignore:.*:UserWarning")  # a model of random weights, and what noise is not
def test_each_header_is_parsed_once(parses, model, tmp_path, way):
    paths = write_ct(tmp_path / "ct")
    WAYS[way](model, tmp_path / "ct", paths)
    assert parses == {path.name: 1 for path in paths}


@pytest.mark.parametrize("kind", ["compressed", "implicit", "rescale of its own"])
def test_each_header_of_other_series_is_parsed_once(parses, tmp_path, kind):
    for i, pixels in enumerate(VOLUME):
        fields = slice_fields((0.0, 0.0, 2.5 * i), i + 1)
        if kind == "compressed":
            write_compressed(tmp_path / f"{i}", (pixels >> 4).astype(np.uint8), JPEG2000Lossless, **fields)
        elif kind == "implicit":
            write_dicom(tmp_path / f"{i}", pixels, syntax=ImplicitVRLittleEndian, **fields)
        else:
            write_dicom(tmp_path / f"{i}", pixels, **fields | PET | {"RescaleSlope": 1 + i / 8})
    image = medzoo.read(tmp_path)
    assert parses == {f"{i}": 1 for i in range(5)}
    np.testing.assert_array_equal(image.array, plain(sorted(tmp_path.iterdir()))[1])


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_each_header_of_x_rays_is_parsed_once(parses, tmp_path):
    model = medzoo.create("xray_cnn", **medzoo.describe("xray_cnn").tiny).eval()
    size = model.input_spec.size
    paths = [write_dicom(tmp_path / f"{i}.dcm", arrow(*size), SOPInstanceUID=f"1.2.{i}") for i in range(3)]
    medzoo.predict(model, paths, allow_untrained=True)
    assert parses == {path.name: 1 for path in paths}


def test_workers_get_the_headers(parses, tmp_path):
    write_series(tmp_path, VOLUME)
    (item,) = scan(tmp_path)
    expected = medzoo.read(tmp_path)
    parses.clear()
    image = read_scanned(pickle.loads(pickle.dumps(item.headers)), ReadOptions())
    assert not parses
    np.testing.assert_array_equal(image.array, expected.array)
    assert (image.notes, image.age, image.unit) == (expected.notes, expected.age, expected.unit)
    assert image.identity == expected.identity


# Fields, dtype, and whether all slices but the first are read directly.
KINDS = {
    "CT 16 bits": ({}, np.uint16, True),
    "CT 12 bits": ({"BitsStored": 12}, np.uint16, True),
    "CT signed": ({"BitsStored": 16}, np.int16, True),
    "CT 12 signed": ({"BitsStored": 12}, np.int16, True),
    "CT as stored": ({"RescaleSlope": None, "RescaleIntercept": None}, np.int16, True),
    "CT slope 2": ({"RescaleSlope": 2, "BitsStored": 12}, np.uint16, True),
    "CT slope 1 intercept 0": ({"RescaleIntercept": 0, "BitsStored": 12}, np.uint16, True),
    "CT fractions": ({"RescaleSlope": 0.1, "RescaleIntercept": -1000.5}, np.uint16, True),
    "CT negative slope": ({"RescaleSlope": -1, "RescaleIntercept": 0}, np.int16, True),
    "CT 8 bits": ({}, np.uint8, True),
    "CT 8 bits signed": ({}, np.int8, True),
    "CT 32 bits": ({}, np.uint32, True),
    "CT 32 bits signed, fractions": ({"RescaleSlope": 0.5}, np.int32, True),
    "CT infinite": ({"RescaleSlope": 1e38, "BitsStored": 2}, np.uint16, True),
    "CT inverted": ({"PhotometricInterpretation": "MONOCHROME1"}, np.uint16, True),
    "CT implicit": ({"syntax": ImplicitVRLittleEndian, "BitsStored": 12}, np.uint16, True),
    "CT big endian": ({"syntax": ExplicitVRBigEndian}, np.uint16, False),
    "CT high bit 15": ({"BitsStored": 12, "HighBit": 15}, np.uint16, False),
    "MR": (MR, np.uint16, True),
    "MR with a window": (MR | {"WindowCenter": 900, "WindowWidth": 400}, np.uint16, True),
    "MR inverted": (MR | {"PhotometricInterpretation": "MONOCHROME1"}, np.uint16, False),
    "PET": (PET | {"RescaleSlope": 2.5, "RescaleIntercept": 0}, np.int16, True),
    "NM": (MR | {"Modality": "NM", "SOPClassUID": NuclearMedicineImageStorage}, np.uint16, True),
    "other, with a window": ({"Modality": "OT", "WindowCenter": 900, "WindowWidth": 400}, np.uint16, False),
}


def pixels_of(dtype, stored, high=None):
    """Return five slices of 11 x 13 pixels, an odd number, with the lowest and the highest stored value."""
    info = np.iinfo(dtype)
    span = 2**stored
    low = info.min + (2 ** (8 * dtype().itemsize) - span) // 2 if info.min else 0
    volume = (np.random.default_rng(3).integers(0, span, (5, 11, 13)) + low).astype(dtype)
    volume[:, 0, :2] = low, low + span - 1
    return volume << (high + 1 - stored) if high else volume


@pytest.mark.parametrize("kind", KINDS)
def test_direct_reading_equals_slice_by_slice(tmp_path, slow, kind):
    fields, dtype, direct = KINDS[kind]
    volume = pixels_of(dtype, fields.get("BitsStored") or 8 * dtype().itemsize, fields.get("HighBit"))
    paths = write_series(tmp_path, volume, **fields)
    images, expected = plain(paths)
    image = read_series(paths, ReadOptions())
    assert image.array.dtype == expected.dtype
    np.testing.assert_array_equal(image.array, expected)
    assert (image.notes, image.unit) == (images[0].notes, images[0].unit)
    assert image.warning.startswith(images[0].warning)
    assert len(slow) == (1 if direct else 5)
    (item,) = scan(tmp_path)
    again = read_scanned(item.headers, ReadOptions())
    np.testing.assert_array_equal(again.array, expected)
    assert (again.array.dtype, again.notes, again.warning) == (image.array.dtype, image.notes, image.warning)
    np.testing.assert_array_equal(again.affine, image.affine)


def test_the_values_are_those_of_pydicom(tmp_path):
    paths = write_series(tmp_path, VOLUME, RescaleSlope=3, RescaleIntercept=-7)
    expected = np.stack([pydicom.dcmread(path).pixel_array * 3.0 - 7 for path in paths])
    np.testing.assert_array_equal(medzoo.read(tmp_path).array[0], expected)


CHANGES = {
    "another rescale": {"RescaleIntercept": -1000},
    "a rescale of fractions": {"RescaleSlope": 0.5},
    "fewer bits": {"BitsStored": 12},
    "compressed": {"syntax": JPEG2000Lossless},
    "big endian": {"syntax": ExplicitVRBigEndian},
    "implicit": {"syntax": ImplicitVRLittleEndian},
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("which", [0, 2])
def test_one_slice_that_differs(tmp_path, slow, change, which):
    fields = slice_fields((-20.0, -30.0, 100 + 2.5 * which), 5 - which) | CHANGES[change]
    volume = pixels_of(np.uint8 if change == "compressed" else np.uint16, 8)
    paths = write_series(tmp_path, volume)
    if change == "compressed":
        write_compressed(paths[which], volume[which], fields.pop("syntax"), **fields)
    else:
        write_dicom(paths[which], volume[which], **fields)
    images = [read_dicom(path, ReadOptions()) for path in paths]
    image = read_series(paths, ReadOptions())
    for i, one in enumerate(images):
        np.testing.assert_array_equal(image.array[:, i], one.array)
    kinds = {one.array.dtype for one in images}
    assert image.array.dtype == (np.float32 if len(kinds) > 1 else kinds.pop())
    assert set(image.notes) == {note for one in images for note in one.notes}
    assert len(slow) == (2 if which else 5)  # without a usual first, all are read one by one


def test_one_slice_without_a_rescale_is_refused(tmp_path):
    paths = write_series(tmp_path, VOLUME)
    fields = slice_fields((-20.0, -30.0, 105.0), 3, RescaleSlope=None, RescaleIntercept=None)
    write_dicom(paths[2], VOLUME[2], **fields)
    with pytest.raises(DataError, match=rf"{paths[2].name}: expected \(1, 12, 16\) in HU .* found .* raw"):
        read_series(paths, ReadOptions())


@pytest.mark.parametrize(
    ("dtype", "value", "read"), [(np.uint16, 4103, 7), (np.int16, 2050, -2046), (np.int16, -2050, 2046)]
)
def test_values_beyond_the_stored_bits_are_found_in_each_slice(tmp_path, slow, dtype, value, read):
    volume = pixels_of(dtype, 12)
    volume[3, 5, 5] = value
    paths = write_series(tmp_path, volume, BitsStored=12)
    image = read_series(paths, ReadOptions())
    assert slow == [paths[0].name, paths[3].name]
    assert image.array[0, 3, 5, 5] == read - 1024
    expected = read_dicom(paths[3], ReadOptions()).warning
    assert expected.startswith("Values need more than the 12 bits of BitsStored") or dtype == np.int16
    assert f"{paths[3].name}: {expected}" in image.warning if expected else image.warning == ""


def test_a_first_slice_of_zeros_decides_nothing(tmp_path):
    volume = pixels_of(np.uint16, 8, 11)  # as if of 12 bits without a shift
    volume[0] = 0
    paths = write_series(tmp_path / "shifted", volume, BitsStored=12, HighBit=15)
    np.testing.assert_array_equal(read_series(paths, ReadOptions()).array[0], (volume >> 4).astype(np.int16) - 1024)
    paths = write_series(tmp_path / "infinite", volume, RescaleSlope=1e35, RescaleIntercept=0)
    with pytest.raises(DataError, match=f"{paths[1].name}: expected finite values, found .* of 143 NaN or infinite"):
        read_series(paths, ReadOptions())


def test_pixels_of_another_length_are_noted(tmp_path, slow):
    paths = write_series(tmp_path, VOLUME)
    ds = pydicom.dcmread(paths[2])
    ds.PixelData += bytes(10)
    save(ds, paths[2])
    image = read_series(paths, ReadOptions())
    assert slow == [paths[0].name, paths[2].name]
    assert "10 bytes behind the pixels ignored" in image.notes


def rewrite(path, content, when):
    path.write_bytes(content)
    os.utime(path, ns=(when, when))


@pytest.mark.parametrize("how", ["content", "content and size", "another file"])
def test_a_file_that_changes_after_the_scan_is_parsed_again(parses, tmp_path, how):
    paths = write_series(tmp_path / "ct", VOLUME, BitsStored=12)
    (item,) = scan(tmp_path / "ct")
    found = paths[2].stat()
    fields = slice_fields((-20.0, -30.0, 105.0), 3, BitsStored=12, RescaleIntercept=-1000)
    if how == "content and size":
        fields["ImageComments"] = "longer"
    new = write_dicom(tmp_path / "new", VOLUME[2] + 1, **fields)
    if how == "another file":  # of the same size and time
        os.utime(new, ns=(found.st_atime_ns, found.st_mtime_ns))
        new.replace(paths[2])
    else:
        rewrite(paths[2], new.read_bytes(), found.st_mtime_ns + 10**7)
    assert (paths[2].stat().st_size == found.st_size) == (how != "content and size")
    parses.clear()
    image = read_scanned(item.headers, ReadOptions())
    assert parses == {paths[2].name: 1}
    np.testing.assert_array_equal(image.array[0, 2], VOLUME[2].astype(np.int16) + 1 - 1000)
    np.testing.assert_array_equal(image.array[0, 1], VOLUME[1].astype(np.int16) - 1024)


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps no time of change")
def test_a_file_that_is_written_in_place_and_keeps_its_time_is_parsed_again(parses, tmp_path):
    paths = write_series(tmp_path / "ct", VOLUME)
    (item,) = scan(tmp_path / "ct")
    found = paths[2].stat()
    new = write_dicom(tmp_path / "new", VOLUME[2], **slice_fields((-20.0, -30.0, 105.0), 3, RescaleIntercept=-1000))
    while paths[2].stat().st_ctime_ns == found.st_ctime_ns:  # within one tick of the clock
        rewrite(paths[2], new.read_bytes(), found.st_mtime_ns)
    after = paths[2].stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (found.st_size, found.st_mtime_ns, found.st_ino)
    parses.clear()
    np.testing.assert_array_equal(read_scanned(item.headers, ReadOptions()).array[0, 2], VOLUME[2].astype(int) - 1000)
    assert parses == {paths[2].name: 1}


def test_files_that_are_lost_or_of_another_patient_after_the_scan(tmp_path):
    paths = write_series(tmp_path, VOLUME)
    (item,) = scan(tmp_path)
    write_dicom(paths[1], VOLUME[1], **slice_fields((-20.0, -30.0, 102.5), 4, PatientID="another"))
    with pytest.raises(DataError, match="expected slices of one patient, found patient"):
        read_scanned(item.headers, ReadOptions())
    paths[1].unlink()
    with pytest.raises(DataError, match=f"{paths[1].name}: expected a DICOM header"):
        read_scanned(item.headers, ReadOptions())


def test_of_two_slices_that_are_cut_short_the_first_is_named(tmp_path):
    paths = write_series(tmp_path, VOLUME)
    for i in (3, 1):
        paths[i].write_bytes(paths[i].read_bytes()[:-20])
    for order in (paths, paths[::-1]):
        with pytest.raises(DataError, match=f"{paths[1].name}: expected 384 bytes of pixels, found 364. It is damaged"):
            read_series(order, ReadOptions())


def test_bytes_behind_the_pixels_leave_a_slice_to_pydicom(tmp_path, slow):
    paths = write_series(tmp_path, VOLUME)
    ds = pydicom.dcmread(paths[2])
    ds.DataSetTrailingPadding = bytes(100)
    save(ds, paths[2])
    np.testing.assert_array_equal(read_series(paths, ReadOptions()).array, plain(paths)[1])
    assert slow == [paths[0].name, paths[2].name]


def test_threads_read_at_once(tmp_path):
    write_series(tmp_path, VOLUME)
    expected = medzoo.read(tmp_path).array
    with ThreadPoolExecutor(4) as pool:
        for image in pool.map(medzoo.read, [tmp_path] * 12):
            np.testing.assert_array_equal(image.array, expected)


def test_stacks_and_frames_use_the_headers(parses, tmp_path):
    for echo, time in enumerate((30.0, 90.0)):
        for i, pixels in enumerate(VOLUME):
            fields = slice_fields((0.0, 0.0, 2.5 * i), 5 * echo + i + 1, **MR, EchoTime=time, EchoNumbers=echo + 1)
            write_dicom(tmp_path / f"{echo}{i}", pixels + 50 * echo, **fields)
    np.testing.assert_array_equal(medzoo.read(tmp_path, stack=1).array[0], VOLUME + 50)
    assert set(parses.values()) == {1}
    parses.clear()
    assert medzoo.read(tmp_path, channel_axis=3).array.shape == (2, 5, 12, 16)
    assert set(parses.values()) == {1}
    first, _ = scan(tmp_path)
    np.testing.assert_array_equal(read_scanned(first.headers, ReadOptions(frame=3)).array[0], VOLUME[3])


def test_a_file_that_changes_while_a_series_is_read(tmp_path):
    """Behind the check of its header: the records are those of the files before."""
    paths = write_series(tmp_path, VOLUME)
    records = [read_header(path, 2**20).record for path in paths]
    first = read_dicom(paths[0], ReadOptions(), records[0])
    rewrite(paths[2], paths[2].read_bytes(), paths[2].stat().st_mtime_ns + 10**7)
    paths[3].unlink()
    volume = np.empty((5, 12, 16), first.array.dtype)
    assert fill_alike(volume, list(zip(paths, records, strict=True)), first) == [True, True, False, False, True]
    assert records[2].load(paths[2]) is None
    assert records[1].load(paths[1]) is not None
    with pytest.raises(DataError, match=f"{paths[3].name}: expected a DICOM file"):
        read_dicom(paths[3], ReadOptions(), records[3])
