"""What ``import medzoo`` and listing its models add to ``import torch``, in fresh processes, in turn.

The promise is at most 0.3 s. Run it with ``pytest benchmarks/test_import.py``.
"""

from __future__ import annotations

import subprocess
import sys
import time
from statistics import median

TORCH = "import torch"
MEDZOO = "import torch; import medzoo; medzoo.list_models()"


def seconds(code: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


def test_import(benchmark):
    torch_alone = []
    benchmark.pedantic(
        seconds,
        (MEDZOO,),
        setup=lambda: torch_alone.append(seconds(TORCH)),
        rounds=7,
        warmup_rounds=1,
    )
    if benchmark.stats:
        added = benchmark.stats.stats.median - median(torch_alone)
        benchmark.extra_info |= {"torch_s": median(torch_alone), "added_s": added}
        print(f"\nmedzoo adds {added:.3f} s to the {median(torch_alone):.2f} s of import torch")
