"""GPU tests and benchmarks on a bare machine in minutes: ``python benchmarks/gpu.py OUT``.

Run it in the repository. It needs torch, timm, einops, safetensors, huggingface-hub, lazy-loader, numpy and pytest;
``--wheels FOLDER`` adds what is not installed, such as MONAI. Each step has a time limit of its own, so that one that
hangs does not cost the others. OUT gets the result file and one log; ``python -m benchmarks page`` renders the result
file on any machine. ``--dry-run`` runs every step at toy sizes on a CPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Seconds that the suite gets on top of its limit: to start, and to finish the case that runs at the limit.
GRACE = 60
DEVICE = """
import json, torch
from benchmarks.environment import describe_environment
print(json.dumps(describe_environment(torch.device({device!r})), indent=1))
"""


def parser() -> argparse.ArgumentParser:
    """Return the options."""
    made = argparse.ArgumentParser("benchmarks/gpu.py", description="Test and measure on a GPU.")
    made.add_argument("out", type=Path, help="folder for the result file and gpu.log")
    made.add_argument("--wheels", type=Path, metavar="FOLDER", help="use the wheels in it without installing")
    made.add_argument("--steps", default="device,tests,suite", help="which steps to run (default: %(default)s)")
    made.add_argument("--limit", type=float, default=200, help="seconds for the suite (default: %(default)s)")
    made.add_argument("--tests-limit", type=float, default=150, help="seconds for the tests (default: %(default)s)")
    made.add_argument("--level", default="usual", choices=("quick", "usual", "full"), help="full adds torch.compile")
    made.add_argument("--models", default="", help="comma-separated models for the suite (default: all)")
    made.add_argument("--dry-run", action="store_true", help="collect the tests, and run toy sizes on a CPU")
    return made


def steps(options: argparse.Namespace) -> dict[str, tuple[float, list[str]]]:
    """Return the time limit and the arguments of Python of each step."""
    # Only the files with GPU tests: the others need packages that a bare machine lacks.
    tests = sorted(str(file) for file in (ROOT / "tests").glob("test_*.py") if "mark.gpu" in file.read_text("utf-8"))
    level = [] if options.level == "usual" else [f"--{options.level}"]
    kind = ["--dry-run"] if options.dry_run else ["--device", "cuda", *level]
    models = [name for name in options.models.split(",") if name]
    suite = ["-m", "benchmarks", "run", *models, *kind, "--limit", str(options.limit), "--results", str(options.out)]
    collect = ["--collect-only"] if options.dry_run else ["--durations=5"]
    if not options.dry_run and importlib.util.find_spec("xdist"):
        # Most of their time is compiling. pytest-benchmark and xdist exclude each other.
        collect += ["-n", "8", "-p", "no:benchmark"]
    return {
        "device": (90, ["-c", DEVICE.format(device="cpu" if options.dry_run else "cuda")]),
        "tests": (options.tests_limit, ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", *collect, *tests]),
        "suite": (options.limit + GRACE, suite),
    }


def environment(wheels: Path | None, folder: Path) -> dict[str, str]:
    """Return this process's variables with the repository and the unpacked wheels on Python's path.

    Unpacked, because some packages read files beside their modules.
    """
    for wheel in sorted(wheels.glob("*.whl")) if wheels else []:
        zipfile.ZipFile(wheel).extractall(folder)
    before = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    path = [str(ROOT), str(ROOT / "tests"), str(folder), *before]
    return os.environ | {"PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1"}


def run(name: str, limit: float, command: list[str], variables: dict[str, str], log: Path) -> int:
    """Run one step, append its output to the log, and return its exit code; 124 if it reached its limit."""
    start = time.perf_counter()
    with log.open("a", encoding="utf-8") as stream:
        stream.write(f"== {name}: {' '.join(command[1:])}\n")
        stream.flush()
        begin = stream.tell()
        try:
            code = subprocess.run(
                command, cwd=ROOT, env=variables, stdout=stream, stderr=stream, timeout=limit, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            code = 124
            stream.write(f"stopped after {limit:.0f} s\n")
    with log.open(encoding="utf-8", errors="replace") as stream:
        stream.seek(begin)
        print(stream.read()[-6000:])
    line = f"== {name}: exit {code} after {time.perf_counter() - start:.0f} s"
    with log.open("a", encoding="utf-8") as stream:
        stream.write(line + "\n")
    print(line, flush=True)
    return code


def main() -> int:
    """Run the steps; return the largest exit code."""
    options = parser().parse_args()
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    chosen = steps(options)
    unknown = set(options.steps.split(",")) - chosen.keys()
    if unknown:
        sys.exit(f"expected steps of {', '.join(chosen)}, got {', '.join(sorted(unknown))}")
    log = options.out / "gpu.log"
    log.unlink(missing_ok=True)
    codes = []
    with tempfile.TemporaryDirectory() as folder:
        variables = environment(options.wheels, Path(folder))
        if options.dry_run:
            variables |= {"OMP_NUM_THREADS": "1"}  # threads do not help toy sizes
        for name in options.steps.split(","):
            limit, arguments = chosen[name]
            codes.append(run(name, limit, [sys.executable, *arguments], variables, log))
            if name == "device" and codes[-1]:
                break
    files = sorted(file.name for file in options.out.iterdir())
    print(f"{options.out}: {', '.join(files)}")
    if "suite" in options.steps.split(",") and not list(options.out.glob("*.json")):
        print("the suite wrote no result file")
        return max(1, *codes)
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
