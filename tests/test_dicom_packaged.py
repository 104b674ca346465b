"""Every DICOM file that pydicom ships: pydicom's own values after the documented steps, or refused with its cause.

What pydicom cannot decode with the packages that medzoo depends on is compared with imagecodecs.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
from pydicom.encaps import generate_frames
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, pixel_array

from medzoo.errors import DataError
from medzoo.io.options import ReadOptions
from medzoo.io.read import read_image

ROOT = Path(pydicom.__file__).parent / "data"
NOT_DICOM = (".py", ".pyc", ".json", ".dump", ".txt", ".md", ".icc", ".gz", ".dat")
FILES = sorted(p for p in ROOT.rglob("*") if p.is_file() and p.suffix not in NOT_DICOM and p.name != "README")

REFUSED = {
    r"found a DICOM object without pixels": 59,
    r"found a colour palette": 8,
    r"found a DICOMDIR\. Give the files it lists": 8,
    r"found a dose map": 7,
    r"found what may be DICOM without its preamble, whose encoding is not known": 3,
    r"found a structured report": 3,
    r"found a segmentation": 2,
    r"found a treatment plan": 2,
    r"Rows \(0028,0010\) is missing": 2,
    r"found other bytes": 1,  # no preamble, and a space before the first element
    r"found a waveform": 1,
    r"expected 8192 bytes of pixels, found 8130": 1,
    r"the header declares 1024 × 256 × 1, the codestream of frame 0 1024 × 3722445056 × 1": 1,
}
"""How many files are refused for which cause."""

EQUAL, WARNED = 94, {}
"""How many files are equal to pydicom's values, and which of them are read with a warning."""


def expected(path: Path):
    """Return the values ``c (f) h w`` by pydicom's functions, in medzoo's documented order of steps."""
    ds = pydicom.dcmread(path)
    array = stored(ds)
    modality = ds.get("Modality") or {"1.2.840.10008.5.1.4.1.1.2": "CT"}.get(ds.SOPClassUID)
    if ds.PhotometricInterpretation == "PALETTE COLOR":
        return np.moveaxis(apply_color_lut(array, ds)[..., :3], -1, 0)
    if ds.SamplesPerPixel == 3:
        return np.moveaxis(array, -1, 0)
    array = apply_modality_lut(array, ds)
    if modality not in ("CT", "PT", "NM", "MR"):
        array = apply_voi_lut(array, ds)
    if ds.PhotometricInterpretation == "MONOCHROME1" and modality not in ("CT", "PT", "NM"):
        slope, intercept = ds.get("RescaleSlope", 1), ds.get("RescaleIntercept", 0)
        array = (2**ds.BitsStored - 1) * slope + 2 * intercept - array
    return array[None]


def stored(ds):
    """Return pydicom's own pixels, as RGB, or imagecodecs' of a codec that pydicom does not decode by itself."""
    try:
        return pixel_array(ds)
    except RuntimeError:
        frames = list(generate_frames(ds.PixelData, number_of_frames=int(ds.get("NumberOfFrames", 1))))
        decode = imagecodecs.jpegls_decode if "JPEG-LS" in ds.file_meta.TransferSyntaxUID.name else decode_other
        arrays = [decode(frame) for frame in frames]
        array = np.stack(arrays) if len(arrays) > 1 else arrays[0]
        return array.view(np.int16) if ds.PixelRepresentation and array.itemsize == 2 else array


def decode_other(frame):
    """Decode JPEG, or the JPEG 2000 that Pillow does not."""
    if frame[:2] != b"\xff\xd8":
        return imagecodecs.jpeg2k_decode(frame)
    return imagecodecs.jpeg8_decode(frame)


def outcome(path: Path) -> tuple[str, str]:
    """Return ``"equal"``, ``"different"`` or the cause of the refusal; and the warning."""
    try:
        image = read_image(path, ReadOptions())
    except DataError as error:
        causes = [cause for cause in REFUSED if re.search(cause, str(error))]
        return (causes[0] if causes else str(error)), ""
    want = expected(path)
    if want.shape[0] == 3 and image.array.shape[0] == 1:
        want = want[:1]
    lossy = 1 if image.array.dtype.kind == "f" or path.name.startswith(("JPGE", "JPEG-lossy")) else 0
    equal = want.shape == image.array.shape and np.abs(want.astype(float) - image.array).max() <= lossy
    return ("equal" if equal else "different"), image.warning


def test_every_packaged_file_is_equal_or_refused_with_its_cause():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's about its own odd files
        outcomes = {path.relative_to(ROOT).as_posix(): outcome(path) for path in FILES}
    assert [name for name, (result, _) in outcomes.items() if result not in ("equal", *REFUSED)] == []
    assert Counter(result for result, _ in outcomes.values()) == {"equal": EQUAL} | REFUSED
    assert {name: warning for name, (_, warning) in outcomes.items() if warning} == WARNED
