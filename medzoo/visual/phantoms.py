"""Phantoms: a chest X-ray and a chest CT drawn from ellipses, for examples and tests without patient data.

They are realistic enough to check orientation: the heart is on the patient's left, the liver on the right. They are not
meant for anything else.

Axes: h w rows and columns of the X-ray; x y z of the CT, which grow to the right, front and head of the patient.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["draw_ct", "draw_xray", "write_ct", "write_ct_series", "write_xray"]

Array = NDArray[np.float64]


def draw_xray(height: int = 512, width: int = 448) -> NDArray[np.uint8]:
    """Return a frontal chest X-ray as a radiologist sees it, ``h w``, 8-bit: the patient's left is on the right."""
    v, u = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]

    def blob(cu: float, cv: float, ru: float, rv: float, soft: float = 12.0) -> Array:
        """Return 1 inside an ellipse and 0 outside, with a soft edge."""
        return _soft_step(1 - np.hypot((u - cu) / ru, (v - cv) / rv), soft)

    density = 0.62 * blob(0, 0.25, 0.95, 1.35)
    lungs = np.maximum(blob(-0.43, 0.0, 0.33, 0.68), blob(0.43, 0.0, 0.32, 0.66))
    density -= 0.42 * lungs
    density += 0.30 * blob(0.14, 0.28, 0.34, 0.36)  # heart, to the patient's left
    density += 0.24 * blob(-0.35, 0.98, 0.55, 0.42)  # liver, below the right dome of the diaphragm
    density += 0.18 * _soft_step(0.09 - np.abs(u), 40.0)  # spine and mediastinum
    chest = blob(0, 0.1, 0.86, 0.98, soft=30.0)
    for rib in range(8):
        arc = v + 0.72 - 0.21 * rib + 0.24 * (1 - np.abs(u)) ** 2
        density += 0.07 * chest * np.exp(-((arc / 0.022) ** 2))
    for side in (-1, 1):
        clavicle = (v + 0.74) - 0.12 * (side * u - 0.4)
        density += 0.12 * np.exp(-((clavicle / 0.025) ** 2)) * _soft_step(0.32 - np.abs(side * u - 0.45), 40.0)
    noise = np.random.default_rng(0).normal(0, 0.008, density.shape)
    return (255 * np.clip(density + noise, 0, 1)).astype(np.uint8)


def draw_ct(size: tuple[int, int, int] = (128, 112, 40)) -> tuple[NDArray[np.int16], Array]:
    """Return a chest CT ``x y z`` in HU, with voxels of 3 × 3 × 8 mm, and its affine from index to mm in RAS."""
    x, y, z = np.mgrid[-1 : 1 : size[0] * 1j, -1 : 1 : size[1] * 1j, -1 : 1 : size[2] * 1j]

    def inside(cx: float, cy: float, cz: float, rx: float, ry: float, rz: float) -> NDArray[np.bool_]:
        return ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 + ((z - cz) / rz) ** 2 < 1

    hu = np.full(size, -1000.0)
    body = (x / 0.92) ** 2 + (y / 0.78) ** 2 < 1
    hu[body] = 40
    hu[body & ((x / 0.87) ** 2 + (y / 0.72) ** 2 >= 1)] = -90  # fat
    ribs = ((x / 0.80) ** 2 + (y / 0.65) ** 2 < 1) & ((x / 0.75) ** 2 + (y / 0.60) ** 2 >= 1)
    hu[ribs & (np.sin(18 * z + 4 * y) > 0.3)] = 350
    hu[inside(0.38, 0.0, 0.1, 0.32, 0.52, 0.85)] = -850
    hu[inside(-0.38, 0.0, 0.1, 0.30, 0.52, 0.85)] = -850
    hu[inside(-0.14, 0.15, -0.1, 0.30, 0.32, 0.42)] = 45  # heart, to the patient's left
    hu[inside(0.42, 0.05, -0.85, 0.40, 0.50, 0.42)] = 60  # liver, on the right
    hu[inside(0.0, -0.52, 0.0, 0.12, 0.13, 9.0)] = 420  # spine
    hu[inside(0.45, -0.1, 0.35, 0.07, 0.08, 0.10)] = 30  # a nodule in the right lung
    hu += np.random.default_rng(0).normal(0, 12, size)
    affine = np.diag([3.0, 3.0, 8.0, 1.0])
    affine[:3, 3] = [-3.0 * size[0] / 2, -3.0 * size[1] / 2, -8.0 * size[2] / 2]
    return np.round(hu).astype(np.int16), affine


def _soft_step(x: Array, steepness: float) -> Array:
    """Return 0 far below zero and 1 far above."""
    return 1 / (1 + np.exp(-np.clip(steepness * x, -60, 60)))


def write_xray(folder: Path, drawn: NDArray[np.uint8] | None = None) -> Path:
    """Write the X-ray as DICOM, 12 bits stored, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "chest_xray.dcm"
    levels = (draw_xray() if drawn is None else drawn).astype(np.uint16) * 16
    ds = _dicom("1.2.840.10008.5.1.4.1.1.1.1", "DX", levels, bits=12)
    ds.ViewPosition, ds.ImagerPixelSpacing = "PA", [0.8, 0.8]
    ds.save_as(path, enforce_file_format=True)
    return path


def write_ct(folder: Path) -> Path:
    """Write the CT as NIfTI, in HU, and return its path."""
    import nibabel

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "chest_ct.nii.gz"
    hu, affine = draw_ct()
    image = nibabel.Nifti1Image(hu, affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
    return path


def write_ct_series(folder: Path, drawn: tuple[NDArray[np.int16], Array] | None = None) -> Path:
    """Write the CT as a DICOM series, one file per axial slice, and return its folder."""
    series = folder / "chest_ct_dicom"
    series.mkdir(parents=True, exist_ok=True)
    hu, affine = drawn or draw_ct()
    for z in range(hu.shape[2]):
        # Columns run to the patient's left and rows to the back, both opposite to the axes of RAS.
        ds = _dicom("1.2.840.10008.5.1.4.1.1.2", "CT", np.ascontiguousarray(hu[::-1, ::-1, z].T + 1024), 16, z)
        ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = 1, -1024, "HU"
        right, front, up, _ = affine @ (hu.shape[0] - 1, hu.shape[1] - 1, z, 1)
        ds.ImagePositionPatient = [float(-right), float(-front), float(up)]
        ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        ds.PixelSpacing = [float(affine[1, 1]), float(affine[0, 0])]
        ds.SliceThickness = float(affine[2, 2])
        ds.save_as(series / f"slice_{z:03d}.dcm", enforce_file_format=True)
    return series


def _dicom(sop_class: str, modality: str, pixels: NDArray[Any], bits: int, number: int = 0) -> Any:
    """Return a data set with the attributes that every image has; the UIDs are the same in every run."""
    from pydicom import Dataset
    from pydicom.uid import generate_uid

    ds = Dataset()
    ds.SOPClassUID = sop_class
    ds.SOPInstanceUID = generate_uid(entropy_srcs=["medzoo", modality, str(number)])
    ds.SeriesInstanceUID = generate_uid(entropy_srcs=["medzoo", modality, "series"])
    ds.StudyInstanceUID = generate_uid(entropy_srcs=["medzoo", "study"])
    ds.PatientName, ds.PatientID = "DRAWN^BY^MEDZOO", "drawn"
    ds.Modality, ds.InstanceNumber = modality, number + 1
    ds.set_pixel_data(pixels, "MONOCHROME2", bits, generate_instance_uid=False)
    return ds
