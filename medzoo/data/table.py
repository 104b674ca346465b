"""``Table``: images, labels, patients and groups, one row per image.

Axes: n rows, l labels, c channels, s spatial axes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from medzoo.contract import Task
from medzoo.data.columns import Columns, from_frame
from medzoo.data.faults import Faults, join_some
from medzoo.data.labels import LabelOptions, LabelRules
from medzoo.data.roi import Where
from medzoo.data.sources.catalogue import read_source
from medzoo.data.sources.options import SourceOptions
from medzoo.data.table_csv import read_csv
from medzoo.data.table_dicom import Choose, Unmatched, join_dicom
from medzoo.data.table_folder import PatientRule, read_folder
from medzoo.data.table_npz import check_images, read_npz
from medzoo.data.table_paths import find_images
from medzoo.data.table_points import PointsFrame, name_centres
from medzoo.data.table_rows import Duplicates, assemble, assemble_arrays
from medzoo.data.texts import StrArray, Texts
from medzoo.errors import DataError

__all__ = ["Table"]

_FEW = 8  # groups of at most so many values are listed by value; one that differs in each row may name a person


@dataclass(frozen=True, eq=False, repr=False)
class Table:
    """Images with their labels, one row per image; it does not change.

    Made by one of the constructors ``from_…``, each of which checks everything once and raises one DataError with all
    that is wrong, by row. Ids, patients and groups are text: 007 is not 7. No image is opened.

    Attributes:
        ids: a unique text for each row: the path as it was given, or the name and index of an array.
        targets: ``n l`` float32 of 0 and 1; NaN where a label is not known. Multiclass is one-hot.
        labels: names of the l labels.
        task: ``"binary"``, ``"multilabel"`` or ``"multiclass"``.
        paths: absolute path of each image, the files of a series joined by a newline; ``None`` for arrays.
        arrays: the images ``n c *s`` in memory; ``None`` for paths.
        patients: the patient of each row, as text; ``None`` if not known.
        groups: other columns, such as site, sex, view or a given split, as text.
        points: ``n 3``, the centre in mm, RAS, of what a row is about, for models of patches; ``None`` for rows of
            complete images. Several rows may then have the same image.
        prevalence: share of positives of each label in the population that the rows were sampled from by class;
            ``None`` for rows that were not.
        archive: absolute path of the NPZ file that ``arrays`` are of, from which a run reads them again; else ``None``.
        lines: where each row is in the source, for messages: the line of a CSV file, else the index from 0.
        source: what the table was made from, for messages.
        notes: choices that were made, and what was left out.
    """

    ids: StrArray
    targets: NDArray[np.float32]
    labels: tuple[str, ...]
    task: Task
    paths: Texts | StrArray | None = None
    arrays: NDArray[Any] | None = None
    patients: StrArray | None = None
    groups: Mapping[str, StrArray] = field(default_factory=dict)
    points: NDArray[np.float64] | None = None
    prevalence: tuple[float, ...] | None = None
    archive: str | None = None
    lines: NDArray[np.int64] | None = None
    source: str = "the table"
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        patients = "" if self.patients is None else f" of {len(np.unique(self.patients)):,} patients"
        return f"Table({len(self):,} rows{patients}, {self.task}: {join_some(self.labels, 4)}; {self.source})"

    def image(self, row: int) -> Path | tuple[Path, ...] | NDArray[Any]:
        """Return the image of a row: a path, the paths of a series, or an array ``c *s``."""
        if self.arrays is not None:
            return self.arrays[row]
        assert self.paths is not None  # noqa: S101  # a table has paths or arrays
        files = tuple(map(Path, str(self.paths[row]).split("\n")))
        return files[0] if len(files) == 1 else files

    def point(self, row: int) -> tuple[float, float, float] | None:
        """Return the centre of a row in mm, RAS; ``None`` for rows of complete images."""
        if self.points is None:
            return None
        x, y, z = self.points[row].tolist()
        return x, y, z

    def select(self, rows: Sequence[int] | NDArray[Any]) -> Table:
        """Return the table of some rows, in their order."""
        at = np.asarray(rows)
        if at.size == 0:
            at = at.astype(np.int64)

        def take(values: Any) -> Any:
            return None if values is None else values[at]

        return replace(
            self,
            ids=self.ids[at],
            targets=self.targets[at],
            paths=take(self.paths),
            arrays=take(self.arrays),
            patients=take(self.patients),
            groups={name: values[at] for name, values in self.groups.items()},
            points=take(self.points),
            lines=take(self.lines),
        )

    def summary(self) -> str:
        """Return rows, patients, counts of each label and group, and the notes, as text. It has no patient id."""
        text = [repr(self)]
        width = max(map(len, self.labels))
        for i, name in enumerate(self.labels):
            column = self.targets[:, i]
            counts = f"{int((column == 1).sum()):,} positive, {int((column == 0).sum()):,} negative"
            masked = int(np.isnan(column).sum())
            patients = ""
            if self.patients is not None:
                patients = f" ({len(np.unique(self.patients[column == 1])):,} positive patients)"
            text.append(f"  {name:{width}}  {counts}{f', {masked:,} not known' if masked else ''}{patients}")
        for name, values in self.groups.items():
            found, count = np.unique(values, return_counts=True)
            each = [f"{value or 'blank'} {n:,}" for value, n in zip(found.tolist(), count.tolist(), strict=True)]
            text.append(
                f"  {name}: {', '.join(each) if len(found) <= min(_FEW, len(self) / 2) else f'{len(found):,} values'}"
            )
        return "\n".join([*text, *(f"  note: {note}" for note in self.notes)])

    @classmethod
    def from_arrays(
        cls,
        images: Any,
        labels: Any,
        *,
        patients: Sequence[Any] | NDArray[Any] | None = None,
        groups: Mapping[str, Sequence[Any] | NDArray[Any]] | None = None,
        ids: Sequence[Any] | NDArray[Any] | None = None,
        **options: Unpack[LabelOptions],
    ) -> Table:
        """Make a table of images in memory.

        Args:
            images: ``n h w``, ``n c h w`` or ``n c d h w``.
            labels: ``n`` or ``n l`` of 0 and 1, or ``n`` classes.
            patients: the patient of each image.
            groups: other columns.
            ids: a unique name for each image.
            options: see :class:`~medzoo.data.labels.LabelOptions`.

        Raises:
            DataError: images, labels or columns that do not fit or are wrong, by row.

        >>> table = Table.from_arrays(np.zeros((4, 8, 8)), ["normal", "mass", "mass", "normal"], patients=[1, 1, 2, 3])
        >>> table
        Table(4 rows of 3 patients, binary: mass; the arrays)
        >>> table.targets[:, 0]
        array([0., 1., 1., 0.], dtype=float32)
        """
        array = check_images(images)
        names = [f"array {i}" for i in range(len(array))] if ids is None else [str(one) for one in ids]
        return cls(
            **assemble_arrays(array, labels, names, patients, groups or {}, "the arrays", LabelRules.of(options))
        )

    @classmethod
    def from_npz(
        cls, path: str | os.PathLike[str], *, patient: str | None = None, **options: Unpack[LabelOptions]
    ) -> Table:
        """Make a table of an NPZ file as of MedMNIST, with ``{train,val,test}_{images,labels}``.

        The parts become the column ``split`` of train, valid and test. A file without parts has ``images`` and
        ``labels``. Other arrays with one value for each image, such as ``train_names``, become groups.

        Args:
            path: the file. Images are ``n h w``, ``n h w c``, ``n d h w`` or ``n d h w c``; labels ``n``, ``n 1`` of 0
                and 1 or of classes, or ``n l`` of 0 and 1.
            patient: the array of patients, such as ``"patients"`` for ``train_patients`` and ``val_patients``.
            options: see :class:`~medzoo.data.labels.LabelOptions`.

        Raises:
            DataError: another file, or what is wrong with its arrays. Pickled objects are refused.
        """
        found = read_npz(path)
        columns = dict(found.columns)
        if patient is not None:
            Columns({name: [] for name in columns}, Faults(str(path))).require(patient=patient)
        patients = columns.pop(patient) if patient is not None else None
        fields = assemble_arrays(
            found.images, found.labels, found.ids, patients, columns, str(path), LabelRules.of(options)
        )
        table = cls(**fields, archive=os.path.abspath(path))  # noqa: PTH100  # as paths: links are not resolved
        unknown = "the file has no patients: whether images of one are in several parts cannot be known"
        return replace(table, notes=(*table.notes, unknown)) if patients is None else table

    @classmethod
    def from_csv(
        cls,
        path: str | os.PathLike[str],
        *,
        root: str | os.PathLike[str] | None = None,
        image: str = "path",
        label: str | Sequence[str] = "label",
        patient: str | None = None,
        groups: Sequence[str] | None = None,
        duplicates: Duplicates = "refuse",
        delimiter: str | None = None,
        images: bool = True,
        point: Sequence[str] | None = None,
        points_frame: PointsFrame = "LPS",
        roi: str | None = None,
        **options: Unpack[LabelOptions],
    ) -> Table:
        """Make a table of a CSV file in UTF-8 with a header.

        Args:
            path: the file.
            root: folder of the images, out of which no path may lead; ``None`` is that of the file.
            image: column of the image's path, relative to ``root``: a file, or a folder with one DICOM series.
            label: column of the label, or several columns of 0 and 1.
            patient: column of the patient.
            groups: columns to keep as groups; ``None`` keeps all others whose values have at most 256 characters.
            duplicates: ``"drop"`` keeps the first of rows with the same image, labels and patient.
            delimiter: ``","``, ``";"`` or a tab; ``None`` recognises it.
            images: ``False`` does not look for the images, for labels that scores are compared with; the table then
                has none.
            point: three columns with the centre of what the row is about, in mm, such as
                ``("coordX", "coordY", "coordZ")``, for a model of patches. Rows may then share an image.
            points_frame: ``"LPS"``, as DICOM and LUNA16 have it, or ``"RAS"``, as NIfTI has it.
            roi: instead of ``point``, a column with the region that matters, whose centre becomes the point: a box
                ``x0 y0 z0 x1 y1 z1`` in mm, in ``points_frame``, or the path of a mask, relative to ``root``: a volume
                of any format with one value beside 0, or a DICOM segmentation object.
            options: see :class:`~medzoo.data.labels.LabelOptions`.

        Raises:
            DataError: the file cannot be read, a column is absent, or everything that is wrong, by line.
        """
        where = Where.of(point, roi, points_frame)
        names = [label] if isinstance(label, str) else list(label)
        wanted = [image, *names, *filter(None, [patient]), *(where.columns if where else ())]
        columns = read_csv(path, wanted=wanted, delimiter=delimiter)
        folder = (root if root is not None else Path(path).parent) if images else None
        return cls._of_columns(columns, folder, image, label, patient, groups, duplicates, options, where)

    @classmethod
    def from_frame(
        cls,
        frame: Any,
        *,
        root: str | os.PathLike[str] = ".",
        image: str = "path",
        label: str | Sequence[str] = "label",
        patient: str | None = None,
        groups: Sequence[str] | None = None,
        duplicates: Duplicates = "refuse",
        **options: Unpack[LabelOptions],
    ) -> Table:
        """Make a table of a pandas DataFrame, as :meth:`from_csv` does; rows are counted from 0.

        Read ids with ``dtype=str``: pandas makes numbers of them otherwise, and 007 becomes 7.
        """
        from pandas import DataFrame

        if not isinstance(frame, DataFrame):
            raise DataError(f"from_frame: expected a pandas DataFrame, got {type(frame).__name__}. Use another from_….")
        columns = from_frame(frame)
        return cls._of_columns(columns, root, image, label, patient, groups, duplicates, options)

    @classmethod
    def _of_columns(
        cls, columns: Columns, root: str | os.PathLike[str] | None, image: str, label: str | Sequence[str],
        patient: str | None, groups: Sequence[str] | None, duplicates: Duplicates, options: LabelOptions,
        where: Where | None = None,
    ) -> Table:  # fmt: skip
        rules = LabelRules.of(options)
        columns.require(image=image, label=label, patient=patient, groups=groups)
        ids, points, used = columns.values[image], None, [image]
        notes: tuple[str, ...] = ()
        if where is not None:
            where.require(columns)
            points, notes = where.read(columns, root)
            ids, used = name_centres(ids, columns, where.columns), [image, *where.columns]
        paths = columns.values[image] if root is None else find_images(columns.values[image], root, columns.faults)
        table = cls(**assemble(
            columns, ids=ids, paths=paths, label=label, patient=patient, groups=groups, used=used,
            duplicates=duplicates, rules=rules, points=points,
        ))  # fmt: skip
        table = replace(table, notes=(*table.notes, *notes))
        return replace(table, paths=None) if root is None else table

    @classmethod
    def from_source(cls, name: str, folder: str | os.PathLike[str], **options: Unpack[SourceOptions]) -> Table:
        """Make a table of a published data set, in the folders and files in which it is published.

        Args:
            name: of the set: ``"chestxray14"``, ``"egfr"``, ``"kermany"``, ``"luna16"``, ``"medmnist"``, ``"mgmt"`` or
                ``"rsna"``.
            folder: of the set.
            options: see :class:`~medzoo.data.sources.options.SourceOptions`; which of them a set takes is stated by
                ``medzoo fetch data:NAME``.

        Raises:
            ConfigError: no such set, or an option that it does not take.
            DataError: another layout, and everything that is wrong with the files.
        """
        return cls(**read_source(name, Path(folder), options))

    @classmethod
    def from_folder(
        cls,
        root: str | os.PathLike[str],
        *,
        patient: PatientRule | None = None,
        **options: Unpack[LabelOptions],
    ) -> Table:
        r"""Make a table of a folder per class, ``CLASS/…``, or of such trees in parts, ``{train,val,test}/CLASS/…``.

        The parts become the column ``split`` of train, valid and test. DICOM slices are grouped into series, as
        :func:`medzoo.predict` does. Hidden files, ``__MACOSX`` and files that are no images are left out.

        Args:
            root: the folder.
            patient: who an image is of: a regular expression with one group that is searched in the path relative to
                ``root``, such as ``r"(person\d+)_"``, or a function of that path.
            options: see :class:`~medzoo.data.labels.LabelOptions`.

        Raises:
            DataError: another layout, or what is wrong with its files.
        """
        rules = LabelRules.of(options)
        columns, paths = read_folder(root, patient)
        return cls(**assemble(
            columns, ids=columns.values["path"], paths=paths, label="label", groups=None, used=["path"],
            patient=None if patient is None else "patient", rules=rules,
        ))  # fmt: skip

    @classmethod
    def from_dicom(
        cls,
        folder: str | os.PathLike[str],
        labels: str | os.PathLike[str],
        *,
        key: str = "AccessionNumber",
        column: str | None = None,
        label: str | Sequence[str] = "label",
        choose: Choose = "refuse",
        unmatched: Unmatched = "refuse",
        patient: str | None = "PatientID",
        groups: Sequence[str] | None = None,
        delimiter: str | None = None,
        **options: Unpack[LabelOptions],
    ) -> Table:
        """Make a table of a folder tree of DICOM files, and of their labels in a CSV file.

        The modality, view, sex and manufacturer of the headers become groups, beside the columns of the file.

        Args:
            folder: the folder, whose slices are grouped into series.
            labels: the CSV file, one row for each value of the key.
            key: keyword of the header element that the CSV file has too, such as ``"AccessionNumber"``,
                ``"StudyInstanceUID"``, ``"SeriesInstanceUID"`` or ``"PatientID"``. It is compared as text.
            column: its column in the CSV file; ``None`` is the keyword.
            label: column of the label, or several columns of 0 and 1.
            choose: which of several images of a row: ``"refuse"`` lists such rows, ``"most-slices"`` takes the
                longest series, ``"all"`` makes a row of each.
            unmatched: ``"refuse"`` lists rows without an image and images without a row, ``"drop"`` leaves them out.
            patient: keyword of the element that names the patient; ``None`` for a table without patients.
            groups: columns to keep as groups; ``None`` keeps all others.
            delimiter: see :meth:`from_csv`.
            options: see :class:`~medzoo.data.labels.LabelOptions`.

        Raises:
            DataError: everything that is wrong, by line and file. It has no key and no patient id.
        """
        at, rules = column or key, LabelRules.of(options)
        wanted = [at, *([label] if isinstance(label, str) else label)]
        columns = read_csv(labels, wanted=wanted, delimiter=delimiter)
        columns.require(column=at, label=label)
        joined, ids, paths = join_dicom(
            folder, columns, key=key, column=at, choose=choose, unmatched=unmatched, patient=patient
        )
        joined.require(groups=groups)
        return cls(**assemble(
            joined, ids=ids, paths=paths, label=label, groups=groups, used=[at],
            patient=None if patient is None else "patient", rules=rules,
        ))  # fmt: skip
