"""What the input check costs beside the forward pass it guards.

The promise is less than 1 % of ``cnn3d_small`` at 64³, batch 1. Run it with ``pytest benchmarks/test_check.py``; the
share is in ``extra_info`` of the saved JSON and in the printed line.
"""

from __future__ import annotations

import time
from statistics import median

import pytest
import torch

import medzoo


@pytest.mark.parametrize("name", ["cnn3d_small", "swin_encoder_mlp", "resnet18_multilabel"])
def test_check(benchmark, name):
    model = medzoo.create(name).eval()
    spec = model.input_spec
    x = torch.randn(1, spec.channels, *spec.size)
    forward = []
    with torch.inference_mode():
        model(x)
        for _ in range(5):
            start = time.perf_counter()
            model(x)
            forward.append(time.perf_counter() - start)
        benchmark(model.check_input, x)
    if benchmark.stats:
        share = benchmark.stats.stats.median / median(forward)
        benchmark.extra_info |= {"forward_s": median(forward), "share_of_forward": share, "torch": torch.__version__}
        print(f"\n{name}: the check is {share:.3%} of a forward pass of {1000 * median(forward):.1f} ms")
