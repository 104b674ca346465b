"""What the resampling filter changes in a trained model: ``python -m benchmarks.filter_effect adrenalmnist3d_64.npz``.

The recipe ``adrenalmnist3d`` resizes shapes of 64³ voxels to 32³. It is trained once with each filter, and both models
score the validation rows with both filters. Each line of the table compares two of the four: the AUROC of both, their
difference with its paired 95 % interval, and how far probabilities move. A few epochs are enough to compare filters:
the AUROC is not a result.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

import medzoo
from benchmarks.results import markdown
from medzoo.contract import RESAMPLERS

LABEL = "abnormal"
HEADERS = ("trained with, scored with", "beside", "AUROC", "AUROC beside", "difference", "median move", "largest move")


def train_and_score(data: Path, folder: Path, epochs: int) -> dict[tuple[str, str], medzoo.Scores]:
    """Return the scores of the validation rows, by the filter of the training and that of the scoring."""
    found = {}
    for trained in RESAMPLERS:
        overrides: dict[str, Any] = {"epochs": epochs, "data.resample": trained, "cache": "memory"}
        medzoo.train("adrenalmnist3d", data, to=folder / trained, **overrides)
    table = medzoo.Table.from_npz(data, names=(LABEL,), task="binary")
    table = table.select(np.flatnonzero(np.array(table.groups["split"]) == "valid"))
    for trained, scored in product(RESAMPLERS, RESAMPLERS):
        model = medzoo.create(f"local-dir:{folder / trained / 'model'}")
        model.preprocessing = replace(model.preprocessing, resample=scored)
        found[trained, scored] = medzoo.evaluate(model, table, examples=0, seen="allow").scores
    return found


def compare(this: tuple[str, str], other: tuple[str, str], scores: dict[tuple[str, str], medzoo.Scores]) -> list[str]:
    """Return a line of the table."""
    comparison = medzoo.evaluate(scores[this], against=scores[other], examples=0).comparison
    assert comparison is not None  # noqa: S101  # there was something to compare with
    auroc = comparison[LABEL]["auroc"]
    moved = np.abs(scores[this].probabilities - scores[other].probabilities)
    figures = [f"{auroc.this:.3f}", f"{auroc.other:.3f}", str(auroc), f"{np.median(moved):.4f}", f"{moved.max():.4f}"]
    return [", ".join(this), ", ".join(other), *figures]


def main() -> None:
    """Train, score, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="adrenalmnist3d_64.npz of MedMNIST, or a file with such arrays")
    parser.add_argument("--epochs", type=int, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scores = train_and_score(options.data, Path(folder), options.epochs)
    a, b = RESAMPLERS
    lines = [compare(*pair, scores) for pair in (((a, a), (a, b)), ((b, b), (b, a)), ((b, b), (a, a)))]
    sys.stdout.write(markdown(HEADERS, lines) + "\n")


if __name__ == "__main__":
    main()
