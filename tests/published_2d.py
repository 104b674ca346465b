"""Write tiny copies of the published 2D sets: their folders, names, headers and encodings, with random images.

Positive images are brighter, so that a training on them learns something.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from make_images import write_compressed
from PIL import Image as Pillow
from pydicom.uid import JPEGBaseline8Bit, SecondaryCaptureImageStorage, generate_uid

SIDES = (40, 48)

# As in the published files: in the last two columns, a comma without quotes; in the older file, one more at the end.
HEADER_2017 = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
)
HEADER_V2020 = HEADER_2017.replace("Gender", "Sex").rstrip(",")
FINDINGS_SMALL = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis", "Hernia",
    "Infiltration", "Mass", "Nodule", "PatientId", "Pleural_Thickening", "Pneumonia", "Pneumothorax",
)  # fmt: skip
"""The columns after ``Image``: the patient stands between findings."""


def picture(seed: int, bright: bool, sides: tuple[int, int] = SIDES) -> Any:
    """Return random grey values ``h w`` from 0 to 255, mostly high or mostly low; no two seeds give the same."""
    return (255 * np.random.default_rng(seed).random(sides) ** (0.5 if bright else 2)).astype(np.uint8)


def write_nih(
    root: Path, patients: int = 20, *, older: bool = True, lists: bool = True, folders: Sequence[str] = ()
) -> Path:
    """Write ChestX-ray14 with two images of each patient, of which every third has findings; return the folder.

    Args:
        root: a new folder.
        patients: numbered from 1; the last quarter is in the test list.
        older: the CSV file of 2017, with ages such as 058Y and 414, rather than that of 2020.
        lists: whether the official lists are there.
        folders: of the images, in turns; ``images_001/images`` and ``images_002/images`` by default.
    """
    inside = list(folders or ("images_001/images", "images_002/images"))
    lines, parts = [HEADER_2017 if older else HEADER_V2020], {"train_val_list.txt": [], "test_list.txt": []}
    for patient in range(1, patients + 1):
        for follow_up in range(2):
            name = f"{patient:08d}_{follow_up:03d}.png"
            found = patient % 3 == 0
            labels = ("Cardiomegaly|Pleural_Thickening" if follow_up else "Effusion") if found else "No Finding"
            age = ["058Y", "414", "11M", "57"][patient % 4] if older else "57"
            view, sex = "PA" if patient % 2 else "AP", "M" if patient % 5 else "F"
            tail = "2682,2749,0.14300000000000002,0.14300000000000002" + "," * older
            lines.append(f"{name},{labels},{follow_up},{patient},{age},{sex},{view},{tail}")
            grey = picture(2 * patient + follow_up, found)
            where = root / inside[patient % len(inside)] / name
            where.parent.mkdir(parents=True, exist_ok=True)
            image = Pillow.fromarray(grey)
            (image.convert("RGBA") if patient == 2 else image).save(where)
            parts["test_list.txt" if patient > 3 * patients // 4 else "train_val_list.txt"].append(name)
    (root / ("Data_Entry_2017.csv" if older else "Data_Entry_2017_v2020.csv")).write_text("\n".join(lines) + "\n")
    (root / "BBox_List_2017.csv").write_text("Image Index,Finding Label,Bbox [x,y,w,h],,,\n")
    for name, images in parts.items():
        if lists:
            (root / name).write_text("\n".join(images))  # the published lists end without a line break
    return root


def write_small(root: Path, shared: int = 2) -> Path:
    """Write the small copy of Coursera's course; ``shared`` patients are in both train and valid."""
    (root / "images-small").mkdir(parents=True)
    parts = {"train-small": range(1, 25), "valid-small": range(25 - shared, 33), "test": range(33, 41)}
    for part, patients in parts.items():
        rows = [",".join(("Image", *FINDINGS_SMALL))]
        for patient in patients:
            follow_up = {"train-small": 0, "valid-small": 1, "test": 2}[part]
            name, found = f"{patient:08d}_{follow_up:03d}.png", patient % 3 == 0
            Pillow.fromarray(picture(3 * patient + follow_up, found)).save(root / "images-small" / name)
            positive = {"Effusion", "Pneumonia"} if found else set()
            cells = [str(patient) if c == "PatientId" else str(int(c in positive)) for c in FINDINGS_SMALL]
            rows.append(",".join((name, *cells)))
        (root / f"{part}.csv").write_text("\n".join(rows) + "\n")
    return root


def write_rsna_image(path: Path, pixels: Any, **fields: Any) -> Path:
    """Write an image as the challenge has it: JPEG baseline, 8 bits, MONOCHROME2, an age without its unit."""
    uids = {f"{kind}InstanceUID": generate_uid(entropy_srcs=[kind, path.stem]) for kind in ("Study", "Series", "SOP")}
    given = {
        **uids,
        "SOPClassUID": SecondaryCaptureImageStorage,
        "Modality": "CR",
        "BodyPartExamined": "CHEST",
        "ConversionType": "WSD",
        "PatientID": path.stem,
        "PatientName": path.stem,
        "PatientBirthDate": None,
        "PatientSex": "F",
        "PatientAge": "51",
        "ViewPosition": "PA",
        "PixelSpacing": [0.143, 0.143],
        **fields,
    }
    with pydicom.config.disable_value_validation():
        return write_compressed(path, pixels, JPEGBaseline8Bit, **given)


def rsna_id(image: int) -> str:
    """Return the id of an image, a UUID in the published set."""
    return f"{image:08x}-8a43-4b1c-9e9f-{image * 77777:012x}"


def nih_patient(image: int) -> int:
    """Return the NIH patient of an image: two images of each."""
    return 1 + image // 2


def write_rsna(root: Path, images: int = 36, *, mapping: bool = False, classes: bool = True) -> Path:
    """Write the training set of the challenge, with one to four boxes in positive images; return the folder.

    Args:
        root: a new folder.
        images: every third is positive; two are of one NIH patient.
        mapping: whether the mapping is beside the CSV files.
        classes: whether the file of classes is there.
    """
    (root / "stage_2_train_images").mkdir(parents=True)
    (root / "stage_2_test_images").mkdir()
    rows, kinds = ["patientId,x,y,width,height,Target"], ["patientId,class"]
    for image in range(images):
        positive, name = image % 3 == 0, rsna_id(image)
        write_rsna_image(
            root / "stage_2_train_images" / f"{name}.dcm", picture(image, positive),
            ViewPosition="AP" if positive else "PA", PatientSex="M" if image % 2 else "F",
            PatientAge="151" if image == 5 else str(20 + image),
        )  # fmt: skip
        boxes = 1 + image % 4 if positive else 1
        kind = "Lung Opacity" if positive else ["Normal", "No Lung Opacity / Not Normal"][image % 2]
        rows += [f"{name},{9 * b}.0,5.0,10.0,12.0,1" if positive else f"{name},,,,,0" for b in range(boxes)]
        kinds += [f"{name},{kind}"] * boxes
    write_rsna_image(root / "stage_2_test_images" / f"{rsna_id(images)}.dcm", picture(images, False))
    (root / "stage_2_train_labels.csv").write_text("\n".join(rows) + "\n")
    (root / "stage_2_sample_submission.csv").write_text("patientId,PredictionString\n")
    (root / "GCP Credits Request Link - RSNA.txt").write_text("a link\n")
    if classes:
        (root / "stage_2_detailed_class_info.csv").write_text("\n".join(kinds) + "\n")
    if mapping:
        write_mapping(root / "pneumonia-challenge-dataset-mappings_2018.json", range(images + 1))
    return root


def write_mapping(path: Path, images: Sequence[int]) -> Path:
    """Write the mapping of images to those of the NIH, with the keys of the published one."""
    records = [
        {
            "subset_img_id": rsna_id(image),
            "subset_group": "pneumonia",
            "img_id": f"{nih_patient(image):08d}_{image % 2:03d}.png",
            "orig_labels": ["Infiltration", "Pneumonia"],
            "subset_init_label": 1,
            "StudyInstanceUID": f"1.2.276.0.7230010.3.1.2.8323329.{image}",
            "SeriesInstanceUID": f"1.2.276.0.7230010.3.1.3.8323329.{image}",
            "SOPInstanceUID": f"1.2.276.0.7230010.3.1.4.8323329.{image}",
        }
        for image in images
    ]  # fmt: skip
    path.write_text(json.dumps(records))
    return path


KERMANY: Mapping[str, Sequence[str]] = {
    "train/NORMAL": [f"IM-0{115 + i}-0001" for i in range(8)]
    + [f"NORMAL2-IM-1{427 + i}-0001" for i in range(4)]
    + ["IM-0434-0001-0002", "NORMAL2-IM-0840-0001-0003"],
    "train/PNEUMONIA": [f"person{i}_bacteria_{i + 2}" for i in range(1, 11)]
    + ["person3_virus_17", "person3_virus_18", "person447_virus_921_1"]
    + [f"person{i}_virus_{i + 40}" for i in range(20, 25)],
    "val/NORMAL": ["NORMAL2-IM-1430-0001"],
    "val/PNEUMONIA": ["person1946_bacteria_4874"],
    "test/NORMAL": [f"IM-000{i}-0001" for i in range(1, 6)],
    "test/PNEUMONIA": ["person3_bacteria_11", "person20_bacteria_60", *(f"person{i}_virus_6" for i in range(60, 64))],
}
"""Names as they are published, by folder: number 3 is in train with both subtypes and in test with one of them."""


def write_kermany(root: Path, *, nested: bool = True, val: bool = True, names: Any = KERMANY) -> Path:
    """Write the tree of Kaggle's archive, in itself and with ``__MACOSX``; return the folder it was unpacked to."""
    top = root / "chest_xray"
    copies = [top, top / "chest_xray"] if nested else [top]
    for number, (folder, stems) in enumerate(names.items()):
        for i, stem in enumerate(stems if val or not folder.startswith("val") else ()):
            grey = picture(100 * number + i, "PNEUMONIA" in folder)
            image = Pillow.fromarray(grey)
            for copy in copies:
                (copy / folder).mkdir(parents=True, exist_ok=True)
                colour = "PNEUMONIA" in folder and i % 3 == 0
                (image.convert("RGB") if colour else image).save(copy / folder / f"{stem}.jpeg", quality=95)
            if nested:
                fork = top / "__MACOSX" / folder / f"._{stem}.jpeg"
                fork.parent.mkdir(parents=True, exist_ok=True)
                fork.write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X        ")
    (top / "train" / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    return root


def write_medmnist(
    path: Path, sides: Sequence[int] = (28, 28), classes: int = 2, columns: int = 1, n: int = 30
) -> Path:
    """Write a file of MedMNIST with n training images, and a third of it for each other part; return the path.

    Args:
        path: its name has the flag.
        sides: of an image, with 3 for colours.
        classes: labels are 0 to classes - 1, in turns.
        columns: of labels; several are of 0 and 1.
        n: training images.
    """
    arrays: dict[str, Any] = {}
    for number, (part, count) in enumerate({"train": n, "val": n // 3, "test": n // 3}.items()):
        labels = np.arange(count)[:, None] % classes if columns == 1 else np.eye(columns)[np.arange(count) % columns]
        rng = np.random.default_rng(number)
        power = np.where(labels[:, 0] > 0, 0.5, 2.0).reshape(-1, *[1] * len(sides))
        arrays[f"{part}_images"] = (255 * rng.random((count, *sides)) ** power).astype(np.uint8)
        arrays[f"{part}_labels"] = labels.astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)
    return path
