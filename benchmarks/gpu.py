"""Checks, benchmarks and pictures on a bare GPU machine inside 10 minutes: ``python benchmarks/gpu.py OUT``.

Run it in the repository. It needs torch, timm, einops, safetensors, huggingface-hub, lazy-loader and numpy; MONAI takes
part where it is installed. Each step has a time limit of its own, so that one which hangs does not cost the others;
OUT gets the log of every step, the result file, the pictures and the page.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Only the files that have GPU tests: the others need packages that a bare machine lacks.
TESTS = sorted(str(file) for file in (ROOT / "tests").glob("test_*.py") if "mark.gpu" in file.read_text("utf-8"))
PYTEST = ["-m", "pytest", "-q", "-p", "no:cacheprovider"]
# What each step may take, in seconds; together less than 10 minutes.
STEPS = {
    "device": (30, ["-c", "import torch; print(torch.__version__, torch.cuda.get_device_name())"]),
    "tests": (100, [*PYTEST, "-m", "gpu", *TESTS]),
    "agreement": (80, [*PYTEST, "benchmarks/test_cases.py", "--benchmark-disable"]),
    "suite": (330, ["-m", "medzoo.bench", "--limit", "280", "--device", "cuda", "--results", "{out}"]),
    "page": (30, ["-m", "medzoo.bench.page", "{out}", "{out}/benchmarks.md"]),
}


def main() -> int:
    if len(sys.argv) != 2:
        sys.exit("usage: python benchmarks/gpu.py OUT")
    out = Path(sys.argv[1]).resolve()
    out.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "PYTHONUNBUFFERED": "1",
    }
    codes = []
    for name, (limit, arguments) in STEPS.items():
        if name == "tests" and not TESTS:
            continue
        command = [sys.executable, *(argument.format(out=out) for argument in arguments)]
        start = time.perf_counter()
        log = out / f"{name}.log"
        with log.open("w", encoding="utf-8") as stream:
            try:
                done = subprocess.run(
                    command, cwd=ROOT, env=environment, stdout=stream, stderr=stream, timeout=limit, check=False
                )
                codes.append(done.returncode)
            except subprocess.TimeoutExpired:
                stream.write(f"stopped after {limit} s\n")
                codes.append(124)
        print(f"{name}: exit {codes[-1]} after {time.perf_counter() - start:.0f} s")
        print(log.read_text(encoding="utf-8")[-4000:])
        if name == "device" and codes[-1]:
            return codes[-1]
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
