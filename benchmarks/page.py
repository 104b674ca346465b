"""Renders result files into a page: ``python -m benchmarks page benchmarks/results docs/benchmarks.md``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.results import HEADERS, cells, markdown, newest, seconds, size
from benchmarks.targets import Headline, check_targets, headlines, setting, short_setting

OPENING = """# Benchmarks

Inference of each model beside the fastest other implementation with the same weights. Outputs are compared before
anything is timed. *times as fast* is the peer's time over medzoo's: the median, and the quartiles over the rounds.
*peak memory* is what a call needs on top of the weights and the input.

The ratio on a CPU depends on the cost of fresh memory, so it is measured in three settings. *own process*: each row in
a process of its own, as in a user's program. *shared process*: all rows in one process, whose memory is warm. *huge
pages*: own process with `THP_MEM_ALLOC_ENABLE=1`.
"""

METHOD = """## How it is measured

In a clone of the repository:

```sh
pip install -e ".[bench]"
python -m benchmarks run                                    # every model beside its peers, as a table
python -m benchmarks run swin_encoder_mlp --quick
python -m benchmarks run --targets --allocators --results benchmarks/results   # the rows with a target, per allocator
pytest benchmarks/ --results benchmarks/results             # all rows, in pytest-benchmark
python benchmarks/gpu.py OUT                                # on a GPU: its tests, then its rows
python -m benchmarks page benchmarks/results docs/benchmarks.md                # writes this page
```

**Agreement.** medzoo and its peer get the same tensors and the same input, and their outputs must agree; the largest
*difference* is in each row. Rows in bfloat16 are compared with the outputs in float32: medzoo's root mean square
distance may be at most 1.5 times the peer's. On a GPU, agreement is checked without TF32.

**Time.** All models of a row take turns in one process, round by round. *median* and *quartiles* are of one call;
*ratio* is the peer's time over medzoo's in the same round, with quartiles over the rounds. Inference is the model that
`medzoo.optimize` returns; *as created* is the one that `medzoo.create` returns. Training is a forward and a backward
pass of the model as created. For parts of the Swin encoder, MONAI's mask of shifted windows is built beforehand, which
saves MONAI work that it does in every pass. The time from a file to a prediction is measured on a CPU only, by
`benchmarks/test_throughput.py`.

**Share of the peak.** *of matmul* and *of copy* are shares of the highest speed that this machine reached in the same
run, in matrix products and in copying, for the operations and bytes that the task needs (formulas in
`benchmarks/work.py`). `cnn3d_base` multiplies less than the formulas count, and can exceed 100%.

**CPU.** The peers write large maps to fresh memory in every call, and medzoo works in pieces that stay in the cache.
Page faults cost most in a process of its own without huge pages, and the ratio is highest there. medzoo makes `malloc`
keep freed memory (`medzoo/kernels/cpu/slabs.py`). This applies to the process, and helps the peers' smaller maps too.

**GPU.** The calls of a round run between two CUDA events, after warm-up calls; a call shorter than 10 ms is repeated.
If launching the kernels takes longer than running them, the time is that of the launches. Successive calls get
different inputs, which together take more than twice the L2 cache, so that each call reads its input from memory; the
weights stay in the cache as they do in use. *peak* is what PyTorch's allocator adds during a call. Rows that end in
*-graph* replay a CUDA graph, whose memory is not measured. Ratio targets apply to every GPU, times and rates to the
cards named in `benchmarks/targets.py`.
"""


def render_folder(folder: Path, page: Path) -> None:
    """Render the newest result file of each device and setting in a folder, and its ``notes.md``."""
    notes = folder / "notes.md"
    render(newest(folder), page, notes.read_text(encoding="utf-8") if notes.exists() else "")


def render(files: list[Path], page: Path, notes: str = "") -> None:
    """Write the page, and its plots into ``images`` beside it.

    Args:
        files: result files.
        page: the Markdown file to write.
        notes: Markdown that follows the targets.
    """
    from benchmarks.plots import draw, draw_summary  # needs matplotlib

    images = page.parent / "images"
    results = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    groups = headlines(results)
    parts = [OPENING]
    if groups:
        draw_summary(groups, images / "benchmark-summary.svg")
        parts += [_summary(groups), "", _image("benchmark-summary.svg", "inference speed of each model"), ""]
    parts += [_targets(results), notes, METHOD] if files else ["No result file is in the repository yet.\n", METHOD]
    for file, result in zip(files, results, strict=True):
        parts.append(_section(result, draw(result, images, f"benchmark-{file.stem}")))
    page.write_text("\n".join(parts), encoding="utf-8")


def _image(name: str, what: str) -> str:
    return f"![{what}](images/{name})"


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


def _targets(results: list[dict[str, Any]]) -> str:
    """Return how many targets each result meets, and the list of those it misses."""
    counts, missed = [], []
    for result in results:
        environment = result["environment"]
        where = environment["device"] + ("" if "cuda" in environment else f", {short_setting(environment)}")
        lines = check_targets(result)
        verdicts = [line[-1] for line in lines]
        met, not_met = verdicts.count("met"), verdicts.count("**missed**")
        counts.append((where, str(met), str(not_met), str(len(lines) - met - not_met)))
        missed += [(where, *line[:4], line[5]) for line in lines if line[-1] == "**missed**"]
    parts = ["## Targets met and missed\n", markdown(("machine", "met", "missed", "not measured"), counts), ""]
    if missed:
        headers = ("machine", "row", "what", "against", "target", "measured")
        parts += ["The targets that are missed:\n", markdown(headers, missed), ""]
    return "\n".join(parts)


def _section(result: dict[str, Any], plots: dict[str, Path]) -> str:
    """Return the part of the page for one result file; its tables are collapsed."""
    environment = result["environment"]
    parts = [f"## {environment['device']}, {setting(environment)}\n", _machine(result)]
    headers = ("row", "what", "against", "target", "next", "measured", "")
    parts.append(_collapsed("Targets", markdown(headers, check_targets(result))))
    models = dict.fromkeys(row["case"]["subject"].partition("/")[0] for row in result["rows"])
    for model in models:
        rows = [row for row in result["rows"] if row["case"]["subject"].partition("/")[0] == model]
        parts.append(_collapsed(model, markdown(HEADERS, [line for row in rows for line in cells(row)])))
    for title in ("skipped", "failed"):
        if result.get(title):
            reasons = [f"- {name}: {reason}" for name, reason in result[title].items()]
            parts.append(_collapsed(title.capitalize(), "\n".join(reasons)))
    parts += [f"{_image(file.name, name)}\n" for name, file in plots.items()]
    return "\n".join(parts)


def _collapsed(title: str, content: str) -> str:
    """Return content that a click opens, on GitHub and in Sphinx."""
    return f"<details>\n<summary>{title}</summary>\n\n{content}\n\n</details>\n"


def _machine(result: dict[str, Any]) -> str:
    """Return the machine, versions and ceilings in a few lines."""
    environment = result["environment"]
    cuda = "cuda" in environment
    pages = "" if cuda else f"transparent huge pages `{environment['huge_pages']}`, "
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    lines = [
        f"- {environment['date']}, {environment['cpu']}, {environment['cores']} cores, "
        f"{environment['threads']} threads, {environment['instructions']}, {environment['memory_gb']} GB, "
        f"{environment['system']}, {pages}load before {environment['load_before']}",
        f"- Python {environment['python']}, medzoo {environment['medzoo']}, {versions}",
    ]
    if cuda:
        lines.append(
            f"- CUDA {environment['cuda']}, cuDNN {environment['cudnn']}, {environment['device_memory_gb']} GB, "
            f"TF32 for matmul {environment['tf32']['matmul']}, for convolutions {environment['tf32']['cudnn']}"
        )
    card = environment.get("gpu")
    if card:
        lines.append(
            f"- driver {card['driver_version']}, SM clock {card['clocks.current.sm']} of at most "
            f"{card['clocks.max.sm']}, memory clock {card['clocks.current.memory']} of at most "
            f"{card['clocks.max.memory']}, power limit {card['power.limit']}"
        )
    ceilings = [
        f"{name} {_rate(name, value)}" for name, value in result["ceilings"].items() if not name.startswith("matmul")
    ]
    return "\n".join([*lines, f"- ceilings: {', '.join(ceilings)}", ""])


def _rate(name: str, value: float) -> str:
    """Return a ceiling with its unit."""
    if name == "copy":
        return f"{value / 1e9:.0f} GB/s"
    return f"{value / 1e12:.0f} TFLOP/s" if value >= 1e13 else f"{value / 1e9:.0f} GFLOP/s"
