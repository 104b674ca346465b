"""``medzoo bench`` and, where neither click nor rich is installed, ``python -m medzoo.bench``."""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

__all__ = ["main"]

Report = Callable[[str, dict[str, Any] | None], None]


def parser() -> argparse.ArgumentParser:
    """Return the options."""
    made = argparse.ArgumentParser("medzoo bench", description="Time models beside their peers, and print a table.")
    made.add_argument("models", nargs="*", metavar="MODEL", help="registered names; all without any")
    levels = made.add_mutually_exclusive_group()
    levels.add_argument(
        "--quick", action="store_const", dest="level", const="quick", help="the first cases, few rounds"
    )
    levels.add_argument("--full", action="store_const", dest="level", const="full", help="torch.compile too: an hour")
    made.add_argument("--device", help="such as cpu or cuda; by default a GPU where there is one")
    made.add_argument("--results", type=Path, metavar="FOLDER", help="write the result file there")
    made.add_argument("--draw", type=Path, metavar="FOLDER", help="write the pictures there, as SVG")
    made.add_argument("--limit", type=float, default=float("inf"), metavar="SECONDS", help="what all rows may take")
    made.add_argument(
        "--dry-run", action="store_true", help="the rows of a GPU, each kind once, at toy sizes; on a CPU by default"
    )
    made.add_argument(
        "--allocators", action="store_true", help="run once for each allocator setting, each in a process of its own"
    )
    made.add_argument(
        "--targets", action="store_true", help="only the rows with a target, each in a process of its own"
    )
    made.add_argument("--promised", action="store_true", dest="targets", help=argparse.SUPPRESS)  # its former name
    made.add_argument("--row", metavar="ID", help="only this row")
    made.set_defaults(level="usual")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print and write; return 7 where a model and its peer disagree.

    Raises:
        UnknownModelError: a model without benchmarks.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser().parse_args(given)
    if options.allocators:
        return _for_each_allocator([argument for argument in given if argument != "--allocators"])

    import torch

    from medzoo.bench.alone import run_alone, target_rows
    from medzoo.bench.cases import dry_run, select
    from medzoo.bench.environment import result_name
    from medzoo.bench.plots import draw
    from medzoo.bench.startup import measure_startup
    from medzoo.bench.suite import BenchmarkError, run_suite, write_result
    from medzoo.bench.table import text

    fastest = "cuda" if torch.cuda.is_available() and not options.dry_run else "cpu"
    device = torch.device(options.device or fastest)
    cases = select(options.models, options.level, device="cuda" if options.dry_run else device.type)
    if options.dry_run:
        cases = dry_run(cases)
        options.level = "quick"
    if options.row:
        cases = [case for case in cases if case.id == options.row]
    alone = target_rows(options.models) if options.targets else []
    with warnings.catch_warnings(action="ignore"), progress(len(alone or cases)) as report:  # the peers' warnings
        if alone:
            result = run_alone(alone, report)
        else:
            result = run_suite(cases, device, options.level, report=report, limit=options.limit, folder=options.results)
        # A minute of fresh processes, of which a GPU's result shows nothing.
        if device.type == "cpu" and not options.models and not options.row and options.level != "quick":
            report("import and create", None)
            result["startup"] = measure_startup()
    lines = [text(result["rows"])] if result["rows"] else []
    lines += [f"skipped {name}: {reason}" for name, reason in result["skipped"].items()]
    lines += [f"failed {name}: {reason}" for name, reason in result["failed"].items()]
    if options.results:
        lines.append(str(write_result(result, options.results)))
    if options.draw:
        name = Path(result_name(result["environment"])).stem
        lines += [str(file) for file in draw(result, options.draw, name).values()]
    sys.stdout.write("\n".join(lines) + "\n")
    return BenchmarkError.exit_code if result["failed"] else 0


def _for_each_allocator(given: list[str]) -> int:
    """Run the same in a process for each allocator setting, since torch reads it once."""
    from medzoo.bench.environment import ALLOCATORS

    clean = {name: value for name, value in os.environ.items() if name not in ALLOCATORS["thp"]}
    codes = [
        subprocess.run([sys.executable, "-m", "medzoo.bench", *given], env=clean | setting, check=False).returncode
        for setting in ALLOCATORS.values()
    ]
    return max(codes)


@contextlib.contextmanager
def progress(count: int) -> Iterator[Report]:
    """Show which case runs, as a bar, or as lines where rich is not installed."""
    try:
        from rich.console import Console
        from rich.progress import MofNCompleteColumn, Progress
    except ImportError:
        yield _say
        return
    console = Console(stderr=True)
    bars = Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=console)
    with bars as bar:
        task = bar.add_task("", total=count)

        def report(name: str, row: dict[str, Any] | None) -> None:
            bar.update(task, description=name, advance=0 if row is None else 1)
            if not console.is_terminal:
                _say(name, row)

        yield report


def _say(name: str, row: dict[str, Any] | None) -> None:
    """Write a line when a case begins."""
    if row is None:
        sys.stderr.write(f"{name}\n")
        sys.stderr.flush()


if __name__ == "__main__":
    from medzoo.errors import MedzooError

    try:
        sys.exit(main())
    except MedzooError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        sys.exit(error.exit_code)
