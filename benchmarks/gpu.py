"""GPU tests and benchmarks on a bare machine in minutes: ``python benchmarks/gpu.py OUT``.

Run it in the repository. It needs torch, timm, einops, safetensors, huggingface-hub, lazy-loader, numpy and pytest;
``--wheels FOLDER`` adds what is not installed: MONAI, hypothesis for the tests, pydicom for the files. Each step has
its own time limit, so that one that hangs does not cost the others. OUT gets the result files and one log; ``python -m
benchmarks page`` renders the result files on any machine. ``--dry-run`` runs every step at toy sizes on a CPU.
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
# With torch.compile as a peer, each in a process of its own: compiling takes a minute or more. By importance.
COMPILED_ROWS = (
    "swin_encoder_mlp-96x96x96-b8-bfloat16-forward",
    "cnn3d_base-64x128x128-b64-bfloat16-forward",
    "xray_cnn-320x320-b1-bfloat16-forward",
    "resnet18_multilabel-320x320-b1-bfloat16-forward",
)
DEVICE = """
import json, torch
from benchmarks.environment import describe_environment
print(json.dumps(describe_environment(torch.device({device!r})), indent=1))
"""


def steps(options: argparse.Namespace) -> dict[str, tuple[float, list[str]]]:
    """Return the time limit and the arguments of Python of each step."""
    # Only the files with GPU tests: the others need packages that a bare machine lacks.
    tests = sorted(str(file) for file in (ROOT / "tests").glob("test_*.py") if "mark.gpu" in file.read_text("utf-8"))
    tests = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", *tests]
    suite = ["-m", "benchmarks", "run", *filter(None, options.models.split(","))]
    suite += ["--limit", str(options.limit), "--results", str(options.out)]
    if options.dry_run:
        tests.append("--collect-only")
        suite.append("--dry-run")
    else:
        tests.append("--durations=5")
        suite += ["--device", "cuda", *([] if options.level == "usual" else [f"--{options.level}"])]
        if importlib.util.find_spec("xdist"):
            # Most of their time is compiling. pytest-benchmark and xdist exclude each other.
            tests += ["-n", "8", "-p", "no:benchmark"]
    files = ["-m", "pytest", "-q", "-p", "no:cacheprovider", str(ROOT / "benchmarks" / "test_overhead.py")]
    files += ["-k", "step or xray-0 or ct-0", "--benchmark-columns=median,iqr,rounds"]
    if options.dry_run:
        files.append("--collect-only")
    compiled = ["-m", "benchmarks", "run", "--full", "--device", "cuda", "--results", str(options.out)]
    for row in COMPILED_ROWS:
        compiled += ["--row", row]
    return {
        "device": (90, ["-c", DEVICE.format(device="cpu" if options.dry_run else "cuda")]),
        "tests": (options.tests_limit, tests),
        "suite": (options.limit + GRACE, suite),
        "files": (90, files),
        "compiled": (options.limit, compiled),
    }


def environment(wheels: Path | None, folder: Path) -> dict[str, str]:
    """Return this process's variables with the repository and the unpacked wheels on Python's path."""
    # Unpacked, because some packages read files beside their modules.
    for wheel in sorted(wheels.glob("*.whl")) if wheels else []:
        zipfile.ZipFile(wheel).extractall(folder)
    path = [str(ROOT), str(ROOT / "tests"), str(folder), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path)), "PYTHONUNBUFFERED": "1"}


def run(name: str, limit: float, command: list[str], variables: dict[str, str], log: Path) -> int:
    """Run one step, append its output to the log, and return its exit code; 124 if it reached its limit."""
    start = time.perf_counter()
    with log.open("a+", encoding="utf-8", errors="replace") as stream:
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
        stream.write(f"== {name}: exit {code} after {time.perf_counter() - start:.0f} s\n")
        stream.seek(begin)
        print(stream.read()[-6000:], flush=True)
    return code


def main() -> int:
    """Run the steps; return the largest exit code."""
    parser = argparse.ArgumentParser("benchmarks/gpu.py", description="Test and measure on a GPU.")
    parser.add_argument("out", type=Path, help="folder for the result file and gpu.log")
    parser.add_argument("--wheels", type=Path, metavar="FOLDER", help="use the wheels in it without installing")
    parser.add_argument("--steps", default="device,tests,suite", help="which steps to run (default: %(default)s)")
    parser.add_argument("--limit", type=float, default=200, help="seconds for the suite (default: %(default)s)")
    parser.add_argument("--tests-limit", type=float, default=150, help="seconds for the tests (default: %(default)s)")
    parser.add_argument("--level", default="usual", choices=("quick", "usual", "full"), help="full adds torch.compile")
    parser.add_argument("--models", default="", help="comma-separated models for the suite (default: all)")
    parser.add_argument("--dry-run", action="store_true", help="collect the tests, and run toy sizes on a CPU")
    options = parser.parse_args()
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    known, names = steps(options), options.steps.split(",")
    unknown = set(names) - known.keys()
    if unknown:
        sys.exit(f"expected steps of {', '.join(known)}, got {', '.join(sorted(unknown))}")
    log = options.out / "gpu.log"
    log.unlink(missing_ok=True)
    codes = []
    with tempfile.TemporaryDirectory() as folder:
        variables = environment(options.wheels, Path(folder))
        if options.dry_run:
            variables |= {"OMP_NUM_THREADS": "1"}  # threads do not help toy sizes
        for name in names:
            limit, arguments = known[name]
            codes.append(run(name, limit, [sys.executable, *arguments], variables, log))
            if name == "device" and codes[-1]:
                break
    print(f"{options.out}: {', '.join(sorted(file.name for file in options.out.iterdir()))}")
    if "suite" in names and not list(options.out.glob("*.json")):
        print("the suite wrote no result file")
        codes.append(1)
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
