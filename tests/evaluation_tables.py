"""Tables of scores for the tests of evaluation: drawn by hypothesis, and simulated, of patients with several rows."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from scipy.stats import norm

from medzoo.evaluation.scores import Scores


def names(count):
    return np.array([f"row {i}" for i in range(count)])


def binary(targets, logits=None, *, probabilities=None, patients=None, threshold=0.5):
    """Return scores of one output; NaN in ``targets`` is an unknown label."""
    fields = {
        "task": "binary", "ids": names(len(targets)), "labels": ("a",), "thresholds": (threshold,),
        "targets": np.array(targets, np.float32).reshape(-1, 1),
        "patients": None if patients is None else np.array([f"p{i}" for i in patients]),
    }  # fmt: skip
    if logits is None:
        return Scores.from_probabilities(np.array(probabilities, float).reshape(-1, 1), **fields)
    return Scores.from_logits(np.array(logits, float).reshape(-1, 1), **fields)


@st.composite
def tables(draw, least=1, most=40, unknown=True):
    """Return targets (1, 0 and NaN), logits with many ties, and the patient of each row."""
    n = draw(st.integers(least, most))
    values = [0.0, 1.0, np.nan] if unknown else [0.0, 1.0]
    targets = draw(st.lists(st.sampled_from(values), min_size=n, max_size=n))
    few = draw(st.booleans())
    score = st.integers(-3, 3).map(float) if few else st.floats(-20, 20, allow_nan=False)
    logits = draw(st.lists(score, min_size=n, max_size=n))
    patients = draw(st.lists(st.integers(0, max(1, n // 2)), min_size=n, max_size=n))
    return np.array(targets), np.array(logits), np.array(patients)


def clustered(rng, patients, auroc, prevalence, *, most=8, score=0.5, label=0.4):
    """Return targets ``n``, logits ``n`` and patients ``n`` of a simulated table.

    Each patient has 1 to ``most`` rows. A random effect of the patient is the share ``score`` of the variance of the
    scores within a class, and ``label`` of that of the latent variable behind the label. The logits are those of
    calibrated probabilities.
    """
    c = np.repeat(np.arange(patients), rng.integers(1, most + 1, patients))
    latent = label**0.5 * rng.standard_normal(patients)[c] + (1 - label) ** 0.5 * rng.standard_normal(len(c))
    y = latent > norm.ppf(1 - prevalence)
    d = 2**0.5 * norm.ppf(auroc)
    x = d * y + score**0.5 * rng.standard_normal(patients)[c] + (1 - score) ** 0.5 * rng.standard_normal(len(c))
    return y.astype(float), d * (x - d / 2) + np.log(prevalence / (1 - prevalence)), c
