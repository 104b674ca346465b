"""What a large test set costs: its figures with 2,000 resamples of the patients, its curves, and the same by site.

``test_large`` measures 112,000 rows of 14 outputs and 30,805 patients, the size of ChestX-ray14. The targets are 60 s
and 2 GB on 2 cores.

``test_resamples`` compares the AUROC and the average precision of resamples, for which medzoo weighs the ordered rows,
with scikit-learn's on the resampled rows. Both run in turn, in one process, and their values are compared first.

The figures are printed, and saved in ``extra_info``.
"""

from __future__ import annotations

import os
import time

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from benchmarks.timing import measure_peak, spread
from medzoo.evaluation.curves import curves
from medzoo.evaluation.groups import group_by
from medzoo.evaluation.metrics import measure
from medzoo.evaluation.ranking import Ranking
from medzoo.evaluation.resample import Resamples
from medzoo.evaluation.scores import Scores

SECONDS_TARGET, BYTES_TARGET = 60, 2e9
ROUNDS = 7


def make_scores(rows: int, patients: int, outputs: int) -> Scores:
    """Return scores of outputs with 0.2 to 20 % positives, whose rows of a patient are alike."""
    rng = np.random.default_rng(0)
    of = np.sort(np.concatenate([np.arange(patients), rng.integers(patients, size=rows - patients)]))
    prevalence = np.geomspace(0.002, 0.2, outputs)
    y = rng.random((rows, outputs)) < prevalence
    alike = 0.7 * rng.standard_normal((patients, outputs))[of]
    z = 1.5 * y + rng.standard_normal((rows, outputs)) + alike + np.log(prevalence)
    return Scores.from_logits(
        z,
        task="multilabel",
        ids=np.arange(rows).astype(str),
        targets=y.astype(np.float32),
        labels=tuple(f"output {i}" for i in range(outputs)),
        thresholds=(0.1,) * outputs,
        patients=of.astype(str),
        groups={"site": np.array(["north", "east", "south", "west"])[of % 4]},
    )


@pytest.mark.parametrize("what", ["figures", "curves", "groups"])
def test_large(benchmark, what):
    rows, patients, outputs, resamples = (400, 100, 3, 20) if benchmark.disabled else (112_000, 30_805, 14, 2000)
    scores, found = make_scores(rows, patients, outputs), []
    if what == "figures":
        call = lambda: found.append(measure(scores, resamples=resamples))  # noqa: E731
    elif what == "groups":
        call = lambda: found.append(group_by(scores, "site", eligible=scores.labels, resamples=resamples))  # noqa: E731
    else:
        call = lambda: found.append(curves(scores))  # noqa: E731
    peak = benchmark.pedantic(measure_peak, (call, torch.device("cpu")), rounds=1)
    assert len(found) == 1
    labels = {"figures": lambda: found[0].labels, "groups": lambda: found[0].rows[0].figures.keys() - {""}}
    assert len(labels.get(what, lambda: found[0])()) == outputs
    if benchmark.stats:
        seconds = benchmark.stats.stats.median
        benchmark.extra_info |= {
            "peak_bytes": peak, "seconds_target": SECONDS_TARGET, "bytes_target": BYTES_TARGET, "cores": os.cpu_count(),
            "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        }  # fmt: skip
        print(
            f"\n{what} of {rows:,} rows, {outputs} outputs, {patients:,} patients: {seconds:.1f} s, "
            f"{(peak or 0) / 1e9:.2f} GB on top of the scores; targets {SECONDS_TARGET} s, {BYTES_TARGET / 1e9:.0f} GB"
        )


def test_resamples(benchmark):
    rows, patients, resamples = (200, 60, 4) if benchmark.disabled else (5000, 1500, 64)
    scores = make_scores(rows, patients, 1)
    y, s, draws = scores.targets[:, 0] == 1, scores.ranks[:, 0], Resamples(scores.clusters, resamples)
    y |= s > np.quantile(s, 0.97)  # enough positives for every resample

    def ours() -> np.ndarray:
        sweep = Ranking(y, s, scores.clusters, draws.patients).sweep(draws.weights(range(resamples)))
        return np.stack([sweep.auroc(), sweep.average_precision()])

    def theirs() -> np.ndarray:
        drawn = draws.weights(range(resamples)).astype(int)[scores.clusters]
        found = []
        for i in range(resamples):
            at = np.repeat(np.arange(rows), drawn[:, i])
            found.append((roc_auc_score(y[at], s[at]), average_precision_score(y[at], s[at])))
        return np.transpose(found)

    np.testing.assert_allclose(ours(), theirs(), rtol=0, atol=1e-12)
    ratios = []

    def turn() -> None:
        start = time.perf_counter()
        theirs()
        between = time.perf_counter()
        ours()
        ratios.append((between - start) / (time.perf_counter() - between))

    benchmark.pedantic(turn, rounds=1 if benchmark.disabled else ROUNDS)
    assert ratios
    if benchmark.stats:
        times = spread(ratios)
        benchmark.extra_info |= {"times_as_fast": times, "rows": rows, "resamples": resamples}
        print(
            f"\n{resamples} resamples of {rows:,} rows: {times['median']:.0f} times as fast as scikit-learn on the "
            f"resampled rows ({times['low']:.0f} to {times['high']:.0f})"
        )
