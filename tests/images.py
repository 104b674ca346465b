"""Small X-rays with labels and patients, for the tests of training."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ["OPTIONS", "write_images"]

# What makes xray_cnn quick on them.
OPTIONS = {
    "model": "xray_cnn",
    "size": 32,
    "batch": 4,
    "cache": "off",
    "model.options": {"widths": [4, 4, 8, 8], "hidden": 8},
}


def write_images(folder: Path, patients: int = 30, each: int = 2) -> Path:
    """Write PNG files of 32 × 32 and a table ``n.csv``, in which every third patient is positive; return the table."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    with (folder / "n.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "grade", "pid", "site"])
        for patient in range(patients):
            for image in range(each):
                name = f"{patient}_{image}.png"
                Image.fromarray(rng.integers(0, 256, (32, 32), np.uint8)).save(folder / "images" / name)
                rows.writerow([name, int(patient % 3 == 0), f"p{patient}", "AB"[patient % 2]])
    return folder / "n.csv"
