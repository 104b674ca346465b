"""``Faults``: everything that is wrong with a table, collected while it is checked and raised as one error."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from medzoo.errors import DataError

__all__ = ["SHOWN", "Faults", "join_some", "quote"]

SHOWN = 10
"""How many rows, values or columns a message lists."""

_LONGEST = 100


def quote(text: str) -> str:
    """Return a text in quotes, with its control characters escaped and its middle left out if it is long."""
    half = _LONGEST // 2
    return repr(text if len(text) <= _LONGEST else f"{text[: half - 1]}…{text[-half:]}")


def join_some(items: Sequence[str], shown: int = SHOWN) -> str:
    """Join the first items, with how many more there are.

    >>> join_some(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    more = f" and {len(items) - shown:,} more" if len(items) > shown else ""
    return ", ".join(items[:shown]) + more


class Faults:
    """The faults of one source, by what is wrong.

    Args:
        source: what the table is made from, for the message.
        word: what a place in it is called: ``"line"`` of a CSV file, else ``"row"``.

    Attributes:
        lines: the place of each row in the source.
    """

    def __init__(self, source: str, word: str = "row") -> None:
        self.source, self.word = source, word
        self.lines: Sequence[int] = ()
        self._found: dict[str, list[tuple[int, str]]] = {}
        self._advice: dict[str, str] = {}
        self._general: list[str] = []

    def add(self, problem: str, places: Iterable[tuple[int, str]], advice: str) -> None:
        """Add a fault of some places.

        Args:
            problem: what is wrong, as a plural: ``"images that do not exist"``.
            places: line or row in the source, and a detail, which may be empty. Never a patient id.
            advice: what to do.
        """
        found = list(places)
        if found:
            self._found.setdefault(problem, []).extend(found)
            self._advice[problem] = advice

    def add_rows(self, problem: str, rows: Iterable[tuple[int, str]], advice: str) -> None:
        """Add a fault of some rows, counted from 0, each with a detail."""
        self.add(problem, ((int(self.lines[row]), detail) for row, detail in rows), advice)

    def add_general(self, text: str) -> None:
        """Add a fault that is of no single row."""
        self._general.append(text)

    def check(self) -> None:
        """Raise a DataError that lists every fault, if there is one."""
        if not self._found and not self._general:
            return
        count = len(self._general) + sum(map(len, self._found.values()))
        text = f"{self.source}: expected rows without faults, found {count:,} fault{'s' * (count > 1)}:"
        for general in self._general:
            text += f"\n- {general}"
        for problem, places in self._found.items():
            listed = [f"{self.word} {at}{f' ({detail})' if detail else ''}" for at, detail in sorted(places)]
            text += f"\n- {len(places):,} {problem}: {join_some(listed)}. {self._advice[problem]}"
        raise DataError(text)
