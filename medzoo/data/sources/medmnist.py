"""MedMNIST: one NPZ file for each set, whose name says which it is.

The names of the classes are those of ``INFO`` in the package medmnist (https://github.com/MedMNIST/MedMNIST,
``medmnist/info.py``).
"""

from __future__ import annotations

from pathlib import Path

from medzoo.data.faults import join_some
from medzoo.data.label_rules import LabelRules
from medzoo.data.sources.chestxray14 import FINDINGS
from medzoo.data.sources.options import SourceChoices
from medzoo.data.sources.published import PublishedData, TableFields
from medzoo.data.table_npz import read_npz
from medzoo.data.table_rows import assemble_arrays
from medzoo.errors import DataError

__all__ = ["ABOUT", "LABELS", "read"]

_ORGANS = (
    "bladder", "femur-left", "femur-right", "heart", "kidney-left", "kidney-right", "liver", "lung-left", "lung-right",
    "pancreas", "spleen",
)  # fmt: skip

LABELS = {
    "adrenalmnist3d": ("normal", "hyperplasia"),
    "bloodmnist": (
        "basophil", "eosinophil", "erythroblast", "immature granulocyte", "lymphocyte", "monocyte", "neutrophil",
        "platelet",
    ),
    "breastmnist": ("malignant", "normal or benign"),
    "chestmnist": FINDINGS,
    "dermamnist": (
        "actinic keratosis or intraepithelial carcinoma", "basal cell carcinoma", "benign keratosis-like lesion",
        "dermatofibroma", "melanoma", "melanocytic nevus", "vascular lesion",
    ),
    "fracturemnist3d": ("buckle rib fracture", "nondisplaced rib fracture", "displaced rib fracture"),
    "nodulemnist3d": ("benign", "malignant"),
    "octmnist": ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
    "organamnist": _ORGANS,
    "organcmnist": _ORGANS,
    "organmnist3d": (
        "liver", "kidney-right", "kidney-left", "femur-right", "femur-left", "bladder", "heart", "lung-right",
        "lung-left", "spleen", "pancreas",
    ),
    "organsmnist": _ORGANS,
    "pathmnist": (
        "adipose", "background", "debris", "lymphocytes", "mucus", "smooth muscle", "normal colon mucosa",
        "cancer-associated stroma", "colorectal adenocarcinoma epithelium",
    ),
    "pneumoniamnist": ("normal", "pneumonia"),
    "retinamnist": ("grade 0", "grade 1", "grade 2", "grade 3", "grade 4"),
    "synapsemnist3d": ("inhibitory synapse", "excitatory synapse"),
    "tissuemnist": (
        "collecting duct or connecting tubule", "distal convoluted tubule", "glomerular endothelial cells",
        "interstitial endothelial cells", "leukocytes", "podocytes", "proximal tubule segments", "thick ascending limb",
    ),
    "vesselmnist3d": ("vessel", "aneurysm"),
}  # fmt: skip
"""What the labels 0, 1, … of each set mean; of chestmnist, its 14 columns."""

_TURNED = "breastmnist"  # its 1 is normal or benign: what is called positive in a report would be the healthy


def read(folder: Path, choices: SourceChoices) -> TableFields:  # noqa: ARG001  # it has no options
    """Return the table of an NPZ file, or of the only one in a folder, with its own parts as the column ``split``.

    Raises:
        DataError: no such file, or several, or what is wrong with its arrays.
    """
    path = folder
    if folder.is_dir():
        files = sorted(p for p in folder.iterdir() if p.suffix.lower() == ".npz" and not p.name.startswith("."))
        if len(files) != 1:
            listed = join_some([p.name for p in files]) or "none"
            raise DataError(f"{folder}: expected one .npz file of MedMNIST, found {listed}. Give the path of the file.")
        path = files[0]
    found = read_npz(path)
    flag = path.stem.lower().split("_")[0]
    names, labels, notes = LABELS.get(flag), found.labels, []
    if names is None:
        notes.append(f"{path.name} is the name of no set of MedMNIST, whose labels would have names")
        rules = LabelRules()
    elif labels.ndim == 2 and labels.shape[1] > 1:
        rules = LabelRules(names=names)
    elif flag == _TURNED:
        labels, names = 1 - labels.astype(int), names[::-1]
        notes.append(f"{names[1]} is the positive class, which is 0 in the file")
        rules = LabelRules(names=names)
    else:
        rules = LabelRules(names=names, task="binary" if len(names) == 2 else "multiclass")
    fields = assemble_arrays(found.images, labels, found.ids, None, found.columns, str(path), rules)
    notes.append("the file has no patients: whether images of one are in several parts cannot be known")
    return {**fields, "notes": (*fields["notes"], *notes), "archive": str(path.absolute())}


ABOUT = PublishedData(
    title="MedMNIST v2: 12 sets of 2D and 6 of 3D images, in sizes of 28 to 224",
    get=(
        "Download the file of a set, such as pneumoniamnist_224.npz or adrenalmnist3d_64.npz, from "
        "https://zenodo.org/records/10519652, and give its path."
    ),
    licence="CC BY 4.0; DermaMNIST CC BY-NC 4.0",
    citation="Yang et al., MedMNIST v2, Scientific Data 10 (2023) 41, doi:10.1038/s41597-022-01721-8",
    layout=(
        "FLAG.npz or FLAG_SIZE.npz with train_images, train_labels, val_images, val_labels, test_images, test_labels",
    ),
    read=read,
    suffix=".npz",
)
