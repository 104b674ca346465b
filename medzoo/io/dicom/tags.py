"""The tags that distinguish the volumes of one DICOM series or multi-frame file: echoes, phases, b-values, stacks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

__all__ = ["DISTINCTIONS", "Distinction", "distinction_tags", "distinctions_of", "text_of"]

_BINARY = frozenset({"FD", "FL", "SL", "SS", "UL", "US", "SQ", "UN", "OB", "AT", "UV", "SV"})


@dataclass(frozen=True)
class Distinction:
    """One way in which the volumes of a series differ.

    Attributes:
        name: what it is called in messages.
        sources: functional group sequence, or ``""`` for the data set itself, and keyword or private tag.
        use: ``"always"`` separates volumes wherever it differs. ``"duplicates"`` does so only where slices would
            otherwise share a position, ``"time"`` too, and only if each slice position has as many slices.
        expected_equal: whether slices of one volume that differ in it deserve a warning.
    """

    name: str
    sources: tuple[tuple[str, str | int], ...]
    use: Literal["always", "duplicates", "time"] = "duplicates"
    expected_equal: bool = False


def _row(name: str, *sources: str | int, use: Any = "duplicates", equal: bool = False) -> Distinction:
    pairs = (source.rpartition("/") if isinstance(source, str) else ("", "", source) for source in sources)
    return Distinction(name, tuple((group, keyword) for group, _, keyword in pairs), use, equal)


DISTINCTIONS = (
    _row("series number", "SeriesNumber", use="always"),
    _row("stack", "FrameContentSequence/StackID", "StackID", use="always"),
    _row(
        "temporal position", "FrameContentSequence/TemporalPositionIndex", "TemporalPositionIndex",
        "TemporalPositionIdentifier", use="always",
    ),
    _row("echo", "EchoNumbers", use="always"),
    _row("echo time", "MREchoSequence/EffectiveEchoTime", "EffectiveEchoTime", "EchoTime", use="always"),
    _row("b-value", "MRDiffusionSequence/DiffusionBValue", "DiffusionBValue", use="always"),
    _row("gradient direction", "DiffusionGradientOrientation", use="always"),
    _row(
        "cardiac phase", "CardiacSynchronizationSequence/NominalPercentageOfCardiacPhase",
        "NominalPercentageOfCardiacPhase", use="always",
    ),
    _row(
        "respiratory phase", "RespiratorySynchronizationSequence/NominalPercentageOfRespiratoryPhase",
        "NominalPercentageOfRespiratoryPhase", use="always",
    ),
    _row(
        "image type", "MRImageFrameTypeSequence/FrameType", "CTImageFrameTypeSequence/FrameType",
        "PETFrameTypeSequence/FrameType", "XRay3DFrameTypeSequence/FrameType", "FrameType", "ImageType", equal=True,
    ),
    _row(
        "complex component", "MRImageFrameTypeSequence/ComplexImageComponent", "ComplexImageComponent", equal=True
    ),
    _row("kVp", "CTXRayDetailsSequence/KVP", "KVP", equal=True),
    _row("contrast agent", "ContrastBolusAgent", equal=True),
    _row("inversion time", "MRModifierSequence/InversionTimes", "InversionTimes", "InversionTime", equal=True),
    _row("flip angle", "MRTimingAndRelatedParametersSequence/FlipAngle", "FlipAngle", equal=True),
    _row("kernel", "CTReconstructionSequence/ConvolutionKernel", "ConvolutionKernel", equal=True),
    _row("series description", "SeriesDescription", equal=True),
    _row("sequence name", "SequenceName", equal=True),
    _row("private b-value", 0x0019100C, 0x00431039),
    _row("repetition time", "MRTimingAndRelatedParametersSequence/RepetitionTime", "RepetitionTime"),
    _row("dimension", "FrameContentSequence/DimensionIndexValues"),
    _row("acquisition", "FrameContentSequence/FrameAcquisitionNumber", "AcquisitionNumber", use="time"),
    _row("time offset", "TemporalPositionSequence/TemporalPositionTimeOffset", "FrameReferenceTime", use="time"),
    _row(
        "trigger time", "CardiacSynchronizationSequence/NominalCardiacTriggerDelayTime", "TriggerTime", use="time"
    ),
    _row(
        "acquisition time", "FrameContentSequence/FrameAcquisitionDateTime", "AcquisitionDateTime", "AcquisitionTime",
        use="time",
    ),
)  # fmt: skip
"""In the order in which they are tried."""


@cache
def distinction_tags() -> tuple[int, ...]:
    """Return the tags of the data set itself that :func:`distinctions_of` reads."""
    from pydicom.datadict import tag_for_keyword

    keywords = [keyword for one in DISTINCTIONS for group, keyword in one.sources if not group]
    return tuple(int(k) if isinstance(k, int) else int(tag_for_keyword(k) or 0) for k in keywords)


@cache
def _table() -> tuple[tuple[tuple[str, int, str | int], ...], ...]:
    """Return the sources of each distinction as functional group, tag and keyword."""
    from pydicom.datadict import tag_for_keyword

    return tuple(
        tuple((g, int(k) if isinstance(k, int) else int(tag_for_keyword(k) or 0), k) for g, k in one.sources)
        for one in DISTINCTIONS
    )


def distinctions_of(ds: Any, frame: int | None = None) -> tuple[str, ...]:
    """Return the value of each distinction as text, ``""`` where it is absent.

    Args:
        ds: the data set.
        frame: the frame of a multi-frame file, whose functional groups are read first.
    """
    groups = _groups(ds, frame)
    present = {int(tag) for tag in ds.keys()}  # noqa: SIM118
    return tuple(_first(ds, present, groups, sources) for sources in _table())


def _first(ds: Any, present: set[int], groups: tuple[Any, ...], sources: tuple[tuple[str, int, str | int], ...]) -> str:
    for group, tag, keyword in sources:
        if not group:
            if tag in present and (text := text_of(ds, tag)):
                return text
            continue
        for item in groups:
            if (found := item.get(group)) and (text := _plain(found[0].get(keyword))):
                return text
    return _gradient(groups) if groups and sources[0][2] == "DiffusionGradientOrientation" else ""


def _gradient(groups: tuple[Any, ...]) -> str:
    for item in groups:
        for diffusion in item.get("MRDiffusionSequence") or ():
            for direction in diffusion.get("DiffusionGradientDirectionSequence") or ():
                return _plain(direction.get("DiffusionGradientOrientation"))
    return ""


def _groups(ds: Any, frame: int | None) -> tuple[Any, ...]:
    """Return the functional groups of a frame: its own first, then those that all frames share."""
    if 0x52009229 not in ds and 0x52009230 not in ds:
        return ()
    own = ds.get("PerFrameFunctionalGroupsSequence") or ()
    shared = ds.get("SharedFunctionalGroupsSequence") or ()
    return (*own[frame or 0 : (frame or 0) + 1], *shared[:1])


def text_of(ds: Any, tag: int) -> str:
    """Return an element as text that is equal for equal values; text is not decoded, which would cost time."""
    element = ds.get_item(tag)
    value = element.value
    if isinstance(value, bytes):
        from pydicom.datadict import dictionary_VR

        vr = element.VR or dictionary_VR(tag)
        if vr not in _BINARY:
            return _plain(value.decode("latin-1").strip(" \0").split("\\") if value else None)
        value = value if vr == "UN" else ds[tag].value
    return _plain(value)


def _plain(value: Any) -> str:
    if value is None or (isinstance(value, (str, bytes)) and not value):
        return ""
    parts = [value] if isinstance(value, (str, bytes)) or not hasattr(value, "__len__") else list(value)
    return "\\".join(_number(part) for part in parts)


def _number(value: Any) -> str:
    """Return a number as text that is equal for equal numbers, with the digits of a time; other text as it is."""
    text = value.decode("latin-1") if isinstance(value, bytes) else str(value)
    try:
        number = float(text)
    except ValueError:
        return text.strip()
    return f"{number:.6g}" if abs(number) < 1e5 else f"{number:.17g}"
