"""Renders result files into a page: ``python -m benchmarks page benchmarks/results docs/benchmarks.md``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.results import HEADERS, cells, markdown, seconds, size
from benchmarks.studies import table
from benchmarks.targets import Headline, check_targets, headlines, setting

TITLE = "# Benchmarks\n"
STUDIES = """## From files to answers

The time from the paths of studies to their logits, beside pipelines that users write with other libraries, for the same
files and weights (`python -m benchmarks studies`). The studies are phantoms. All ways take turns, each in a process of
its own. *times as fast* is the peer's time over medzoo's, the median and the quartiles over the turns; *peak memory*
is that of all processes of a way together, libraries and weights included; *difference* is the largest from medzoo's
logits, over the largest of these: other pipelines resize by other filters.
"""
OPENING = """## Models

Inference of each model beside the fastest other implementation with the same weights. Outputs are compared before
anything is timed. *times as fast* is the peer's time over medzoo's: the median, and the quartiles over the rounds.
*peak memory* is what a call needs on top of the weights and the input.

The ratio on a CPU depends on the cost of fresh memory and on other work, so it is measured in four settings. *own
process*: each row in a process of its own, as in a user's program. *shared process*: all rows in one process, whose
memory is warm. *huge pages*: own process with `THP_MEM_ALLOC_ENABLE=1`. *busy machine*: own process, beside as many
processes that compute as there are cores.
"""

METHOD = """## How it is measured

In a clone of the repository, after `pip install -e ".[bench]"`:

```sh
python -m benchmarks run                                           # every model beside its peers, as a table
python -m benchmarks run --targets --allocators --results FOLDER   # the rows with a target, per allocator
python -m benchmarks run --busy --results FOLDER                   # a row of each model, on a busy machine
python -m benchmarks studies --results FOLDER                      # from files to answers
pytest benchmarks/ --results FOLDER                                # all rows, in pytest-benchmark
python benchmarks/gpu.py FOLDER                                    # on a GPU: its tests, then its rows
python -m benchmarks page benchmarks/results docs/benchmarks.md    # writes this page
```

**Agreement.** medzoo and its peers get the same tensors and the same input, and their outputs must agree; the largest
*difference* is in each row. Rows in bfloat16 are compared with the outputs in float32: medzoo's root mean square
distance may be at most 1.5 times the peer's. On a GPU, agreement is checked without TF32.

**Time.** All models of a row take turns in one process, round by round. *median* and *quartiles* are over the rounds;
so are those of *ratio*, the peer's time over medzoo's in the same round. Inference is the model that `medzoo.optimize`
returns; *as created* is the one that `medzoo.create` returns. Training is a forward and a backward pass of the model as
created. For parts of the Swin encoder, MONAI's mask of shifted windows is built beforehand, which saves MONAI work that
it does in every pass. `benchmarks/test_overhead.py` measures the time from a file to a prediction.

**Share of the peak.** *of matmul* and *of copy* are shares of the highest speed of matrix products and of copying that
this machine reached in the same run, for the operations and bytes that the task needs (`benchmarks/work.py`).
`cnn3d_base` multiplies less than the formulas count, and can exceed 100%.

**CPU.** The peers write large maps to fresh memory in every call, whose page faults cost most without huge pages;
medzoo works in pieces that stay in the cache. It also makes `malloc` keep freed memory in the process
(`medzoo/kernels/cpu/slabs.py`), which helps the peers' smaller maps too.

**GPU.** The calls of a round run between two CUDA events; a call shorter than 10 ms is repeated. If launching the
kernels takes longer than running them, the time is that of the launches. Each call reads its input from memory, as
successive inputs together exceed twice the L2 cache; the weights stay in the cache as they do in use. *peak* is what
PyTorch's allocator adds; it is not measured for rows that end in *-graph*, which replay a CUDA graph. Ratio targets
apply to every GPU, times and rates to the cards named in `benchmarks/targets.py`.
"""
MACHINE = """- {date}, {cpu}, {cores} cores, {threads} threads, {instructions}, {memory_gb} GB, {system}, \
{pages}load before {load_before}
- Python {python}, medzoo {medzoo}, {versions}"""
CUDA = """- CUDA {cuda}, cuDNN {cudnn}, {device_memory_gb} GB, \
TF32 for matmul {tf32[matmul]}, for convolutions {tf32[cudnn]}"""
CARD = """- driver {gpu[driver_version]}, SM clock {gpu[clocks.current.sm]} of at most {gpu[clocks.max.sm]}, \
memory clock {gpu[clocks.current.memory]} of at most {gpu[clocks.max.memory]}, power limit {gpu[power.limit]}"""


def render(files: list[Path], page: Path, notes: str = "") -> None:
    """Write a page of result files, with ``notes`` after the targets, and its plots into ``images`` beside it."""
    from benchmarks.plots import draw, draw_summary  # needs matplotlib

    images = page.parent / "images"
    read = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    files = [file for file, result in zip(files, read, strict=True) if "studies" not in result]
    results = [result for result in read if "studies" not in result]
    groups = headlines(results)
    studies = [_studies(result) for result in read if "studies" in result]
    parts = [TITLE, *([STUDIES, *studies] if studies else []), OPENING]
    if groups:
        draw_summary(groups, images / "benchmark-summary.svg")
        parts += [_summary(groups), "\n![inference speed of each model](images/benchmark-summary.svg)\n"]
    parts += [_targets(results), notes, METHOD] if files else ["No result file is in the repository yet.\n", METHOD]
    for file, result in zip(files, results, strict=True):
        parts.append(_section(result, draw(result, images, f"benchmark-{file.stem}")))
    page.write_text("\n".join(parts), encoding="utf-8")


def _studies(result: dict[str, Any]) -> str:
    """Return the table of one result, with its machine."""
    return "\n".join([f"### {result['environment']['device']}\n", table(result["studies"]), "", _machine(result)])


def _summary(groups: list[list[Headline]]) -> str:
    """Return the table of the headline figures, a line for each model and device."""
    headers = ("model", "input", "machine", "fastest peer", "times as fast", "time", "peak memory", "measured with")
    lines = []
    for usual, *others in groups:
        case, environment = usual.row["case"], usual.environment
        peer, ratio = usual.row["peers"][usual.peer], usual.ratio
        speed = f"**{ratio['median']:.2f}** ({ratio['low']:.2f}–{ratio['high']:.2f}) {usual.setting}"
        for other in others:
            against = "" if other.peer == usual.peer else f" against {other.peer}"
            speed += f"; {other.ratio['median']:.2f} {other.setting}{against}"
        names = ("torch", usual.peer.split()[0])  # MONAI, timm, or eager PyTorch, which has no version of its own
        versions = [(name, environment["versions"].get(name.lower(), "").partition("+")[0]) for name in names]
        lines.append((
            case["subject"],
            f"{' × '.join(map(str, case['size']))}, batch {case['batch']}, {case['dtype']}",
            environment["device"] + ("" if "cuda" in environment else f", {environment['threads']} threads"),
            usual.peer,
            speed,
            f"{seconds(usual.row['seconds']['median'])}, peer {seconds(peer['seconds']['median'])}",
            f"{size(usual.row['peak'])}, peer {size(peer['peak'])}",
            ", ".join([environment["date"][:10], *(f"{name} {number}" for name, number in versions if number)]),
        ))  # fmt: skip
    return markdown(headers, lines)


def _where(environment: dict[str, Any]) -> str:
    """Return the device and, for a CPU, the setting of a result."""
    return str(environment["device"]) + ("" if "cuda" in environment else f", {setting(environment)}")


def _targets(results: list[dict[str, Any]]) -> str:
    """Return how many targets each result meets, and the list of those it misses."""
    counts, missed = [], []
    for result in results:
        where, lines = _where(result["environment"]), check_targets(result)
        verdicts = [line[-1] for line in lines]
        counts.append((where, *(str(verdicts.count(verdict)) for verdict in ("met", "**missed**", ""))))
        missed += [(where, *line[:4], line[5]) for line in lines if line[-1] == "**missed**"]
    parts = ["## Targets met and missed\n", markdown(("machine", "met", "missed", "not measured"), counts), ""]
    if missed:
        headers = ("machine", "row", "what", "against", "target", "measured")
        parts += ["The targets that are missed:\n", markdown(headers, missed), ""]
    return "\n".join(parts)


def _section(result: dict[str, Any], plots: dict[str, Path]) -> str:
    """Return the part of the page for one result file; its tables are collapsed."""
    headers = ("row", "what", "against", "target", "next", "measured", "")
    tables = {"Targets": markdown(headers, check_targets(result))}
    models: dict[str, list[tuple[str, ...]]] = {}
    for row in result["rows"]:
        models.setdefault(row["case"]["subject"].partition("/")[0], []).extend(cells(row))
    tables |= {model: markdown(HEADERS, lines) for model, lines in models.items()}
    for title in ("skipped", "failed"):
        if result.get(title):
            tables[title.capitalize()] = "\n".join(f"- {name}: {reason}" for name, reason in result[title].items())
    return "\n".join([
        f"## {_where(result['environment'])}\n",
        _machine(result),
        # A click opens them, on GitHub and in Sphinx.
        *(f"<details>\n<summary>{title}</summary>\n\n{table}\n\n</details>\n" for title, table in tables.items()),
        *(f"![{name}](images/{file.name})\n" for name, file in plots.items()),
    ])  # fmt: skip


def _machine(result: dict[str, Any]) -> str:
    """Return the machine, versions and ceilings in a few lines."""
    environment = result["environment"]
    lines = [MACHINE, *([CUDA] if "cuda" in environment else []), *([CARD] if environment.get("gpu") else [])]
    pages = "" if "cuda" in environment else f"transparent huge pages `{environment['huge_pages']}`, "
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    ceilings_of = result.get("ceilings", {})  # none where no model is timed by itself
    measured = {name: value for name, value in ceilings_of.items() if not name.startswith("matmul")}
    ceilings = ", ".join(f"{name} {_rate(name, value)}" for name, value in measured.items())
    lines = [line.format_map(environment | {"pages": pages, "versions": versions}) for line in lines]
    return "\n".join([*lines, *([f"- ceilings: {ceilings}"] if measured else []), ""])


def _rate(name: str, value: float) -> str:
    """Return a ceiling with its unit."""
    if name == "copy":
        return f"{value / 1e9:.0f} GB/s"
    return f"{value / 1e12:.0f} TFLOP/s" if value >= 1e13 else f"{value / 1e9:.0f} GFLOP/s"
