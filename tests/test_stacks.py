"""Stacks and phases: in multi-frame files and in series of single files, sorted, split or refused by one mechanism."""

from __future__ import annotations

import numpy as np
import pytest
from make_images import dataset, save, slice_fields
from pydicom.dataset import Dataset
from pydicom.uid import EnhancedCTImageStorage
from tensors import TINY

import medzoo
from medzoo.errors import DataError
from medzoo.io.dicom.header import Plane
from medzoo.io.dicom.stacks import Frame, split
from medzoo.io.dicom.suspicions import suspicions
from medzoo.io.dicom.tags import DISTINCTIONS
from medzoo.io.folder import scan
from medzoo.io.options import ReadOptions
from medzoo.io.read import read, read_image

NO_POSITION = "The frames have no position: their order and distance are not known"
GROUPS = {
    "StackID": "FrameContentSequence", "TemporalPositionIndex": "FrameContentSequence",
    "FrameAcquisitionNumber": "FrameContentSequence",
    "FrameAcquisitionDateTime": "FrameContentSequence", "DimensionIndexValues": "FrameContentSequence",
    "EffectiveEchoTime": "MREchoSequence", "DiffusionBValue": "MRDiffusionSequence",
    "NominalPercentageOfCardiacPhase": "CardiacSynchronizationSequence",
    "NominalCardiacTriggerDelayTime": "CardiacSynchronizationSequence", "KVP": "CTXRayDetailsSequence",
    "ComplexImageComponent": "MRImageFrameTypeSequence", "FrameType": "MRImageFrameTypeSequence",
}  # fmt: skip


def item(**fields):
    ds = Dataset()
    for key, value in fields.items():
        setattr(ds, key, value)
    return ds


def enhanced(path, frames, **fields):
    """Write one frame per dict: its z, its grey value, and tags of its functional groups."""
    pixels = np.stack([np.full((4, 5), frame["value"], np.uint16) for frame in frames])
    given = {"Modality": "MR", "SOPClassUID": EnhancedCTImageStorage} | fields
    ds = dataset(pixels, **given)
    measures = item(PixelSpacing=[1.0, 1.0])
    orientation = item(ImageOrientationPatient=[1.0, 0.0, 0.0, 0.0, 1.0, 0.0])
    ds.SharedFunctionalGroupsSequence = [item(PixelMeasuresSequence=[measures], PlaneOrientationSequence=[orientation])]
    ds.PerFrameFunctionalGroupsSequence = []
    for frame in frames:
        groups = {}
        for tag, value in frame.items():
            if tag in GROUPS:
                setattr(groups.setdefault(GROUPS[tag], Dataset()), tag, value)
        if "z" in frame:
            groups["PlanePositionSequence"] = item(ImagePositionPatient=[0.0, 0.0, float(frame["z"])])
        ds.PerFrameFunctionalGroupsSequence.append(item(**{name: [group] for name, group in groups.items()}))
    return save(ds, path)


def values(image):
    return image.array[..., 0, 0].squeeze(0).tolist()


def interleaved(tag, tags, count=4):
    """Return frames of several volumes, in an order that is neither of position nor of the tag."""
    frames = [{"z": 2 * z, "value": 100 * (k + 1) + z, tag: t} for z in range(count) for k, t in enumerate(tags)]
    return [frames[i] for i in np.random.default_rng(0).permutation(len(frames))]


def test_119_frames_in_any_order_are_sorted_by_position(tmp_path):
    order = [3, 0, 2, 1]
    path = enhanced(tmp_path / "x", [{"z": 2 * i, "value": i} for i in order])
    image = read(path)
    assert values(image) == [0, 1, 2, 3]
    np.testing.assert_allclose(image.affine[:3, 0], [0, 0, 2])
    assert "frames sorted by position" in image.notes
    for i, value in enumerate(order):  # a frame is counted as it is stored
        one = read(path, frame=i)
        assert one.array[0, 0, 0] == value
        assert one.affine[2, 3] == 2 * value


def test_119_the_values_of_a_frame_move_with_it(tmp_path):
    path = enhanced(tmp_path / "x", [{"z": 2 * i, "value": 10} for i in (2, 0, 1)], Modality="PT")
    import pydicom

    ds = pydicom.dcmread(path)
    for i, frame in enumerate(ds.PerFrameFunctionalGroupsSequence):
        value = item(RescaleSlope=1, RescaleIntercept=100 * i)
        frame.PixelValueTransformationSequence = [value]
    save(ds, path)
    assert values(read(path)) == [110, 210, 10]


@pytest.mark.parametrize(
    ("z", "message"),
    [
        ([0, 2, 4, 10, 12], "expected slices 2 mm apart, found 6 mm between frame 2 and frame 3"),
        ([0, 2, 4, 2], "expected one slice at each position, found frame 1 and frame 3 0 mm apart"),
        ([0, 2, 4, 6] * 2, "expected one slice at each position"),
    ],
)
def test_119_gaps_and_duplicates_are_refused(tmp_path, z, message):
    path = enhanced(tmp_path / "x", [{"z": p, "value": i} for i, p in enumerate(z)])
    with pytest.raises(DataError, match=message):
        read(path)


@pytest.mark.parametrize(
    ("tag", "tags", "name"),
    [
        ("StackID", ["1", "2"], "stack 1"),
        ("TemporalPositionIndex", [1, 2, 3], "temporal position 1"),
        ("EffectiveEchoTime", [9.5, 80.0], "echo time 9.5"),
        ("DiffusionBValue", [0.0, 1000.0], "b-value 0"),
        ("NominalPercentageOfCardiacPhase", [0.0, 50.0], "cardiac phase 0"),
        ("NominalCardiacTriggerDelayTime", [0.0, 350.0], "trigger time 0"),
        ("FrameAcquisitionNumber", [1, 2], "acquisition 1"),
        ("ComplexImageComponent", ["MAGNITUDE", "PHASE"], "complex component MAGNITUDE"),
        ("KVP", [80.0, 140.0], "kVp 80"),
    ],
)
def test_119_several_stacks_are_listed_and_chosen(tmp_path, tag, tags, name):
    path = enhanced(tmp_path / "x", interleaved(tag, tags))
    with pytest.raises(
        DataError, match=rf"found {len(tags)} stacks: 0: 4 slices, {name}; 1: .* Choose one with stack="
    ):
        read(path)
    for k in range(len(tags)):
        image = read(path, stack=k)
        assert values(image) == [100 * (k + 1) + z for z in range(4)]
    assert read(path, stack=0).identity["stack"] == name
    with pytest.raises(DataError, match=f"expected stack below {len(tags)}, got stack=9"):
        read(path, stack=9)
    items = scan(tmp_path)
    assert [(one.kind, one.stack) for one in items] == [("image", k) for k in range(len(tags))]


def test_119_half_lost_phases_do_not_interleave(tmp_path):
    frames = [{"z": 2 * z, "value": z, "TemporalPositionIndex": 1 + z % 2} for z in range(6)]
    path = enhanced(tmp_path / "x", frames)
    with pytest.raises(DataError, match="found 2 stacks"):
        read(path)


def test_119_dimension_indices_separate_what_no_tag_does(tmp_path):
    import pydicom

    frames = interleaved("DimensionIndexValues", [1, 2])
    for frame in frames:
        frame["DimensionIndexValues"] = [frame["DimensionIndexValues"], frame["z"] // 2 + 1]
    path = enhanced(tmp_path / "x", frames)
    ds = pydicom.dcmread(path)
    ds.DimensionIndexSequence = [
        item(DimensionIndexPointer=0x00189087), item(DimensionIndexPointer=0x00200032)
    ]  # fmt: skip
    save(ds, path)
    assert values(read(path, stack=1)) == [200, 201, 202, 203]


@pytest.mark.parametrize("options", [{"channel_axis": 3}, {"channel_axis": -1}, {"channels": 2}])
def test_119_stacks_are_read_as_channels_on_request(tmp_path, options):
    path = enhanced(tmp_path / "x", interleaved("EffectiveEchoTime", [10.0, 80.0]))
    image = read_image(path, ReadOptions(**options))
    assert image.array.shape == (2, 4, 4, 5)
    assert image.array[:, :, 0, 0].tolist() == [[100, 101, 102, 103], [200, 201, 202, 203]]
    assert any("2 stacks read as channels: 0: 4 slices, echo time 10" in note for note in image.notes)
    with pytest.raises(DataError, match="found 2 stacks"):
        read_image(path, ReadOptions(channels=3))


@pytest.mark.parametrize("where", ["absent", "shared", "top", "one"])
def test_119_frames_without_a_position_of_their_own(tmp_path, where):
    import pydicom

    frames = [{"value": i} for i in (2, 0, 1)]
    if where == "one":
        frames[0]["z"] = 0.0
    path = enhanced(tmp_path / "x", frames)
    ds = pydicom.dcmread(path)
    position = item(ImagePositionPatient=[0.0, 0.0, 0.0])
    if where == "shared":
        ds.SharedFunctionalGroupsSequence[0].PlanePositionSequence = [position]
    if where == "top":
        ds.ImagePositionPatient = [0.0, 0.0, 0.0]
        ds.SpacingBetweenSlices = 2
    save(ds, path)
    with pytest.warns(UserWarning, match=NO_POSITION):
        image = read(path)
    assert values(image) == [2, 0, 1]
    assert image.affine is None
    assert read(path, frame=1).warning == ""


@pytest.mark.parametrize("step", [3.0, -3.0])
def test_119_nuclear_medicine_is_sorted_by_its_slice_vector(tmp_path, step):
    pixels = np.stack([np.full((4, 5), i, np.uint16) for i in (0, 2, 1)])
    ds = dataset(pixels, Modality="NM", SliceVector=[1, 3, 2], SpacingBetweenSlices=step, PixelSpacing=[1.0, 1.0])
    place = {"ImagePositionPatient": [0.0, 0.0, 5.0], "ImageOrientationPatient": [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]}
    ds.DetectorInformationSequence = [item(**place)]
    image = read(save(ds, tmp_path / "x"))
    assert values(image) == ([0, 1, 2] if step > 0 else [2, 1, 0])
    np.testing.assert_allclose(image.affine[2], [3, 0, 0, 5 if step > 0 else -1])


def test_119_time_slots_of_nuclear_medicine_are_stacks(tmp_path):
    pixels = np.stack([np.full((4, 5), i, np.uint16) for i in range(4)])
    ds = dataset(
        pixels, Modality="NM", SliceVector=[1, 2, 1, 2], TimeSlotVector=[1, 1, 2, 2], SpacingBetweenSlices=3.0,
        PixelSpacing=[1.0, 1.0], ImagePositionPatient=[0.0, 0.0, 0.0],
        ImageOrientationPatient=[1.0, 0.0, 0.0, 0.0, 1.0, 0.0],
    )  # fmt: skip
    path = save(ds, tmp_path / "x")
    assert values(read(path, stack=1)) == [2, 3]


def test_119_a_part_of_an_image_that_was_stored_in_parts(tmp_path):
    frames = [{"z": 2 * i, "value": i} for i in range(3)]
    path = enhanced(tmp_path / "x", frames, InConcatenationNumber=1, InConcatenationTotalNumber=2)
    with pytest.warns(UserWarning, match="part 1 of 2 of an image that was stored in parts"):
        read(path)


def test_119_a_file_that_shows_lost_frames(tmp_path):
    frames = interleaved("TemporalPositionIndex", [1, 2])
    path = enhanced(tmp_path / "x", [one for one in frames if one["value"] != 203])
    assert read(path, stack=0).warning == ""
    with pytest.warns(UserWarning, match="Other stacks of the series have 1 slices where temporal position 2 has none"):
        read(path, stack=1)
    path = enhanced(tmp_path / "y", [{"z": 2 * i, "value": i} for i in range(3)])
    import pydicom

    ds = pydicom.dcmread(path)
    for i, group in enumerate(ds.PerFrameFunctionalGroupsSequence):
        group.FrameContentSequence = [item(InStackPositionNumber=i + 2)]
    with pytest.warns(UserWarning, match="1 of the numbers of the frames in their stack are missing"):
        read(save(ds, path))
    ds.NumberOfFrames, ds.PixelData = 2, ds.PixelData[:80]
    with pytest.warns(UserWarning, match="The header describes 3 frames, the file has 2: some are missing"):
        read(save(ds, path))


def test_119_predict_takes_each_stack(tmp_path):
    rng = np.random.default_rng(0)
    frames = interleaved("EffectiveEchoTime", [10.0, 80.0], 5)
    path = enhanced(tmp_path / "x.dcm", frames)
    import pydicom

    ds = pydicom.dcmread(path)
    ds.PixelData = rng.integers(0, 1000, (10, 4, 5)).astype(np.uint16).tobytes()
    save(ds, path)
    model = medzoo.create("cnn3d_small", **TINY).eval()
    for source in (path, [path], tmp_path):
        found = medzoo.predict(model, source, allow_untrained=True)
        assert [p.identity["stack"] for p in found] == ["echo time 10", "echo time 80"]
        assert found[0].logits != found[1].logits
    one, two = (medzoo.read(path, stack=k) for k in (0, 1))
    both = medzoo.predict(model, [one, two], allow_untrained=True)
    assert [p.logits for p in both] == [p.logits for p in found]


def classic(folder, frames, **fields):
    folder.mkdir(exist_ok=True)
    for i, frame in enumerate(frames):
        own = {k: v for k, v in frame.items() if k not in ("z", "value")}
        given = slice_fields((0.0, 0.0, float(frame["z"])), i + 1, Modality="MR", RescaleIntercept=0) | fields | own
        save(dataset(np.full((4, 5), frame["value"], np.uint16), **given), folder / f"IM{(i * 7) % 31:03d}")
    return folder


@pytest.mark.parametrize(
    ("tag", "tags", "name"),
    [
        ("TemporalPositionIdentifier", [1, 2], "temporal position 1"),
        ("EchoTime", [9.5, 80.0], "echo time 9.5"),
        ("EchoNumbers", [1, 2], "echo 1"),
        ("DiffusionBValue", [0.0, 1000.0], "b-value 0"),
        ("ImageType", [["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"]], r"image type ORIGINAL\\PRIMARY\\M"),
        ("TriggerTime", [0.0, 350.0], "trigger time 0"),
        ("AcquisitionNumber", [1, 2], "acquisition 1"),
        ("KVP", [80, 140], "kVp 80"),
        ("ContrastBolusAgent", ["", "Iomeprol"], "no contrast agent"),
        ("SeriesNumber", [3, 4], "series number 3"),
    ],
)
def test_119_a_series_of_files_is_split_by_the_same_tags(tmp_path, tag, tags, name):
    folder = classic(tmp_path / "x", interleaved(tag, tags))
    with pytest.raises(DataError, match=f"found 2 of them: 0: .*, {name}; 1: .* Choose one with stack=0 to 1"):
        read(folder)
    for k in (0, 1):
        image = read(folder, stack=k)
        assert values(image) == [100 * (k + 1) + z for z in range(4)]
        assert image.identity["stack"]
    with pytest.raises(DataError, match="expected stack below 2, got stack=2"):
        read(folder, stack=2)
    assert [(one.kind, len(one.paths), one.warning) for one in scan(tmp_path)] == [("series", 4, "")] * 2


def test_119_each_slice_has_a_time_of_its_own_in_each_phase(tmp_path):
    """Rows of one position are ordered by time; nothing else separates the two passes."""
    frames = [
        {"z": 2 * z, "value": 100 * k + z, "AcquisitionTime": f"10{k:02d}{z:02d}"} for z in range(4) for k in (1, 0)
    ]
    folder = classic(tmp_path / "x", frames)
    assert values(read(folder, stack=0)) == [0, 1, 2, 3]
    assert values(read(folder, stack=1)) == [100, 101, 102, 103]


def test_119_times_with_a_date_keep_their_digits(tmp_path):
    times = ["20200101120000.25", "20200101120000.75"]
    folder = classic(tmp_path / "x", interleaved("AcquisitionDateTime", times))
    assert values(read(folder, stack=1)) == [200, 201, 202, 203]
    path = enhanced(tmp_path / "y", interleaved("FrameAcquisitionDateTime", times))
    assert values(read(path, stack=1)) == [200, 201, 202, 203]


def test_119_tags_that_disagree_leave_duplicates_which_are_refused(tmp_path):
    frames = [
        {"z": 2 * z, "value": 100 * k + z, "KVP": 80 + 60 * k, "AcquisitionNumber": 1 + (k ^ (z % 2))}
        for z in range(4)
        for k in (0, 1)
    ]
    with pytest.raises(DataError, match="expected one slice at each position"):
        read(classic(tmp_path / "x", frames))


def test_119_stacks_of_a_series_are_channels_on_request(tmp_path):
    folder = classic(tmp_path / "x", interleaved("EchoTime", [10, 80]))
    want = [[100, 101, 102, 103], [200, 201, 202, 203]]
    for options in ({"channel_axis": 3}, {"channels": 2}):
        image = read_image(folder, ReadOptions(**options))
        assert image.array[:, :, 0, 0].tolist() == want
        assert image.warning == ""
    model = medzoo.create("cnn3d_small", in_chans=2, **TINY).eval()
    found = medzoo.predict(model, folder, allow_untrained=True)
    assert any("2 stacks read as channels" in step for step in found.steps)
    one = classic(tmp_path / "y", [{"z": 2 * z, "value": z} for z in range(3)])
    with pytest.raises(DataError, match="expected several stacks of the same geometry for channel_axis=3, found one"):
        read(one, channel_axis=3)


def test_119_slices_that_differ_without_sharing_a_position_are_a_warning(tmp_path):
    frames = [{"z": 2 * z, "value": z, "KVP": 80 if z % 2 else 140} for z in range(6)]
    with pytest.warns(UserWarning, match="differ in what one volume has in common: 2 values of kVp"):
        read(classic(tmp_path / "x", frames))
    frames = [{"z": 2 * z, "value": z, "AcquisitionNumber": 1 + z % 2} for z in range(6)]
    with pytest.warns(UserWarning, match="2 values of acquisition that alternate"):
        read(classic(tmp_path / "y", frames, Modality="CT"))


@pytest.mark.parametrize("tag", ["AcquisitionNumber", "AcquisitionTime", "TriggerTime", "SliceLocation"])
def test_119_tags_that_vary_from_slice_to_slice_are_no_stacks(tmp_path, tag):
    frames = [{"z": 2 * z, "value": z, tag: str(100000 + z)} for z in range(6)]
    image = read(classic(tmp_path / "x", frames))
    assert (values(image), image.warning) == (list(range(6)), "")


def test_119_blocks_of_a_step_and_shoot_scan_are_no_stacks(tmp_path):
    frames = [{"z": 2 * z, "value": z, "AcquisitionNumber": 1 + z // 4} for z in range(16)]
    image = read(classic(tmp_path / "x", frames))
    assert (values(image), image.warning) == (list(range(16)), "")


def test_119_a_stack_of_one_slice(tmp_path):
    path = enhanced(tmp_path / "x", [{"z": 0, "value": 1, "StackID": "1"}, {"z": 0, "value": 2, "StackID": "2"}])
    assert read(path, stack=1).array.shape == (1, 4, 5)


def frame(z, **given):
    plane = Plane(np.array([0.0, 0.0, z]), np.array([0.0, -1.0, 0.0]), np.array([-1.0, 0.0, 0.0]))
    return Frame(f"z={z}", plane, tuple(given.get(one.name.replace(" ", "_"), "") for one in DISTINCTIONS))


def test_119_values_are_ordered_as_numbers():
    stacks = split([frame(0.0, echo_time=t) for t in ("100", "20", "3")])
    assert [stack.name for stack in stacks] == ["echo time 3", "echo time 20", "echo time 100"]


def test_119_one_of_several_parts_lost_everywhere():
    """Of three phases, no position has all: the tag still separates them."""
    frames = [frame(2.0 * z, kVp=str(80 + 20 * k)) for z in range(6) for k in range(3) if (z + k) % 3]
    stacks = split(frames)
    assert len(stacks) == 3
    assert all(len({frames[i].values for i in stack.members}) == 1 for stack in stacks)


def test_119_free_text_is_not_shown():
    stacks = split([frame(2.0 * z, series_description=text) for z in range(3) for text in ("DOE JANE", "DOE JOHN")])
    assert [stack.name for stack in stacks] == ["series description #1", "series description #2"]
    mixed = [frame(2.0 * z, series_description=text) for z, text in enumerate(("DOE JANE", "DOE JOHN", "DOE JANE"))]
    assert "DOE" not in suspicions(mixed, "MR")
