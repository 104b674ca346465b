"""Count the real images that warn or are refused, by model and reason: ``python tests/real_values.py``.

The images are in the folder that MEDZOO_DATA names. "as TorchXRayVision" are those of which its ``warn_normalization``
warns too. Rerun it after a change of :mod:`medzoo.transforms.plausibility`.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import medzoo
from medzoo.errors import DataError
from medzoo.transforms.transform import Transform

DATA = Path(os.environ.get("MEDZOO_DATA", Path(__file__).parents[2] / "shared" / "data"))
RADIOGRAPHS = ["chestxray14_64px", "chestxray14_1024px", "chestxray14_dicom", "pneumonia_cxr"]
DICOM = ["dicom_edge_cases", "ct_slices"]
VOLUMES = ["chest_ct", "brain_mr", "dicom_edge_cases"]


def transforms(dims: int) -> dict[str, Transform]:
    """Return the preprocessing of each builder, and of each set of weights that has its own."""
    found = {}
    for name in medzoo.list_models(dims=dims):
        spec = medzoo.describe(name)
        channels = spec.input_spec.channels
        found[name] = Transform(spec.preprocessing, channels, name, spec.intended_use)
        for tag, record in spec.weights.items():
            if record.preprocessing is not None and record.intended_use != medzoo.IntendedUse():
                who, own = f"{name}:{tag}", (record.preprocessing, record.in_chans or channels)
                same = [t for t in found.values() if (t.preprocessing, t.intended_use) == (own[0], record.intended_use)]
                if not same:
                    found[who] = Transform(*own, who, record.intended_use)
    return found


def images(folder: str) -> Iterator[Any]:
    """Yield the images of a folder; a series is one."""
    root = DATA / folder
    if folder == "adrenal_ct_3d":
        with np.load(next(root.glob("*.npz"))) as arrays:
            yield from (volume[None] for key in ("train_images", "val_images") for volume in arrays[key])
    elif folder == "luna16_2d":
        with np.load(next(root.glob("*.npz"))) as arrays:
            pixels = next(arrays[key] for key in arrays.files if "images" in key)
            yield from (patch[None] for patch in pixels)
    else:
        paths = sorted(p for p in root.rglob("*") if p.name.endswith((".png", ".jpeg", ".jpg", ".dcm", ".nii.gz")))
        yield from (p for p in paths if p.parent.name != "dicom_A0002")
        yield from root.glob("dicom_A0002")


def outcome(transform: Transform, image: Any) -> str:
    """Return why an image is refused or warned of, or an empty text."""
    try:
        prepared = transform.examine(image)
    except DataError as error:
        return f"refused: {error.reason}"
    x = prepared.tensor
    text = prepared.warning.partition(": ")[2].removeprefix(f"{transform.who} ")
    text = re.sub(r"-?\d+(\.\d+)?(e[+-]?\d+)?", "…", text)
    as_peer = transform.preprocessing.std == (1 / 2048,) and bool(
        x.min() > -255 or x.max() < 255 or x.min() < -1025 or x.max() > 1025
    )
    return f"warns{' as TorchXRayVision' if as_peer else ''}: {text[:90]}" if text else "SILENT" * as_peer


def main() -> None:
    """Print one line for each model, folder and reason."""
    torch.set_num_threads(1)
    folders = {2: [*RADIOGRAPHS, *DICOM, "luna16_2d"], 3: [*VOLUMES, "adrenal_ct_3d"]}
    for dims, names in folders.items():
        for who, transform in transforms(dims).items():
            for folder in names:
                counts = Counter(outcome(transform, image) for image in images(folder))
                print(f"{who}, {folder}: {sum(counts.values())} images, {counts.pop('', 0)} without a warning")
                for reason, count in counts.most_common():
                    print(f"    {count} {reason}")


if __name__ == "__main__":
    main()
