"""What medzoo costs around a forward pass: the input check, ``import medzoo``, and ``create`` with weights.

Run it with ``pytest benchmarks/test_overhead.py``; the figures are printed, and saved in ``extra_info``.
"""

from __future__ import annotations

import time
from statistics import median

import pytest
import torch

import medzoo
from benchmarks.suite import MEDZOO, STARTUP_MODEL, TORCH, create_and_peer, run_python
from benchmarks.timing import spread


@pytest.mark.parametrize("name", ["cnn3d_small", "swin_encoder_mlp", "resnet18_multilabel"])
def test_check(benchmark, name):
    """The target is less than 1 % of ``cnn3d_small`` at 64³, batch 1."""
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


def test_import(benchmark):
    """What ``import medzoo`` and listing its models add to ``import torch``; the target is at most 0.1 s."""
    torch_alone = []

    def time_torch() -> None:
        start = time.perf_counter()
        run_python(TORCH)
        torch_alone.append(time.perf_counter() - start)

    benchmark.pedantic(run_python, (MEDZOO,), setup=time_torch, rounds=7, warmup_rounds=1)
    if benchmark.stats:
        added = benchmark.stats.stats.median - median(torch_alone)
        benchmark.extra_info |= {"torch_s": median(torch_alone), "added_s": added}
        print(f"\nmedzoo adds {added:.3f} s to the {median(torch_alone):.2f} s of import torch")


def test_create(benchmark, result, tmp_path):
    """``create`` from a file beside construction and ``load_state_dict``; the target is two thirds of the time.

    No tensor is first filled with random values, only to be overwritten.
    """
    # 52 million parameters; a few if the timing is disabled.
    ours, plain = create_and_peer(tmp_path, medzoo.describe(STARTUP_MODEL).tiny if benchmark.disabled else None)
    expected, found = plain().state_dict(), ours().state_dict()
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor)
    del expected, found
    peers = []

    def time_plain() -> None:
        start = time.perf_counter()
        plain()
        peers.append(time.perf_counter() - start)

    benchmark.pedantic(ours, setup=time_plain, rounds=7)
    if benchmark.stats:
        data = benchmark.stats.stats.data
        shares = [mine / peer for mine, peer in zip(data, peers, strict=True)]
        measured = {"value": spread(shares)["median"], "init + load": spread(peers), "medzoo": spread(data)}
        benchmark.extra_info |= measured
        result["startup"]["create"] = measured
        print(f"\ncreate takes {measured['value']:.0%} of init + torch.load + load_state_dict")
