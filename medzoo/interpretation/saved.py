"""Write an explanation: a picture, a NIfTI volume on the axes of the image, or an array.

Axes: s spatial axes of the image.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from medzoo.atomic import write_atomically
from medzoo.errors import ConfigError

if TYPE_CHECKING:
    from medzoo.interpretation.explanation import Explanation

__all__ = ["SUFFIXES", "save_explanation"]

_PICTURES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg"}
SUFFIXES = (*_PICTURES, ".nii.gz", ".nii", ".npy")
_DPI = (254, 254)
_SCANNER = 1  # NIFTI_XFORM_SCANNER_ANAT


def save_explanation(explanation: Explanation, path: str | os.PathLike[str]) -> Path:
    """Write what the suffix of ``path`` says, completely or not at all; see :meth:`Explanation.save`."""
    file = Path(path)
    suffix = next((suffix for suffix in SUFFIXES if file.name.lower().endswith(suffix)), None)
    if suffix is None:
        raise ConfigError(
            f"{file}: expected a file that ends in .png or .jpg for a picture, .nii.gz or .nii for a volume, or .npy "
            f"for an array, got {file.name!r}. Rename it."
        )
    if suffix in _PICTURES:
        write = _picture_writer(explanation, _PICTURES[suffix])
    else:
        _check_one_target(explanation, file, suffix)
        write = _array_writer(explanation) if suffix == ".npy" else _volume_writer(explanation, file, suffix)
    try:
        write_atomically(file, write)
    except OSError as error:
        raise ConfigError(
            f"{file}: the map cannot be written ({error.strerror or error}). Name a file in an existing folder you "
            "may write to."
        ) from error
    return file


def _picture_writer(explanation: Explanation, kind: str) -> Callable[[BinaryIO], None]:
    picture = explanation.draw()
    options = {"quality": 92, "subsampling": 0} if kind == "jpeg" else {"compress_level": 4}
    return lambda stream: picture.save(stream, kind, dpi=_DPI, **options)


def _check_one_target(explanation: Explanation, file: Path, suffix: str) -> None:
    if len(explanation.targets) != 1:
        raise ConfigError(
            f"{file}: expected one target for a {suffix} file, got {', '.join(explanation.targets)}. Save each to a "
            f"file of its own: explanation[{explanation.targets[0]!r}].save(...)"
        )


def _array_writer(explanation: Explanation) -> Callable[[BinaryIO], None]:
    values = np.ascontiguousarray(explanation.map)
    return lambda stream: np.save(stream, values, allow_pickle=False)


def _volume_writer(explanation: Explanation, file: Path, suffix: str) -> Callable[[BinaryIO], None]:
    """Return what writes float32 ``*s`` with the affine of the image; a 2D image is a volume of one slice."""
    from nibabel.nifti1 import Nifti1Image

    image = explanation.image
    if image.affine is None:
        raise ConfigError(
            f"{file}: expected an image with a position in the patient, {explanation.prediction.source} has none, so "
            "that no volume can lie on it. Save the array to a .npy file, or a picture to a .png file."
        )
    values = np.asarray(explanation.map, np.float32)
    volume: Any = Nifti1Image(values if values.ndim == 3 else values[..., None], image.affine)
    volume.set_sform(image.affine, code=_SCANNER)
    volume.set_qform(image.affine, code=_SCANNER)  # without shear, which it cannot express
    if not np.allclose(volume.get_qform(), image.affine, rtol=1e-4, atol=1e-2):
        volume.set_qform(None, code=0)
    volume.header.set_xyzt_units("mm")
    text = f"medzoo {explanation.method} {explanation.targets[0]}"
    volume.header["descrip"] = text.encode("ascii", "replace")[:79]

    def write(stream: BinaryIO) -> None:
        if suffix == ".nii":
            volume.to_stream(stream)
            return
        # Without a name and a time the same map is the same bytes.
        with gzip.GzipFile(filename="", fileobj=stream, mode="wb", mtime=0, compresslevel=6) as packed:
            volume.to_stream(packed)

    return write
