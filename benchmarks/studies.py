"""From files to answers: ``python -m benchmarks studies``, many CT series and X-rays beside the pipelines of others.

The studies are phantoms, written to a scratch folder, each with identifiers of its own. The ways of
:mod:`benchmarks.pipelines` take turns, some studies at a time, each in a process that stays. What is timed is what a
user waits for: from the paths to the logits of all of them. Before that each way gets one study, and its logits are
compared with medzoo's; where a peer resizes by another filter, they differ by that, and the difference is reported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch

from benchmarks.environment import describe_environment, kilobytes
from benchmarks.pipelines import MEDZOO, MODELS, WAYS
from benchmarks.results import figure, markdown, seconds
from benchmarks.results import size as bytes_text
from benchmarks.timing import spread

# The turns that each way takes.
TURNS = 10
SIZES: dict[str, tuple[int, ...]] = {"ct": (512, 512, 30), "xray": (1024, 1024)}
SAMPLE_SECONDS = 0.05


def write_studies(kind: str, folder: Path, copies: int, size: Sequence[int]) -> list[str]:
    """Write phantoms that share their pixels and nothing else; return the path of each study."""
    from pydicom import dcmread
    from pydicom.uid import generate_uid

    from medzoo.visual.phantoms import draw_ct, draw_xray, write_ct_series, write_xray

    source = write_ct_series(folder, draw_ct(tuple(size))) if kind == "ct" else write_xray(folder, draw_xray(*size))
    slices = [dcmread(path) for path in (sorted(source.iterdir()) if source.is_dir() else [source])]
    studies = []
    for i in range(copies):
        study = folder / f"study {i:04d}"
        study.mkdir()
        uids = [generate_uid() for _ in range(2)]
        for number, ds in enumerate(slices):
            ds.PatientID, ds.StudyInstanceUID, ds.SeriesInstanceUID = f"drawn {i}", *uids
            ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            ds.save_as(study / f"{number:03d}.dcm", enforce_file_format=True)
        studies.append(str(study if kind == "ct" else study / "000.dcm"))
    return studies


class WayProcess:
    """One way, in its process.

    Attributes:
        absent: why the peer cannot take part; empty if it can.
        peak: the most bytes that its processes together have held, each shared page counted once.
    """

    def __init__(self, kind: str, name: str) -> None:
        command = [sys.executable, "-m", "benchmarks.pipelines", kind, name]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._in, self._out = cast(IO[str], self._process.stdin), cast(IO[str], self._process.stdout)
        self.absent = str(self._answer().get("absent", ""))
        self.peak, self._busy = 0, threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def run(self, studies: Sequence[str]) -> tuple[float, list[list[float]]]:
        """Return the seconds, and the logits of each study."""
        self._busy.set()
        start = time.perf_counter()
        self._in.write(json.dumps(list(studies)) + "\n")
        self._in.flush()
        logits = self._answer()
        seconds = time.perf_counter() - start
        self._busy.clear()
        return seconds, logits

    def _answer(self) -> Any:
        line = self._out.readline()
        if not line:
            raise RuntimeError(f"{self._process.args}: ended with {self._process.wait()}")
        return json.loads(line)

    def _watch(self) -> None:
        while self._process.poll() is None:
            if self._busy.wait(1):
                self.peak = max(self.peak, sum(map(proportional_bytes, process_tree(self._process.pid))))
                time.sleep(SAMPLE_SECONDS)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


@contextmanager
def way_process(kind: str, name: str) -> Iterator[WayProcess]:
    """Start a way, and end it afterwards."""
    process = WayProcess(kind, name)
    try:
        yield process
    finally:
        process.close()


def process_tree(pid: int) -> list[int]:
    """Return a process and all that it has started, where ``/proc`` lists them."""
    found = [pid]
    for parent in found:
        try:
            for task in os.scandir(f"/proc/{parent}/task"):
                found += map(int, Path(task.path, "children").read_text().split())
        except (OSError, ValueError):  # it has ended
            continue
    return found


def proportional_bytes(pid: int) -> int:
    """Return the bytes of memory of a process, its part of each shared page; 0 if it has ended."""
    return kilobytes(f"/proc/{pid}/smaps_rollup", "Pss") * 1024


def measure(
    kind: str,
    folder: Path,
    *,
    copies: int,
    turns: int,
    size: Sequence[int] | None = None,
    report: Callable[[str, dict[str, Any] | None], object] = lambda _name, _done: None,
) -> dict[str, Any]:
    """Return what each way takes for the studies of a kind, as a result file stores it.

    Args:
        kind: ``"ct"`` or ``"xray"``.
        folder: for the studies; empty.
        copies: studies in all.
        turns: parts that they are divided into.
        size: of a study; ``None`` is that of :data:`SIZES`.
        report: called with what begins and ``None``, and once it is done.
    """
    size = tuple(size or SIZES[kind])
    studies = write_studies(kind, folder, copies, size)
    seconds: dict[str, list[float]] = {}
    found: dict[str, Any] = {"kind": kind, "model": MODELS[kind], "size": list(size), "studies": copies, "absent": {}}
    with ExitStack() as stack:
        ways = {name: stack.enter_context(way_process(kind, name)) for name in WAYS[kind]}
        found["absent"] = {name: way.absent for name, way in ways.items() if way.absent}
        ways = {name: way for name, way in ways.items() if not way.absent}
        first = {name: np.array(way.run(studies[:1])[1]) for name, way in ways.items()}
        for i, part in enumerate(np.array_split(np.array(studies), turns)):
            for name, way in ways.items():
                report(f"{kind}, turn {i + 1}: {name}", None)
                took, logits = way.run([str(study) for study in part])
                # All studies have the same pixels, so each way has one answer; assert_allclose compares the shapes too.
                np.testing.assert_allclose(logits, np.repeat(first[name], len(part), 0), rtol=1e-4, atol=1e-4)
                seconds.setdefault(name, []).append(took / len(part))
                report(name, {})
        peaks = {name: way.peak for name, way in ways.items()}
    found["ways"] = {
        name: {
            "seconds": spread(each),
            "ratio": spread([theirs / ours for ours, theirs in zip(seconds[MEDZOO], each, strict=True)]),
            "peak": peaks[name],
            "difference": float(np.abs(first[name] - first[MEDZOO]).max() / np.abs(first[MEDZOO]).max()),
        }
        for name, each in seconds.items()
    }
    return found


def run(folder: Path, copies: dict[str, int], report: Callable[[str, dict[str, Any] | None], object]) -> dict[str, Any]:
    """Measure both kinds; ``folder`` is for the studies, which are deleted by the caller."""
    environment = describe_environment(torch.device("cpu")) | {"studies": True}
    kinds = []
    for kind, count in copies.items():
        (folder / kind).mkdir()
        kinds.append(measure(kind, folder / kind, copies=count, turns=min(TURNS, count), report=report))
    return {"environment": environment, "studies": kinds}


def table(kinds: Sequence[dict[str, Any]]) -> str:
    """Return a line for each way."""
    lines = []
    for kind in kinds:
        shape = " × ".join(map(str, kind["size"]))
        what = f"{kind['studies']} {'CT series' if kind['kind'] == 'ct' else 'X-rays'} {shape}, {kind['model']}"
        for name, way in kind["ways"].items():
            median, ratio = way["seconds"]["median"], way["ratio"]
            own = name == MEDZOO
            lines.append((
                what,
                name,
                seconds(median),
                figure(3600 / median),
                "" if own else f"**{ratio['median']:.2f}** ({ratio['low']:.2f}–{ratio['high']:.2f})",
                bytes_text(way["peak"]),
                "" if own else f"{way['difference']:.1e}",
            ))  # fmt: skip
        lines += [(what, f"{name}: {reason}", *[""] * 5) for name, reason in kind["absent"].items()]
    headers = ("studies", "way", "a study", "studies an hour", "times as fast", "peak memory", "difference")
    return markdown(headers, lines)
