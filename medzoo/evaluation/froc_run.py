"""``medzoo.froc``: the FROC curve of a model over all candidates of the scans of a part, as in the LUNA16 challenge.

Axes: n candidates, m findings, s scans.
"""

from __future__ import annotations

import csv
import io
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medzoo.atomic import write_atomically
from medzoo.data.identity import pseudonym
from medzoo.data.sources.luna16 import LABEL, scan_names
from medzoo.data.sources.luna16_annotations import Annotations, read_annotations
from medzoo.data.table import Table
from medzoo.data.texts import StrArray
from medzoo.errors import ConfigError, DataError
from medzoo.evaluation.assemble import CHOSEN_HERE
from medzoo.evaluation.froc import Froc, froc_curve
from medzoo.evaluation.openings import Opened, fingerprint_of, record_opening
from medzoo.evaluation.page.svg import own_style
from medzoo.evaluation.page.wording import some
from medzoo.evaluation.run_record import PART, RunRecord
from medzoo.evaluation.score_table import score_table
from medzoo.evaluation.subjects import Evaluated, Subject, evaluated
from medzoo.extra import require_train_extra

__all__ = ["FrocReport", "froc"]


@dataclass(frozen=True, eq=False)
class FrocReport:
    """A FROC curve of a model, and what it is of.

    Attributes:
        title: the run, or the model.
        curve: with intervals.
        part: of the run's scans; empty for all scans of the folder.
        notes: what a reader should know.
        opened: how often these candidates were evaluated on this machine; ``None`` where that is not counted.
    """

    title: str
    curve: Froc
    part: str
    notes: tuple[str, ...]
    opened: Opened | None = None

    def __str__(self) -> str:
        """Return :meth:`summary`."""
        return self.summary()

    def summary(self) -> str:
        """Return a few lines for a terminal."""
        of = f"the {self.part} part of the run" if self.part else "all scans of the folder"
        opened = (str(self.opened),) if self.opened is not None else ()
        notes = (f"  Note: {_capital(note)}." for note in (*self.notes, *opened))
        return "\n".join([f"{self.title}, {of}: {self.curve}", *notes])

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold; it names no scan."""
        opened = None if self.opened is None else self.opened.times
        about = {"title": self.title, "part": self.part, "notes": list(self.notes), "openings": opened}
        return about | self.curve.to_dict()

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``froc.json``, ``froc.csv`` and ``froc.png`` to a folder, and return the folder.

        Raises:
            OSError: they cannot be written.
        """
        to = Path(folder)
        to.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        write_atomically(to / "froc.json", text.encode())
        write_atomically(to / "froc.csv", _as_csv(self.curve).encode())
        write_atomically(to / "froc.png", draw_froc(self.curve, self.title))
        return to


def froc(
    model: Subject, data: str | os.PathLike[str], *, part: Literal["test", "valid"] | None = None,
    missing: Literal["refuse", "drop"] = "refuse", most: int | None = 100, resamples: int = 1000, seed: int = 0,
    batch_size: int = 16, device: Any = None, allow_mismatch: bool = False,
) -> FrocReport:  # fmt: skip
    """Score all candidates of the scans of a part, and return sensitivities at seven rates of false positives, and CPM.

    The candidates are not sampled, whatever the training had: a false positive of a scan is one wherever it is. They
    are matched with the annotated nodules by the rules of the LUNA16 challenge, see
    :mod:`medzoo.evaluation.froc`. An evaluation of the test part is counted for these candidates on this machine.

    Of a model all scans of the subsets count, those without a candidate too, whose nodules are missed. The scans of a
    run's part are those with a row in it; a note states how many scans are in no part, as none of their candidates was
    drawn, and how many nodules they have.

    Args:
        model: the folder of a finished run, or a model, which is then evaluated on all scans of the folder.
        data: the folder of LUNA16, with ``annotations.csv``, and ``annotations_excluded.csv`` where findings are to be
            left out.
        part: of the run's scans: ``"test"``, which is the default where there is one, or ``"valid"``.
        missing: ``"refuse"`` raises an error where scans are not in the folder, ``"drop"`` leaves them out.
        most: candidates of a scan that count at most, those with the highest scores, 100 in the challenge; ``None``
            for all.
        resamples: of the bootstrap over scans.
        seed: of the bootstrap.
        batch_size: candidates per forward pass.
        device: where to run; ``None`` is the device of the model.
        allow_mismatch: use images of another kind than the model is for.

    Raises:
        ConfigError: scores without images, a run without that part, or a model without the output ``nodule``.
        DataError: the folder or its files are wrong, scans are missing, or no nodule is in the scans.
    """
    require_train_extra()
    subject = evaluated(model, None)
    if subject.model is None:
        raise ConfigError("froc: expected a run or a model, which scores all candidates, got scores. Give the run.")
    _check_subject(subject)
    if Path(data).is_file():
        raise ConfigError(
            f"{Path(data)}: expected the folder of LUNA16, got a file. Give the folder with annotations.csv and the "
            "subsets."
        )
    annotations = read_annotations(Path(data))  # before the scans are read, which takes long
    table = Table.from_source("luna16", data, missing=missing)
    assert table.patients is not None  # noqa: S101  # a scan stands for a patient
    scans = np.array(sorted(scan_names(Path(data))))
    bare = scans[~np.isin(scans, table.patients)]
    names, part_name, notes = _scans(subject, table.source, scans, bare, annotations, part, missing)
    rows = np.flatnonzero(np.isin(table.patients, names))
    # Those of a scan after each other, so that it is read once.
    own = table.select(rows[np.argsort(table.patients[rows], kind="stable")])
    scores = score_table(
        subject.model, own, batch_size=batch_size, device=device, allow_mismatch=allow_mismatch, cache="off",
        title=f"candidates of {some(len(names), 'scan')}",
    )  # fmt: skip
    assert own.patients is not None and own.points is not None  # noqa: S101, PT018  # as those of any LUNA16
    here = np.isin(annotations.series, names)
    curve = froc_curve(
        np.searchsorted(names, own.patients), scores.logits[:, scores.labels.index(LABEL)], own.points,
        np.searchsorted(names, annotations.series[here]), annotations.centres[here], annotations.diameters[here],
        annotations.excluded[here], len(names), most=most, resamples=resamples, seed=seed,
    )  # fmt: skip
    if not annotations.excluded.any():
        notes += ("annotations_excluded.csv is not there, so that marks on its findings are false positives",)
    if curve.over:
        notes += (f"{curve.over:,} candidates beyond the {most} highest of their scan do not count",)
    opened = None
    if part_name != "valid":
        report = subject.model.load_report
        digest = subject.name if report is None or not report.digest else report.digest
        opened = record_opening(fingerprint_of(replace(scores, dropped=())), digest, part_name or "froc")
    return FrocReport(subject.name, curve, part_name, notes, opened)


def _check_subject(subject: Evaluated) -> None:
    """Raise ConfigError for a model that scores no nodules, or a run whose rows are no points in scans."""
    labels = subject.model.outputs.labels if subject.model is not None else ()
    if LABEL not in labels:
        raise ConfigError(
            f"froc: expected a model of candidates with the output {LABEL!r}, as of the recipe luna16; {subject.name} "
            f"has {', '.join(labels)}. Give a run of luna16."
        )
    if subject.record is not None and subject.record.read_rows().points is None:
        raise ConfigError(
            f"{subject.record.path}: expected a run of candidates at points in scans, as of the recipe luna16, got one "
            "of complete images. Give a run of luna16."
        )


def _capital(note: str) -> str:
    """Return a note that begins with a capital, unless it begins with the name of a file."""
    return note if "." in note.partition(" ")[0] else f"{note[:1].upper()}{note[1:]}"


def _scans(
    subject: Evaluated, source: str, scans: StrArray, bare: StrArray, annotations: Annotations, part: str | None,
    missing: str,
) -> tuple[StrArray, str, tuple[str, ...]]:  # fmt: skip
    """Return the names of the scans of the part, in order, its name, and notes.

    Args:
        subject: the run or the model.
        source: of the candidates.
        scans: that are there.
        bare: those of them without a candidate.
        annotations: of any scans.
        part: that was asked for.
        missing: see :func:`froc`.

    Raises:
        ConfigError: no run whose part it is, or a run without it.
        DataError: scans of it are not there.
    """
    if subject.record is None:
        if part is not None:
            raise ConfigError(f"froc: part is of a run, and {subject.name} is a model. Leave it out.")
        unknown = "the scans that the model was trained on are not known, so that they could not be left out"
        none = f"no candidate is in {_of_scans(bare, annotations)}: the nodules count as missed"
        return scans, "", (unknown, *([none] if len(bare) else []))
    parts = _parts(subject.record)
    name = part or ("test" if "test" in parts.values() else "valid")
    wanted = {scan for scan, of in parts.items() if of == name}
    if not wanted:
        raise ConfigError(f"{subject.record.path}: the run has no scans in its {name} part. Give another part.")
    own = np.array([pseudonym(scan) for scan in scans.tolist()])
    absent, notes = len(wanted - set(own.tolist())), [CHOSEN_HERE] if name == "valid" else []
    if absent == len(wanted) or (absent and missing == "refuse"):
        raise DataError(
            f"{source}: {absent:,} of the {some(len(wanted), 'scan')} of the {name} part of {subject.record.path.name} "
            "are not there. Give the folder that the run was trained on, or missing='drop' to leave them out."
        )
    if absent:
        notes.append(f"{absent:,} of {len(wanted):,} scans of the part are not there and left out")
    unused = scans[~np.isin(own, list(parts))]
    if len(unused):
        notes.append(
            "left out, as none of their candidates was drawn, so that they are in no part of the run: "
            f"{_of_scans(unused, annotations)} of the folder; without any candidate: {np.isin(unused, bare).sum():,}"
        )
    return scans[np.isin(own, list(wanted))], name, tuple(notes)


def _of_scans(scans: StrArray, annotations: Annotations) -> str:
    """Return how many scans these are, and how many nodules they have."""
    nodules = int(np.isin(annotations.series[~annotations.excluded], scans).sum())
    return f"{some(len(scans), 'scan')} with {some(nodules, 'nodule')}"


def _parts(record: RunRecord) -> dict[str, str]:
    """Return the part of each scan of a run, by its pseudonym."""
    own = record.read_rows()
    if own.patients is None:
        raise ConfigError(f"{record.path}: the run does not know which scan a row is of. Train with the recipe luna16.")
    return {pseudonym(str(scan)): str(part) for scan, part in zip(own.patients, own.groups[PART], strict=True)}


def _as_csv(curve: Froc) -> str:
    """Return the curve as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("false_positives_per_scan", "sensitivity"))
    writer.writerows(zip(*(values.tolist() for values in curve.curve), strict=True))
    return text.getvalue()


@own_style
def draw_froc(curve: Froc, title: str) -> bytes:
    """Return the curve as a PNG, with its band and the seven rates."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    if curve.band is not None:
        axes.fill_between(*curve.band, color="#0072b2", alpha=0.2, linewidth=0, label="95 % interval")
    shown = np.geomspace(curve.rates[0], curve.rates[-1], 400)
    axes.plot(shown, np.interp(shown, *curve.curve), color="#0072b2", linewidth=1.6)
    axes.plot(curve.rates, [e.value for e in curve.sensitivities], "o", color="#0072b2", markersize=5)
    axes.set_xscale("log", base=2)
    axes.set_xticks(curve.rates, [f"{rate:g}" for rate in curve.rates])
    axes.set(
        ylim=(0, 1), xlabel="false positives per scan", ylabel="sensitivity",
        title=f"{title}: CPM {curve.cpm}, {curve.scans:,} scans, {curve.nodules:,} nodules",
    )  # fmt: skip
    axes.title.set_fontsize(9)
    axes.grid(visible=True, alpha=0.3)
    if curve.band is not None:
        axes.legend(loc="lower right", frameon=False)
    png = io.BytesIO()
    figure.savefig(png, dpi=150)
    return png.getvalue()
