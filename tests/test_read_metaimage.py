"""Reading MetaImage as loosely as MetaIO does, compared with SimpleITK."""

from __future__ import annotations

import gzip
import itertools
import zlib

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from make_images import write_metaimage

from medzoo.errors import DataError
from medzoo.io.read import read

VOLUME = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6) - 60


@pytest.mark.parametrize("name", ["a.mhd", "a.mha"])
@pytest.mark.parametrize("compressed", [False, True])
def test_88_metaimage_keeps_the_position_of_every_voxel(tmp_path, name, compressed):
    direction = (0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
    path = write_metaimage(tmp_path / name, VOLUME, compressed, direction=direction)
    stored = sitk.ReadImage(str(path))
    image = read(path)
    assert image.orientation == "RAS"
    assert image.unit == "raw"
    for index in itertools.product(range(6), range(5), range(4)):
        world = np.array(stored.TransformIndexToPhysicalPoint(index)) * [-1, -1, 1]
        there = np.round(np.linalg.solve(image.affine, [*world, 1])[:3]).astype(int)
        assert image.array[(0, *there)] == stored[index]


def test_88_a_flat_metaimage_is_height_by_width(tmp_path):
    image = read(write_metaimage(tmp_path / "a.mha", VOLUME[0]))
    np.testing.assert_array_equal(image.array, VOLUME[:1])
    assert image.spacing == (0.8, 0.7)


def test_88_a_missing_spacing_stays_unknown(tmp_path):
    path = write_metaimage(tmp_path / "a.mhd", VOLUME)
    lines = [line for line in path.read_text().splitlines(keepends=True) if not line.startswith("ElementSpacing")]
    path.write_text("".join(lines))
    image = read(path)
    assert (image.spacing, image.affine) == (None, None)
    assert image.notes == ("the file gives no spacing: axes left as stored",)


def test_88_big_endian_voxels(tmp_path):
    path = write_metaimage(tmp_path / "a.mhd", VOLUME)
    path.write_text(path.read_text().replace("MSB = False", "MSB = True"))
    (tmp_path / "a.raw").write_bytes(VOLUME.astype(">i2").tobytes())
    image = read(path)
    assert image.array.dtype.isnative
    assert set(image.array.ravel()) == set(VOLUME.ravel())


@pytest.mark.parametrize("compressed", [False, True])
def test_88_voxels_missing_or_cut_are_refused(tmp_path, compressed, capfd):
    path = write_metaimage(tmp_path / "a.mhd", VOLUME, compressed)
    voxels = next(p for p in tmp_path.iterdir() if p != path)
    data = voxels.read_bytes()
    voxels.write_bytes(data[:-1])
    with pytest.raises(DataError, match=r"a\.mhd: expected 240 bytes .*cut short"):
        read(path)
    voxels.unlink()
    with pytest.raises(DataError, match=r"expected its voxels in a\.z?raw, found no such file"):
        read(path)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("compressed", [False, True])
def test_88_a_cut_mha_is_refused(tmp_path, compressed):
    path = write_metaimage(tmp_path / "a.mha", VOLUME, compressed)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DataError, match="cut short"):
        read(path)


@pytest.mark.parametrize("where", ["absolute", "parent", "windows", "link", "list", "pattern"])
def test_88_voxels_outside_the_folder_are_refused(tmp_path, where):
    home = tmp_path / "home"
    home.mkdir()
    path = write_metaimage(home / "a.mhd", VOLUME)
    outside = (home / "a.raw").rename(tmp_path / "secret.raw")
    if where == "link":
        (home / "a.raw").symlink_to(outside)
    name = {
        "absolute": outside, "parent": "../secret.raw", "windows": "..\\secret.raw",
        "list": "LIST\n" + "../secret.raw\n" * 4, "pattern": "../secret%d.raw 1 4 1",
    }.get(where)  # fmt: skip
    if name:
        path.write_text(path.read_text().replace("a.raw", str(name)))
    with pytest.raises(DataError, match=r"found a (path|link) that leaves it"):
        read(path)


def test_88_a_subfolder_and_a_store_of_links_are_accepted(tmp_path):
    path = write_metaimage(tmp_path / "a.mhd", VOLUME)
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.raw").rename(tmp_path / "sub" / "a.raw")
    path.write_text(path.read_text().replace("a.raw", "sub/a.raw"))
    assert read(path).array.size == 120
    write_metaimage(tmp_path / "b.mhd", VOLUME)
    view = tmp_path / "view"
    view.mkdir()
    for name in ("b.mhd", "b.raw"):
        (view / name).symlink_to(tmp_path / name)
    assert read(view / "b.mhd").array.size == 120


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("DimSize = 6 5 4", "DimSize = 60000 60000 4", "expected at most"),
        ("DimSize = 6 5 4", "DimSize = 6 5", "has 2 values of DimSize, where 3 are expected"),
        ("DimSize = 6 5 4", "DimSize = 6 5 -4", "at least one pixel"),
        ("DimSize = 6 5 4", "DimSize = 6 5 x", "has a DimSize that is not a number"),
        ("DimSize = 6 5 4", "DimSize = 6 5 3.5", "has a DimSize that is not an integer"),
        ("DimSize = 6 5 4", "", "lacks DimSize"),
        ("NDims = 3", "", "lacks NDims"),
        ("NDims = 3", "NDims = 5", "declares 5 axes, where 2, 3 or 4 are expected"),
        ("ElementDataFile", "File", "with ElementDataFile last, found none up to its end"),
        ("MET_SHORT", "MET_STRING", "has an ElementType of MET_STRING, which is not read"),
        ("MET_SHORT", "MET_INT", "expected 480 bytes"),
        ("2.5", "nan", "ElementSpacing that is not finite"),
        (" 2.5", " 0", "has an ElementSpacing of 0"),
        (" 2.5", "", "has 2 values of ElementSpacing, where 3 are expected"),
        (" 2.5", " 2,5", "has a ElementSpacing that is not a number"),
        ("1 0 0 0 1 0 0 0 1", "1 0 0 1 0 0 0 0 1", "found a singular TransformMatrix"),
        ("NDims = 3", "NDims = 3\nElementNumberOfChannels = 0", "declares 0 channels"),
        ("BinaryData = True", "BinaryData = False", "expected 120 voxels as text in a.raw, found"),
        ("a.raw", "LIST", "lists 0 files of voxels, where 4 are expected"),
        ("a.raw", "s%d.raw 1 2 1", "has a pattern for 2 files of voxels, where 4 are expected"),
        ("a.raw", "s%d.raw 1 2", "has a pattern of file names that is not"),
        ("NDims = 3", "NDims = 3\nHeaderSize = 7", "expected 240 bytes of voxels in a.raw, found 233"),
    ],
)
def test_88_an_invalid_header_is_refused(tmp_path, old, new, found, capfd):
    path = write_metaimage(tmp_path / "a.mhd", VOLUME)
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(DataError, match=found):
        read(path)
    assert capfd.readouterr().err == ""


def as_itk(path):
    """Return the values ``x y z`` and the affine that SimpleITK reads, in the closest orientation to RAS."""
    stored = sitk.ReadImage(str(path), imageIO="MetaImageIO")
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(stored.GetDirection(), (3, 3)) * stored.GetSpacing()
    affine[:3, 3] = stored.GetOrigin()
    values = sitk.GetArrayFromImage(stored)
    image = nibabel.Nifti1Image(values.swapaxes(0, 2).astype(np.float64), np.diag([-1, -1, 1, 1]) @ affine)
    return nibabel.as_closest_canonical(image), values.dtype


HEADER = {
    "ObjectType": "Image", "NDims": "3", "BinaryData": "True", "BinaryDataByteOrderMSB": "False",
    "CompressedData": "False", "TransformMatrix": "0 1 0 0 0 1 1 0 0", "Offset": "-10 20.5 3e1",
    "CenterOfRotation": "0 0 0", "AnatomicalOrientation": "LPS", "ElementSpacing": "0.5 0.75 2", "DimSize": "4 3 2",
    "ElementType": "MET_SHORT", "ElementDataFile": "a.raw",
}  # fmt: skip


def write_header(path, voxels: bytes, changes=None, form="{} = {}", encoding="utf-8", raw="a.raw"):
    """Write a header with changed fields, ``None`` for none, and its voxels beside it."""
    fields = HEADER | (changes or {})
    last = fields.pop("ElementDataFile")
    lines = [form.format(key, value) if value != "" else key for key, value in fields.items() if value is not None]
    path.write_bytes(("\n".join([*lines, form.format("ElementDataFile", last)]) + "\n").encode(encoding))
    (path.parent / raw).write_bytes(voxels)
    return path


SHORTS = np.arange(-12, 12, dtype="<i2").tobytes()
GEOMETRY = [
    {"ElementSpacing": "0.5 -0.75 2"},
    {"ElementSpacing": None, "ElementSize": "1 2 3"},
    {"ElementSize": "1 2 3"},
    {"ElementSpacing": "+5e-1 .75 2. 9"},
    {"Offset": None},
    {"Offset": None, "Position": "1 2 3"},
    {"Offset": None, "Origin": "1 2 3"},
    {"Origin": "1 2 3"},
    {"Position": "1 2 3"},
    {"Position": "1 2 3", "Origin": "4 5 6"},
    {"TransformMatrix": None},
    {"TransformMatrix": None, "Rotation": "0 1 0 1 0 0 0 0 1"},
    {"TransformMatrix": None, "Orientation": "0 1 0 1 0 0 0 0 1"},
    {"TransformMatrix": None, "Orientation": "0 1 0 1 0 0 0 0 1", "Rotation": "1 0 0 0 0 1 0 1 0"},
    {"Rotation": "0 1 0 1 0 0 0 0 1"},
    {"TransformMatrix": "0.8 0.6 0 -0.6 0.8 0 0 0 -1"},
    {"CenterOfRotation": "5 6 7"},
    {"DimSize": "4 3 2 7"},
    {"DimSize": "4.0 3.0 2.0"},
    {"NDims": "3.0"},
    {"ObjectType": None},
    {"ObjectType": "Tube"},
    {"BinaryData": None},
    {"CompressedData": None},
    {"ElementMin": "0", "ElementMax": "7", "ElementNBits": "16", "Modality": "MET_MOD_CT", "ID": "3"},
    {"Comment": "NDims = 7", "Name": "Müller 日本", "Foo": "bar = baz: 1", "X.y-z": "2"},
    {"# a comment": "", "": "", "   ": "", "// NDims: 9": ""},
]


@pytest.mark.parametrize("changes", GEOMETRY, ids=str)
def test_130_a_header_has_the_geometry_that_itk_reads(tmp_path, changes):
    path = write_header(tmp_path / "a.mhd", SHORTS, changes)
    image, (want, dtype) = read(path), as_itk(path)
    assert image.array.dtype == dtype
    np.testing.assert_array_equal(image.array[0], want.get_fdata())
    np.testing.assert_allclose(image.affine, want.affine, atol=1e-12)
    assert image.warning == ""


@pytest.mark.parametrize("form", ["{}={}", "{}:{}", "{} : {}", "{}\t=\t{}", "  {}  =  {}  ", "{} = {}\r", "{} == {}"])
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_130_a_header_is_written_in_many_ways(tmp_path, form, encoding):
    path = write_header(tmp_path / "a.mhd", SHORTS, {"Comment": "Müller"}, form, encoding)
    image, (want, _) = read(path), as_itk(path)
    np.testing.assert_array_equal(image.array[0], want.get_fdata())
    np.testing.assert_allclose(image.affine, want.affine, atol=1e-12)


@pytest.mark.parametrize(
    "name", ["my scan.raw", "Müller 日本.raw", "a=b.raw", "scan 12:30.raw", "50% dose.raw", "x.RAW"]
)
def test_130_names_with_spaces_and_letters_of_any_script(tmp_path, name):
    path = write_header(tmp_path / f"{name}.mhd", SHORTS, {"ElementDataFile": name}, raw=name)
    np.testing.assert_array_equal(np.sort(read(path).array.ravel()), np.arange(-12, 12))


def test_130_a_name_in_latin_1_and_a_folder_of_windows(tmp_path):
    path = write_header(
        tmp_path / "a.mhd", SHORTS, {"ElementDataFile": "Müller.raw"}, encoding="latin-1", raw="Müller.raw"
    )
    assert read(path).array.size == 24
    (tmp_path / "sub").mkdir()
    path = write_header(tmp_path / "a.mhd", SHORTS, {"ElementDataFile": "sub\\a.raw"}, raw="sub/a.raw")
    assert read(path).array.size == 24


def test_130_of_a_repeated_key_the_last_counts(tmp_path):
    path = write_header(tmp_path / "a.mhd", SHORTS)
    path.write_text(path.read_text().replace("NDims = 3", "NDims = 2\nNDims = 3\nElementSpacing = 9 9 9"))
    image, (want, _) = read(path), as_itk(path)
    np.testing.assert_allclose(image.affine, want.affine, atol=1e-12)


def test_130_the_order_of_keys_is_free(tmp_path):
    path = write_header(tmp_path / "a.mhd", SHORTS)
    *lines, last = path.read_text().splitlines()
    want = read(path)
    path.write_text("\n".join([*lines[::-1], last]))
    np.testing.assert_array_equal(read(path).array, want.array)


TYPES = ["CHAR", "UCHAR", "SHORT", "USHORT", "INT", "UINT", "LONG", "ULONG", "LONG_LONG", "ULONG_LONG", "FLOAT",
         "DOUBLE", "SHORT_ARRAY", "UCHAR_ARRAY", "FLOAT_ARRAY"]  # fmt: skip


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("order", [{}, {"BinaryDataByteOrderMSB": "True"}, {"BinaryDataByteOrderMSB": "1"},
                                   {"BinaryDataByteOrderMSB": None, "ElementByteOrderMSB": "true"},
                                   {"ElementByteOrderMSB": "True"}, {"BinaryDataByteOrderMSB": None}])  # fmt: skip
def test_130_every_type_in_both_byte_orders(tmp_path, kind, order):
    path = write_header(tmp_path / "a.mhd", bytes(range(24)) * 8, {"ElementType": f"MET_{kind}"} | order)
    path.with_suffix(".raw").write_bytes((bytes(range(24)) * 8)[: 24 * read_type(path).itemsize])
    image, (want, dtype) = read(path), as_itk(path)
    assert image.array.dtype == dtype
    np.testing.assert_array_equal(image.array[0].astype(np.float64), want.get_fdata())


def read_type(path):
    return sitk.GetArrayViewFromImage(sitk.ReadImage(str(path), imageIO="MetaImageIO")).dtype


@pytest.mark.parametrize(
    ("changes", "voxels"),
    [
        ({"HeaderSize": "3"}, b"xyz" + SHORTS),
        ({"HeaderSize": "-1"}, b"xyzab" + SHORTS),
        ({"CompressedData": "True"}, zlib.compress(SHORTS)),
        ({"CompressedData": "True"}, gzip.compress(SHORTS, mtime=0)),
        ({"CompressedData": "True", "CompressedDataSize": "9"}, zlib.compress(SHORTS)),
        ({"CompressedData": "True", "HeaderSize": "3"}, b"xyz" + zlib.compress(SHORTS)),
    ],
)
def test_130_where_the_voxels_are(tmp_path, changes, voxels):
    """ITK returns uninitialised memory for the last two."""
    want = read(write_header(tmp_path / "plain.mhd", SHORTS, {"ElementDataFile": "plain.raw"}, raw="plain.raw"))
    image = read(write_header(tmp_path / "a.mhd", voxels, changes))
    np.testing.assert_array_equal(image.array, want.array)


@pytest.mark.parametrize("name", ["LOCAL", "Local", "local"])
@pytest.mark.parametrize("binary", [True, False])
def test_130_voxels_in_the_same_file_also_as_text(tmp_path, name, binary):
    path = write_header(tmp_path / "a.mha", b"", {"ElementDataFile": name, "BinaryData": str(binary)})
    text = "\n".join(map(str, range(-12, 12))).encode() + b"\n"
    path.write_bytes(path.read_bytes() + (SHORTS if binary else text))
    image, (want, _) = read(path), as_itk(path)
    np.testing.assert_array_equal(image.array[0], want.get_fdata())


@pytest.mark.parametrize(
    "name", ["LIST\ns1.raw\ns2.raw", "LIST 2D\ns1.raw\ns2.raw\n", "s%d.raw 1 2 1", "s%01d.raw 1 9 1"]
)
def test_130_voxels_in_a_list_of_files(tmp_path, name):
    path = write_header(tmp_path / "a.mhd", SHORTS[:24], {"ElementDataFile": name}, raw="s1.raw")
    (tmp_path / "s2.raw").write_bytes(SHORTS[24:])
    image, (want, _) = read(path), as_itk(path)
    np.testing.assert_array_equal(image.array[0], want.get_fdata())
    (tmp_path / "s2.raw").write_bytes(SHORTS[24:-1])
    with pytest.raises(DataError, match=r"expected 24 bytes of voxels in s2\.raw, found 23"):
        read(path)


@pytest.mark.parametrize(
    ("changes", "voxels", "warning"),
    [
        ({}, SHORTS + b"ab", "a.raw has 2 bytes more than the header declares: its sizes or type may be wrong"),
        ({"DistanceUnits": "cm"}, SHORTS, "The header gives distances in cm; they are read as mm"),
        ({"ElementToIntensityFunctionSlope": "2"}, SHORTS, "gives a rescale of the voxels, which is not applied"),
    ],
)
def test_130_what_itk_ignores_is_a_warning(tmp_path, changes, voxels, warning):
    path = write_header(tmp_path / "a.mhd", voxels, changes)
    with pytest.warns(UserWarning, match=warning):
        image = read(path)
    np.testing.assert_array_equal(image.array[0], as_itk(path)[0].get_fdata())
    assert warning in image.warning


def test_130_a_flat_image_and_a_fourth_axis_of_one(tmp_path):
    flat = {"NDims": "2", "DimSize": "6 4", "ElementSpacing": "2 3", "Offset": "7 8", "TransformMatrix": "0 1 -1 0"}
    image = read(write_header(tmp_path / "a.mhd", SHORTS, flat))
    np.testing.assert_array_equal(image.array[0], np.arange(-12, 12).reshape(4, 6))
    assert (image.spacing, image.affine) == ((3.0, 2.0), None)
    four = {"NDims": "4", "DimSize": "4 3 2 1", "ElementSpacing": "1 2 3 4", "Offset": "1 2 3 4",
            "TransformMatrix": " ".join(map(str, np.eye(4, dtype=int).ravel()))}  # fmt: skip
    image = read(write_header(tmp_path / "a.mhd", SHORTS, four))
    assert image.array.shape == (1, 4, 3, 2)
    assert image.spacing == (1.0, 2.0, 3.0)


def test_130_colour_is_three_channels(tmp_path):
    rgb = {"ElementNumberOfChannels": "3", "ElementType": "MET_UCHAR_ARRAY", "DimSize": "4 2 1"}
    image = read(write_header(tmp_path / "a.mhd", bytes(range(24)), rgb | {"TransformMatrix": None}))
    want = np.flip(np.arange(24).reshape(2, 4, 3).transpose(2, 1, 0)[..., None], axis=(1, 2))  # LPS to RAS
    np.testing.assert_array_equal(image.array, want)
    assert (image.unit, image.value_range) == ("8-bit", (0.0, 255.0))
