"""``medzoo quickstart``: the whole main job, on a file or on drawings, for every model that takes it."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import medzoo
from medzoo.errors import ShapeError
from medzoo.visual.phantoms import write_ct, write_ct_series, write_xray

__all__ = ["run"]

WRONG_SHAPE = (1, 1, 60, 96, 96)


def run(file: Path | None, folder: Path) -> None:
    """Read, prepare, run and name, and print one table and one error on purpose.

    Args:
        file: an image or a volume; ``None`` draws one of each.
        folder: where the drawings are written.
    """
    console = Console(width=None if sys.stdout.isatty() else 150)
    if file is None:
        paths = {2: write_xray(folder), 3: write_ct(folder)}
        series = write_ct_series(folder)
        console.print(f"Drew {paths[2]}, {paths[3]} and the same CT as the DICOM series {series}: no patient's data.")
    else:
        paths = {medzoo.read(file).dims: file}

    rows, told = [], {}
    names = [name for dims in paths for name in medzoo.list_models(dims=dims)]
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("models", total=len(names))
        for dims, path in paths.items():
            for name in medzoo.list_models(dims=dims):
                progress.update(task, description=name)
                row, steps = one_model(name, path)
                rows.append(row)
                told[name] = steps
                progress.advance(task)

    table = Table("model", "input", "output", "parameters", "read and prepare", "forward", title_justify="left")
    table.title = "[bold red]No weights were loaded: every output is untrained, and its probability means nothing.[/]"
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for name, steps in told.items():
        console.print(f"[bold]{name}[/]: {' → '.join(steps)}")
    console.print("\nAnd a wrong input, on purpose:")
    console.print(wrong_input(), style="red", markup=False)
    console.print("\nNext: medzoo list, medzoo info swin_encoder_mlp, medzoo predict --help", markup=False)


def one_model(name: str, path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Take one model from file to outputs; return its row of the table and the steps of the preparation."""
    model = medzoo.create(name).eval()
    start = time.perf_counter()
    prepared = medzoo.transform(model).prepare(path)
    read = time.perf_counter()
    with torch.inference_mode():
        logits = model(prepared.tensor[None])
    done = time.perf_counter()
    probabilities = model.outputs.probabilities(logits)[0]
    best = int(probabilities.argmax())
    count = len(model.outputs.labels)
    output = f"{count} {model.outputs.task}: {model.outputs.labels[best]} {probabilities[best]:.2f}"
    row = (
        name,
        " × ".join(map(str, prepared.tensor.shape)),
        output + (", …" if count > 1 else ""),
        f"{sum(p.numel() for p in model.parameters()):,}",
        f"{1000 * (read - start):.0f} ms",
        f"{1000 * (done - read):.0f} ms",
    )
    return row, prepared.steps


def wrong_input() -> str:
    """Give a 3D model a side it cannot take, and return what it says."""
    model = medzoo.create("swin_encoder_mlp", feature_size=12).eval()
    try:
        model(torch.zeros(WRONG_SHAPE))
    except ShapeError as error:
        return f"{type(error).__name__}: {error}"
    raise RuntimeError("the check let a wrong shape through")
