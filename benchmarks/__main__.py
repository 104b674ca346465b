"""``python -m benchmarks run|studies|compare|page``; without a command, ``run``. Needs no click, rich or matplotlib."""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from medzoo.errors import MedzooError


def parser() -> argparse.ArgumentParser:
    """Return the commands and their options."""
    made = argparse.ArgumentParser("python -m benchmarks", description="Time models beside their peers.")
    commands = made.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="time models beside their peers, and print a table (the default)")
    run.add_argument("models", nargs="*", metavar="MODEL", help="registered names (default: all)")
    levels = run.add_mutually_exclusive_group()
    levels.add_argument("--quick", action="store_const", dest="level", const="quick", help="a smoke test: few rounds")
    levels.add_argument("--full", action="store_const", dest="level", const="full", help="torch.compile too: an hour")
    run.add_argument("--device", help="such as cpu or cuda (default: a GPU if there is one)")
    run.add_argument("--results", type=Path, metavar="FOLDER", help="write the result file there")
    run.add_argument("--draw", type=Path, metavar="FOLDER", help="write the plots there, as SVG; needs matplotlib")
    run.add_argument("--limit", type=float, default=float("inf"), metavar="SECONDS", help="time limit for all rows")
    run.add_argument("--dry-run", action="store_true", help="each kind of a GPU's rows, at toy sizes (device: cpu)")
    run.add_argument("--allocators", action="store_true", help="run once per allocator setting, each in a new process")
    run.add_argument("--targets", action="store_true", help="only the rows with a target, each in a new process")
    run.add_argument("--busy", action="store_true", help="one row per model, beside as many busy processes as cores")
    run.add_argument("--row", action="append", metavar="ID", help="only this row; several: each in a new process")
    run.set_defaults(level="usual")
    studies = commands.add_parser("studies", help="from files to answers: 200 CT series and 2,000 X-rays; needs 8 GB")
    studies.add_argument("--results", type=Path, metavar="FOLDER", help="write the result file there")
    for kind, count in (("ct", 200), ("xray", 2000)):
        studies.add_argument(f"--{kind}", type=int, default=count, metavar="N", help=f"studies (default: {count})")
    compare = commands.add_parser("compare", help="compare two result files; exits with 1 if anything got worse")
    compare.add_argument("old", type=Path, metavar="OLD.json")
    compare.add_argument("new", type=Path, metavar="NEW.json")
    page = commands.add_parser("page", help="render result files into a page; needs matplotlib")
    page.add_argument("folder", type=Path, metavar="RESULTS", help="folder of result files, and notes.md")
    page.add_argument("page", type=Path, metavar="PAGE.md")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code: 7 if a model and its peer disagree, 1 for a regression."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] not in ("run", "studies", "compare", "page", "-h", "--help"):
        given = ["run", *given]
    options = parser().parse_args(given)
    if options.command == "compare":
        from benchmarks.results import compare_files

        changes, code = compare_files(options.old, options.new)
        sys.stdout.write(changes + "\n")
        return code
    if options.command == "page":
        from benchmarks.page import render
        from benchmarks.results import newest

        notes = options.folder / "notes.md"
        render(newest(options.folder), options.page, notes.read_text("utf-8") if notes.exists() else "")
        return 0
    if options.command == "studies":
        return _studies(options)
    if options.busy:
        return _run_beside_busy_processes([argument for argument in given if argument != "--busy"], bool(options.row))
    if options.allocators:
        return _run_for_each_allocator([argument for argument in given if argument != "--allocators"])
    return _run(options)


def _studies(options: argparse.Namespace) -> int:
    """Measure from files to answers, print the table, and write what the options ask for."""
    import tempfile

    from benchmarks.pipelines import WAYS
    from benchmarks.results import write_result
    from benchmarks.studies import TURNS, run, table

    copies = {"ct": options.ct, "xray": options.xray}
    turns = sum(len(WAYS[kind]) * min(TURNS, count) for kind, count in copies.items())
    with tempfile.TemporaryDirectory() as folder, progress(turns) as report:
        result = run(Path(folder), copies, report)
    lines = [table(result["studies"])]
    if options.results:
        lines.append(str(write_result(result, options.results)))
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def _run(options: argparse.Namespace) -> int:
    """Time the chosen cases, print the table, and write what the options ask for."""
    import torch

    from benchmarks.cases import dry_run, select
    from benchmarks.results import result_name, text, write_result
    from benchmarks.suite import BenchmarkError, measure_startup, run_isolated, run_suite
    from benchmarks.targets import target_rows

    fastest = "cuda" if torch.cuda.is_available() and not options.dry_run else "cpu"
    device = torch.device(options.device or fastest)
    cases = select(options.models, options.level, device="cuda" if options.dry_run else device.type)
    if options.dry_run:
        cases = dry_run(cases)
        options.level = "quick"
    isolated = target_rows(options.models) if options.targets else []
    if options.row:
        cases = [case for case in cases if case.id in options.row]
        isolated = [case.id for case in cases] if len(options.row) > 1 else []
    with warnings.catch_warnings(action="ignore"), progress(len(isolated or cases)) as report:  # the peers' warnings
        if isolated:
            how = [f"--{options.level}"] if options.level != "usual" else []
            how += ["--device", options.device] if options.device else []
            result = run_isolated(isolated, how, report, folder=options.results)
        else:
            result = run_suite(cases, device, options.level, report=report, limit=options.limit, folder=options.results)
        # A minute of fresh processes, which would say nothing about a GPU.
        if device.type == "cpu" and not options.models and not options.row and options.level != "quick":
            report("import and create", None)
            result["startup"] = measure_startup()
    lines = [text(result["rows"])] if result["rows"] else []
    for what in ("skipped", "failed"):
        lines += [f"{what} {name}: {reason}" for name, reason in result[what].items()]
    if options.results:
        lines.append(str(write_result(result, options.results)))
    if options.draw:
        from benchmarks.plots import draw

        name = Path(result_name(result["environment"])).stem
        lines += [str(file) for file in draw(result, options.draw, name).values()]
    sys.stdout.write("\n".join(lines) + "\n")
    return BenchmarkError.exit_code if result["failed"] else 0


def _run_for_each_allocator(given: list[str]) -> int:
    """Run the command in a process for each allocator setting, because torch reads it once."""
    from benchmarks.environment import ALLOCATORS

    clean = {name: value for name, value in os.environ.items() if name not in ALLOCATORS["thp"]}
    command = [sys.executable, "-m", "benchmarks", *given]
    return max(subprocess.run(command, env=clean | each, check=False).returncode for each in ALLOCATORS.values())


def _run_beside_busy_processes(given: list[str], has_rows: bool) -> int:
    """Run the command in a process, beside as many processes that compute as there are cores."""
    from benchmarks.environment import BUSY
    from benchmarks.targets import HEADLINES

    count = os.cpu_count() or 1
    rows = [] if has_rows else [part for row in HEADLINES["cpu"] for part in ("--row", row)]
    command = [sys.executable, "-m", "benchmarks", *given, *rows]
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            busy = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            stack.callback(busy.kill)  # before the context above waits for its end
        return subprocess.run(command, env=os.environ | {BUSY: str(count)}, check=False).returncode


@contextlib.contextmanager
def progress(count: int) -> Iterator[Any]:
    """Show which case runs, as a bar on a terminal with rich, else as lines; yields a function of name and row."""
    if not sys.stderr.isatty() or find_spec("rich") is None:
        yield _log_start
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=count)
        yield lambda name, row: bar.update(task, description=name, advance=0 if row is None else 1)


def _log_start(name: str, row: dict[str, Any] | None) -> None:
    """Write a line when a case begins."""
    if row is None:
        sys.stderr.write(f"{name}\n")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except MedzooError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        sys.exit(error.exit_code)
