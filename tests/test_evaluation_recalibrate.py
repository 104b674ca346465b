"""``recalibrate``: a model for a new site, as a folder that states how."""

from __future__ import annotations

import json
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from tensors import TINY, batch, scatter_weights, tiny
from test_evaluation_thresholds import scores_of, simulated

import medzoo
from medzoo.errors import ConfigError, DataError
from medzoo.evaluation.calibration import (
    Fitted,
    apply_calibration,
    fit_calibration,
    fold_calibration,
    shift_for_loss_weights,
)
from medzoo.evaluation.recalibrate import recalibrate
from medzoo.provenance import Calibration, ThresholdPolicy


@pytest.fixture
def model(tmp_path):
    made = tiny("cnn3d_small", num_classes=1).eval()
    scatter_weights(made)
    made.set_outputs(labels=["a"], task="binary", prevalence=[0.3])
    use = medzoo.IntendedUse(("CT",), population="adults")
    made.save_pretrained(tmp_path / "first", license="MIT", trained_on="CT of 400 patients", intended_use=use)
    return medzoo.create(f"local-dir:{tmp_path / 'first'}").eval()


def site(**fields):
    patients = np.array([f"patient-{i // 2}" for i in range(400)])
    return simulated(400, seed=3, patients=patients, source="/secret/path/scores.csv", **fields)


def test_a_new_site_gets_a_folder_that_states_how(model, tmp_path):
    scores, weights = site(), model.head.classifier.weight.clone()
    new = medzoo.recalibrate(model, scores, to=tmp_path / "new")
    assert torch.equal(model.head.classifier.weight, weights), "the given model is not changed"
    assert model.outputs.calibration is None
    fitted = fit_calibration(scores, split="400 images of 200 patients").calibration
    assert new.outputs.calibration == fitted
    assert new.outputs.policy.rule == "Youden"
    assert (new.outputs.policy.scale, new.outputs.policy.split) == ("calibrated", "400 images of 200 patients")
    assert new.outputs.prevalence == (0.3,), "of the training"
    x = batch("cnn3d_small", 3)
    with torch.inference_mode():
        expected = torch.tensor(fitted.slope) * model(x) + torch.tensor(fitted.intercept)
        torch.testing.assert_close(new(x), expected, rtol=1e-6, atol=1e-6)
    assert not new.training
    report = new.load_report
    assert not report.changed, "it is the folder that is described"
    assert (report.license, report.trained_on) == ("MIT", "CT of 400 patients")
    assert new.intended_use == model.intended_use
    for name in ("config.json", "README.md"):
        text = (tmp_path / "new" / name).read_text()
        assert "secret" not in text
        assert "patient-" not in text
    y, p = scores.targets[:, 0] == 1, apply_calibration(scores, fitted).probabilities[:, 0]
    (t,) = new.outputs.thresholds
    assert (((p >= t) & y).sum() / y.sum(),) == new.outputs.policy.sensitivity


def test_an_earlier_calibration_is_undone_and_its_rule_is_kept(model, tmp_path):
    scores = site()
    once = recalibrate(model, scores, to=tmp_path / "once", rule="sensitivity>=0.9", split="site A")
    # The scores of the calibrated model, of the same images at another site.
    again = apply_calibration(scores, once.outputs.calibration)
    twice = recalibrate(once, again, to=tmp_path / "twice", split="site B")
    assert twice.outputs.calibration.slope == pytest.approx(once.outputs.calibration.slope, rel=1e-6)
    assert twice.outputs.calibration.intercept == pytest.approx(once.outputs.calibration.intercept, abs=1e-6)
    assert twice.outputs.policy.rule == "sensitivity >= 0.9"
    assert twice.outputs.calibration.split == "site B"
    assert twice.outputs.thresholds == pytest.approx(once.outputs.thresholds)
    x = batch("cnn3d_small", 3)
    with torch.inference_mode():
        torch.testing.assert_close(twice(x), once(x), rtol=1e-5, atol=1e-5)


def test_images_are_scored_without_the_earlier_calibration(model, tmp_path, monkeypatch):
    fold_calibration(model, Calibration("Platt", (3.0,), (1.0,)))
    seen = {}

    def score_table(plain, table, **options):
        seen.update(calibration=plain.outputs.calibration, table=table, options=options)
        return site()

    stub = types.ModuleType("medzoo.evaluation.score_table")
    stub.score_table = score_table
    monkeypatch.setitem(sys.modules, "medzoo.evaluation.score_table", stub)
    table = object()
    new = recalibrate(model, table, to=tmp_path / "new", batch_size=4)
    assert seen == {"calibration": None, "table": table, "options": {"batch_size": 4}}
    assert new.outputs.calibration == fit_calibration(site(), split="400 images of 200 patients").calibration


def test_a_sample_of_cases_is_shifted_to_the_prevalence_of_the_site(model, tmp_path):
    scores = site()
    plain = recalibrate(model, scores, to=tmp_path / "plain")
    new = recalibrate(model, scores, to=tmp_path / "new", prevalence=0.01)
    share = float(scores.targets.mean())
    shift = np.log(0.01 / 0.99) - np.log(share / (1 - share))
    assert new.outputs.calibration.intercept[0] == pytest.approx(plain.outputs.calibration.intercept[0] + shift)
    assert new.outputs.calibration.method.startswith("Platt, and a closed-form shift of the prevalence (a 0.")
    assert new.outputs.policy.sensitivity == plain.outputs.policy.sensitivity
    with pytest.raises(ConfigError, match="above 0 and below 1"):
        recalibrate(model, scores, to=tmp_path / "no", prevalence=0)
    assert not (tmp_path / "no").exists()


def test_a_prevalence_alone_is_a_shift_in_closed_form(model, tmp_path):
    model.set_outputs(labels=["a"], thresholds=[0.4], policy=ThresholdPolicy("by eye"), prevalence=[0.3])
    new = recalibrate(model, prevalence=0.05, to=tmp_path / "new")
    shift = np.log(0.05 / 0.95) - np.log(0.3 / 0.7)
    assert new.outputs.calibration.slope == (1.0,)
    assert new.outputs.calibration.intercept == pytest.approx((shift,))
    assert "not a fit" in new.outputs.calibration.method
    assert new.outputs.thresholds[0] == pytest.approx(1 / (1 + np.exp(-(np.log(0.4 / 0.6) + shift))))
    assert new.outputs.calibration.prevalence == (0.05,)
    again = recalibrate(new, prevalence=0.01, to=tmp_path / "next").outputs.calibration
    assert again.intercept == pytest.approx((np.log(0.01 / 0.99) - np.log(0.3 / 0.7),))
    back = recalibrate(new, prevalence=0.3, from_prevalence=0.05, to=tmp_path / "back")
    assert back.outputs.calibration.intercept == pytest.approx((0,), abs=1e-12)
    fitted = recalibrate(model, site(), to=tmp_path / "fitted")
    rare = recalibrate(fitted, prevalence=0.01, to=tmp_path / "rare")
    share = float(site().targets.mean())
    moved = np.log(0.01 / 0.99) - np.log(share / (1 - share))
    assert rare.outputs.calibration.intercept[0] == pytest.approx(fitted.outputs.calibration.intercept[0] + moved)
    assert rare.outputs.policy.sensitivity == fitted.outputs.policy.sensitivity


def test_a_rule_of_costs_is_for_the_stated_prevalence(model, tmp_path):
    def drawn(n, share, seed):
        draw = np.random.default_rng(seed)
        y = draw.random(n) < share
        return scores_of(draw.normal(size=n) + 1.5 * y, y)

    new = recalibrate(model, drawn(4000, 0.5, 0), to=tmp_path / "new", rule="cost fn:fp=5", prevalence=0.02)
    # With right probabilities the best threshold is where 5 p = 1 - p.
    assert 0.08 < new.outputs.thresholds[0] < 0.3
    site = apply_calibration(drawn(100_000, 0.02, 1), new.outputs.calibration)
    y, p = site.targets[:, 0] == 1, site.probabilities[:, 0]

    def cost(t):
        return (5 * ((p < t) & y).sum() + ((p >= t) & ~y).sum()) / len(y)

    assert cost(new.outputs.thresholds[0]) < min(1.1 * cost(1 / 6), cost(1.0))
    assert new.outputs.policy.split == "4,000 images, for a prevalence of 0.02"
    once_more = recalibrate(new, drawn(4000, 0.5, 2), to=tmp_path / "again")
    assert once_more.outputs.policy.rule == "cost fn:fp = 5"


def test_weights_of_the_loss_are_undone_by_a_shift(model, tmp_path):
    model.set_outputs(labels=["a"], prevalence=[0.1], loss_weights=[9.0])
    new = recalibrate(model, prevalence=0.02, to=tmp_path / "new")
    expected = np.log(0.02 / 0.98) - np.log(9 * 0.1 / 0.9)
    assert new.outputs.calibration.intercept == pytest.approx((expected,))
    assert new.outputs.calibration.method == (
        "closed-form shift for the weights of the loss (a 9), not a fit, and a closed-form shift of the prevalence "
        "(a 0.1 to 0.02), not a fit"
    )
    assert new.outputs.loss_weights == (9.0,), "it states the training"
    draw = np.random.default_rng(0)
    y = draw.random(20_000) < 0.1
    # Logits of a model that has learned all there is, under a weight of 9.
    z = np.where(y, 1, -1) + draw.normal(size=len(y))
    scores = scores_of(2 * z + np.log(0.1 / 0.9) + np.log(9), y)
    p = apply_calibration(scores, new.outputs.calibration).probabilities[:, 0]
    assert 0.02 * p[y].mean() + 0.98 * p[~y].mean() == pytest.approx(0.02, abs=0.002)
    stated = recalibrate(model, prevalence=0.02, from_prevalence=0.5, to=tmp_path / "stated")
    assert stated.outputs.calibration.intercept == pytest.approx((np.log(0.02 / 0.98),)), "what is stated is taken"
    fitted = recalibrate(model, site(), to=tmp_path / "fitted")
    rare = recalibrate(fitted, prevalence=0.01, to=tmp_path / "rare")
    share = float(site().targets.mean())
    moved = np.log(0.01 / 0.99) - np.log(share / (1 - share))
    before, after = (one.outputs.calibration.intercept[0] for one in (fitted, rare))
    assert after - before == pytest.approx(moved), "a calibration that was fitted has undone them"


def test_weights_of_classes_are_undone_by_a_shift(tmp_path):
    made = medzoo.create("cnn3d_small", num_classes=3, **TINY)
    share, weights, to = np.array([0.8, 0.15, 0.05]), np.array([0.4, 2.0, 6.0]), np.array([0.9, 0.09, 0.01])
    made.set_outputs(labels=["a", "b", "c"], task="multiclass", prevalence=share, loss_weights=weights)
    new = recalibrate(made, prevalence=to, to=tmp_path / "new")
    p = np.exp(np.log(weights * share) + new.outputs.calibration.intercept)  # of a constant model
    assert p / p.sum() == pytest.approx(to)


def test_each_label_with_a_stated_share_is_shifted_and_no_other_is_named(tmp_path, monkeypatch):
    made = medzoo.create("cnn3d_small", num_classes=2, **TINY)
    made.set_outputs(labels=["a", "b"], task="multilabel")
    fold_calibration(made, shift_for_loss_weights(("a", "b"), [3, 1]))
    new = recalibrate(made, prevalence=0.02, from_prevalence=0.3, to=tmp_path / "new")
    shift = np.log(0.02 / 0.98) - np.log(0.3 / 0.7)
    assert new.outputs.calibration.intercept == pytest.approx((shift - np.log(3), shift))
    # A fit that happens to change nothing is one, and a label without a fit is not.
    fit = Calibration("Platt or intercept per label: a Platt, b none", (1.0, 1.0), (0.0, 0.0))
    monkeypatch.setattr("medzoo.evaluation.recalibrate.fit_calibration", lambda *a, **k: Fitted(fit, (), ("a",)))
    scores = simulated(400, labels=2)
    new = recalibrate(made, replace(scores, thresholds=()), to=tmp_path / "fitted", prevalence=0.02)
    share = float(scores.targets[:, 0].mean())
    moved = np.log(0.02 / 0.98) - np.log(share / (1 - share))
    assert new.outputs.calibration.intercept == pytest.approx((moved, 0))
    assert new.outputs.calibration.method.endswith(
        f"closed-form shift of the prevalence (a {share:.4g} to 0.02), not a fit"
    )


def test_too_few_patients_write_nothing(model, tmp_path):
    few = site().select(np.arange(40))
    message = r"no output can be calibrated on 40 images of 20 patients\. a: not calibrated, .* are needed.* Nothing"
    with pytest.raises(DataError, match=message):
        recalibrate(model, few, to=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_some_labels_with_too_few_patients_are_warned_about(tmp_path):
    made = medzoo.create("cnn3d_small", num_classes=2, **TINY)
    made.set_outputs(labels=["a", "b"], task="multilabel")
    scores = simulated(400, labels=2)
    y = scores.targets.copy()
    y[:, 1] = np.arange(400) < 9
    with pytest.warns(UserWarning, match="recalibrate: b: not calibrated, .* b: no threshold and no yes/no call"):
        new = recalibrate(made, scores_of(scores.ranks, y), to=tmp_path / "new", prevalence={"a": 0.1, "b": 0.1})
    assert new.outputs.thresholds[1] is None
    assert new.outputs.thresholds[0] is not None
    assert (new.outputs.calibration.slope[1], new.outputs.calibration.intercept[1]) == (1.0, 0.0)
    with pytest.raises(ConfigError, match="expected from_prevalence="):  # b is for the prevalence of its training
        recalibrate(new, prevalence=0.1, to=tmp_path / "next")
    assert new.training, "as the given model"


def test_data_that_lack_a_label_leave_its_output_as_it_was_trained(tmp_path):
    made = medzoo.create("cnn3d_small", num_classes=2, **TINY).eval()
    made.set_outputs(labels=["b", "a"], task="multilabel")
    scores = simulated(400)
    with pytest.warns(UserWarning, match="b: not calibrated, with 0 positive and 0 negative rows"):
        new = recalibrate(made, scores, to=tmp_path / "new", prevalence=0.1)
    one = fit_calibration(scores).calibration
    assert new.outputs.calibration.slope == (1.0, one.slope[0])
    assert new.outputs.calibration.intercept[0] == 0
    assert new.outputs.thresholds[0] is None
    assert new.outputs.policy.positives == (0, int(scores.targets.sum()))
    assert torch.equal(new.head.classifier.weight[0], made.head.classifier.weight[0])


def test_classes_get_a_temperature(tmp_path):
    made = medzoo.create("cnn3d_small", num_classes=3, **TINY).eval()
    made.set_outputs(labels=["a", "b", "c"], task="multiclass")
    y = np.eye(3)[np.arange(300) % 3]
    scores = scores_of(y + np.random.default_rng(0).normal(size=y.shape), y, task="multiclass")
    new = recalibrate(made, scores, to=tmp_path / "new")
    assert new.outputs.calibration.method == "temperature"
    assert new.outputs.policy is None
    new = recalibrate(made, scores, to=tmp_path / "shifted", prevalence=[0.8, 0.1, 0.1])
    assert new.outputs.calibration.intercept == pytest.approx(np.log([2.4, 0.3, 0.3]))


def test_arguments_that_do_not_go_together_are_refused_before_anything_is_written(model, tmp_path):
    to = tmp_path / "new"

    def refused(message, *arguments, kind=ConfigError, of=model, **options):
        with pytest.raises(kind, match=message):
            recalibrate(of, *arguments, **{"to": to} | options)
        assert not to.exists()

    refused("expected data of the new site, or prevalence=, got neither")
    refused("expected data to choose thresholds on", prevalence=0.1, rule="youden")
    refused("from_prevalence is for a shift without data", site(), from_prevalence=0.1)
    refused("scores need no batch_size", site(), batch_size=2)
    refused("no rule 'yuoden'", site(), rule="yuoden")
    refused("expected a folder without a model", site(), to=tmp_path / "first")
    refused("got FeatureExtractor", site(), of=medzoo.create("cnn3d_small", features_only=True, **TINY))
    refused("expected binary scores of a, got multilabel ones of a, b", simulated(labels=2), kind=DataError)
    rescaled = medzoo.create(f"local-dir:{tmp_path / 'first'}")
    rescaled.outputs = replace(rescaled.outputs, normalised=True)
    refused("normalised by operating points are not calibrated", site(), of=rescaled)
    assert json.loads((tmp_path / "first" / "config.json").read_text())["outputs"]["calibration"] is None
