"""Measure and draw what the page "See where it looked" shows, from real images.

    MEDZOO_DATA=DATA python docs/explain_pictures.py WORK

DATA has ``luna16_2d`` (50 × 50 pixels around candidates of LUNA16, with a nodule in the middle of the positives),
``chest_ct`` (one patient of Lung-PET-CT-Dx, with ``tumour_boxes.csv``) and ``pneumonia_cxr`` (Kermany et al.). WORK has
the training of the nodule model, which takes minutes, and is skipped where it is there. The X-rays need a model of them
in ``WORK/kermany/model``, see ``x_rays``. The figures go to ``docs/images/explain/figures.json``.

Axes: n images, h w height width.
"""  # fmt: skip

from __future__ import annotations

import csv
import datetime
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter
from sklearn.metrics import roc_auc_score

import medzoo
from medzoo.evaluation.proportions import wilson
from medzoo.visual.colours import blend
from medzoo.visual.show import paste, save_picture, to_grey

OUT = Path(__file__).parent / "images" / "explain"
DATA = Path(os.environ["MEDZOO_DATA"])
# Squares of 30 pixels are cut from the patches of 50, so that a nodule may be anywhere but at the border.
PATCH, SQUARE = 50, 30
RADIUS = 5.0  # pixels around the middle of a nodule
RANDOM = 8  # models with random weights
Point = NDArray[np.float64]


def squares(images: NDArray[np.uint8], each: int, rng: np.random.Generator) -> tuple[NDArray[np.uint8], Point]:
    """Cut squares at random places of patches, and return them with the middle of the patch in each, ``n 2``."""
    corners = rng.integers(0, PATCH - SQUARE + 1, (len(images) * each, 2))
    cut = [
        patch[i : i + SQUARE, j : j + SQUARE] for patch, (i, j) in zip(np.repeat(images, each, 0), corners, strict=True)
    ]
    return np.stack(cut), (PATCH - 1) / 2 - corners


def nodule_model(images: NDArray[np.uint8], labels: NDArray[Any], work: Path) -> medzoo.Classifier:
    """Return the model of ``work``, trained on the first call."""
    folder = work / "nodules" / "model"
    if not folder.exists():
        cut, _ = squares(images, 3, np.random.default_rng(0))
        groups = [str(i) for i in np.repeat(np.arange(len(images)), 3)]
        table = medzoo.Table.from_arrays(cut, np.repeat(labels, 3), names=["nodule"], patients=groups)
        recipe = medzoo.Recipe(
            model={"name": "xray_cnn", "in_chans": 1, "options": {"size": 64, "hidden": 64}},
            data={"cache": "memory", "size": 64, "duplicates": "drop"},
            split={"shares": [0.9, 0.1, 0]},
            augment={"flip": ["x", "y"], "rotate90": True},
            optimizer={"lr": 1e-3},
            schedule={"kind": "cosine", "warmup": 0.1},
            train={"epochs": 10, "batch": 64},
        )
        medzoo.train(recipe, table, to=work / "nodules")
    return medzoo.create(f"local-dir:{folder}")


def half_cell(explanation: medzoo.Explanation) -> Point:
    """Return half of the distance of two cells of a map, in pixels of the image."""
    return np.abs(np.diag(explanation.geometry.to_source @ explanation.frame)[:2]) / 2


def is_near(found: Point, centre: Point, half: Point) -> bool:
    """Whether a point is within ``RADIUS`` of the middle of a nodule, enlarged by half a cell."""
    return bool(np.linalg.norm(np.maximum(np.abs(found - centre) - half, 0)) <= RADIUS)


def nodules(work: Path) -> dict[str, Any]:
    """Measure pointing on the validation part of the 2D patches, against what needs no trained model."""
    with np.load(DATA / "luna16_2d" / "luna16_candidates_2d_train_val.npz") as file:
        arrays = {key: file[key] for key in ("train_images", "train_labels", "val_images", "val_labels")}
    model = nodule_model(arrays["train_images"], arrays["train_labels"], work)
    cut, centres = squares(arrays["val_images"], 1, np.random.default_rng(1))
    positive = arrays["val_labels"] == 1
    predictions = medzoo.predict(model, [square[None] for square in cut], batch_size=64)
    probability = np.array([one.probabilities["nodule"] for one in predictions])
    shown, where = cut[positive], centres[positive]

    maps = {
        method: medzoo.explain(model, [square[None] for square in shown], "nodule", method)
        for method in ("gradcam", "gradcam++", "occlusion")
    }
    half = half_cell(maps["gradcam"][0])
    rng = np.random.default_rng(2)
    points: dict[str, list[Point]] = {
        name: [np.array(one.peak, float) for one in found] for name, found in maps.items()
    }
    points["brightest place"] = [peak(gaussian_filter(square.astype(float), 1.5)) for square in shown]
    points["middle of the square"] = [np.full(2, (SQUARE - 1) / 2)] * len(shown)
    points["a point drawn at random"] = list(rng.uniform(-0.5, SQUARE - 0.5, (len(shown), 2)))
    for seed in range(RANDOM):
        torch.manual_seed(seed)
        untrained = medzoo.create(model.name, preprocessing=model.preprocessing, labels=["nodule"], **model.options)
        name = f"gradcam, random weights, seed {seed}"
        maps[name] = medzoo.explain(
            untrained.eval(), [square[None] for square in shown], "nodule", allow_untrained=True
        )
        points[name] = [np.array(one.peak, float) for one in maps[name]]
    rows = {}
    for name, found in points.items():
        extra = half_cell(maps[name][0]) if name in maps else half
        hits = [is_near(one, centre, extra) for one, centre in zip(found, where, strict=True)]
        rows[name] = f"{sum(hits)} of {len(hits)}: {wilson(sum(hits), len(hits))}"
    draw_squares(shown, where, maps["gradcam"], OUT / "nodules.png")
    return {
        "data": "LUNA16, 2D patches, validation part; squares of 30 of 50 pixels at random places",
        "model": f"{model.name} {dict(model.options)}, layer {maps['gradcam'][0].layer}, "
        f"{maps['gradcam'][0].cells['nodule'].shape} cells",
        "n": [int(positive.sum()), len(positive)],
        "AUROC": round(float(roc_auc_score(positive, probability)), 3),
        "hit": f"within {RADIUS:g} pixels of the middle of the nodule, and half a cell ({half.round(2).tolist()})",
        "rows": rows,
    }


def peak(values: NDArray[np.float64]) -> Point:
    """Return the index of the maximum."""
    return np.array(np.unravel_index(int(values.argmax()), values.shape), float)


def overlay(grey: NDArray[np.uint8], explanation: medzoo.Explanation, scale: int, marks: Callable[..., None]) -> Any:
    """Return an image and its map side by side, enlarged, with the maximum as a cross and what ``marks`` draws."""
    values = explanation.map
    level = values / values.max() if values.max() > 0 else values
    pair = []
    rgb = np.repeat(grey[..., None], 3, -1)
    for pixels in (rgb, blend(rgb, level.astype(np.float32))):
        picture = Image.fromarray(pixels).resize(
            (grey.shape[1] * scale, grey.shape[0] * scale), Image.Resampling.BICUBIC
        )
        marks(ImageDraw.Draw(picture), scale)
        pair.append(picture)
    i, j = (np.array(explanation.peak) + 0.5) * scale
    pen = ImageDraw.Draw(pair[1])
    pen.line([(j - 6, i), (j + 6, i)], fill="white", width=2)
    pen.line([(j, i - 6), (j, i + 6)], fill="white", width=2)
    both = Image.new("RGB", (2 * pair[0].width + 2, pair[0].height), "white")
    both.paste(pair[0], (0, 0))
    both.paste(pair[1], (pair[0].width + 2, 0))
    return both


def draw_squares(
    shown: NDArray[np.uint8], where: Point, maps: Sequence[medzoo.Explanation], path: Path, count: int = 10
) -> None:
    """Draw the first squares with their maps; the ring is around the middle of the nodule."""
    tiles = []
    for grey, (i, j), found in zip(shown[:count], where, maps, strict=False):

        def ring(pen: Any, scale: int, i: float = i, j: float = j) -> None:
            box = [(j + 0.5 - RADIUS) * scale, (i + 0.5 - RADIUS) * scale, (j + 0.5 + RADIUS) * scale,
                   (i + 0.5 + RADIUS) * scale]  # fmt: skip
            pen.ellipse(box, outline=(90, 220, 120), width=2)

        tiles.append(overlay(grey, found, 4, ring))
    save_picture(paste(tiles, 5 * tiles[0].width), path)


def boxes_of(folder: Path, table: Path) -> dict[Path, tuple[float, float, float, float]]:
    """Return the box of each slice of a series that has one: top, left, bottom, right in pixels."""
    with table.open(encoding="utf-8") as file:
        by_uid = {row["sop_uid"]: row for row in csv.DictReader(file)}
    found = {}
    for path in sorted(folder.iterdir()):
        ds = pydicom.dcmread(path, stop_before_pixels=True)
        if (row := by_uid.get(str(ds.SOPInstanceUID))) is not None:
            scale = ds.Columns / 512
            found[path] = tuple(float(row[key]) * scale - 0.5 for key in ("ymin", "xmin", "ymax", "xmax"))
    return found


def tumour(model: medzoo.Classifier) -> dict[str, Any]:
    """Point at the tumour of one patient with the model of nodules, in squares around the boxes of radiologists."""
    side, each = 160, 5  # a tumour of 80 pixels has the size of a large nodule in a square of 30
    rng = np.random.default_rng(0)
    tiles, hits, share = [], [], []
    boxes = boxes_of(DATA / "chest_ct" / "dicom_A0002", DATA / "chest_ct" / "tumour_boxes.csv")
    for path, (top, left, bottom, right) in boxes.items():
        grey = to_grey(medzoo.read(path).array[0], (-1000.0, 400.0))
        for k in range(each):
            shift = rng.integers(-40, 41, 2)
            i, j = (round(v) for v in np.array([(top + bottom) / 2, (left + right) / 2]) - side / 2 + shift)
            i, j = (int(np.clip(v, 0, 512 - side)) for v in (i, j))
            square = np.ascontiguousarray(grey[i : i + side, j : j + side])
            box = np.clip(np.array([top - i, left - j, bottom - i, right - j]), -0.5, side - 0.5)
            found = medzoo.explain(model, square[None], "nodule")
            y, x = found.peak
            hits.append(box[0] <= y <= box[2] and box[1] <= x <= box[3])
            share.append((box[2] - box[0]) * (box[3] - box[1]) / side**2)
            if k == 0 and len(tiles) < 6:

                def frame(pen: Any, scale: int, box: NDArray[np.float64] = box) -> None:
                    y0, x0, y1, x1 = (box + 0.5) * scale
                    pen.rectangle([x0, y0, x1, y1], outline=(90, 220, 120), width=2)

                tiles.append(overlay(square, found, 1, frame))
    save_picture(paste(tiles, 3 * tiles[0].width), OUT / "tumour.png")
    return {
        "data": "Lung-PET-CT-Dx, one patient, one series; the model of nodules was trained on nothing like it",
        "hit": "the maximum is in the box",
        "squares": f"{len(hits)} of {len(boxes)} slices, {side} pixels, the box up to 40 pixels off the middle",
        "hits": f"{sum(hits)} of {len(hits)}; no interval, as it is one patient",
        "a point drawn at random": f"{np.mean(share):.2f}, the mean share of the box in the square",
    }


def x_rays(work: Path) -> dict[str, Any] | None:
    """Draw the maps of a model of pneumonia; there are no boxes, so that there is no figure.

    The model is from ``medzoo train kermany --data pneumonia_cxr --no-pretrained --size 64 --epochs 4 --batch 64 --lr
    1e-3 --to WORK/kermany``.
    """
    if not (work / "kermany" / "model").exists():
        return None
    model = medzoo.create(f"local-dir:{work / 'kermany' / 'model'}")
    with (DATA / "pneumonia_cxr" / "labels.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    tiles = []
    for subtype in ("normal", "bacteria", "virus"):
        for row in [row for row in rows if row["subtype"] == subtype][:1]:  # the first, not the best
            path = DATA / "pneumonia_cxr" / row["path"]
            found = medzoo.explain(model, path, model.outputs.labels[0])
            grey = np.asarray(Image.open(path).convert("L"))
            p = found.prediction.probabilities[model.outputs.labels[0]]
            tile = overlay(grey, found, 1, lambda *_: None)
            titled = Image.new("RGB", (tile.width, tile.height + 16), "white")
            titled.paste(tile, (0, 16))
            ImageDraw.Draw(titled).text((2, 2), f"{subtype}, probability {p:.2f}", fill="black")
            tiles.append(titled)
    save_picture(paste(tiles, sum(tile.width for tile in tiles)), OUT / "x_rays.png")
    found = medzoo.explain(model, path, model.outputs.labels[0])
    return {"layer": found.layer, "cells": list(next(iter(found.cells.values())).shape), "n": len(tiles)}


def main(work: Path) -> None:
    """Measure, draw, and write the figures with where they are from."""
    OUT.mkdir(parents=True, exist_ok=True)
    found = {
        "nodules": nodules(work),
        "tumour": tumour(medzoo.create(f"local-dir:{work / 'nodules' / 'model'}")),
        "x-rays": x_rays(work),
        "command": "MEDZOO_DATA=DATA python docs/explain_pictures.py WORK",
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} thread",
        "versions": {"medzoo": medzoo.__version__, "torch": torch.__version__, "numpy": np.__version__},
    }
    (OUT / "figures.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
