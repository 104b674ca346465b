"""The published layouts of LUNA16, NSCLC Radiogenomics and RSNA-MICCAI MGMT, small, written with the real libraries.

What is in the files is returned, computed by these libraries and not by medzoo.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk  # noqa: N813
from make_images import slice_fields, write_dicom
from pydicom.uid import MRImageStorage, PositronEmissionTomographyImageStorage

__all__ = ["Candidate", "write_egfr", "write_egfr_case", "write_luna16", "write_mgmt", "write_rows", "write_seg"]

ROOT = "1.3.6.1.4.1.14519.5.2.1.6279.6001"
CANDIDATE = ("seriesuid", "coordX", "coordY", "coordZ", "class")
NODULE = ("seriesuid", "coordX", "coordY", "coordZ", "diameter_mm")
FLIPPED = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)


@dataclass(frozen=True)
class Candidate:
    """A row of candidates_V2.csv.

    Attributes:
        series: the seriesuid.
        index: voxel ``x y z`` of the scan, which is bright where the class is 1.
        point: LPS mm, as SimpleITK computes it.
        positive: the class.
    """

    series: str
    index: tuple[int, int, int]
    point: tuple[float, float, float]
    positive: int


def write_rows(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> Path:
    """Write a CSV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def write_luna16(
    folder: Path, scans: int = 6, positives: int = 2, negatives: int = 6, csvs: str = ""
) -> list[Candidate]:
    """Write scans in subset0, subset1…, one of them flipped and every second one compressed, and the CSV files.

    Each nodule has two candidates, and the last nodule of the last scan has none.
    """
    rng = np.random.default_rng(0)
    found: list[Candidate] = []
    nodules = []
    for i in range(scans):
        uid = f"{ROOT}.{10**29 + i}"
        volume = rng.normal(-800, 60, (26, 44, 44)).astype(np.int16)  # z y x
        places = rng.permutation([(x, y, z) for x in (8, 20, 32) for y in (8, 20, 32) for z in (6, 13, 20)])
        for x, y, z in places[:positives]:
            volume[z - 1 : z + 2, y - 1 : y + 2, x - 1 : x + 2] = 100
        image = sitk.GetImageFromArray(volume)
        image.SetSpacing((1.6, 1.6, 2.5))
        image.SetOrigin((-30.0 - i, 42.0, -310.5))
        if i == 1:
            image.SetDirection(FLIPPED)
        path = folder / f"subset{i}" / f"{uid}.mhd"
        path.parent.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(image, str(path), i % 2 == 1)
        for k, place in enumerate(places[: positives + negatives].tolist()):
            is_positive = k < positives
            indices = [place, [place[0] + 1, *place[1:]]] if is_positive else [place]
            nodule = image.TransformIndexToPhysicalPoint(place)
            if is_positive:
                nodules.append((uid, *nodule, 6.0))
            missed = i == scans - 1 and k == positives - 1
            found += [
                Candidate(uid, tuple(at), image.TransformIndexToPhysicalPoint(at), int(is_positive))
                for at in indices if not missed
            ]  # fmt: skip
    order = rng.permutation(len(found)).tolist()  # the real file is not sorted by scan
    found = [found[at] for at in order]
    write_rows(folder / csvs / "candidates_V2.csv", CANDIDATE, [(c.series, *c.point, c.positive) for c in found])
    write_rows(folder / csvs / "annotations.csv", NODULE, nodules)
    return found


def write_series(folder: Path, volume: np.ndarray, *, uid: str, frame: str, patient: str, modality: str = "CT",
                 number: int = 2, step: float = 5.0, spacing: float = 4.0, **fields: object) -> list[Path]:  # fmt: skip
    """Write ``d h w`` as TCIA does, 1-001.dcm …, from head to feet."""
    folder.mkdir(parents=True)
    classes = {"MR": MRImageStorage, "PT": PositronEmissionTomographyImageStorage}
    paths = []
    for i, pixels in enumerate(volume[::-1], 1):
        position = (-48.0, -40.0, -100.0 + step * (len(volume) - i))
        given = slice_fields(position, i) | {
            "SOPInstanceUID": f"{uid}.{i}", "SeriesInstanceUID": uid, "StudyInstanceUID": f"{frame}.1",
            "FrameOfReferenceUID": frame, "PatientID": patient, "PatientName": f"{patient}^", "Modality": modality,
            "PixelSpacing": [spacing, spacing], "SliceThickness": step, "SeriesNumber": number,
            "Manufacturer": "ACME", "PatientSex": "F", "StudyDate": "19900906", "StudyTime": "120000",
            "AccessionNumber": "1", "StudyID": "1", "PatientBirthDate": "", "ReferringPhysicianName": "",
        } | fields  # fmt: skip
        if modality in classes:
            given["SOPClassUID"] = classes[modality]
        paths.append(write_dicom(folder / f"1-{i:03d}.dcm", pixels, **given))
    return paths


def write_seg(
    path: Path, files: Sequence[Path], masks: Sequence[np.ndarray], labels: Sequence[str], kind: str = "BINARY"
) -> Path:  # fmt: skip
    """Write a SEG object of one segment per mask, each ``d h w`` in the order of the files, with highdicom."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    algorithm = hd.AlgorithmIdentificationSequence("a person", codes.DCM.ArtificialIntelligence, "1")
    segments = [
        hd.seg.SegmentDescription(
            i, label, codes.SCT.MorphologicallyAbnormalStructure,
            codes.SCT.Neoplasm if "umo" in label else codes.SCT.Lung, hd.seg.SegmentAlgorithmTypeValues.SEMIAUTOMATIC,
            algorithm,
        )
        for i, label in enumerate(labels, 1)
    ]  # fmt: skip
    pixels = np.stack(masks, axis=-1).astype(float if kind == "FRACTIONAL" else np.uint8)
    seg = hd.seg.Segmentation(
        [pydicom.dcmread(file) for file in files], pixels,
        hd.seg.SegmentationTypeValues[kind], segments, hd.UID(), 1000, hd.UID(), 1, "QIICR", "slicer", "1", "1",
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    seg.save_as(path)
    return path


def write_egfr_case(folder: Path, case: str, number: int, *, seg: bool = True, mutant: bool = False) -> np.ndarray:
    """Write the series of a case, with PET and SEG beside two CTs and a localizer; return the tumour's centre in LPS.

    The tumour of a mutant is brighter, so that there is something to learn.
    """
    uid, frame = f"1.2.826.0.1.3680043.8.498.70.{number}", f"1.2.826.0.1.3680043.8.498.71.{number}"
    study = folder / case / "09-06-1990-NA-CT CHEST ABD PELVIS WITH CON-98785"
    rng = np.random.default_rng(number)
    volume = rng.integers(80, 200, (12, 24, 24)).astype(np.uint16)  # air, as the intercept is -1024
    z, y, x = (int(rng.integers(4, 7)), *rng.integers(8, 14, 2).tolist())
    mask = np.zeros(volume.shape, bool)
    mask[z : z + 3, y : y + 4, x : x + 5] = True
    mask[z, y, x] = False  # a box that is not full has the same box
    volume[mask] = 1300 if mutant else 900
    common = {"frame": frame, "patient": case}
    files = write_series(study / "3.000000-THORAX 1.0-28595", volume, uid=f"{uid}.3", number=3, **common)
    write_series(study / "2.000000-ABD-12345", volume[::2], uid=f"{uid}.2", number=2, step=10.0, **common)
    write_series(
        study / "1.000000-SCOUT-1", volume[:3], uid=f"{uid}.1", number=1,
        ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], **common,
    )  # fmt: skip
    write_series(study / "5.000000-PET-5", np.repeat(volume, 2, 0), uid=f"{uid}.5", modality="PT", step=2.5, **common)
    if seg:
        write_seg(study / "1000.000000-3D Slicer segmentation result-1" / "1-1.dcm", files, [mask[::-1]], ["Tumor"])
    return np.array([-48 + 4 * (x + 2), -40 + 4 * (y + 1.5), -100 + 5 * (z + 1)])


EGFR_COLUMNS = (
    "Case ID", "Patient affiliation", "Age at Histological Diagnosis", "Weight (lbs)", "Gender", "Ethnicity",
    "Smoking status", "Pack Years", "Quit Smoking Year", "%GG", "Tumor Location (choice=RUL)", "Histology ",
    "Pathological T stage", "Pleural invasion (elastic, visceral, or parietal)", "EGFR mutation status",
    "KRAS mutation status", "CT Date",
)  # fmt: skip


def egfr_row(case: str, status: str, number: int = 0) -> list[str]:
    """Return a row of the clinical table."""
    sex, smoker = ("Female", "Male")[number % 2], ("Nonsmoker", "Former", "Current")[number % 3]
    return [
        case, "Stanford", str(50 + number), "170", sex, "Caucasian", smoker, "20", "Not Collected", ">0 - 25%",
        "Unchecked", "Adenocarcinoma", "T1a", "No", status, "Wildtype", "9/6/1990",
    ]  # fmt: skip


def write_egfr(folder: Path, cases: int = 6) -> dict[str, np.ndarray]:
    """Write cases of which every third is a mutant, the last known one without SEG, and two of unknown status."""
    images = folder / "manifest-1622561851074" / "NSCLC Radiogenomics"
    centres, rows = {}, []
    for i in range(cases):
        case = f"{'AMC' if i % 2 else 'R01'}-{i:03d}"
        mutant = i % 3 == 0
        centres[case] = write_egfr_case(images, case, i, seg=i < cases - 1, mutant=mutant)
        rows.append(egfr_row(case, "Mutant" if mutant else "Wildtype", i))
    rows += [egfr_row("R01-100", "Unknown"), egfr_row("R01-101", "Not collected")]
    write_rows(folder / "NSCLCR01Radiogenomic_DATA_LABELS_2018-05-22_1500-shifted.csv", EGFR_COLUMNS, rows)
    write_rows(images.parent / "metadata.csv", ("Series UID", "Subject ID", "Modality"), [("1.2", "R01-000", "CT")])
    return centres


def write_mgmt(
    folder: Path, cases: Sequence[str] = ("00000", "00002", "00009", "00109", "00123", "00709", "01010"),
    sequences: Sequence[str] = ("FLAIR", "T1w"), slices: int = 7, side: int = 20,
) -> None:  # fmt: skip
    """Write the layout of Kaggle; numbers start at 3, have gaps, and run against the positions.

    The first and last slices are blank, and a voxel of slice k in the order of positions is 100 · k at most.
    """
    nested = folder / "rsna-miccai-brain-tumor-radiogenomic-classification"
    rng = np.random.default_rng(0)
    for n, case in enumerate(cases):
        for m, sequence in enumerate(sequences):
            where = nested / "train" / case / sequence
            where.mkdir(parents=True)
            for k in range(slices):
                pixels = np.zeros((side, side), np.uint16)
                if 0 < k < slices - 1:
                    pixels[4:-4, 4:-4] = rng.integers(50 * k, 100 * k, (side - 8, side - 8))
                fields = slice_fields((-30.0, -35.0, 10.0 + 5 * k), k + 1) | {
                    "SOPClassUID": MRImageStorage, "Modality": "MR", "PatientID": case, "PatientName": case,
                    "SOPInstanceUID": f"1.2.826.0.1.3680043.8.498.80.{n}.{m}.{k + 1}",
                    "SeriesInstanceUID": f"1.2.826.0.1.3680043.8.498.81.{n}.{m}", "PixelSpacing": [3.0, 3.0],
                    "StudyInstanceUID": f"1.2.826.0.1.3680043.8.498.82.{n}", "RescaleIntercept": None,
                    "RescaleSlope": None, "FrameOfReferenceUID": f"1.2.826.0.1.3680043.8.498.83.{n}.{m}",
                }  # fmt: skip
                write_dicom(where / f"Image-{3 + 2 * (slices - k)}.dcm", pixels, **fields)
    test = nested / "test" / "00001" / "FLAIR"
    test.mkdir(parents=True)
    (test / "Image-1.dcm").write_bytes(b"not read")
    (nested / "__MACOSX" / "train" / cases[0]).mkdir(parents=True)
    write_rows(nested / "train_labels.csv", ("BraTS21ID", "MGMT_value"), [(c, i % 2) for i, c in enumerate(cases)])
