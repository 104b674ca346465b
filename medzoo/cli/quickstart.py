"""``medzoo quickstart``: every model on one file or on synthetic images, from reading to named outputs."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from rich.table import Table

import medzoo
from medzoo.cli.tables import console
from medzoo.errors import ConfigError, ShapeError
from medzoo.progress import track
from medzoo.visual.phantoms import write_ct, write_ct_series, write_xray

__all__ = ["run"]


def run(file: Path | None, folder: Path) -> None:
    """Run every model that fits the image, print a table of the results, and print one deliberate shape error.

    Args:
        file: an image or a volume; ``None`` draws one of each.
        folder: where the synthetic images are written.
    """
    out = console()
    if file is None:
        try:
            paths = {2: write_xray(folder), 3: write_ct(folder)}
            series = write_ct_series(folder)
        except OSError as error:
            reason = error.strerror or error
            raise ConfigError(f"{folder}: the images cannot be written ({reason}). Choose another --to.") from error
        out.print(f"Drew {paths[2]}, {paths[3]} and the same CT as the DICOM series {series}: no patient's data.")
    else:
        paths = {medzoo.read(file).dims: file}

    table = Table("model", "input", "output", "parameters", "read and preprocess", "forward", title_justify="left")
    table.title = "[bold red]No weights were loaded: every output is untrained, and its probability means nothing.[/]"
    steps = {}
    inputs = {name: path for dims, path in paths.items() for name in medzoo.list_models(dims=dims)}
    for name, path in track(inputs.items(), "models"):
        model = medzoo.create(name).eval()
        start = time.perf_counter()
        prepared = medzoo.transform(model).prepare(path)
        read = time.perf_counter()
        with torch.inference_mode():
            logits = model(prepared.tensor[None])
        done = time.perf_counter()
        probabilities, labels = model.outputs.probabilities(logits)[0], model.outputs.labels
        best = int(probabilities.argmax())
        more = ", …" if len(labels) > 1 else ""
        table.add_row(
            name,
            " × ".join(map(str, prepared.tensor.shape)),
            f"{len(labels)} {model.outputs.task}: {labels[best]} {probabilities[best]:.2f}{more}",
            f"{sum(p.numel() for p in model.parameters()):,}",
            f"{1000 * (read - start):.0f} ms",
            f"{1000 * (done - read):.0f} ms",
        )
        steps[name] = prepared.steps
    out.print(table)
    for name, taken in steps.items():
        out.print(f"[bold]{name}[/]: {' → '.join(taken)}")
    out.print("\nA wrong input, on purpose:")
    try:
        medzoo.create("swin_encoder_mlp", feature_size=12)(torch.zeros(1, 1, 60, 96, 96))
    except ShapeError as error:
        out.print(f"ShapeError: {error}", style="red", markup=False)
    out.print("\nNext: medzoo list, medzoo info swin_encoder_mlp, medzoo predict --help", markup=False)
