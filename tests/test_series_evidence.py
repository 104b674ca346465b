"""What the headers of a series show: positions in any spelling, parts that belong together, slices that are missing."""

from __future__ import annotations

import numpy as np
import pytest
from make_images import save, slice_fields, write_dicom
from test_stacks import enhanced, frame

from medzoo.errors import DataError
from medzoo.io.dicom.stacks import split
from medzoo.io.dicom.step import slice_step
from medzoo.io.dicom.suspicions import suspicions
from medzoo.io.folder import scan
from medzoo.io.options import ReadOptions
from medzoo.io.read import read, read_image

COUNT = 8
POSITION = b"\x20\x00\x32\x00DS"


def write(folder, change=lambda i: {}, count=COUNT, step=2.0, name="IM{:04d}.dcm", **fields):
    """Write slices of value 100 + i at i steps; ``change`` returns the fields of a slice."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i in range(count):
        given = slice_fields((0.0, 0.0, step * i), i + 1, RescaleIntercept=0) | fields | (change(i) or {})
        size = given.pop("size", (6, 6))
        paths.append(write_dicom(folder / name.format(i), np.full(size, 100 + i, np.uint16), **given))
    return paths


def slice_values(image):
    return image.array[0, :, 0, 0].tolist()


def quiet(folder, **options):
    return read_image(folder, ReadOptions(**options))


def respell_position(path, spell):
    """Rewrite ImagePositionPatient as bytes that pydicom would not write."""
    content = path.read_bytes()
    at = content.index(POSITION)
    length = int.from_bytes(content[at + 6 : at + 8], "little")
    value = spell(content[at + 8 : at + 8 + length].rstrip(b" "))
    value += b"\0" * (len(value) % 2)
    path.write_bytes(content[: at + 6] + len(value).to_bytes(2, "little") + value + content[at + 8 + length :])


# Warnings of the slices


def test_a_warning_of_any_slice_is_one_of_the_volume(tmp_path):
    paths = write(tmp_path)
    for path in (paths[3], paths[5]):
        content = path.read_bytes()
        pixels = content.rindex(b"\xe0\x7f\x10\x00OW")
        length = int.from_bytes(content[pixels + 8 : pixels + 12], "little")
        path.write_bytes(content[: pixels + 8] + (2 * length).to_bytes(4, "little") + content[pixels + 12 :] * 2)
    assert "enough for another" in quiet(paths[3]).warning
    with pytest.warns(UserWarning, match=r"IM0003.dcm and 1 more: NumberOfFrames is 1, but there are .* enough for"):
        assert slice_values(read(tmp_path)) == [100 + i for i in range(COUNT)]


def test_each_channel_keeps_its_warnings(tmp_path):
    for echo in (0, 1):
        fields = {"Modality": "MR", "EchoTime": 10 + 70 * echo}
        write(
            tmp_path,
            lambda i, e=echo: {"InstanceNumber": e * COUNT + i + 1, "KVP": 80 + e * (i % 2)},
            name=f"E{echo}_{{:02d}}",
            **fields,
        )
    image = quiet(tmp_path, channel_axis=3)
    assert image.array.shape == (2, COUNT, 6, 6)
    assert "echo time 80: The slices differ in what one volume has in common: 2 values of kVp" in image.warning


def test_each_channel_of_one_file_keeps_its_warnings(tmp_path):
    frames = [
        {"z": 2 * z, "value": 10 * e + z, "EffectiveEchoTime": 10.0 + e, "KVP": 80 + e * (z % 2)}
        for e in (0, 1) for z in range(4)
    ]  # fmt: skip
    image = quiet(enhanced(tmp_path / "x", frames), channel_axis=3)
    assert "echo time 11: The slices differ in what one volume has in common: 2 values of kVp" in image.warning


# Positions


@pytest.mark.parametrize(
    "spell", [lambda v: v, lambda v: v.replace(b".", b","), lambda v: v + b"\\", lambda v: b" " + v + b"\0\0"]
)
@pytest.mark.parametrize("which", [range(COUNT), [0], [COUNT - 1]])
def test_a_position_in_any_spelling_is_read(tmp_path, spell, which):
    for i, path in enumerate(write(tmp_path)):
        if i in which:
            respell_position(path, spell)
    assert [len(item.paths) for item in scan(tmp_path)] == [COUNT]
    image = read(tmp_path)
    assert (slice_values(image), image.spacing[0]) == ([100 + i for i in range(COUNT)], 2.0)


def test_a_spacing_with_a_decimal_comma_is_read(tmp_path):
    for path in write(tmp_path):
        path.write_bytes(path.read_bytes().replace(b"0.7\\0.9 ", b"0,7\\0,9\0"))
    np.testing.assert_allclose(read(tmp_path).spacing, [2.0, 0.7, 0.9])


def test_a_slice_without_a_position_joins_the_stack_that_has_its_values(tmp_path):
    for echo in (0, 1):
        write(
            tmp_path,
            lambda i, e=echo: (
                {"InstanceNumber": e * COUNT + i + 1} | ({"ImagePositionPatient": None} if (e, i) == (1, 7) else {})
            ),
            name=f"E{echo}_{{:02d}}",
            Modality="MR",
            EchoTime=10 + 70 * echo,
        )
    assert [len(item.paths) for item in scan(tmp_path)] == [COUNT, COUNT]
    assert slice_values(quiet(tmp_path, stack=0)) == [100 + i for i in range(COUNT)]
    with pytest.raises(DataError, match=r"E1_07: expected ImagePositionPatient"):
        quiet(tmp_path, stack=1)


def test_slices_without_a_position_of_no_stack_are_a_warning_of_all(tmp_path):
    write(
        tmp_path,
        lambda i: (
            {"EchoTime": 10 + 70 * (i % 2), "ImagePositionPatient": [0.0, 0.0, 2.0 * (i // 2)]}
            | ({"ImagePositionPatient": None, "EchoTime": None} if i == 7 else {})
        ),
        Modality="MR",
    )
    items = scan(tmp_path)
    assert [(len(item.paths), "1 slice of the series has no valid position" in item.warning) for item in items] == [
        (4, True), (3, True), (1, True),
    ]  # fmt: skip


def test_a_number_out_of_range_is_none(tmp_path):
    write(tmp_path)
    path = tmp_path / "IM0003.dcm"
    content = path.read_bytes()
    at = content.index(b"\x20\x00\x13\x00IS")
    length = int.from_bytes(content[at + 6 : at + 8], "little")
    path.write_bytes(content[: at + 6] + b"\6\0" + b"1e400 " + content[at + 8 + length :])
    (item,) = scan(tmp_path)
    assert len(item.paths) == COUNT
    assert slice_values(quiet(item.paths)) == [100 + i for i in range(COUNT)]


# Rescale


def no_rescale(i):
    return {"RescaleSlope": None, "RescaleIntercept": None} if i == 5 else {}


@pytest.mark.parametrize(
    ("modality", "change", "found"),
    [
        ("MR", no_rescale, "1 of 8 slices lack the RescaleSlope and RescaleIntercept"),
        ("PT", no_rescale, "1 of 8 slices lack the RescaleSlope and RescaleIntercept"),
        ("CT", lambda i: {"RescaleIntercept": -1024 * (i == 5)}, "2 different pairs of RescaleSlope"),
        ("PT", lambda i: {"RescaleSlope": 1 + i / 4}, ""),
        ("MR", lambda i: {"RescaleSlope": 1 + i / 4}, ""),
        ("CT", lambda i: {"RescaleSlope": "1" if i % 2 else "1.0"}, ""),
    ],
)
def test_slices_on_another_scale_are_a_warning(tmp_path, modality, change, found):
    write(tmp_path, change, Modality=modality)
    warning = quiet(tmp_path).warning
    assert found in warning
    assert bool(found) == bool(warning)


def test_a_negative_slope_of_a_ct_is_a_warning(tmp_path):
    write(tmp_path, RescaleSlope=-1)
    with pytest.warns(UserWarning, match="RescaleSlope is negative") as caught:
        image = read(tmp_path)
    assert len(caught) == 1
    assert slice_values(image) == [-100 - i for i in range(COUNT)]
    write(tmp_path / "mr", RescaleSlope=-1, Modality="MR")
    assert quiet(tmp_path / "mr").warning == ""


# Parts that continue each other


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"size": (6, 4)}, "size"),
        ({"PixelSpacing": [0.8, 0.9]}, "pixel spacing"),
        ({"SeriesNumber": 4}, "series number"),
        ({"FrameOfReferenceUID": "1.2.3"}, "frame of reference"),
        ({"StudyInstanceUID": "1.2.3"}, "study"),
        ({"PatientName": "DOE^JANE^"}, "patient name"),
        ({"ImageOrientationPatient": [-1.0, 0.0, 0.0, 0.0, -1.0, 0.0]}, "direction of rows and columns"),
    ],
)
@pytest.mark.parametrize("first", [5, 7])
def test_a_part_that_continues_another_is_a_warning_of_both(tmp_path, change, why, first):
    write(tmp_path, lambda i: change if i >= first else {}, SeriesNumber=3, PatientName="DOE^JANE")
    items = scan(tmp_path)
    assert [len(item.paths) for item in items] == [first, COUNT - first]
    assert f"of the series that differ{'s' * (first == 7)} in {why} continue" in items[0].warning
    assert f"{first} slices of the series that differ in {why} continue where these end" in items[1].warning
    assert "DOE" not in items[0].warning


@pytest.mark.parametrize(
    "change",
    [
        {"ImageOrientationPatient": [1.0, 0.0, 0.0, 0.0, 0.0, -1.0], "ImagePositionPatient": [0.0, 0.0, 10.0]},
        {"FrameOfReferenceUID": "1.2.3", "ImagePositionPatient": [0.0, 0.0, 4.5]},  # within the range of the others
        {"FrameOfReferenceUID": "1.2.3", "ImagePositionPatient": [0.0, 0.0, 60.0]},
    ],
)
def test_a_scout_or_another_region_is_no_continuation(tmp_path, change):
    write(tmp_path, lambda i: change if i == 7 else {})
    assert all("continue" not in item.warning for item in scan(tmp_path))


def test_regions_with_numberings_of_their_own_are_no_continuation(tmp_path):
    write(tmp_path, lambda i: {"FrameOfReferenceUID": f"1.2.{i // 4}", "InstanceNumber": 1 + i % 4})
    assert [item.warning for item in scan(tmp_path)] == ["", ""]


# Thinned series


@pytest.mark.parametrize(
    ("step", "thickness", "between", "times"),
    [
        (4.0, 1.0, 2.0, 2), (10.0, 1.0, 1.0, 10), (2.0, 1.0, 2.0, 0), (5.5, 5.0, 0.5, 0), (4.0, 2.0, 2.0, 0),
        (3.0, 3.0, 2.0, 0), (2.0, 5.0, 0.0, 0),
    ],
)  # fmt: skip
def test_slices_further_apart_than_the_header_declares(tmp_path, step, thickness, between, times):
    write(tmp_path, step=step, SliceThickness=thickness, SpacingBetweenSlices=between)
    warning = quiet(tmp_path).warning
    assert (f"{times} times the SpacingBetweenSlices of {between:g} mm" in warning) == bool(times)
    assert bool(warning) == bool(times)


@pytest.mark.parametrize(("stride", "start", "warns"), [(2, 1, True), (10, 1, True), (20, 1, True), (1, 1, False)])
def test_numbers_in_a_constant_stride(tmp_path, stride, start, warns):
    write(tmp_path, lambda i: {"InstanceNumber": start + stride * i})
    (item,) = scan(tmp_path)
    assert ("of the instance numbers of the series are missing" in item.warning) == warns


# The step


@pytest.mark.parametrize("step", [0.625, 0.25, 1.25, 0.3])
def test_positions_rounded_to_a_tenth_of_a_millimetre_are_uniform(step):
    frames = [frame(round(step * z, 1)) for z in range(40)]
    np.testing.assert_allclose(np.linalg.norm(slice_step(frames, "x")), step, rtol=0.02)


@pytest.mark.parametrize("step", [0.1, 0.15, 0.25, 0.625, 1.25, 5.0])
@pytest.mark.parametrize("count", [4, 5, 30])
@pytest.mark.parametrize("lost", [1, 2, -2])
def test_a_missing_slice_is_refused_whatever_the_rounding(step, count, lost):
    at = [z for z in range(count) if z != lost % count]
    with pytest.raises(DataError, match="expected "):
        slice_step([frame(round(step * z, 1) if step > 0.2 else step * z) for z in at], "x")


def test_a_spacing_that_changes_is_named():
    frames = [frame(3.0 * z if z < 6 else 15 + 7.0 * (z - 5)) for z in range(12)]
    with pytest.raises(DataError, match="or the scan has parts of different spacing"):
        slice_step(frames, "x")


# Times


def test_echo_times_as_measured_are_one():
    times = ["101.2", "101.201", "80", "101.1999"] * 3
    stacks = split([frame(2.0 * z, echo_time=time) for z, time in enumerate(times)])
    assert [(len(s.members), s.name) for s in stacks] == [(3, "echo time 80"), (9, "echo time 101.1999")]


def ranked(times):
    """Return the stacks of frames by their order in time: ``times[phase][slice]``."""
    return split([frame(2.0 * z, **one) for phase in times for z, one in enumerate(phase)])


def test_phases_by_their_order_in_time_are_a_guess_unless_one_ends_before_the_next():
    whole = ranked([[{"acquisition_time": str(100 * p + z)} for z in range(4)] for p in range(3)])
    assert [(len(s.members), s.warning) for s in whole] == [(4, "")] * 3
    order = [(0, 1, 2), (1, 2, 0)]
    mixed = ranked([[{"acquisition_time": str(10 * z + order[z % 2][p])} for z in range(4)] for p in range(3)])
    assert len(mixed) == 3
    assert all("separated by their order in time" in s.warning for s in mixed)
    beats = ranked([[{"trigger_time": str(p * (80 + 2 * z))} for z in range(6)] for p in range(12)])
    assert [(len(s.members), s.warning) for s in beats] == [(6, "")] * 12


def test_a_guess_is_a_warning_of_each_volume(tmp_path):
    order = [(0, 1, 2), (1, 2, 0)]
    for p in range(3):
        write(
            tmp_path,
            lambda i, p=p: {"AcquisitionTime": f"10{10 * i + order[i % 2][p]:04d}", "SOPInstanceUID": f"1.2.{p}.{i}"},
            count=5,
            name=f"P{p}_{{:02d}}",
            Modality="MR",
        )
    items = scan(tmp_path)
    assert len(items) == 3
    assert all("separated by their order in time, which may be wrong" in item.warning for item in items)
    assert "separated by their order in time" in quiet(tmp_path, stack=1).warning


@pytest.mark.parametrize(
    ("modality", "values", "warns"),
    [
        ("MR", {"trigger_time": ["650", "655", "660"]}, False),
        ("MR", {"trigger_time": ["100", "700"]}, True),
        ("MR", {"acquisition": ["1", "2"]}, False),
        ("CT", {"acquisition": ["1", "2"]}, True),
        ("MR", {"acquisition_time": ["1", "60"]}, False),
        ("CT", {"acquisition_time": ["1", "60"]}, True),
    ],
)
def test_what_alternates_between_slices(modality, values, warns):
    ((tag, cycle),) = values.items()
    frames = [frame(2.0 * z, **{tag: cycle[z % len(cycle)]}) for z in range(20)]
    assert ("alternate" in suspicions(frames, modality)) == warns


def test_acquisition_times_of_two_interleaved_scans_are_a_warning():
    frames = [frame(float(z), acquisition_time=str(1000 * (z % 2) + z)) for z in range(20)]
    assert "acquisition times that alternate" in suspicions(frames, "CT")
    blocks = [frame(float(z), acquisition_time=str(z // 4)) for z in range(20)]
    assert suspicions(blocks, "CT") == ""


def test_dimension_indices_alone_are_stacks_of_a_scan(tmp_path):
    from pydicom import dcmread
    from pydicom.dataset import Dataset

    frames = [{"z": 2 * z, "value": 10 * p + z, "DimensionIndexValues": [z + 1, p + 1]} for p in (0, 1) for z in (0, 1)]
    path = enhanced(tmp_path / "x", frames)
    ds = dcmread(path)
    ds.DimensionIndexSequence = [Dataset(), Dataset()]
    ds.DimensionIndexSequence[0].DimensionIndexPointer = 0x00209057
    ds.DimensionIndexSequence[1].DimensionIndexPointer = 0x00209128
    save(ds, path)
    assert [(item.stack, item.name) for item in scan(tmp_path)] == [(0, "dimension 1"), (1, "dimension 2")]
    assert slice_values(read(path, stack=1)) == [10, 11]
