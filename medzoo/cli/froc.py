"""``medzoo froc``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from medzoo.cli.recipe_options import messages
from medzoo.errors import ConfigError
from medzoo.extra import require_train_extra

__all__ = ["froc"]


@click.command()
@click.argument("model", metavar="RUN")
@click.option("--data", required=True, metavar="FOLDER", help="Folder of LUNA16, with annotations.csv.")
@click.option("--to", required=True, metavar="FOLDER", help="Folder of the figures: froc.json, froc.csv, froc.png.")
@click.option("--part", type=click.Choice(["test", "valid"]), help="Part of the run; test where there is one.")
@click.option("--missing", type=click.Choice(["refuse", "drop"]), default="refuse", help="Scans that are not there.")
@click.option("--most", type=click.IntRange(1), default=100, help="Candidates of a scan that count at most.")
@click.option("--resamples", type=click.IntRange(100), default=1000, help="Resamples of the scans.")
@click.option("--batch", "batch_size", type=click.IntRange(1), default=16, help="Candidates per forward pass.")
@click.option("--device", help="Where to run, such as cpu or cuda:0.")
@click.option("--allow-mismatch", is_flag=True, help="Use images of another kind too.")
def froc(model: str, data: str, to: str, **options: Any) -> None:
    """Sensitivity over false positives per scan of all candidates, and the CPM of LUNA16.

    RUN is the folder of a run, or of its model as local-dir:FOLDER.

    \b
    medzoo froc runs/nodules --data LUNA16/ --to runs/nodules/froc
    """  # noqa: D301  # click reads the \b
    require_train_extra()
    with messages("froc"):
        from medzoo.cli.evaluate import check_folder
        from medzoo.evaluation.froc_run import froc as run
        from medzoo.evaluation.subjects import check_name

        check_name(model)
        _check_own(Path(to))
        check_folder(to)
        found = run(model, data, **options)
        click.echo(found.summary())
        click.echo(f"{found.save(to)}: froc.png, and the figures in froc.json and froc.csv.")


def _check_own(folder: Path) -> None:
    """Raise ConfigError for a folder with other things than the figures of an earlier call."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "froc.json").exists():
        raise ConfigError(
            f"--to {folder}: it holds something else. Choose a new or an empty folder, such as {folder / 'froc'}."
        )
