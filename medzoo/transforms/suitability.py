"""Whether an image is of the kind a model is for: its modality, body part, view and the age of its patient.

A contradiction is an error. What the header of a DICOM file lacks, or states in unknown terms, cannot be checked and is
a warning; other formats have no such header. Free text of a header may hold a name, so it is never part of a message.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from medzoo.errors import WrongImage
from medzoo.io.image import Image
from medzoo.io.views import view_positions
from medzoo.provenance import IntendedUse
from medzoo.transforms.body_parts import body_part

__all__ = ["ExcludedView", "Suitability", "WrongAge", "WrongBodyPart", "WrongModality", "check_kind"]

# The defined terms of PS3.3 C.7.3.1.1.1, the retired ones, and forms that are not DICOM's.
_MODALITIES = frozenset({
    "AR", "AU", "BDUS", "BI", "BMD", "CFM", "CR", "CT", "DG", "DMS", "DX", "ECG", "EEG", "EMG", "EOG", "EPS", "ES",
    "GM", "HC", "HD", "IO", "IVOCT", "IVUS", "KER", "LEN", "LS", "M3D", "MG", "MR", "NM", "OAM", "OCT", "OP", "OPM",
    "OPR", "OPT", "OPTBSV", "OPTENF", "OPV", "OSS", "PA", "PT", "PX", "RESP", "RF", "RG", "RTIMAGE", "SM", "SMR",
    "SRF", "STAIN", "TEXTUREMAP", "TG", "US", "VA", "XA", "XC", "AS", "CD", "CF", "CP", "CS", "DD", "DF", "DM",
    "DS", "EC", "FA", "FS", "LP", "MA", "MS", "ST", "VF",
})  # fmt: skip
_MODALITY_FORMS = {
    "DR": "DX", "XR": "DX", "XRAY": "DX", "RX": "DX", "CXR": "DX", "MRI": "MR", "PET": "PT", "ULTRASOUND": "US",
}  # fmt: skip
# Projection radiography by any detector: each is accepted for the other.
_RADIOGRAPHY = frozenset({"CR", "DX", "RG"})


class WrongModality(WrongImage):
    """An image of another modality."""

    reason = "wrong modality"


class WrongBodyPart(WrongImage):
    """An image of another body part."""

    reason = "wrong body part"


class WrongAge(WrongImage):
    """A patient outside of the ages that the weights are for."""

    reason = "patient of another age"


class ExcludedView(WrongImage):
    """A view that the weights were not trained on; in a folder it is skipped."""

    reason = "a view the weights exclude"


@dataclass
class Suitability:
    """What speaks against an image, and what could not be checked.

    Attributes:
        contradictions: by kind, what the model is for and what the file states.
        lacking: keywords of DICOM that the file lacks, or lacks a usable value of.
        unknown: keywords of DICOM whose value is not known here.
        unchecked: what could not be checked for these reasons.
    """

    contradictions: dict[type[WrongImage], str] = field(default_factory=dict)
    lacking: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)

    @property
    def warning(self) -> str:
        """One sentence on what could not be checked; empty if everything was."""
        if not self.unchecked:
            return ""
        parts = [f"lacks {_listed(self.lacking, 'and')}"] if self.lacking else []
        parts += [f"has an unknown term in {_listed(self.unknown, 'and')}"] if self.unknown else []
        return f"The file {' and '.join(parts)}, so it was not checked to be {_listed(self.unchecked, 'and')}."

    def mismatch(self, who: str) -> str:
        """One sentence on the contradictions, without the age of the patient."""
        return f"{who} {'; '.join(self.contradictions.values())}."

    def error(self, label: str, who: str, age: float | None) -> WrongImage | None:
        """Return the error of the contradictions, or ``None``."""
        if not self.contradictions:
            return None
        found = "; ".join(self.contradictions.values())
        if WrongAge in self.contradictions and age is not None:
            found += f" ({int(age)} years)"
        advice = "Use another model, or pass allow_mismatch=True to run it and mark the result"
        if self.contradictions.keys() - {ExcludedView}:
            advice += "; set model.intended_use if it was trained for such images"
        return next(iter(self.contradictions))(f"{label}: {who} {found}. {advice}.")


def check_kind(image: Image, use: IntendedUse, views: Sequence[str]) -> Suitability:
    """Compare what the file of an image states with what a model is for, each only where both are known.

    >>> import numpy as np
    >>> slice_of_ct = Image(np.zeros((1, 4, 4)), modality="CT")
    >>> check_kind(slice_of_ct, IntendedUse(modality=("CR", "DX")), ()).contradictions[WrongModality]
    'is for CR or DX images, got CT'
    """
    found = Suitability()
    has_tags = any(key in image.identity for key in ("study", "series", "sop"))
    _check_modality(found, image, use, has_tags)
    _check_body_part(found, image, use, has_tags)
    _check_age(found, image, use, has_tags)
    _check_view(found, image, views, has_tags)
    return found


def _check_modality(found: Suitability, image: Image, use: IntendedUse, has_tags: bool) -> None:
    if not use.modality:
        return
    wanted, got = {family for term in use.modality for family in _family(term)}, _family(image.modality)
    by_class = _family(image.identity.get("class_modality", ""))
    named = _listed(use.modality, "or")
    if got & wanted and by_class and not by_class & got:
        _note(found, "", "a Modality that agrees with its SOP class", f"of modality {named}", has_tags)
    elif not got & wanted:
        if got & _MODALITIES and wanted & _MODALITIES:
            code = _code(image.modality)
            found.contradictions[WrongModality] = f"is for {named} images, got {code}"
        else:
            _note(found, image.modality, "Modality", f"of modality {named}", has_tags)


def _check_body_part(found: Suitability, image: Image, use: IntendedUse, has_tags: bool) -> None:
    if not use.body_part or image.body_part.upper() in use.body_part:
        return
    wanted, got = [body_part(term) for term in use.body_part], body_part(image.body_part)
    if any(part.regions & got.regions for part in wanted):
        return
    named = _listed(use.body_part, "or")
    if got.regions and all(part.regions for part in wanted):
        found.contradictions[WrongBodyPart] = f"is for images of {named}, got {got.names}"
    else:
        _note(found, image.body_part, "BodyPartExamined", f"of {named}", has_tags)


def _check_age(found: Suitability, image: Image, use: IntendedUse, has_tags: bool) -> None:
    if use.age_range is None:
        return
    youngest, oldest = use.age_range
    years = "of patients of {:g} to {:g} years".format(*use.age_range)
    if image.age is None:
        _note(found, "", "a usable PatientAge", years, has_tags)  # it may be present and unreadable
    elif not youngest - 1e-6 <= image.age < max(oldest, int(oldest) + 1):  # 90.7 is an age of 90 years
        found.contradictions[WrongAge] = f"is for images {years}, got another age"


def _check_view(found: Suitability, image: Image, views: Sequence[str], has_tags: bool) -> None:
    stated = image.identity.get("view", "")
    if not views or stated in views:
        return
    wanted, got = [view_positions(term) for term in views], view_positions(stated)
    if any(view & got for view in wanted):
        return
    named = ", ".join(views)
    if got and all(wanted):
        code = "LATERAL" if got == {"LL", "RL"} else _listed(sorted(got), "or")
        found.contradictions[ExcludedView] = f"was trained on the views {named}, got {code}"
    else:
        _note(found, stated, "ViewPosition", f"one of the views {named}", has_tags)


def _note(found: Suitability, stated: str, keyword: str, expected: str, has_tags: bool) -> None:
    """Note what cannot be checked: a value that is not known, or one that a format with such tags lacks."""
    if stated:
        found.unknown.append(keyword)
    elif has_tags:
        found.lacking.append(keyword)
    else:
        return
    found.unchecked.append(expected)


def _code(term: str) -> str:
    """Return a modality in DICOM's form."""
    plain = re.sub(r"[^A-Z0-9]", "", term.upper())
    return _MODALITY_FORMS.get(plain, plain)


def _family(term: str) -> set[str]:
    """Return the modalities that a term is accepted for; empty for none."""
    code = _code(term)
    return set(_RADIOGRAPHY) if code in _RADIOGRAPHY else {code} - {""}


def _listed(names: Sequence[str], last: str) -> str:
    """Return ``"a, b or c"``.

    >>> _listed(["CR", "DX", "RG"], "or")
    'CR, DX or RG'
    """
    return f" {last} ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
