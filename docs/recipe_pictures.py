"""Draw what the networks of the recipes get, from real scans, for the pages of the recipes.

    MEDZOO_DATA=DATA python docs/recipe_pictures.py

DATA holds ``chest_ct`` (one patient of Lung-PET-CT-Dx, with ``tumour_boxes.csv``: boxes in pixels, by SOP instance) and
``brain_mr`` (one patient of Brain-Tumor-Progression).
"""  # fmt: skip

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray

import medzoo
from medzoo.io.image import Image, voxel_sizes
from medzoo.transforms.transform import Prepared
from medzoo.visual.show import draw, paste, save_picture

OUT = Path(__file__).parent / "images" / "recipes"
DATA = Path(os.environ["MEDZOO_DATA"])
WIDTH = 1240


def tumour(folder: Path, boxes: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the lowest and highest corner of the boxes that belong to the slices of a series, in mm, RAS.

    A box is in pixels of 512 × 512; the slices may have fewer.
    """
    slices = {}
    for path in folder.iterdir():
        ds = pydicom.dcmread(path, stop_before_pixels=True)
        slices[str(ds.SOPInstanceUID)] = ds
    corners = []
    with boxes.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if (ds := slices.get(row["sop_uid"])) is None:
                continue
            scale = ds.Columns / 512
            origin, across, down = (np.array(v, float) for v in (ds.ImagePositionPatient, *np.reshape(
                ds.ImageOrientationPatient, (2, 3))))  # fmt: skip
            for x, y in (("xmin", "ymin"), ("xmax", "ymax")):
                column, line = float(row[x]) * scale - 0.5, float(row[y]) * scale - 0.5
                lps = origin + across * column * ds.PixelSpacing[1] + down * line * ds.PixelSpacing[0]
                corners.append(lps * [-1, -1, 1])
    return np.min(corners, 0), np.max(corners, 0)


def as_image(prepared: Prepared, name: str) -> Image:
    """Return what a network gets as an image with its place in the scan."""
    affine = prepared.image.affine
    assert affine is not None  # noqa: S101  # every scan here has one
    placed = affine @ prepared.geometry.to_source
    return Image(
        prepared.tensor.numpy(), affine=placed, spacing=voxel_sizes(placed), value_range=(0.0, 1.0),
        modality=prepared.image.modality, identity={"file": name},
    )  # fmt: skip


def patch_model() -> medzoo.Classifier:
    """Return a model with the preprocessing of the recipe egfr."""
    recipe = medzoo.Recipe.load("egfr")
    model = medzoo.create(recipe.model.name)
    model.preprocessing = medzoo.Preprocessing(
        size=(64, 64, 64), orientation="SPL", intensity="window", window=recipe.data.window, patch=recipe.data.patch
    )
    return model


def main() -> None:
    """Draw the pictures."""
    OUT.mkdir(parents=True, exist_ok=True)
    scan = DATA / "chest_ct" / "dicom_A0002"
    low, high = tumour(scan, DATA / "chest_ct" / "tumour_boxes.csv")
    centre = (low + high) / 2
    how, image = medzoo.transform(patch_model()), medzoo.read(scan)
    around = as_image(how.prepare(image, point=centre.tolist()), "64 mm around the tumour")
    save_picture(draw(around, 300), OUT / "egfr_patch.png")
    points = {
        "the centre of the tumour": centre,
        "its upper border": [centre[0], centre[1], high[2]],
        "the other lung": [-centre[0], *centre[1:]],
        "60 mm above": [*centre[:2], centre[2] + 60],
    }
    tiles = [draw(as_image(how.prepare(image, point=list(p)), name), 150) for name, p in points.items()]
    save_picture(paste(tiles, WIDTH), OUT / "luna16_patches.png")
    recipe, flair = medzoo.Recipe.load("mgmt"), DATA / "brain_mr" / "PGBM-002_FLAIR.nii.gz"
    model = medzoo.create(recipe.model.name)
    model.preprocessing = medzoo.Preprocessing(
        size=(64, 128, 128), orientation=recipe.data.orientation, intensity=recipe.data.intensity, foreground=True
    )
    prepared = medzoo.transform(model).prepare(flair)
    shown = prepared.tensor - prepared.tensor.min()
    grey = as_image(prepared, "what the network gets")
    tensor = Image(shown.numpy(), affine=grey.affine, spacing=grey.spacing, modality="MR", identity=grey.identity)
    save_picture(paste([draw(medzoo.read(flair), 260), draw(tensor, 260)], 1100), OUT / "mgmt_volume.png")


if __name__ == "__main__":
    main()
