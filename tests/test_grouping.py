"""Random studies on disk: an image is one of the true volumes exactly, or carries a warning, or is refused."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from make_images import dataset, save, slice_fields

from medzoo.errors import DataError
from medzoo.io.folder import scan
from medzoo.io.options import ReadOptions
from medzoo.io.read import read, read_image

UID = "1.2.826.0.1.3680043.8.498"
PHASES = {
    "temporal": "TemporalPositionIdentifier", "echo": "EchoNumbers", "echo time": "EchoTime", "b": "DiffusionBValue",
    "acquisition": "AcquisitionNumber", "trigger": "TriggerTime", "kvp": "KVP", "description": "SeriesDescription",
}  # fmt: skip
ALWAYS = ("temporal", "echo", "echo time", "b")


@dataclass(frozen=True)
class Series:
    """One series of a random study: how many slices and phases, which UIDs it shares, and what was lost."""

    patient: int = 0
    study: int = 0
    uid: int = 0
    frame_of_reference: int = 0
    slices: int = 4
    start: int = 0
    step: int = 1
    phases: int = 1
    by: str = "temporal"
    numbering: str = "series"  # or "phase", "none"
    harm: tuple[tuple[int, str], ...] = ()
    folder: str = ""


@dataclass
class Truth:
    """The values of every true volume, and those that are complete on disk."""

    volumes: dict[tuple[int, ...], bool] = field(default_factory=dict)


HARMS = ("deleted", "empty", "cut", "preamble", "garbage", "copy", "recoded", "overwritten")


LOSSES = ("deleted", "deleted", "empty", "cut", "preamble", "garbage")


@st.composite
def harms(draw, slices, phases):
    """Return what happened to which slices: nothing, the end or the start of a phase lost, or a few at random."""
    how = draw(st.sampled_from(["none", "none", "end", "start", "disjoint", "random"]))
    if how == "none":
        return ()
    if how == "random":
        index = st.integers(0, slices * phases - 1)
        pairs = st.lists(st.tuples(index, st.sampled_from(HARMS)), max_size=3, unique_by=lambda h: h[0])
        return tuple(draw(pairs))
    kind, count = draw(st.sampled_from(LOSSES)), draw(st.integers(1, slices - 1))
    if how == "disjoint":  # each position keeps one phase
        keep = [draw(st.integers(0, phases - 1)) for _ in range(slices)]
        return tuple(
            (p * slices + z, kind) for p in range(phases) for z in range(slices) if phases > 1 and keep[z] != p
        )
    phase = draw(st.integers(0, phases - 1))
    lost = range(count) if how == "start" else range(slices - count, slices)
    return tuple((phase * slices + z, kind) for z in lost)


@st.composite
def series(draw, base=None):
    """Return a series; with ``base``, one that differs little from it, and continues, repeats or alternates with it."""
    slices, phases = draw(st.integers(2, 5)), draw(st.sampled_from([1, 1, 2, 3]))
    one = Series(
        slices=slices, phases=phases, by=draw(st.sampled_from(sorted(PHASES))), step=draw(st.sampled_from([1, 1, 2])),
        numbering=draw(st.sampled_from(["series", "series", "phase", "none"])), harm=draw(harms(slices, phases)),
        folder=draw(st.sampled_from(["", "", "a"])),
    )  # fmt: skip
    if base is None:
        return one
    for name in draw(st.sets(st.sampled_from(["patient", "study", "uid", "frame_of_reference"]), max_size=2)):
        one = replace(one, **{name: 1})
    start = draw(st.sampled_from([0, base.start + base.step * base.slices, 1]))
    step = draw(st.sampled_from([base.step, one.step]))
    return replace(one, start=start, step=step, phases=1 if draw(st.booleans()) else phases)


@st.composite
def several(draw):
    base = draw(series())
    return [base, *draw(st.lists(series(base), max_size=2))]


def write(root, studies, names):
    """Write the series, and return for each true volume whether all of it is readable on disk."""
    truth = Truth()
    counter = 0
    for k, one in enumerate(studies):
        harm = {i: how for i, how in one.harm if i < one.slices * one.phases}
        for phase in range(one.phases):
            values, complete = [], True
            for z in range(one.slices):
                index = phase * one.slices + z
                value = 1 + k * 100 + phase * 20 + z  # unique in the study
                values.append(value)
                number = {"series": index + 1, "phase": z + 1, "none": None}[one.numbering]
                fields = slice_fields((0.0, 0.0, 2.0 * (one.start + one.step * z))) | {
                    "SOPInstanceUID": f"{UID}.{k}.{index + 1}",
                    "PatientID": f"P{one.patient}", "PatientName": f"N{one.patient}", "PatientBirthDate": None,
                    "StudyInstanceUID": f"{UID}.9.{one.study}", "SeriesInstanceUID": f"{UID}.8.{one.uid}",
                    "FrameOfReferenceUID": f"{UID}.7.{one.frame_of_reference}", "InstanceNumber": number,
                    "RescaleIntercept": 0, "PixelSpacing": [1.0, 1.0],
                }  # fmt: skip
                if one.phases > 1:
                    fields[PHASES[one.by]] = str(phase + 1) if one.by == "description" else phase + 1
                folder = root / one.folder
                folder.mkdir(parents=True, exist_ok=True)
                path = folder / f"IM{names[counter % len(names)] * 1000 + counter:07d}"
                counter += 1
                save(dataset(np.full((4, 4), value, np.uint16), **fields), path)
                damage(path, harm.get(index), fields, value)
                complete &= harm.get(index) in (None, "copy", "recoded")
            truth.volumes[tuple(values)] = complete
    return truth


def damage(path, how, fields, value):
    content = path.read_bytes()
    if how == "deleted":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "cut":
        path.write_bytes(content[: 1 + (value * 37) % (len(content) - 1)])
    elif how == "preamble":
        path.write_bytes(content[132:])
    elif how == "garbage":
        path.write_bytes(bytes(range(256)) * 2)
    elif how == "copy":
        shutil.copy(path, path.with_name(path.name + "0"))
    elif how == "recoded":
        save(dataset(np.full((4, 4), value, np.uint16), **fields, StationName="X"), path.with_name(path.name + "0"))
    elif how == "overwritten":
        save(dataset(np.full((4, 4), value + 50, np.uint16), **fields), path.with_name(path.name + "0"))


def shows_loss(studies, k, phase):
    """Return whether files or numbers on disk show that a volume lost slices."""
    one = studies[k]
    lost = {i: h for i, h in one.harm if h not in ("copy", "recoded", "overwritten")}
    mine = [z for z in range(one.slices) if phase * one.slices + z in lost]
    return any(lost[phase * one.slices + z] != "deleted" for z in mine)


def check(studies, names):
    root = Path(tempfile.mkdtemp(prefix="medzoo-grouping-"))
    try:
        truth = write(root, studies, names)
        items = scan(root)
        for item in items:
            if item.kind == "skip" or item.kind == "lost":
                continue
            source = item.paths if item.kind == "series" else item.paths[0]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    image = read_image(source, ReadOptions(stack=item.stack)).with_warning(item.warning)
                except DataError:
                    continue
            check_image(image, truth, studies)
        check_folders(root, truth, studies)
    finally:
        shutil.rmtree(root)


def check_image(image, truth, studies):
    values = tuple(image.array.reshape(-1, 4, 4)[:, 0, 0].tolist())
    owners = {((v - 1) // 100, (v - 1) % 100 // 20) for v in values if (v - 1) % 100 < 60}
    context = (values, image.warning, dict(image.identity))
    if image.warning:
        # A warning does not excuse slices of two patients, studies or frames of reference.
        kinds = {
            (studies[k].patient, studies[k].study, studies[k].frame_of_reference) for k, _ in owners if k < len(studies)
        }
        assert len(kinds) <= 1, context
        return
    if values in truth.volumes:
        return
    # Without a warning, it may only be less than a true volume if nothing on disk shows the loss.
    inside = [(k, v) for k, v in enumerate(truth.volumes) if set(values) <= set(v)]
    joined = [v for v in truth.volumes if set(v) & set(values)]
    assert inside or is_one_volume(values, joined, studies), context
    if inside and len(values) > 1:
        ((k, phase),) = owners
        assert not shows_loss(studies, k, phase), context
        assert undetectable(studies, k, phase), context


def is_one_volume(values, joined, studies):
    """Return whether series with one UID that continue each other in space have no tag or number that differs."""
    owners = {studies[(v[0] - 1) // 100] for v in joined}
    if len({(s.patient, s.study, s.uid, s.frame_of_reference) for s in owners}) != 1:
        return False
    tags, numbers = set(), []
    for value in values:
        one = studies[(value - 1) // 100]
        phase, z = divmod((value - 1) % 100, 20)
        tags.add((one.by, phase) if one.phases > 1 and one.by != "trigger" and one.by != "acquisition" else "")
        numbers.append({"series": phase * one.slices + z + 1, "phase": z + 1, "none": None}[one.numbering])
    known = [number for number in numbers if number is not None]
    # A single block of acquisitions or trigger times is what scans in steps have.
    return len(tags - {""}) <= 1 and (len(set(known)) == len(known) or len(set(known)) < 2)


def undetectable(studies, k, phase):
    """Return whether what remains of a volume has no hole in its numbers, and no other phase shows the loss."""
    one = studies[k]
    related = [s for s in studies if (s.patient, s.study, s.uid) == (one.patient, one.study, one.uid)]
    if len(related) > 1:
        return True  # their numbers may hide the loss
    gone = {i for i, h in one.harm if h not in ("copy", "recoded", "overwritten")}
    left = [[z for z in range(one.slices) if p * one.slices + z not in gone] for p in range(one.phases)]
    if any(set(own) - set(left[phase]) for own in left):
        return False
    if one.numbering == "series":
        numbers = {p * one.slices + z + 1 for p in range(one.phases) for z in left[p]}
        return set(range(1, max(numbers) + 1)) <= numbers | numbers_elsewhere(studies, one, numbers)
    return one.numbering == "none" or left[phase] == list(range(len(left[phase]))) or len(left[phase]) < 2


def numbers_elsewhere(studies, one, numbers):
    """Return the numbers in other series of the study, whose numbering one with none of them may continue."""
    found = {}
    for other in studies:
        if (other.patient, other.study) == (one.patient, one.study) and other.uid != one.uid:
            gone = {i for i, how in other.harm if how == "deleted"}
            by_index = {
                "series": lambda i: {i + 1},
                "phase": lambda i, n=other.slices: {i % n + 1},
                "none": lambda _: set(),
            }
            own = [by_index[other.numbering](i) for i in range(other.slices * other.phases) if i not in gone]
            found.setdefault(other.uid, set()).update(*own)
    return set().union(*(own for own in found.values() if not own & numbers))


def check_folders(root, truth, studies):
    for folder in {path.parent for path in root.rglob("*") if path.is_file()}:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                image = read(folder)
            except DataError:
                continue
        assert bool(caught) == bool(image.warning)
        if not any(s.folder != studies[0].folder for s in studies):
            check_image(image, truth, studies)


DISJOINT = tuple((i, "deleted") for i in (0, 2, 5, 7))
STUDIES = several()
NAMES = st.permutations(range(8))


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
@given(STUDIES, NAMES)
@example([Series(patient=0), Series(patient=1, start=4)], list(range(8)))
@example([Series(frame_of_reference=0), Series(frame_of_reference=1, start=4)], list(range(8)))
@example([Series(phases=2, harm=((0, "deleted"), (5, "deleted")))], list(range(8)))
@example([Series(phases=2, numbering="phase", harm=DISJOINT)], list(range(8)))
@example([Series(phases=2, by="kvp", numbering="phase", harm=DISJOINT)], list(range(8)))
@example([Series(phases=2, by="acquisition", numbering="phase", harm=DISJOINT)], list(range(8)))
@example([Series(), Series(uid=0, start=4)], list(range(8)))
@example([Series(harm=((0, "deleted"), (1, "deleted"))), Series(uid=1, slices=2)], list(range(8)))
@example([Series(harm=((0, "deleted"), (1, "deleted"))), Series(patient=1, uid=1, slices=2)], list(range(8)))
def test_117_118_119_no_image_is_mixed_or_incomplete_in_silence(studies, names):
    check(studies, names)


@pytest.mark.slow
@settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
@given(STUDIES, NAMES)
def test_117_118_119_many_random_studies(studies, names):
    check(studies, names)
