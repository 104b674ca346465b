"""Write small medical images with the reference libraries, for the tests of the readers.

Axes: d h w depth height width; x y z right, front and head of the patient.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray
from PIL import Image as Pillow
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
)

Array = NDArray[Any]

PATIENT_ID = "MRN-0042"
PATIENT_NAME = "DOE^JANE"
STUDY = "1.2.826.0.1.3680043.8.498.1"
SERIES = "1.2.826.0.1.3680043.8.498.2"


def arrow(height: int = 48, width: int = 64, top: int = 250) -> Array:
    """Return an image with distinct corners: each quarter has its own grey level, and rows differ by up to 3."""
    picture = np.zeros((height, width), np.uint16)
    picture[: height // 2, : width // 2] = top
    picture[: height // 2, width // 2 :] = top // 2
    picture[height // 2 :, : width // 2] = top // 4
    return picture + (np.arange(height, dtype=np.uint16) % 4)[:, None]


def write_png(path: Path, pixels: Array) -> Path:
    Pillow.fromarray(pixels).save(path)
    return path


def dataset(pixels: Array, **fields: Any) -> Dataset:
    """Return a data set with uncompressed pixels ``h w``, ``f h w`` or ``h w 3``.

    Fields override the defaults; a field of ``None`` is omitted.
    """
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = fields.pop("syntax", ExplicitVRLittleEndian)
    colour = pixels.ndim > 2 and pixels.shape[-1] == 3
    frames = pixels.shape[0] if pixels.ndim - colour == 3 else 1
    rows, columns = pixels.shape[-3:-1] if colour else pixels.shape[-2:]
    values = {
        "SOPClassUID": DigitalXRayImageStorageForPresentation,
        "SOPInstanceUID": "1.2.826.0.1.3680043.8.498.3",
        "StudyInstanceUID": STUDY,
        "SeriesInstanceUID": SERIES,
        "PatientID": PATIENT_ID,
        "PatientName": PATIENT_NAME,
        "PatientBirthDate": "19420101",
        "Modality": "DX",
        "PhotometricInterpretation": "RGB" if colour else "MONOCHROME2",
        "SamplesPerPixel": 3 if colour else 1,
        "Rows": rows,
        "Columns": columns,
        "BitsAllocated": 8 * pixels.dtype.itemsize,
        "BitsStored": 8 * pixels.dtype.itemsize,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
    }
    if colour:
        values["PlanarConfiguration"] = 0
    if frames > 1:
        values["NumberOfFrames"] = frames
    values |= fields
    if values["BitsStored"]:
        values.setdefault("HighBit", values["BitsStored"] - 1)
    for keyword, value in values.items():
        if value is not None:
            setattr(ds, keyword, value)
    order = ">" if ds.file_meta.TransferSyntaxUID == ExplicitVRBigEndian else "<"
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    ds.PixelData = data + b"\0" * (len(data) % 2)
    ds["PixelData"].VR = "OW" if pixels.dtype.itemsize > 1 else "OB"
    ds.file_meta.MediaStorageSOPClassUID = values["SOPClassUID"]
    ds.file_meta.MediaStorageSOPInstanceUID = values["SOPInstanceUID"]
    return ds


def save(ds: Dataset, path: Path) -> Path:
    ds.save_as(path, enforce_file_format=True)
    return path


def write_dicom(path: Path, pixels: Array, **fields: Any) -> Path:
    return save(dataset(pixels, **fields), path)


def write_compressed(path: Path, pixels: Array, syntax: UID, **fields: Any) -> Path:
    """Write 8-bit JPEG or lossless JPEG 2000 with Pillow, frame by frame."""
    name, options = {JPEGBaseline8Bit: ("JPEG", {"quality": 95}), JPEG2000Lossless: ("JPEG2000", {"no_jp2": True})}[
        syntax
    ]
    frames = pixels if pixels.ndim == 3 and pixels.shape[-1] != 3 else pixels[None]
    streams = []
    for frame in frames:
        with io.BytesIO() as stream:
            Pillow.fromarray(frame).save(stream, name, **options)
            streams.append(stream.getvalue())
    ds = dataset(pixels, **fields)
    ds.file_meta.TransferSyntaxUID = syntax
    ds.PixelData = encapsulate(streams)
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    return save(ds, path)


def write_jpeg_lossless(path: Path, pixels: Array, **fields: Any) -> Path:
    """Write 16-bit lossless JPEG, which neither pydicom nor Pillow decodes, with SimpleITK."""
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.UseCompressionOn()
    writer.SetCompressor("JPEG")
    writer.SetFileName(str(path))
    writer.Execute(sitk.GetImageFromArray(pixels[None]))
    encoded = pydicom.dcmread(path)
    ds = dataset(pixels, **fields)
    ds.file_meta.TransferSyntaxUID = encoded.file_meta.TransferSyntaxUID
    ds["PixelData"] = encoded["PixelData"]
    return save(ds, path)


def slice_fields(position: tuple[float, float, float], number: int = 1, **fields: Any) -> dict[str, Any]:
    """Return the fields of an axial CT slice at an LPS position."""
    return {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": f"1.2.826.0.1.3680043.8.498.9.{number}",
        "Modality": "CT",
        "InstanceNumber": number,
        "ImagePositionPatient": [float(p) for p in position],
        "ImageOrientationPatient": [1.0, 0.0, 0.0, 0.0, 1.0, 0.0],
        "PixelSpacing": [0.7, 0.9],
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
    } | fields


def write_series(folder: Path, volume: Array, step: float = 2.5, **fields: Any) -> list[Path]:
    """Write ``d h w`` as axial slices, with names and instance numbers in descending order of position."""
    folder.mkdir(parents=True, exist_ok=True)
    count = len(volume)
    paths = []
    for i, pixels in enumerate(volume):
        number = count - i
        given = slice_fields((-20.0, -30.0, 100 + i * step), number) | fields
        paths.append(write_dicom(folder / f"IM{number:04d}", pixels, **given))
    return paths


def write_nifti(path: Path, volume: Array, affine: Array | None = None) -> Path:
    """Write a volume ``x y z``, or ``x y z t``."""
    image = nibabel.Nifti1Image(volume, np.diag([0.7, 0.8, 2.5, 1.0]) if affine is None else affine)
    nibabel.save(image, path)
    return path


def write_metaimage(path: Path, volume: Array, compressed: bool = False, **geometry: Any) -> Path:
    """Write ``z y x`` with LPS geometry: ``spacing``, ``origin``, ``direction``."""
    image = sitk.GetImageFromArray(volume)
    image.SetSpacing(geometry.get("spacing", (0.7, 0.8, 2.5)[: volume.ndim]))
    image.SetOrigin(geometry.get("origin", (10.0, -20.0, 30.0)[: volume.ndim]))
    if "direction" in geometry:
        image.SetDirection(geometry["direction"])
    sitk.WriteImage(image, str(path), compressed)
    return path
