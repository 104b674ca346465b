"""``Table``: images, labels, patients and groups, one row per image.

Axes: n rows, l labels, c channels, s spatial axes.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medzoo.contract import Task

__all__ = ["Table"]


@dataclass(frozen=True, eq=False)
class Table:
    """Images with their labels, one row per image; it does not change.

    Attributes:
        ids: a unique text for each row: the path as it was given, or the name and index of an array.
        targets: ``n l`` float32 of 0 and 1; NaN where a label is not known. Multiclass is one-hot.
        labels: names of the l labels.
        task: ``"binary"``, ``"multilabel"`` or ``"multiclass"``.
        paths: absolute path of each image, the files of a series joined by a newline; ``None`` for arrays.
        arrays: the images ``n c *s`` in memory; ``None`` for paths.
        patients: the patient of each row, as text; ``None`` if not known.
        groups: other columns, such as site, sex, view or a given split, as text.
        lines: where each row is in the source, for messages: the line of a CSV file, else the index from 0.
        source: what the table was made from, for messages.
    """

    ids: NDArray[np.str_]
    targets: NDArray[np.float32]
    labels: tuple[str, ...]
    task: Task
    paths: NDArray[np.str_] | None = None
    arrays: NDArray[Any] | None = None
    patients: NDArray[np.str_] | None = None
    groups: Mapping[str, NDArray[np.str_]] = field(default_factory=dict)
    lines: NDArray[np.int64] | None = None
    source: str = "the table"

    def __len__(self) -> int:
        return len(self.ids)

    def image(self, row: int) -> Path | tuple[Path, ...] | NDArray[Any]:
        """Return the image of a row: a path, the paths of a series, or an array ``c *s``."""
        if self.arrays is not None:
            return self.arrays[row]
        assert self.paths is not None  # noqa: S101  # a table has paths or arrays
        files = tuple(map(Path, str(self.paths[row]).split("\n")))
        return files[0] if len(files) == 1 else files

    def select(self, rows: Sequence[int] | NDArray[Any]) -> Table:
        """Return the table of some rows, in their order."""
        at = np.asarray(rows)

        def take(values: NDArray[Any] | None) -> Any:
            return None if values is None else values[at]

        return replace(
            self,
            ids=self.ids[at],
            targets=self.targets[at],
            paths=take(self.paths),
            arrays=take(self.arrays),
            patients=take(self.patients),
            groups={name: values[at] for name, values in self.groups.items()},
            lines=take(self.lines),
        )

    @classmethod
    def from_arrays(
        cls,
        images: NDArray[Any],
        labels: Any,
        *,
        names: Sequence[str] | None = None,
        task: Task | None = None,
        patients: Sequence[Any] | None = None,
        groups: Mapping[str, Sequence[Any]] | None = None,
        ids: Sequence[str] | None = None,
    ) -> Table:
        """Make a table of images in memory.

        Args:
            images: ``n h w``, ``n c h w`` or ``n c d h w``.
            labels: ``n`` or ``n l`` of 0 and 1, or ``n`` classes.
            names: names of the labels.
            task: see :class:`Table`; ``None`` follows from the labels.
            patients: the patient of each image.
            groups: other columns.
            ids: a unique name for each image.
        """
        from medzoo.data.labels import read_labels

        n = len(images)
        array = images[:, None] if images.ndim == 3 else images
        targets, known, kind = read_labels(labels, names, task, "from_arrays")
        return cls(
            ids=np.array(ids if ids is not None else [f"array {i}" for i in range(n)]),
            targets=targets,
            labels=known,
            task=kind,
            arrays=array,
            patients=None if patients is None else np.array([str(p) for p in patients]),
            groups={name: np.array([str(v) for v in values]) for name, values in (groups or {}).items()},
            lines=np.arange(n),
            source="the arrays",
        )

    @classmethod
    def from_csv(
        cls,
        path: str | os.PathLike[str],
        *,
        root: str | os.PathLike[str] | None = None,
        label: str | Sequence[str] = "label",
        patient: str | None = None,
        image: str = "path",
        task: Task | None = None,
    ) -> Table:
        """Make a table of a CSV file with a header.

        Args:
            path: the file.
            root: folder of the images; ``None`` is that of the file.
            label: column of the label, or several columns of 0 and 1.
            patient: column of the patient.
            image: column of the image's path.
            task: see :class:`Table`; ``None`` follows from the labels.
        """
        from medzoo.data.labels import read_labels

        here = Path(path)
        with here.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
        folder = (Path(root) if root is not None else here.parent).resolve()
        columns = [label] if isinstance(label, str) else list(label)
        values = [[row[name] for name in columns] for row in rows]
        given = [v[0] for v in values] if isinstance(label, str) else np.array(values, dtype=float)
        targets, known, kind = read_labels(given, None if isinstance(label, str) else columns, task, str(here))
        used = {*columns, image, patient}
        return cls(
            ids=np.array([row[image] for row in rows]),
            targets=targets,
            labels=known,
            task=kind,
            paths=np.array([str(folder / row[image]) for row in rows]),
            patients=None if patient is None else np.array([row[patient] for row in rows]),
            groups={n: np.array([r[n] for r in rows]) for n in rows[0] if n not in used},
            lines=np.arange(2, len(rows) + 2),
            source=str(here),
        )

    @classmethod
    def from_npz(cls, path: str | os.PathLike[str], *, task: Task | None = None) -> Table:
        """Make a table of a MedMNIST file, ``{train,val,test}_{images,labels}``; the column ``split`` is its split."""
        from medzoo.data.labels import read_labels

        images, labels, split = [], [], []
        with np.load(path, allow_pickle=False) as file:
            for given, name in (("train", "train"), ("val", "valid"), ("test", "test")):
                if f"{given}_images" in file:
                    images.append(file[f"{given}_images"])
                    labels.append(file[f"{given}_labels"])
                    split += [name] * len(images[-1])
        x = np.concatenate(images)
        y = np.concatenate(labels)
        targets, known, kind = read_labels(y[:, 0] if y.shape[1] == 1 else y, None, task, str(path))
        return cls(
            ids=np.array([f"{Path(path).name}:{i}" for i in range(len(x))]),
            targets=targets,
            labels=known,
            task=kind,
            arrays=x[:, None] if x.ndim == 4 else x,
            groups={"split": np.array(split)},
            lines=np.arange(len(x)),
            source=str(path),
        )
