"""``Split``: rows for training, validation and test, disjoint by patient and by pixels.

A split is made only by :func:`choose_split`, :func:`split_from_column`, :func:`folds` or :func:`leave_out`. Each of
them ends in the same check, also of what it drew itself, so there is no split that shares a patient or an image. The
one exception is :func:`leaking_split`, by which :func:`medzoo.reproduce` shows what such a split is worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import InitVar, dataclass
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray

from medzoo.data.draws import deal
from medzoo.data.identity import Dropped, Identities, list_rows, names_patients
from medzoo.data.leak import NAMES, Keys, OnLeak, check_patients, count_shared, drop_leaks, leak_error, shared
from medzoo.data.pixel_hashes import pixel_hashes
from medzoo.data.pixels import PixelStore
from medzoo.data.split_notes import split_notes
from medzoo.data.table import Table
from medzoo.errors import ConfigError, DataError, check_int, did_you_mean

__all__ = [
    "Dropped", "OnLeak", "Part", "PartName", "Split", "choose_split", "folds", "leaking_split", "leave_out",
    "split_from_column",
]  # fmt: skip

PartName = Literal["train", "valid", "test"]

_PART_OF = {
    "train": 0, "training": 0, "valid": 1, "val": 1, "validation": 1, "dev": 1, "test": 2, "testing": 2, "": -1,
}  # fmt: skip
_MADE = object()


def _check_made(what: str, made: object) -> None:
    if made is not _MADE:
        raise ConfigError(
            f"{what}: it is not made by hand, as nothing would have compared its parts. Use choose_split, "
            "split_from_column, folds or leave_out."
        )


@dataclass(frozen=True, eq=False)
class Part:
    """The rows of one part of a split.

    Attributes:
        table: the whole table.
        rows: indices into it, in the order of the table.
        name: ``"train"``, ``"valid"`` or ``"test"``.
    """

    table: Table
    rows: NDArray[np.int64]
    name: PartName
    made: InitVar[object] = None

    def __post_init__(self, made: object) -> None:
        _check_made("Part", made)
        self.rows.setflags(write=False)

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, eq=False)
class Split:
    """Disjoint parts of a table; see the module for how it is made.

    Attributes:
        table: the table.
        train, valid, test: the parts; ``test`` may be empty.
        how: how it was made, in words.
        dropped: rows in no part, with the reason.
        notes: what the check cannot see, constant images, and deviations of label shares.
        leaks: whether the parts were not compared, so that they may share patients and images; of
            :func:`leaking_split` alone.
    """

    table: Table
    train: Part
    valid: Part
    test: Part
    how: str
    dropped: tuple[Dropped, ...] = ()
    notes: tuple[str, ...] = ()
    leaks: bool = False
    made: InitVar[object] = None

    def __post_init__(self, made: object) -> None:
        _check_made("Split", made)

    def part(self, name: PartName) -> Part:
        """Return a part by its name.

        Raises:
            ConfigError: there is no such part.
        """
        if name not in NAMES:
            raise ConfigError(f"Split: expected a part to be train, valid or test, got {name!r}.")
        return cast("Part", getattr(self, name))

    def part_of_rows(self) -> NDArray[np.str_]:
        """Return the name of the part of each row of the table; empty for a row in none."""
        names = np.full(len(self.table), "", dtype="U5")
        for part in (self.train, self.valid, self.test):
            names[part.rows] = part.name
        return names

    def counts(self) -> dict[str, tuple[int, int, int]]:
        """Return the numbers of rows, of patients, and of positives of each label in train, valid and test."""
        parts = [self.part(cast("PartName", name)) for name in NAMES]
        found = {"rows": [len(part) for part in parts]}
        if self.table.patients is not None:
            found["patients"] = [len(np.unique(self.table.patients[part.rows])) for part in parts]
        for i, label in enumerate(self.table.labels):
            found[label] = [int((self.table.targets[part.rows, i] == 1).sum()) for part in parts]
        return {name: (values[0], values[1], values[2]) for name, values in found.items()}

    def summary(self) -> str:
        """Return :meth:`counts` as a table of text."""
        counts = self.counts()
        width = max(map(len, counts))
        lines = [f"{'':{width}}  {'train':>9}  {'valid':>9}  {'test':>9}"]
        lines += [f"{name:{width}}  " + "  ".join(f"{v:9,}" for v in values) for name, values in counts.items()]
        return "\n".join(lines)


def choose_split(
    table: Table,
    *,
    shares: Sequence[float] = (0.7, 0.15, 0.15),
    seed: int = 0,
    draws: int = 20_000,
    patient_groups: bool = True,
    pixels: PixelStore | None = None,
) -> Split:
    """Divide patients at random into parts in which every label has about the same share.

    The best of many draws is taken and improved; see :mod:`medzoo.data.draws` for the score. Rows of one patient, and
    images with the same pixels, are in one part. A label is scored if at least two patients for each part have it and
    none has more of it than the largest part should; others are only counted.

    Args:
        table: the table.
        shares: of train, valid and test, with a sum of 1; that of test may be 0.
        seed: the split follows from it.
        draws: how many are made; fewer where there are more than 1,000 patients.
        patient_groups: ``False`` states that the table has no patients, so that only images are compared.
        pixels: the store of the table, whose images are known already; its dropped rows are left out. ``None`` decodes
            the images.

    Raises:
        ConfigError: shares that cannot be, or fewer patients than parts.
        DataError: the patients are not known, or images cannot be read.
    """
    wanted = _check_shares(shares)
    keys = _keys(table, patient_groups, pixels)
    free = np.full(len(table), -2)
    free[[each.row for each in keys.identities.dropped]] = -1
    which = _draw(keys, free, wanted, seed, draws)
    text = " / ".join(f"{share:g}" for share in wanted)
    return _make(keys, which, f"drawn {_unit(keys)} as {text} with seed {seed}", list(keys.identities.dropped), wanted)


def split_from_column(
    table: Table,
    column: str,
    *,
    on_leak: OnLeak = "refuse",
    valid: float | None = None,
    seed: int = 0,
    draws: int = 20_000,
    patient_groups: bool = True,
    pixels: PixelStore | None = None,
) -> Split:
    """Return the split that a column of train, valid (or val, validation) and test gives; rows without one are dropped.

    Args:
        table: the table.
        column: one of ``table.groups``.
        on_leak: what happens to a patient or an image in more than one part. ``"refuse"`` raises an error that lists
            them. ``"drop-valid"`` drops their rows of valid and test, ``"drop-train"`` those of train. What valid and
            test share is dropped from valid in both cases.
        valid: share of the training rows that becomes the validation part, drawn by patient, if the column has none.
            ``None`` makes that an error.
        seed: of that draw.
        draws: of that draw.
        patient_groups: see :func:`choose_split`.
        pixels: see :func:`choose_split`.

    Raises:
        ConfigError: there is no such column, or no rows for train or valid.
        DataError: a patient or an image in more than one part, other values, or what :func:`choose_split` raises.
    """
    _check_on_leak(on_leak)
    which, dropped = _parts_of_column(table, column)
    keys = _keys(table, patient_groups, pixels)
    which, more = _resolve(keys, which, on_leak, f"column {column!r}")
    how = f"given by column {column!r}"
    if not (which == 1).any() and valid is not None:
        share = _check_share("valid", valid)
        which = _draw(keys, np.where(which == 0, -2, which), (1 - share, share, 0.0), seed, draws)
        how += f"; validation drawn {_unit(keys)} as {share:g} of its training rows with seed {seed}"
    return _make(keys, which, how, dropped + more)


def folds(
    table: Table,
    n: int,
    *,
    seed: int = 0,
    draws: int = 20_000,
    test: Sequence[int] | NDArray[np.int64] = (),
    on_leak: OnLeak = "refuse",
    patient_groups: bool = True,
    pixels: PixelStore | None = None,
) -> list[Split]:
    """Return n splits; each row is in the validation part of exactly one, and in the training part of the others.

    The folds are dealt as :func:`choose_split` deals parts, with equal shares.

    Args:
        table: the table.
        n: number of folds, 2 or more.
        seed: as in :func:`choose_split`.
        draws: as in :func:`choose_split`.
        test: rows that are the test part of each split.
        on_leak: what happens to a patient or an image in both the test rows and the others: see
            :func:`split_from_column`; train are all other rows.
        patient_groups: see :func:`choose_split`.
        pixels: see :func:`choose_split`.

    Raises:
        ConfigError: fewer than 2 folds, or fewer patients than folds.
        DataError: as in :func:`split_from_column`.
    """
    check_int("folds", "n", n, 2)
    _check_on_leak(on_leak)
    keys = _keys(table, patient_groups, pixels)
    which = np.zeros(len(table), np.int64)
    which[_check_rows(table, test)] = 2
    which, dropped = _resolve(keys, which, on_leak, "the choice of test rows")
    wanted = (1 / n,) * n
    dealt = _draw(keys, np.where(which == 0, -2, -1), wanted, seed, draws)
    splits = []
    for i in range(n):
        parts = np.where(dealt >= 0, np.where(dealt == i, 1, 0), which)
        splits.append(_make(keys, parts, f"fold {i} of {n}, drawn {_unit(keys)} with seed {seed}", dropped))
    return splits


def leave_out(
    table: Table,
    column: str,
    values: Sequence[str],
    *,
    valid: float = 0.15,
    seed: int = 0,
    draws: int = 20_000,
    on_leak: OnLeak = "refuse",
    patient_groups: bool = True,
    pixels: PixelStore | None = None,
) -> Split:
    """Return a split whose test part is the rows with these values, such as a site or a year.

    Args:
        table: the table.
        column: one of ``table.groups``.
        values: of the test rows.
        valid: share of the other rows that becomes the validation part, drawn by patient.
        seed: of that draw.
        draws: of that draw.
        on_leak: what happens to a patient or an image both in and out of the test rows: see :func:`split_from_column`.
        patient_groups: see :func:`choose_split`.
        pixels: see :func:`choose_split`.

    Raises:
        ConfigError: there is no such column, or fewer patients than parts.
        DataError: a value that no row has, or what :func:`split_from_column` raises.
    """
    _check_on_leak(on_leak)
    share = _check_share("valid", valid)
    have = np.asarray(column_of(table, column))
    given = [values] if isinstance(values, str) else list(values)
    for value in given:
        if value not in have:
            near = did_you_mean(str(value), map(str, np.unique(have)))
            known = list_rows([repr(str(each)) for each in np.unique(have)], ", ")
            raise DataError(f"{table.source}: column {column!r} has no {value!r}.{near} It has {known}.")
    keys = _keys(table, patient_groups, pixels)
    which = np.where(np.isin(have, given), 2, 0)
    shown = f"{len(given)} values" if names_patients(have, table.patients) else ", ".join(map(str, given))
    which, dropped = _resolve(keys, which, on_leak, f"leaving out {shown} of column {column!r}")
    if not (which == 0).any():
        raise ConfigError(f"{table.source}: all rows have these values of {column!r}; none are left to train on.")
    which = _draw(keys, np.where(which == 0, -2, which), (1 - share, share, 0.0), seed, draws)
    how = f"test is {shown} of column {column!r}; validation drawn {_unit(keys)} with seed {seed}"
    return _make(keys, which, how, dropped)


def leaking_split(
    table: Table,
    *,
    column: str | None = None,
    shares: Sequence[float] = (0.7, 0.15, 0.15),
    seed: int = 0,
    pixels: PixelStore | None = None,
) -> Split:
    """Return a split whose parts may share patients and images: to show what figures of such a split are worth.

    Only :func:`medzoo.reproduce` uses it, which measures a model as its source did. Nothing that is measured on it
    says anything about new patients. ``how`` and ``notes`` state how many patients and images are in several parts, and
    a run of it states ``leaks_on_purpose`` in ``run.json``, with which :func:`medzoo.evaluate` refuses it.

    Args:
        table: the table.
        column: one of ``table.groups`` with train, valid (or val, validation) and test, taken as it is; if it has no
            valid, rows of train are drawn for it, whoever they are of. ``None`` draws all rows so.
        shares: of train, valid and test in that draw, with a sum of 1; that of test may be 0. With a column, the second
            is the share of its rows of train.
        seed: of that draw.
        pixels: see :func:`choose_split`.

    Raises:
        ConfigError: there is no such column, no rows for train or valid, or shares that cannot be.
        DataError: other values in the column, or images that cannot be read.
    """
    keys = _keys(table, table.patients is not None, pixels)
    dropped = list(keys.identities.dropped)
    check_int("leaking_split", "seed", seed, 0)
    wanted, rng = _check_shares(shares), np.random.default_rng(seed)
    if column is not None:
        which, blank = _parts_of_column(table, column)
        dropped += blank
        how = f"taken from column {column!r} as it is"
    else:
        which = np.zeros(len(table), np.int64)
        how = f"drawn by row, whoever it is of, as {' / '.join(f'{share:g}' for share in wanted)} with seed {seed}"
    which[[each.row for each in dropped]] = -1
    usable = np.flatnonzero(which == 0)
    if column is None:
        ends = np.rint(np.cumsum(wanted) * len(usable)).astype(np.int64)
        which[rng.permutation(usable)] = np.repeat([0, 1, 2], np.diff(ends, prepend=0))
    elif not (which == 1).any():
        which[rng.permutation(usable)[: round(wanted[1] * len(usable))]] = 1
        how += f"; validation drawn by row, whoever it is of, as {wanted[1]:g} of its training rows with seed {seed}"
    return _make(keys, which, how, dropped, checked=False)


def _parts_of_column(table: Table, column: str) -> tuple[NDArray[np.int64], list[Dropped]]:
    """Return the part of each row that a column gives, and the rows without one.

    Raises:
        ConfigError: there is no such column.
        DataError: it has other values.
    """
    given = [str(value).strip() for value in column_of(table, column)]
    unknown = sorted({value for value in given if value.lower() not in _PART_OF})
    if unknown:
        raise DataError(
            f"{table.source}: expected column {column!r} to be train, valid or test, got "
            f"{list_rows([repr(value) for value in unknown], ', ')}. Rename them, or leave them empty to drop the rows."
        )
    which = np.array([_PART_OF[value.lower()] for value in given], np.int64)
    blank = np.flatnonzero(which == -1)
    return which, [Dropped(int(row), str(table.ids[row]), f"no part in column {column!r}") for row in blank]


def _keys(table: Table, patient_groups: bool, pixels: PixelStore | None) -> Keys:
    check_patients(table, patient_groups)  # before images are decoded
    if pixels is not None and len(pixels.table) != len(table):
        raise ConfigError(
            f"{table.source}: expected pixels to be of this table of {len(table):,} rows, got {len(pixels.table):,}."
        )
    identities: Identities = pixels.identities if pixels is not None else pixel_hashes(table)
    return Keys.of(table, identities, patient_groups)


def _unit(keys: Keys) -> str:
    return "by patient" if keys.table.patients is not None else "by image"


def _resolve(
    keys: Keys, which: NDArray[np.int64], on_leak: OnLeak, who: str
) -> tuple[NDArray[np.int64], list[Dropped]]:
    """Leave out what cannot be used, and refuse or drop what leaks."""
    which, dropped = which.copy(), list(keys.identities.dropped)
    which[[each.row for each in dropped]] = -1
    error = leak_error(keys, which, who)
    if error is None:
        return which, dropped
    if on_leak == "refuse":
        raise error
    which, more = drop_leaks(keys, which, on_leak)
    return which, dropped + more


def _draw(keys: Keys, which: NDArray[np.int64], wanted: Sequence[float], seed: int, draws: int) -> NDArray[np.int64]:
    """Deal the rows whose part is -2 to parts with these shares; the others keep theirs."""
    check_int("choose_split", "seed", seed, 0)
    check_int("choose_split", "draws", draws, 1)
    free = np.flatnonzero(which == -2)
    groups = np.unique(keys.groups()[free], return_inverse=True)[1]
    count = int(groups.max(initial=-1)) + 1
    parts = [i for i, share in enumerate(wanted) if share > 0]
    if count < len(parts):
        what = "patients" if keys.table.patients is not None else "different images"
        raise ConfigError(
            f"{keys.table.source}: expected at least {len(parts)} {what}, one for each of {len(parts)} parts, got "
            f"{count} with {len(free)} rows. Give more of them, or ask for fewer parts."
        )
    positives = (keys.table.targets[free] == 1).astype(np.int64)
    counts = np.zeros((count, 1 + positives.shape[1]), np.int64)
    np.add.at(counts, groups, np.concatenate([np.ones((len(free), 1), np.int64), positives], axis=1))
    shares = [wanted[part] for part in parts]
    enough = (counts > 0).sum(0) >= 2 * len(parts)
    possible = counts.max(0) <= max(shares) * counts.sum(0)
    scored = enough & possible
    scored[0] = True
    dealt, _ = deal(counts, shares, seed=seed, draws=draws, scored=scored)
    which = which.copy()
    which[free] = np.array(parts)[dealt[groups]]
    return which


def _make(
    keys: Keys, which: NDArray[np.int64], how: str, dropped: list[Dropped], wanted: Sequence[float] | None = None,
    *, checked: bool = True,
) -> Split:  # fmt: skip
    """Compare the parts, and return the split: the one place where one is made."""
    table = keys.table
    leak = () if checked else (count_shared(keys, which),)
    how = "; ".join([how, *leak])
    for key, what in ((keys.patients, "patients"), (keys.images, "images")):
        if checked and len(shared(key, which)):
            raise DataError(
                f"{table.source}: {what} are in more than one part of a split that was {how}. This is a fault of "
                "medzoo; please report it."
            )
    for part in (0, 1):
        if not (which == part).any():
            counts = ", ".join(f"{name} {int((which == i).sum()):,}" for i, name in enumerate(NAMES))
            advice = " Or give valid=0.15, to draw it from train." if part == 1 and how.startswith("given") else ""
            raise ConfigError(
                f"{table.source}: the split {how} has no rows for {NAMES[part]} ({counts}; {len(dropped):,} dropped). "
                f"Give both train and valid some.{advice}"
            )
    parts = [Part(table, np.flatnonzero(which == i), cast("PartName", name), _MADE) for i, name in enumerate(NAMES)]
    ordered = tuple(sorted(dropped, key=lambda each: each.row))
    notes = (*leak, *split_notes(keys, which, ordered, wanted))
    return Split(
        table, parts[0], parts[1], parts[2], how=how, dropped=ordered, notes=notes, leaks=not checked, made=_MADE
    )


def column_of(table: Table, column: str, advice: str = "") -> NDArray[np.str_]:
    """Return a column of ``table.groups``, or raise a ConfigError with the nearest name and advice."""
    if column not in table.groups:
        known = ", ".join(map(repr, table.groups)) or "none"
        raise ConfigError(
            f"{table.source}: there is no column {column!r}.{did_you_mean(column, table.groups)} It has {known}."
            + advice
        )
    return table.groups[column]


def _check_shares(shares: Sequence[float]) -> tuple[float, float, float]:
    given = tuple(float(share) for share in shares)
    if len(given) == 2:
        given = (*given, 0.0)
    good = len(given) == 3 and all(0 <= s < 1 for s in given) and min(given[:2]) > 0 and abs(sum(given) - 1) < 1e-6
    if not good:
        raise ConfigError(
            f"choose_split: expected shares of train, valid and test with a sum of 1, of which only test may be 0, got "
            f"{tuple(shares)}."
        )
    return given[0], given[1], given[2]


def _check_share(name: str, value: float) -> float:
    if not isinstance(value, (int, float)) or not 0 < value < 1:
        raise ConfigError(f"split: expected {name} to be a share above 0 and below 1, got {value!r}.")
    return float(value)


def _check_on_leak(on_leak: str) -> None:
    if on_leak not in ("refuse", "drop-valid", "drop-train"):
        raise ConfigError(f"split: expected on_leak to be refuse, drop-valid or drop-train, got {on_leak!r}.")


def _check_rows(table: Table, rows: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    given = np.asarray(rows, dtype=np.int64)
    if given.size and (given.min() < 0 or given.max() >= len(table)):
        raise ConfigError(f"folds: expected test rows from 0 to {len(table) - 1}, got {given.min()} to {given.max()}.")
    return given
