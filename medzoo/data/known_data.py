"""Public data sets by the names they go by: weights may have been trained on the images that they are evaluated on."""

from __future__ import annotations

import re

__all__ = ["known_data_sets", "seen_before"]

DATA_SETS = {
    "ChestX-ray14": r"chest-?x-?ray-?(8|14)|\bnih\b",
    "CheXpert": r"chexpert",
    "MIMIC-CXR": r"mimic",
    "PadChest": r"padchest",
    "RSNA pneumonia": r"\brsna\b",
    "Open-i": r"open-?i\b",
    "LUNA16": r"luna-?16|lidc",
    "BraTS": r"\bbrats|mgmt",
    "BTCV": r"\bbtcv\b",
    "AdrenalMNIST3D": r"adrenal-?mnist",
    "Kermany chest X-rays": r"kermany|pneumonia-?mnist|pneumonia_cxr",
}
"""Names by which a data set is known, for the warning that weights may have been trained on the same images."""


def seen_before(trained_on: str, data: str) -> str:
    """Return the warning that weights may know the images of the data, or an empty text.

    Args:
        trained_on: what the weights were trained on, in a sentence.
        data: the names of the data: its path, recipe and reference.
    """
    same = known_data_sets(trained_on) & known_data_sets(data)
    if not same:
        return ""
    return (
        f"the weights were trained on {' and '.join(sorted(same))}, and the name of the data says the same: they may "
        "know the images of the validation and test parts"
    )


def known_data_sets(text: str) -> set[str]:
    """Return the public data sets that a text names; a match of names is no proof, and no match is none either.

    >>> known_data_sets("chest X-rays of NIH ChestX-ray14 and CheXpert") == {"ChestX-ray14", "CheXpert"}
    True
    """
    return {name for name, pattern in DATA_SETS.items() if re.search(pattern, text, re.IGNORECASE)}
