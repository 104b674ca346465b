"""``medzoo export``: a model as an ONNX file, or as a ``.pt2`` file of ``torch.export``."""

from __future__ import annotations

from typing import Any

import click

import medzoo
from medzoo.cli.model_argument import create_model
from medzoo.cli.recipe_options import parse_size

__all__ = ["export"]


@click.command()
@click.argument("model")
@click.argument("file", type=click.Path())
@click.option("--size", metavar="N[,N,N]", help="Size of the input; by default that of the preprocessing.")
@click.option("--opset", type=int, help="Version of the ONNX operator set, 18 to 23; by default 20.")
@click.option("--tolerance", type=float, default=1e-4, help="Largest difference to PyTorch that is accepted.")
@click.option("--overwrite", is_flag=True, help="Replace an export that is there.")
def export(model: str, file: str, size: str | None, **options: Any) -> None:
    """Export MODEL to FILE, and compare the two.

    MODEL is NAME (untrained), NAME:TAG, local-dir:FOLDER or hf-hub:OWNER/REPO. FILE ends in .onnx (ONNX) or .pt2
    (torch.export). Beside it are written config.json, an input with its output, and a report.

    \b
    medzoo export densenet121_xray:xrv_all xray/model.onnx
    """  # noqa: D301  # click reads the \b
    sides = None if size is None else parse_size(size)
    click.echo(medzoo.export(create_model(model), file, size=sides, **options))
