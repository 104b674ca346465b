"""Result files: their names, their rows as a table, and the comparison of two.

Times of two runs differ by the state of the machine as well. A row counts as slower only if its ratios to the peers
fell too: a peer timed in the same rounds ran on the same machine. A row without peers is compared by its own time, and
only between runs on the same device with the same versions and settings.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.cases import OWN

HEADERS = ("case", "median", "quartiles", "samples/s", "of matmul", "of copy", "peak", "ratio", "difference")
# Characters of the bar for a ratio of 1, and of the longest bar.
BAR, LONGEST = 2, 40
# A change this small is noise, however small the spread.
LEAST = 0.05
# Bytes by which a peak may rise before it counts: the granularity of resident memory.
GRANULARITY = 4_000_000
# What must be equal for times to be compared directly.
SETTINGS = ("device", "threads", "allocator", "variables", "versions")


def result_name(environment: dict[str, Any]) -> str:
    """Return the file name ``<date>_<device>_<torch>.json``, with a suffix for each other way of measuring.

    >>> result_name({"date": "2026-01-31 10:00 UTC", "device": "AMD EPYC 9", "versions": {"torch": "2.15.0+cu132"},
    ...              "allocator": "thp"})
    '2026-01-31_amd-epyc-9_torch2.15.0_thp.json'
    """
    device = re.sub(r"[^a-z0-9]+", "-", environment["device"].lower()).strip("-")
    torch_version = environment["versions"]["torch"].partition("+")[0]
    setting = "_studies" if environment.get("studies") else "_alone" if environment.get("alone") else ""
    setting += "_busy" if environment.get("busy") else ""
    setting += "" if environment["allocator"] == "default" else f"_{environment['allocator']}"
    return f"{environment['date'][:10]}_{device}_torch{torch_version}{setting}.json"


def write_result(result: dict[str, Any], folder: Path) -> Path:
    """Write a result under its name; an older file is replaced only when the new one is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / result_name(result["environment"])
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(file)
    return file


def newest(folder: Path) -> list[Path]:
    """Return the newest result file of each device and setting; a name starts with the date."""
    latest: dict[tuple[Any, ...], Path] = {}
    for file in sorted(folder.glob("*.json")):
        environment = json.loads(file.read_text(encoding="utf-8"))["environment"]
        what = [environment.get(name, False) for name in ("studies", "alone", "busy")]
        latest[environment["device"], environment["allocator"], *what] = file
    return list(latest.values())


def seconds(value: float) -> str:
    """Return a time with its unit, to three digits.

    >>> seconds(1.2345), seconds(0.0123456), seconds(0.0000012)
    ('1.23 s', '12.3 ms', '1.2 µs')
    """
    factor, unit = (1.0, "s") if value >= 1 else (1e3, "ms") if value >= 1e-3 else (1e6, "µs")
    return f"{value * factor:.3g} {unit}"


def figure(value: float) -> str:
    """Return a number to three digits, without an exponent if it is large.

    >>> figure(4512.3), figure(0.00351), figure(2e-5)
    ('4510', '0.00351', '2e-05')
    """
    short = f"{value:.3g}"
    return short if value < 1000 else f"{float(short):.0f}"


def size(value: int | None) -> str:
    """Return bytes in MB; a dash if they were not measured."""
    return "–" if value is None else f"{value / 1e6:.0f} MB"


def cells(row: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return medzoo's line and one for each peer."""
    share = [f"{row[key]:.0%}" if key in row else "–" for key in ("share_of_matmul", "share_of_copy")]
    rate = figure(row["samples_per_second"])
    lines = [(row["id"], *_time(row["seconds"]), rate, *share, size(row["peak"]), "", "")]
    for name, peer in row["peers"].items():
        ratio = peer["ratio"]
        difference = f"{peer['difference']:.1e}"
        if peer["gradient_difference"] is not None:
            difference += f", gradient {peer['gradient_difference']:.1e}"
        rate = figure(row["case"]["batch"] / peer["seconds"]["median"])
        times = f"{ratio['median']:.2f} ({ratio['low']:.2f}–{ratio['high']:.2f})"
        lines.append((f"· {name}", *_time(peer["seconds"]), rate, "", "", size(peer["peak"]), times, difference))
    lines += [(f"· {name}: {reason}", *[""] * (len(HEADERS) - 1)) for name, reason in row["absent"].items()]
    return lines


def _time(spread: dict[str, float]) -> tuple[str, str]:
    return seconds(spread["median"]), f"{seconds(spread['low'])}–{seconds(spread['high'])}"


def markdown(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table for a page.

    >>> print(markdown(["a", "b"], [("1", "2")]))
    | a | b |
    |---|---|
    | 1 | 2 |
    """
    drawn = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in (headers, *rows)]
    return "\n".join([drawn[0], "|---" * len(headers) + "|", *drawn[1:]])


def text(rows: Sequence[dict[str, Any]]) -> str:
    """Return a table for the terminal; the length of a bar is a peer's time over medzoo's."""
    lines, bars = [tuple(HEADERS)], [""]
    for row in rows:
        lines += cells(row)
        bars.append("█" * BAR)
        for peer in row["peers"].values():
            length = max(1, round(BAR * peer["ratio"]["median"]))
            bars.append("█" * min(length, LONGEST) + ("…" if length > LONGEST else ""))
        bars += [""] * len(row["absent"])
    filled = [line for line in lines if any(line[1:])]
    widths = [max(len(line[i]) for line in filled) for i in range(len(HEADERS))]
    drawn = []
    for (name, *values), bar in zip(lines, bars, strict=True):
        padded = [value.rjust(width) for value, width in zip(values, widths[1:], strict=True)]
        drawn.append("  ".join([name.ljust(widths[0]), *padded, bar]).rstrip())
    return "\n".join(drawn)


class Change(NamedTuple):
    """A row that is in both files."""

    row: str
    before: str  # its time or its peak memory
    after: str
    factor: float  # how many times as much it takes now
    reference: str  # what the factor is measured against: a peer, the row's own time, or its peak
    verdict: str  # "slower", "faster", "more memory", or an empty string within the noise


def compare(old: dict[str, Any], new: dict[str, Any]) -> list[Change]:
    """Return a change for each row that both results have, and one more if its peak memory rose.

    A row is compared by the peer whose ratio changed least, or by its own time if it has none.
    """
    rows = {row["id"]: row for row in old["rows"]}
    changes = []
    for row in new["rows"]:
        before = rows.get(row["id"])
        if before is None:
            continue
        # Reversed for the ratios: a lower ratio to the peer means that medzoo is slower.
        pairs = {
            name: (row["peers"][name]["ratio"], before["peers"][name]["ratio"])
            for name in before["peers"].keys() & row["peers"].keys() - OWN
        }
        if not pairs and _same_settings(old, new):
            pairs["own time"] = before["seconds"], row["seconds"]
        if pairs:
            factors = {name: b["median"] / a["median"] for name, (a, b) in pairs.items()}
            reference = min(factors, key=lambda name: abs(factors[name] - 1))
            factor, (a, b) = factors[reference], pairs[reference]
            overlap = a["low"] <= b["high"] and b["low"] <= a["high"]
            verdict = "" if overlap or abs(factor - 1) <= LEAST else "slower" if factor > 1 else "faster"
            shown = seconds(before["seconds"]["median"]), seconds(row["seconds"]["median"])
            changes.append(Change(row["id"], *shown, factor, reference, verdict))
        was, now = before["peak"], row["peak"]
        if was is not None and now is not None and now > was * (1 + LEAST) + GRANULARITY:
            changes.append(Change(row["id"], size(was), size(now), now / max(was, 1), "peak", "more memory"))
    return changes


def _same_settings(old: dict[str, Any], new: dict[str, Any]) -> bool:
    return all(old["environment"][key] == new["environment"][key] for key in SETTINGS)


def compare_files(old_file: Path, new_file: Path) -> tuple[str, int]:
    """Return what changed between two result files as text, and 1 if anything got worse, else 0."""
    old, new = (json.loads(file.read_text(encoding="utf-8")) for file in (old_file, new_file))
    changes = compare(old, new)
    lines = [(*change[:3], f"{change.factor:.2f}", *change[4:]) for change in changes]
    out = [markdown(("row", "before", "now", "times as much", "compared by", ""), lines)]
    if not _same_settings(old, new):
        out.append("Device, versions or settings differ: rows without a peer were left out.")
    gone = sorted({row["id"] for row in old["rows"]} - {row["id"] for row in new["rows"]})
    out += [f"not in the new file: {name}" for name in gone]
    out += [f"failed in the new file: {name}: {reason}" for name, reason in new["failed"].items()]
    worse = [change.row for change in changes if change.verdict in ("slower", "more memory")] + sorted(new["failed"])
    out.append(f"{len(worse)} regressions beyond noise: {', '.join(worse)}" if worse else "no regression")
    return "\n".join(out), 1 if worse else 0
