"""Reading NIfTI and MetaImage, on files written by nibabel and SimpleITK."""

from __future__ import annotations

import gzip
import itertools
import struct
import zlib

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from make_images import write_metaimage, write_nifti

from medzoo.errors import DataError
from medzoo.io.read import read

VOLUME = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6) - 60


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_a_nifti_volume_is_x_y_z(tmp_path, suffix, dtype):
    volume = np.abs(VOLUME).astype(dtype)
    image = read(write_nifti(tmp_path / f"a.{suffix}", volume))
    assert image.array.shape == (1, 4, 5, 6)
    assert image.array.dtype == dtype
    assert image.array.flags.c_contiguous
    np.testing.assert_array_equal(image.array[0], volume)
    np.testing.assert_allclose(image.spacing, (0.7, 0.8, 2.5), rtol=1e-6)
    assert (image.orientation, image.unit, image.modality, image.value_range) == ("RAS", "raw", "", None)


def test_nifti_2_big_endian_and_scaling(tmp_path):
    image = nibabel.Nifti2Image(VOLUME, np.eye(4))
    nibabel.save(image, tmp_path / "two.nii")
    np.testing.assert_array_equal(read(tmp_path / "two.nii").array[0], VOLUME)
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(np.int16)
    header.set_slope_inter(2.0, -1000.0)
    image = nibabel.Nifti1Image(VOLUME, np.eye(4), header)
    image.header.set_slope_inter(2.0, -1000.0)
    nibabel.save(image, tmp_path / "big.nii")
    got = read(tmp_path / "big.nii")
    np.testing.assert_allclose(got.array[0], VOLUME * 2.0 - 1000)
    assert got.array.dtype.isnative


def test_82_a_fourth_axis_of_one_is_dropped(tmp_path):
    assert read(write_nifti(tmp_path / "a.nii", VOLUME[..., None])).array.shape == (1, 4, 5, 6)


def test_82_several_volumes_need_a_frame(tmp_path):
    volumes = np.stack([VOLUME, -VOLUME], -1)
    path = write_nifti(tmp_path / "a.nii.gz", volumes)
    with pytest.raises(DataError, match=r"expected one volume, found 2 \(4 × 5 × 6 × 2\)\. Choose one with frame=0"):
        read(path)
    image = read(path, frame=1)
    np.testing.assert_array_equal(image.array[0], -VOLUME)
    assert "volume 1 of 2" in image.notes
    with pytest.raises(DataError, match="expected frame below 2, got frame=2"):
        read(path, frame=2)


def test_83_nan_is_refused_or_set_to_zero(tmp_path):
    volume = VOLUME.astype(np.float32)
    volume[0, 0, :3] = np.nan, np.inf, -np.inf
    path = write_nifti(tmp_path / "a.nii", volume)
    with pytest.raises(DataError, match=r"expected finite values, found 3 of 120 NaN or infinite.*nan='zero'"):
        read(path)
    image = read(path, nan="zero")
    assert image.array[0, 0, 0, :3].tolist() == [0, 0, 0]
    assert "3 NaN or infinite values set to 0" in image.notes


@pytest.mark.parametrize("part", [0.01, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_84_a_cut_volume_is_refused(tmp_path, part, suffix):
    noise = np.random.default_rng(0).integers(-1000, 1000, (16, 16, 16), dtype=np.int16)
    path = write_nifti(tmp_path / f"a.{suffix}", noise)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(DataError, match=r"a\.nii"):
        read(path)


def test_84_every_flipped_bit_of_a_gzip_is_found(tmp_path):
    """The checksum is after the last voxel; nibabel alone stops reading before it."""
    noise = np.random.default_rng(0).integers(-1000, 1000, (8, 8, 8), dtype=np.int16)
    path = write_nifti(tmp_path / "a.nii.gz", noise)
    data = path.read_bytes()
    name_ends = data.index(b"\0", 10) + 1  # the gzip header holds time and name, which no checksum covers
    for at in range(name_ends, len(data), 37):
        mutant = bytearray(data)
        mutant[at] ^= 16
        path.write_bytes(mutant)
        with pytest.raises(DataError):
            read(path)


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
@pytest.mark.parametrize("sides", [(30000, 30000, 500), (4, 5, 7), (-4, 5, 6), (0, 5, 6), (2000, 2000, 100)])
def test_85_sizes_that_the_file_cannot_hold_are_refused(tmp_path, suffix, sides):
    path = write_nifti(tmp_path / f"a.{suffix}", VOLUME)
    data = bytearray(gzip.decompress(path.read_bytes()) if suffix == "nii.gz" else path.read_bytes())
    data[42:48] = struct.pack("<3h", *sides)
    path.write_bytes(gzip.compress(data) if suffix == "nii.gz" else data)
    with pytest.raises(DataError, match=r"the header declares|expected \d+ bytes"):
        read(path)


def test_85_max_voxels_is_checked(tmp_path):
    path = write_nifti(tmp_path / "a.nii", VOLUME)
    with pytest.raises(DataError, match="expected at most 119 values, the header declares 4 × 5 × 6, that is 120"):
        read(path, max_voxels=119)


@pytest.mark.parametrize("signs", list(itertools.product([1, -1], repeat=3)))
@pytest.mark.parametrize("writer", ["nifti", "metaimage"])
def test_86_eight_flips_of_an_anisotropic_volume_read_the_same(tmp_path, signs, writer):
    """The same volume stored with eight combinations of flips gives one array and one affine."""
    spacing = np.array([0.7, 0.8, 2.5])
    stored = VOLUME[tuple(slice(None, None, s) for s in signs)]
    affine = np.diag([*(spacing * signs), 1.0])
    affine[:3, 3] = [10 + (n - 1) * d if s < 0 else 10 for s, n, d in zip(signs, VOLUME.shape, spacing, strict=True)]
    if writer == "nifti":
        path = write_nifti(tmp_path / "a.nii", stored, affine)
    else:
        lps = np.diag([-1, -1, 1, 1]) @ affine
        path = write_metaimage(
            tmp_path / "a.mha",
            np.ascontiguousarray(stored.transpose(2, 1, 0)),
            origin=lps[:3, 3],
            direction=np.diag(np.array([-1, -1, 1]) * signs).astype(float).ravel(),
        )
    image = read(path)
    assert image.orientation == "RAS"
    np.testing.assert_array_equal(image.array[0], VOLUME)
    want = np.diag([*spacing, 1.0])
    want[:3, 3] = 10
    np.testing.assert_allclose(image.affine, want, atol=1e-5)
    np.testing.assert_allclose(image.spacing, spacing, rtol=1e-6)


def test_86_axes_in_any_order_and_oblique(tmp_path):
    """A sagittal volume, tilted by 10 degrees: every voxel keeps its position in the world."""
    angle = np.radians(10)
    tilt = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    affine = np.eye(4)
    affine[:3, :3] = tilt @ np.array([[0, 0, 3.0], [-0.9, 0, 0], [0, -0.9, 0]])
    affine[:3, 3] = [1, 2, 3]
    image = read(write_nifti(tmp_path / "a.nii", VOLUME, affine))
    assert image.orientation == "RAS"
    assert image.array.shape == (1, 6, 4, 5)
    for index in itertools.product(range(4), range(5), range(6)):
        world = affine @ [*index, 1]
        there = np.round(np.linalg.solve(image.affine, world)[:3]).astype(int)
        assert image.array[(0, *there)] == VOLUME[index]


@pytest.mark.parametrize("affine", [np.zeros((4, 4)), np.diag([1.0, 1, 0, 1]), np.full((4, 4), np.nan)])
def test_86_a_singular_affine_is_refused(tmp_path, affine):
    image = nibabel.Nifti1Image(VOLUME, np.eye(4))
    image.header["srow_x"], image.header["srow_y"], image.header["srow_z"] = affine[:3]
    image.header["sform_code"] = 1
    path = tmp_path / "a.nii"
    path.write_bytes(image.header.binaryblock + bytes(4) + VOLUME.tobytes(order="F"))
    header = bytearray(path.read_bytes())
    header[108:112] = struct.pack("<f", 352.0)
    path.write_bytes(header)
    with pytest.raises(DataError, match="expected an affine with three independent axes"):
        read(path)


def test_86_without_an_affine_the_axes_stay(tmp_path):
    image = nibabel.Nifti1Image(VOLUME, None)
    image.header.set_zooms((0.7, 0.8, 2.5))
    image.header["sform_code"] = image.header["qform_code"] = 0
    nibabel.save(image, tmp_path / "a.nii")
    got = read(tmp_path / "a.nii")
    assert got.affine is None
    assert got.orientation is None
    np.testing.assert_allclose(got.spacing, (0.7, 0.8, 2.5), rtol=1e-6)
    np.testing.assert_array_equal(got.array[0], VOLUME)


def test_87_spacing_is_kept_in_mm(tmp_path):
    image = nibabel.Nifti1Image(VOLUME, np.diag([0.0007, 0.0007, 0.0025, 1.0]))
    image.header.set_xyzt_units("meter")
    nibabel.save(image, tmp_path / "a.nii")
    np.testing.assert_allclose(read(tmp_path / "a.nii").spacing, (0.7, 0.7, 2.5), rtol=1e-5)


def test_complex_voxels_are_refused(tmp_path):
    with pytest.raises(DataError, match="expected real voxels, found complex64"):
        read(write_nifti(tmp_path / "a.nii", VOLUME.astype(np.complex64)))


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
        ({"CompressedData": "True"}, gzip.compress(SHORTS)),
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
