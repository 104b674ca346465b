"""Two result files side by side: ``python -m medzoo.bench.compare OLD.json NEW.json``.

Times of two runs differ by the machine's mood as well. A row is called slower only where its ratios to the peers fell,
too: a peer that was timed in the same rounds has had the same machine. A row without peers is held to its own time, and
only between runs on the same device with the same versions and settings.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medzoo.bench.cases import OWN
from medzoo.bench.table import markdown, seconds, size

__all__ = ["Change", "compare", "main"]

# A change this small is never called one, however small the spread.
LEAST = 0.05
# Bytes by which a peak may rise before it counts: the grain of resident memory.
GRAIN = 4_000_000


@dataclass(frozen=True)
class Change:
    """A row in both files.

    Attributes:
        row: its id.
        before: seconds or bytes then, in words.
        after: the same now.
        factor: how many times as much it takes now, as the fairest witness says.
        verdict: ``"slower"``, ``"faster"``, ``"more memory"``, or an empty string within the noise.
        witness: what the factor was read from.
    """

    row: str
    before: str
    after: str
    factor: float
    verdict: str
    witness: str

    @property
    def regression(self) -> bool:
        """Whether it got worse."""
        return self.verdict in ("slower", "more memory")


def compare(old: dict[str, Any], new: dict[str, Any]) -> list[Change]:
    """Return a change for each row that both results have, and one more where its peak memory rose."""
    before = {row["id"]: row for row in old["rows"]}
    alike = _settings(old) == _settings(new)
    changes = []
    for row in new["rows"]:
        if row["id"] not in before:
            continue
        change = _time(before[row["id"]], row, alike)
        if change:
            changes.append(change)
        was, now = before[row["id"]]["peak"], row["peak"]
        if was is not None and now is not None and now > was * (1 + LEAST) + GRAIN:
            factor = now / max(was, 1)
            changes.append(Change(row["id"], size(was), size(now), factor, "more memory", "peak"))
    return changes


def _time(old: dict[str, Any], new: dict[str, Any], alike: bool) -> Change | None:
    """Judge a row by the peer whose ratio changed least, or by its own time where it has none."""
    shown = seconds(old["seconds"]["median"]), seconds(new["seconds"]["median"])
    witnesses = []
    for name in old["peers"].keys() & new["peers"].keys() - OWN:
        was, now = old["peers"][name]["ratio"], new["peers"][name]["ratio"]
        # The peer takes fewer of our times now: we are slower.
        witnesses.append((was["median"] / now["median"], _apart(now, was), name))
    if not witnesses:
        if not alike:
            return None
        was, now = old["seconds"], new["seconds"]
        witnesses = [(now["median"] / was["median"], _apart(now, was), "own time")]
    factor, apart, witness = min(witnesses, key=lambda w: abs(w[0] - 1))
    verdict = ""
    if apart and abs(factor - 1) > LEAST:
        verdict = "slower" if factor > 1 else "faster"
    return Change(old["id"], *shown, factor, verdict, witness)


def _apart(a: dict[str, float], b: dict[str, float]) -> bool:
    """Whether two spreads do not touch: half of either's values lie within its quartiles."""
    return a["low"] > b["high"] or b["low"] > a["high"]


def _settings(result: dict[str, Any]) -> tuple[Any, ...]:
    """Return what must be equal for times to be compared directly."""
    environment = result["environment"]
    return (*(environment[key] for key in ("device", "threads", "allocator", "variables")), environment["versions"])


def main(arguments: list[str] | None = None) -> int:
    """Print what changed; return 1 where anything got worse."""
    given = sys.argv[1:] if arguments is None else arguments
    if len(given) != 2:
        sys.exit("usage: python -m medzoo.bench.compare OLD.json NEW.json")
    old, new = (json.loads(Path(file).read_text(encoding="utf-8")) for file in given)
    changes = compare(old, new)
    lines = [(c.row, c.before, c.after, f"{c.factor:.2f}", c.witness, c.verdict) for c in changes]
    out = [markdown(("row", "before", "now", "times as much", "judged by", ""), lines)]
    if _settings(old) != _settings(new):
        out.append("Device, versions or settings differ: rows without a peer were left out.")
    gone = sorted({row["id"] for row in old["rows"]} - {row["id"] for row in new["rows"]})
    out += [f"not in the new file: {name}" for name in gone]
    out += [f"failed in the new file: {name}: {reason}" for name, reason in new["failed"].items()]
    worse = [change.row for change in changes if change.regression] + sorted(new["failed"])
    out.append(f"{len(worse)} regressions beyond noise: {', '.join(worse)}" if worse else "no regression")
    sys.stdout.write("\n".join(out) + "\n")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
