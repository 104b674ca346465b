"""``medzoo quickstart``: every model on one file or on synthetic images, from reading to named outputs."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from rich.progress import Progress
from rich.table import Table

import medzoo
from medzoo.cli.tables import console
from medzoo.errors import ShapeError
from medzoo.visual.phantoms import write_ct, write_ct_series, write_xray

__all__ = ["run"]

WRONG_SHAPE = (1, 1, 60, 96, 96)


def run(file: Path | None, folder: Path) -> None:
    """Run every model that fits the image, print a table of the results, and print one deliberate shape error.

    Args:
        file: an image or a volume; ``None`` draws one of each.
        folder: where the synthetic images are written.
    """
    out = console()
    if file is None:
        paths = {2: write_xray(folder), 3: write_ct(folder)}
        series = write_ct_series(folder)
        out.print(f"Drew {paths[2]}, {paths[3]} and the same CT as the DICOM series {series}: no patient's data.")
    else:
        paths = {medzoo.read(file).dims: file}

    table = Table("model", "input", "output", "parameters", "read and preprocess", "forward", title_justify="left")
    table.title = "[bold red]No weights were loaded: every output is untrained, and its probability means nothing.[/]"
    steps = {}
    inputs = {name: path for dims, path in paths.items() for name in medzoo.list_models(dims=dims)}
    with Progress(console=out, transient=True) as progress:
        for name, path in progress.track(inputs.items(), description="models"):
            row, steps[name] = one_model(name, path)
            table.add_row(*row)
    out.print(table)
    for name, taken in steps.items():
        out.print(f"[bold]{name}[/]: {' → '.join(taken)}")
    out.print("\nA wrong input, on purpose:")
    out.print(wrong_input(), style="red", markup=False)
    out.print("\nNext: medzoo list, medzoo info swin_encoder_mlp, medzoo predict --help", markup=False)


def one_model(name: str, path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Run one model on a file; return its row of the table and the preprocessing steps."""
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
    """Return the error of a 3D model for a size it does not accept."""
    model = medzoo.create("swin_encoder_mlp", feature_size=12).eval()
    try:
        model(torch.zeros(WRONG_SHAPE))
    except ShapeError as error:
        return f"{type(error).__name__}: {error}"
    raise RuntimeError("the input check accepted a wrong shape")
