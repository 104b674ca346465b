"""From a CT that was read to a tensor: ``Preprocessing.resample`` "triangle", "reference", and MONAI's own transforms.

The CT is a series of 512 × 512 × 30 int16 voxels: that of ``MEDZOO_DATA``, else a phantom. The peer is ``Orientation``,
``Resize(anti_aliasing=True)`` and ``NormalizeIntensity`` of MONAI on the same array, which does not check it. All three
take turns, round after round; a ratio is between the times of one round, and between the best times of all. The target
is a ratio of 5 to either.

Agreement comes first: "reference" is MONAI's filter, to rounding, and the triangle's values correlate with it. It is
checked with the intensity scaled before the filter, as medzoo does; the peer that is timed scales the smaller tensor,
which is faster and changes its values at the border, where MONAI's filter takes what is outside for 0.

The figures are printed, and saved in ``extra_info``.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, NormalizeIntensity, Orientation, Resize

import medzoo
from benchmarks.timing import spread
from medzoo.transforms.transform import Transform
from medzoo.visual.phantoms import draw_ct, write_ct_series

TARGET = 5.0
ROUNDS = 15


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    folder = os.environ.get("MEDZOO_DATA")
    real = Path(folder or ".") / "chest_ct" / "dicom_A0002"
    if folder and real.is_dir():
        return medzoo.read(real)
    return medzoo.read(write_ct_series(tmp_path_factory.mktemp("ct"), draw_ct((512, 512, 30))))


@pytest.mark.parametrize("name", ["cnn3d_base", "cnn3d_small", "swin_encoder_mlp"])
def test_transform(benchmark, name, scan):
    how, rounds = medzoo.describe(name).preprocessing, 1 if benchmark.disabled else ROUNDS
    filters = {one: Transform(replace(how, resample=one), 1, name) for one in ("triangle", "reference")}
    orient = Orientation(axcodes=how.orientation, labels=None)
    resize, scale = Resize(how.size, mode="trilinear", anti_aliasing=True), NormalizeIntensity()
    affine = torch.from_numpy(scan.affine)

    def by_monai(*steps):
        return Compose([orient, *steps])(MetaTensor(torch.from_numpy(scan.array).float(), affine=affine)).as_tensor()

    calls = {one: lambda transform=transform: transform(scan) for one, transform in filters.items()}
    calls["MONAI"] = lambda: by_monai(resize, scale)
    exact = by_monai(scale, resize)
    torch.testing.assert_close(calls["reference"](), exact, atol=1e-4, rtol=0)
    assert float(np.corrcoef(calls["triangle"]().flatten(), exact.flatten())[0, 1]) > 0.998

    times = {one: [] for one in calls}
    for _ in range(rounds):
        for one, call in calls.items():
            start = time.perf_counter()
            call()
            times[one].append(time.perf_counter() - start)
    benchmark.pedantic(calls["triangle"], rounds=rounds)
    ours = times.pop("triangle")
    found = {}
    for one, theirs in times.items():
        ratios = spread([b / a for a, b in zip(ours, theirs, strict=True)])
        found[one] = ratios | {"best": min(theirs) / min(ours), "best_s": min(theirs)}
    if benchmark.stats:
        threads = torch.get_num_threads()
        benchmark.extra_info |= {"best_s": min(ours), "ratios": found, "torch": torch.__version__, "threads": threads}
        ratios = ", ".join(f"{one} {r['best']:.1f} ({r['median']:.1f}) times as long" for one, r in found.items())
        print(f"\n{name}, {threads} threads: {1000 * min(ours):.0f} ms, {ratios}; target {TARGET:g}")
