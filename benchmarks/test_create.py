"""``create`` with weights from a file, beside making the model and loading a checkpoint into it.

The promise is at most two thirds of the time: no tensor is filled with random numbers first, only to be overwritten.
Run it with ``pytest benchmarks/test_create.py``.
"""

from __future__ import annotations

import time

import torch

import medzoo
from medzoo.bench.race import spread
from medzoo.bench.startup import MODEL, create_and_peer


def test_create(benchmark, result, tmp_path):
    # 52 million parameters; with the timing disabled, a few.
    ours, plain = create_and_peer(tmp_path, medzoo.describe(MODEL).tiny if benchmark.disabled else None)
    expected, found = plain().state_dict(), ours().state_dict()
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor)
    del expected, found
    shares, peers = [], []

    def time_plain() -> None:
        start = time.perf_counter()
        plain()
        peers.append(time.perf_counter() - start)

    benchmark.pedantic(ours, setup=time_plain, rounds=7)
    if benchmark.stats:
        shares = [mine / peer for mine, peer in zip(benchmark.stats.stats.data, peers, strict=True)]
        told = {"value": spread(shares)["median"], "init + load": spread(peers)}
        told["medzoo"] = spread(benchmark.stats.stats.data)
        benchmark.extra_info |= told
        result["startup"]["create"] = told
        print(f"\ncreate takes {told['value']:.0%} of init + torch.load + load_state_dict")
