"""Result files into a page: ``python -m medzoo.bench.page benchmarks/results docs/benchmarks.md``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from medzoo.bench.plots import draw
from medzoo.bench.table import HEADERS, cells, markdown
from medzoo.bench.targets import judged

__all__ = ["main", "newest", "render"]

OPENING = """# Benchmarks

Written by `python -m medzoo.bench.page benchmarks/results docs/benchmarks.md` from the result files in
`benchmarks/results`. Measure on your machine with

```sh
pip install "medzoo[bench]"
medzoo bench                       # every model beside its peers, as a table
medzoo bench swin_encoder_mlp --quick
medzoo bench --targets --allocators --results benchmarks/results   # the rows with a target, for each allocator setting
pytest benchmarks/ --results benchmarks/results                    # all rows, in pytest-benchmark
python benchmarks/gpu.py OUT                                       # on a GPU: its tests, then its rows
```

Before anything is timed, medzoo and its peer get the same tensors and the same input, and must agree; the largest
difference is in the row. Then they take turns in one process, round by round. *median* and *quartiles* are of one call,
*ratio* is how many times as long as medzoo the peer took in the same round, with quartiles over the rounds. *of matmul*
and *of copy* are shares of what this machine reached at best in the same run, in matrix products and in copying, for
the operations and bytes that the task needs (formulas in `medzoo/bench/work.py`); `cnn3d_base` multiplies less than
they count, and can be above. *peak* is what a call needs on top of
its tensors and its input. Inference is `medzoo.optimize`'s model; *as created* is the model that `create` gives.
Training is a forward and a backward pass of the model as created. For the parts apart, MONAI's mask of shifted windows
is made beforehand, which spares MONAI work that it does in every pass.

On a CPU the ratio depends on what fresh memory costs: the peers write large maps to it in every call, and medzoo works
in pieces that stay in the cache. In a process of its own, and without `THP_MEM_ALLOC_ENABLE`, a page costs most; after
other rows in the same process, or with huge pages, it costs little, and the ratio is lower. Both are shown. medzoo has
`malloc` keep what is freed (`medzoo/kernels/cpu/slabs.py`); that holds for the process, and the peers' smaller maps gain by it.

On a GPU, the calls of a round run between two CUDA events, after warm-up calls; a call shorter than 10 ms is repeated.
Where launching the kernels takes longer than running them, the time is that of launching. Successive calls get
different inputs, which together take more than twice the L2 cache, so that each call reads its input from memory; the
weights stay in the cache as they do in use. The peers run in the same process, in turn, as on a CPU. *peak* is what
PyTorch's allocator adds during a call. Agreement is checked without TF32, and rows in bfloat16 are compared with the
outputs in float32: the distance of medzoo's may be at most 1.3 times that of the peer's. Rows that end in *-graph*
replay a CUDA graph, whose memory is not measured. Ratio targets apply to every GPU, times and rates to the cards named
in `medzoo/bench/targets.py`. The time from a file to a prediction is measured on a CPU only, by
`benchmarks/test_throughput.py`.
"""


def newest(folder: Path) -> list[Path]:
    """Return the newest result file of each device and setting; the date is the first part of a name."""
    latest: dict[tuple[Any, ...], Path] = {}
    for file in sorted(folder.glob("*.json")):
        environment = json.loads(file.read_text(encoding="utf-8"))["environment"]
        latest[environment["device"], environment["allocator"], environment.get("alone", False)] = file
    return list(latest.values())


def render(files: list[Path], page: Path, notes: str = "") -> None:
    """Write the page and, in ``images`` beside it, its pictures; ``notes`` come first, as Markdown."""
    parts = [OPENING, notes] if notes else [OPENING]
    if not files:
        parts.append("No result file is in the repository yet.\n")
    for file in files:
        result = json.loads(file.read_text(encoding="utf-8"))
        parts.append(_section(result, draw(result, page.parent / "images", f"benchmark-{file.stem}")))
    page.write_text("\n".join(parts), encoding="utf-8")


def _section(result: dict[str, Any], pictures: dict[str, Path]) -> str:
    """Return the part of the page that one result file makes."""
    environment = result["environment"]
    parts = [f"## {environment['device']}, {_setting(environment)}\n", _machine(result)]
    parts += [f"![{name}](images/{file.name})\n" for name, file in pictures.items()]
    headers = ("row", "what", "against", "target", "next", "measured", "")
    parts += ["### Targets\n", markdown(headers, judged(result)), ""]
    models = dict.fromkeys(row["case"]["subject"].partition("/")[0] for row in result["rows"])
    for model in models:
        rows = [row for row in result["rows"] if row["case"]["subject"].partition("/")[0] == model]
        parts += [f"### {model}\n", markdown(HEADERS, [line for row in rows for line in cells(row)]), ""]
    for title in ("skipped", "failed"):
        if result.get(title):
            reasons = [f"- {name}: {reason}" for name, reason in result[title].items()]
            parts += [f"### {title.capitalize()}\n", *reasons, ""]
    return "\n".join(parts)


def _setting(environment: dict[str, Any]) -> str:
    """Return what the times of a result depend on besides the device."""
    if "cuda" in environment:
        return "CUDA events"
    allocator = {"default": "default allocator", "thp": "`THP_MEM_ALLOC_ENABLE=1`"}[environment["allocator"]]
    processes = "each row in a process of its own" if environment.get("alone") else "all rows in one process"
    return f"{allocator}, {processes}"


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


def main() -> None:
    """Render the newest result file of each device and setting in a folder, and its ``notes.md``."""
    if len(sys.argv) != 3:
        sys.exit("usage: python -m medzoo.bench.page RESULTS_FOLDER PAGE.md")
    folder, page = map(Path, sys.argv[1:])
    notes = folder / "notes.md"
    render(newest(folder), page, notes.read_text(encoding="utf-8") if notes.exists() else "")


if __name__ == "__main__":
    main()
