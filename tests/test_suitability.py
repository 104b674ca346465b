"""An image of another kind than the model is for is refused, and what cannot be checked is a warning."""

from __future__ import annotations

import contextlib
import copy
import csv
import io
import json
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from make_images import slice_fields, write_dicom, write_nifti, write_png, write_series

import medzoo
from medzoo.cli.main import main
from medzoo.errors import ConfigError, DataError, WrongImage
from medzoo.io.dicom.header import age_of
from medzoo.io.views import view_positions, view_words
from medzoo.transforms.body_parts import body_part
from medzoo.transforms.suitability import ExcludedView, WrongAge, WrongBodyPart, WrongModality, check_kind
from medzoo.transforms.transform import WrongChannels

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
RAMP = np.linspace(0, 255, 40 * 40).reshape(40, 40).astype(np.uint8)
ADULT_CHEST = medzoo.IntendedUse(("CR", "DX"), ("CHEST",), age_range=(18, 90))
SMALL = {"size": 32, "widths": (4, 4, 8, 8), "hidden": 8}


def write(path, pixels, **fields):
    """Write DICOM, of terms too that pydicom warns of."""
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        return write_dicom(path, pixels, **fields)


def xray(use=None, views=()):
    how = medzoo.Preprocessing(size=(32, 32), views=views)
    model = medzoo.create("xray_cnn", preprocessing=how, **SMALL).eval()
    model.intended_use = use
    return model


def outcome(model, source, **options):
    """Return the kind of the error, else the warning of the prediction, which is issued too."""
    expected = pytest.warns(UserWarning, match=":") if options.pop("warns", False) else contextlib.nullcontext()
    try:
        with expected:
            return medzoo.predict(model, source, allow_untrained=True, **options).warning
    except DataError as error:
        return type(error)


@pytest.mark.parametrize("modality", ["CR", "DX", "RG", "dx", " DX", "DR"])
def test_134_an_x_ray_is_accepted(modality, tmp_path):
    assert outcome(xray(), write(tmp_path / "a.dcm", RAMP, Modality=modality)) == ""


@pytest.mark.parametrize("modality", ["CT", "MR", "US", "MG", "PT", "NM", "XA", "PX", "OP", "SM"])
@pytest.mark.parametrize("sop_class", [None, SECONDARY_CAPTURE])
def test_134_another_modality_is_refused(modality, sop_class, tmp_path):
    given = {"SOPClassUID": sop_class} if sop_class else {}
    path = write(tmp_path / "a.dcm", RAMP, Modality=modality, **given)
    message = rf"^{path}: xray_cnn is for CR or DX images, got {modality}\. Use another model, or pass allow_mismatch"
    with pytest.raises(WrongModality, match=message):
        medzoo.predict(xray(), path, allow_untrained=True)
    with pytest.raises(WrongModality, match=message):
        medzoo.transform(xray())(path)


@pytest.mark.parametrize(
    ("suffix", "modality", "agrees"),
    [
        ("2", "DX", False),
        ("4", "CR", False),
        ("1.1", "CR", True),
        ("1", "DX", True),
        ("1.1", "DR", True),
        ("7", "DX", True),
    ],
)
def test_134_a_modality_that_contradicts_the_sop_class_is_a_warning(suffix, modality, agrees, tmp_path):
    path = write(tmp_path / "a.dcm", RAMP, Modality=modality, SOPClassUID=f"1.2.840.10008.5.1.4.1.1.{suffix}")
    message = "The file lacks a Modality that agrees with its SOP class, so it was not checked to be of modality"
    assert outcome(xray(), path, warns=not agrees) == ("" if agrees else f"{path}: {message} CR or DX.")


@pytest.mark.parametrize(
    ("modality", "fault"), [("OT", "has an unknown term in"), ("SC", "has an unknown term in"), ("", "lacks")]
)
def test_134_a_modality_that_cannot_be_checked_is_a_warning(modality, fault, tmp_path):
    path = write(tmp_path / "a.dcm", RAMP, Modality=modality, SOPClassUID=SECONDARY_CAPTURE)
    message = f"{path}: The file {fault} Modality, so it was not checked to be of modality CR or DX."
    assert outcome(xray(), path, warns=True) == message
    assert outcome(xray(), path, strict=True) is medzoo.transforms.transform.ImplausibleValues


@pytest.mark.parametrize(
    ("term", "expected"),
    [
        *[(term, "") for term in ("CHEST", "THORAX", "Tórax", "LUNG", "HEART", "RIB", "STERNUM", "TSPINE", "T-SPINE")],
        *[(term, "") for term in ("CHESTABDOMEN", "CHESTABDPELVIS", "NECKCHEST", "WHOLEBODY", "WHOLE BODY", "SPINE")],
        *[(term, "") for term in ("CHEST PA", "PORT CHEST", "CHEST_TO_PELVIS", "HEAD TO PELVIS", "Brust")],
        *[(term, WrongBodyPart) for term in ("HAND", "SKULL", "HEAD", "KNEE", "ABDOMEN", "PELVIS", "SHOULDER")],
        *[(term, WrongBodyPart) for term in ("CSPINE", "CERVICAL SPINE", "LSPINE", "ABDOMEN^ROUTINE", "LEFT HAND")],
        *[(term, WrongBodyPart) for term in ("HEADNECK", "LOWER LEG", "Knie", "ABDOMENPELVIS")],
        *[(term, "unknown") for term in ("MILLER^ANNA", "HANDLE", "ARMANDO", "???")],
    ],
)
def test_134_body_parts(term, expected, tmp_path):
    path = write(tmp_path / "a.dcm", RAMP, BodyPartExamined=term, SpecificCharacterSet="ISO_IR 192")
    model = xray(medzoo.IntendedUse(("CR", "DX"), ("CHEST",)))
    if expected != "unknown":
        assert outcome(model, path) == expected
    else:
        found = outcome(model, path, warns=True)
        assert (
            found == f"{path}: The file has an unknown term in BodyPartExamined, so it was not checked to be of CHEST."
        )


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [
        ("BRAIN", "HEAD", True),
        ("BRAIN", "SKULL", True),
        ("BRAIN", "ORBIT", False),
        ("ABDOMEN", "LIVER", True),
        ("ABDOMEN", "LSPINE", True),
        ("ABDOMEN", "COLON", True),
        ("ABDOMEN", "PELVIS", False),
        ("PELVIS", "HIP", True),
        ("HAND", "UPPER EXTREMITY", True),
        ("KNEE", "LEG", True),
        ("AORTA", "CHEST", True),
        ("BREAST", "ABDOMEN", False),
        ("CHEST", "胸部", True),
        ("CHEST", "SKULL BASE TO MID THIGH", True),
    ],
)
def test_134_regions(one, other, overlap):
    assert bool(body_part(one).regions & body_part(other).regions) is overlap


@pytest.mark.parametrize(
    "term",
    [
        *("CHESTPA", "CHESTLAT", "CHESTAP", "AIRWAY", "BRYST", "BRYSTKASSE", "HRUDNIK", "CAGE THORACIQUE"),
        *("T\u00d3RAX", "t\u00f3rax pa", "G\u00d6\u011e\u00dcS", "\u80f8\u90e8"),
    ],
)
def test_134_terms_of_the_chest(term, tmp_path):
    chest = body_part("CHEST").regions
    assert body_part(term).regions & chest
    assert body_part(term.encode().decode("latin-1")).regions & chest, "UTF-8 that was read as Latin-1"
    path = write(tmp_path / "a.dcm", RAMP, BodyPartExamined=term.encode().decode("latin-1"))
    assert outcome(xray(medzoo.IntendedUse(("CR", "DX"), ("CHEST",))), path) == ""


def test_134_a_common_word_is_no_body_part():
    assert not body_part("MAIN HOSPITAL").regions
    assert not body_part("MAIN").regions


@pytest.mark.parametrize(
    ("written", "named"),
    [
        ("HART^JOHN", "HEART"),
        ("HERZ^ANNA", "HEART"),
        ("MANO", "HAND"),
        ("CERVICAL SPINE", "CSPINE"),
        ("LIMB", "ARM, LEG"),
        ("ABDO PELV MILLER", "ABDOMEN, PELVIS"),
    ],
)
def test_134_a_message_names_regions_and_no_written_word(written, named, tmp_path):
    path = write(tmp_path / "a.dcm", RAMP, BodyPartExamined=written)
    with pytest.raises(WrongBodyPart, match=rf"is for images of BRAINSTEM, got {named}\. Use"):
        medzoo.predict(xray(medzoo.IntendedUse(body_part=("BRAINSTEM",))), path, allow_untrained=True)


@pytest.mark.parametrize(
    ("age", "refused"), [("017Y", 17), ("018Y", None), ("090Y", None), ("091Y", 91), ("006M", 0), ("216M", None)]
)
def test_134_age(age, refused, tmp_path):
    path = write(tmp_path / "a.dcm", RAMP, BodyPartExamined="CHEST", PatientAge=age)
    if refused is None:
        assert outcome(xray(ADULT_CHEST), path) == ""
        return
    with pytest.raises(WrongAge, match=rf"of patients of 18 to 90 years, got another age \({refused} years\)"):
        medzoo.predict(xray(ADULT_CHEST), path, allow_untrained=True)
    with pytest.warns(UserWarning, match="got another age"):
        found = medzoo.predict(xray(ADULT_CHEST), path, allow_untrained=True, allow_mismatch=True)
    assert f"({refused} years)" not in found.to_json() + found.to_csv()


UNKNOWN = "unknown"


@pytest.mark.parametrize(
    ("age", "without", "with_birth"),
    [
        *[(age, 45, 45) for age in ("045Y", "45Y", "45", "045 Y", "045y", "540M", "46", "44Y")],
        *[(age, UNKNOWN, 45) for age in ("", "Y", "999Y", "131Y", "-05Y", "\u00b2Y", "045A", "45.5Y", "9" * 400 + "Y")],
        *[(age, 0, 45) for age in ("000Y", "0", "000D")],
        *[(age, int(age[:3]), UNKNOWN) for age in ("030Y", "061Y", "130Y")],
        ("003M", 0, UNKNOWN),
    ],
)
def test_134_an_age_and_its_placeholders(age, without, with_birth):
    for born, expected in ((None, without), ("19750101", with_birth)):
        ds = SimpleNamespace(get={"PatientAge": age, "PatientBirthDate": born, "StudyDate": "20200102"}.get)
        found = age_of(ds)
        if expected == UNKNOWN:
            assert found is None
        else:
            assert abs(found - expected) <= 1


@pytest.mark.parametrize(
    ("born", "expected"),
    [("19750101", 45), ("20191201", 0), ("18000101", None), ("20250101", None), ("00000000", None), ("1975", None)],
)
def test_134_an_age_from_the_date_of_birth(born, expected):
    found = age_of(SimpleNamespace(get={"PatientBirthDate": born, "StudyDate": "20200102"}.get))
    assert found is None if expected is None else int(found) == expected


@pytest.mark.parametrize("age", ["045A", "999Y", ""])
def test_134_an_age_that_is_not_usable_is_a_warning(age, tmp_path):
    path = write(tmp_path / "a.dcm", RAMP, BodyPartExamined="CHEST", PatientAge=age, PatientBirthDate=None)
    message = "The file lacks a usable PatientAge, so it was not checked to be of patients of 18 to 90 years."
    assert outcome(xray(ADULT_CHEST), path, warns=True) == f"{path}: {message}"


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        *[(view, "") for view in ("PA", "AP", "pa", "POSTERO_ANTERIOR", "AP SUPINE", "FRONTAL", "CHEST AP")],
        *[(view, ExcludedView) for view in ("LL", "RL", "LATERAL", "LEFT LATERAL", "LLD", "RAO", "MLO")],
        *[(view, "unknown") for view in ("MILLER", "?")],
    ],
)
def test_134_views(view, expected, tmp_path):
    path = write(tmp_path / "a.dcm", RAMP, ViewPosition=view)
    found = outcome(xray(views=("AP", "PA")), path, warns=expected == "unknown")
    if expected == "unknown":
        expected = (
            f"{path}: The file has an unknown term in ViewPosition, so it was not checked to be one of the views "
        )
        expected += "AP, PA."
    assert found == expected


@pytest.mark.parametrize(
    ("one", "other"), [("PA", "LAT"), ("AP", "LATERAL"), ("AP", "AXIAL"), ("PA", "AP"), ("PA", "LLD"), ("LL", "RL")]
)
def test_134_two_views_in_one_text_are_ambiguous_in_either_order(one, other, tmp_path):
    for view in (f"{one} {other}", f"{other}/{one}"):
        found = outcome(xray(views=("AP", "PA")), write(tmp_path / "a.dcm", RAMP, ViewPosition=view), warns=True)
        assert "has an unknown term in ViewPosition, so it was not checked to be one of the views AP, PA." in found


@pytest.mark.parametrize(
    ("view", "positions"),
    [
        *[(view, {"PA"}) for view in ("PA ERECT", "ERECT PA", "P.A.", "POSTERO_ANTERIOR", "FRONTAL PA", "PA FRONTAL")],
        *[(view, {"AP"}) for view in ("AP SUPINE", "SUPINE AP", "Antero-Posterior", "AP LORDOTIC")],
        *[(view, {"LL"}) for view in ("LEFT LATERAL", "LATERAL LEFT", "LL LATERAL", "L LAT")],
        *[(view, {"LLD"}) for view in ("LEFT LATERAL DECUBITUS", "LLD DECUBITUS")],
        *[(view, set()) for view in ("", "ERECT", "PA\u00d1O", "PAAP")],
    ],
)
def test_134_the_words_of_a_view(view, positions):
    assert view_positions(view) == view_positions(view_words(view)) == positions


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("DOE^JOHN", "other"),
        ("DOE^JOHN PA", "PA"),
        ("pa erect", "PA ERECT"),
        ("PA/LAT DOE", "PA LAT"),
        ("DOE\\PA", "other"),
    ],
)
def test_134_of_a_view_only_known_words_reach_results(written, kept, tmp_path):
    path = write(tmp_path / "a.dcm", RAMP, ViewPosition=written)
    image = medzoo.read(path)
    assert image.identity["view"] == kept
    found = medzoo.predict(xray(), path, allow_untrained=True)
    assert "DOE" not in found.to_json() + found.to_csv() + repr(found) + repr(image)
    if kept == "other":
        assert "unknown term in ViewPosition" in outcome(xray(views=("PA",)), path, warns=True)


def test_134_a_uid_that_is_text_is_hashed(tmp_path):
    fields = dict.fromkeys(("StudyInstanceUID", "SeriesInstanceUID"), "DOE^JOHN 1970")
    path = write(tmp_path / "a.dcm", RAMP, **fields)
    other = write(tmp_path / "b.dcm", RAMP, **(fields | {"StudyInstanceUID": "DOE^JANE 1970"}))
    one, two = medzoo.read(path).identity, medzoo.read(other).identity
    assert one["sop"] == "1.2.826.0.1.3680043.8.498.3", "a UID stays"
    assert len(one["study"]) == 12
    assert one["study"] == one["series"] == two["series"] != two["study"]
    for source in (path, [path], tmp_path):
        found = medzoo.predict(xray(), source, allow_untrained=True)
        assert "DOE" not in found.to_json() + found.to_csv()


def test_134_what_a_file_lacks_is_one_warning(tmp_path):
    path = write(tmp_path / "a.dcm", RAMP, PatientBirthDate=None)
    expected = (
        "The file lacks BodyPartExamined, a usable PatientAge and ViewPosition, so it was not checked to be of CHEST, "
        "of patients of 18 to 90 years and one of the views PA."
    )
    assert outcome(xray(ADULT_CHEST, ("PA",)), path, warns=True) == f"{path}: {expected}"


def test_134_formats_without_such_tags_are_not_warned_of(tmp_path):
    model = xray(ADULT_CHEST, ("PA",))
    assert outcome(model, write_png(tmp_path / "a.png", RAMP)) == ""
    assert outcome(model, RAMP[None]) == ""
    assert outcome(model, medzoo.Image(RAMP[None], value_range=(0, 255))) == ""
    assert outcome(model, medzoo.Image(RAMP[None], value_range=(0, 255), modality="CT")) is WrongModality
    assert outcome(model, medzoo.Image(RAMP[None], value_range=(0, 255), body_part="HAND")) is WrongBodyPart


def test_134_a_volume_of_another_modality_is_refused(tmp_path):
    model = medzoo.create("cnn3d_small", **medzoo.describe("cnn3d_small").tiny).eval()
    slices = np.random.default_rng(0).integers(0, 2000, (6, 20, 24)).astype(np.int16)
    write_series(tmp_path / "ct", slices)
    write_series(tmp_path / "mr", slices, Modality="MR", SOPClassUID="1.2.840.10008.5.1.4.1.1.4")
    for folder in ("ct", "mr"):
        assert outcome(model, tmp_path / folder) == "", "the builder is for any modality"
    model.intended_use = medzoo.IntendedUse(("CT",))
    assert outcome(model, tmp_path / "ct") == ""
    assert outcome(model, tmp_path / "mr") is WrongModality
    model.intended_use = medzoo.IntendedUse(("MR",))
    assert outcome(model, tmp_path / "ct") is WrongModality


def test_134_the_weights_come_before_the_builder():
    for name in medzoo.list_models():
        spec = medzoo.describe(name)
        assert spec.intended_use.modality == (("CR", "DX") if spec.input_spec.dims == 2 else ())
        model = medzoo.create(name, **spec.tiny)
        for twin in (model, copy.deepcopy(model), medzoo.optimize(model.eval())):
            assert twin.intended_use == spec.intended_use
    features = medzoo.create("xray_cnn", features_only=True)
    assert medzoo.transform(features).intended_use.modality == ("CR", "DX")


def test_134_the_intended_use_is_saved_and_reset(tmp_path):
    model = xray(ADULT_CHEST).set_outputs()
    model.save_pretrained(tmp_path / "mine")
    again = medzoo.create(f"local-dir:{tmp_path / 'mine'}")
    assert again.intended_use == again.load_report.intended_use == ADULT_CHEST
    with pytest.raises(WrongBodyPart, match="is for images of CHEST, got HAND"):
        medzoo.predict(again, write(tmp_path / "hand.dcm", RAMP, BodyPartExamined="HAND", PatientAge="040Y"))
    for reset in (model, again):
        reset.reset_classifier(3)
        assert reset.intended_use == medzoo.describe("xray_cnn").intended_use
    again.intended_use = medzoo.IntendedUse()
    assert outcome(again, write(tmp_path / "us.dcm", RAMP, Modality="US")) == ""
    with pytest.raises(
        ConfigError, match=r"xray_cnn: expected intended_use to be medzoo\.IntendedUse\(\.\.\.\), got str"
    ):
        again.intended_use = "CT"


def test_134_what_weights_state_does_not_hold_for_a_new_head(tmp_path):
    """An encoder of chest X-rays may get a head for hands."""
    xray(ADULT_CHEST).set_outputs().save_pretrained(tmp_path / "mine")
    with pytest.warns(UserWarning, match="randomly initialised"):
        another = medzoo.create(f"local-dir:{tmp_path / 'mine'}", num_classes=3)
    assert another.load_report.intended_use == ADULT_CHEST
    assert another.intended_use == medzoo.describe("xray_cnn").intended_use
    backbone = medzoo.create(f"local-dir:{tmp_path / 'mine'}", num_classes=0)
    assert backbone.intended_use == medzoo.describe("xray_cnn").intended_use


def test_134_a_mismatch_is_allowed_on_purpose_and_marked(tmp_path):
    path = write(tmp_path / "a.dcm", RAMP, Modality="US")
    message = f"{path}: xray_cnn is for CR or DX images, got US."
    with pytest.warns(UserWarning, match="got US"):
        found = medzoo.predict(xray(), path, allow_untrained=True, allow_mismatch=True)
    assert found.mismatch == found.warning == found.to_dict()["mismatch"] == message
    assert found.probabilities
    (row,) = csv.DictReader(io.StringIO(found.to_csv()))
    assert row["mismatch"] == message
    with pytest.warns(UserWarning, match="got US"):
        prepared = medzoo.transform(xray()).prepare(path, allow_mismatch=True, strict=True)
    assert (prepared.mismatch, prepared.warning) == (message, "")
    with pytest.warns(UserWarning, match="got US"):
        assert medzoo.predict(xray(), path, allow_untrained=True, allow_mismatch=True, strict=True).mismatch == message


def test_134_strict_still_refuses_other_faults_of_an_allowed_mismatch(tmp_path):
    path = write(tmp_path / "a.dcm", RAMP.astype(np.int16), **slice_fields((0, 0, 0)))
    with pytest.raises(DataError, match="HU: this model was not made for CT"):
        medzoo.predict(xray(), path, allow_untrained=True, allow_mismatch=True, strict=True)
    with pytest.warns(UserWarning, match="got CT"):
        found = medzoo.predict(xray(), path, allow_untrained=True, allow_mismatch=True)
    assert found.warning.startswith(f"{found.mismatch} xray_cnn expected the grey levels")


def test_134_all_contradictions_are_named(tmp_path):
    path = write(tmp_path / "a.dcm", RAMP, Modality="CT", BodyPartExamined="HEAD", PatientAge="003Y")
    message = (
        "is for CR or DX images, got CT; is for images of CHEST, got HEAD; is for images of patients of 18 to 90 "
        r"years, got another age \(3 years\)\."
    )
    with pytest.raises(WrongModality, match=message):
        medzoo.predict(xray(ADULT_CHEST), path, allow_untrained=True)


@pytest.mark.parametrize("workers", [0, 2])
def test_134_in_a_folder_they_fail_and_are_counted(workers, tmp_path):
    for i, modality in enumerate(("DX", "CT", "MR", "CR")):
        write(tmp_path / f"{i}.dcm", RAMP, Modality=modality, ViewPosition="PA", SOPClassUID=SECONDARY_CAPTURE)
    write(tmp_path / "lateral.dcm", RAMP, ViewPosition="LL")
    write(tmp_path / "noview.dcm", RAMP)
    (tmp_path / "broken.dcm").write_bytes((tmp_path / "0.dcm").read_bytes()[:-100])
    (tmp_path / "readme.txt").write_text("no image")
    with pytest.warns(UserWarning, match="lacks ViewPosition"):
        found = medzoo.predict(xray(views=("PA",)), tmp_path, allow_untrained=True, num_workers=workers)
    assert found.counts() == {
        "predicted": 3,
        "with_warning": 1,
        "mismatched": 0,
        "failed": {"wrong modality": 2, "cannot be read": 1},
        "skipped": {"a view the weights exclude": 1, "not an image file": 1},
    }
    assert found.summary() == (
        "3 predicted (1 with a warning); 3 failed: 2 wrong modality, 1 cannot be read; 2 skipped: "
        "1 not an image file, 1 a view the weights exclude"
    )
    assert json.loads(found.to_json())["counts"] == found.counts() == found[:].counts()


def test_134_a_series_is_checked_by_its_header():
    found = check_kind(medzoo.Image(RAMP[None], modality="CT"), medzoo.IntendedUse(("QQ",)), ())
    assert not found.contradictions
    assert found.unknown == ["Modality"]
    assert issubclass(WrongModality, WrongImage)
    assert WrongImage.exit_code == 5


@pytest.mark.parametrize(("have", "takes"), [(1, 4), (1, 3), (3, 1), (4, 1), (2, 4)])
def test_128_the_channels_of_a_volume_are_neither_repeated_nor_averaged(have, takes, tmp_path):
    model = medzoo.create("cnn3d_small", in_chans=takes, **medzoo.describe("cnn3d_small").tiny).eval()
    volume = np.random.default_rng(0).normal(size=(have, 20, 20, 20)).astype(np.float32)
    sources = [volume, medzoo.Image(volume)]
    if have == 1:
        sources.append(write_nifti(tmp_path / "a.nii.gz", volume[0]))
    for source in sources:
        with pytest.raises(
            WrongChannels, match=rf"cnn3d_small takes {takes} channels?, got {have}\. .* in_chans={have}"
        ):
            medzoo.predict(model, source, allow_untrained=True)
    right = np.random.default_rng(0).normal(size=(takes, 20, 20, 20)).astype(np.float32)
    assert medzoo.predict(model, right, allow_untrained=True).probabilities


def test_128_a_picture_is_repeated_to_rgb_alone():
    rgb = np.stack([RAMP, RAMP // 2, RAMP])
    for channels, source in ((3, RAMP[None]), (1, rgb), (3, rgb)):
        model = medzoo.create("xray_cnn", in_chans=channels, **SMALL).eval()
        assert medzoo.predict(model, source, allow_untrained=True).probabilities
    model = medzoo.create("xray_cnn", in_chans=4, **SMALL).eval()
    for source in (RAMP[None], rgb):
        with pytest.raises(WrongChannels, match=r"xray_cnn takes 4 channels, got [13]\. Give an array \(c, h, w\)"):
            medzoo.predict(model, source, allow_untrained=True)


def test_134_the_command_line(tmp_path):
    xray().save_pretrained(tmp_path / "mine")

    def run(*options):
        command = ["predict", f"local-dir:{tmp_path / 'mine'}", "--allow-untrained", *map(str, options)]
        return CliRunner().invoke(main, command)

    path = write(tmp_path / "a.dcm", RAMP, Modality="MR", SOPClassUID=SECONDARY_CAPTURE)
    good = write_png(tmp_path / "b.png", RAMP)
    result = run(path)
    assert result.exit_code == 5
    assert "xray_cnn is for CR or DX images, got MR. Use another model, or pass --allow-mismatch" in result.stderr
    assert "medzoo.IntendedUse(...)" in result.stderr
    assert "predicted" not in result.stderr, "a single image needs no summary"
    result = run(path, good)
    assert result.exit_code == 5
    assert result.stderr.splitlines()[-1] == "1 predicted; 1 failed: 1 wrong modality"
    result = run(path, good, "--allow-mismatch")
    assert result.exit_code == 0, result.output
    assert f"another kind of image: these numbers mean nothing ({path}: xray_cnn is for CR or DX" in result.stdout
    assert result.stderr.splitlines()[-1] == "2 predicted (1 with a warning, 1 of another kind than the model's)"
    assert "CR, DX" in CliRunner().invoke(main, ["info", "xray_cnn"]).stdout
