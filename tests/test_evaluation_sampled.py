"""Rows that were sampled by class: what the population is, what depends on it, and a model that is honest for it."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from evaluation_tables import binary, clustered, names
from PIL import Image
from scipy.special import expit, logit
from scipy.stats import norm
from sklearn.metrics import log_loss as sklearn_log_loss

import medzoo
from medzoo.cli.main import main
from medzoo.data.table import Table
from medzoo.errors import ConfigError
from medzoo.evaluation.calibration import apply_calibration, undo_calibration
from medzoo.evaluation.curves import curves
from medzoo.evaluation.intervals import at_prevalence, call_intervals, correlation_of_rates
from medzoo.evaluation.metrics import measure
from medzoo.evaluation.proportions import wilson
from medzoo.evaluation.replicates import Options, replicate
from medzoo.evaluation.report import Report
from medzoo.evaluation.resample import Resamples
from medzoo.evaluation.run_record import RunRecord
from medzoo.evaluation.sampled import Population, measure_moved, move_to_rows
from medzoo.evaluation.scores import Scores
from medzoo.evaluation.shifts import shift_for_prevalence, weighted_shares
from medzoo.training.decide import decide
from medzoo.training.recipe import Recipe
from medzoo.training.sweep_choice import validated_run
from medzoo.training.validation import ValidationPredictions

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*does not have many workers", "ignore:.*log_"),
    pytest.mark.filterwarnings("ignore:.*predicts one class"),  # after so few epochs
]
SHARE = 0.02  # of positives in the population of all tests here


def population(rng, n, share=SHARE, d=2.0):
    """Return labels and the logits of their true probabilities in a population with this share of positives."""
    y = rng.random(n) < share
    return y, d * (rng.normal(d * y) - d / 2) + logit(share)


def sample(rng, share=SHARE, count=2000):
    """Return labels and true logits, for the population, of equally many positives and negatives."""
    y, z = (np.concatenate(each) for each in zip(*(population(rng, 50_000, share) for _ in range(8)), strict=True))
    rows = np.concatenate([rng.choice(np.flatnonzero(y == one), count // 2, replace=False) for one in (True, False)])
    return y[rows], z[rows]


# Accuracy at the share of positives of the population


def test_the_accuracy_in_the_population_is_that_of_its_confusion_matrix():
    """One row a patient: 8 of 10 positives and 15 of 20 negatives are called right."""
    y = np.r_[np.ones(10), np.zeros(20)]
    called = np.r_[np.ones(8), np.zeros(2), np.ones(5), np.zeros(15)]
    options = Options(prevalence=(0.02,), sampled=True)
    found = measure(binary(y, probabilities=np.where(called, 0.9, 0.1)), options=options, resamples=200)["a"]
    accuracy = found["accuracy_at_prevalence"]
    assert accuracy.value == pytest.approx(0.02 * 0.8 + 0.98 * 0.75)
    assert found["accuracy"].value == pytest.approx(23 / 30)
    # Zou and Donner's interval of a sum, by hand from Wilson's of both parts.
    se, sp = wilson(8, 10), wilson(15, 20)
    below = np.hypot(0.02 * (0.8 - se.low), 0.98 * (0.75 - sp.low))
    above = np.hypot(0.02 * (se.high - 0.8), 0.98 * (sp.high - 0.75))
    assert (accuracy.low, accuracy.high) == pytest.approx((accuracy.value - below, accuracy.value + above))
    for name in ("ppv", "npv"):
        assert np.isnan(found[name].value), "of the sample, it means nothing"
        assert "sampled by class" in found[name].why
        assert 0 < found[f"{name}_at_prevalence"].value < 1


def test_perfect_calls_leave_an_accuracy_that_is_not_certain():
    y = np.r_[np.ones(30), np.zeros(30)]
    found = measure(binary(y, 20 * y - 10), options=Options(prevalence=(SHARE,)), resamples=50)["a"]
    accuracy = found["accuracy_at_prevalence"]
    assert (accuracy.value, accuracy.high) == (1, 1)
    assert 0.8 < accuracy.low < 0.95


def difficult(rng, patients, spread):
    """Return positives, calls and patients of 3 positive and 4 negative rows, as hard as the patient is.

    Of 3 in 10 patients no row is positive. The share of right calls is that of a normal variable above -1, whose
    variance is 1 and that between patients.
    """
    positive = np.tile(np.arange(7) < 3, (patients, 1)) & (np.arange(patients) < 0.7 * patients)[:, None]
    right = rng.normal(size=(patients, 7)) + spread * rng.normal(size=(patients, 1)) > -1
    return positive.ravel(), (right == positive).ravel(), np.repeat(np.arange(patients), 7)


def test_the_correlation_of_both_rates_is_that_of_a_bootstrap():
    positive, called, patients = difficult(np.random.default_rng(0), 100, 1.0)
    own = correlation_of_rates(patients, positive, called)
    scores = binary(positive, probabilities=np.where(called, 0.9, 0.1), patients=patients)
    drawn = replicate(scores, Resamples(scores.clusters, 4000), [True]).labels
    assert own == pytest.approx(np.corrcoef(drawn["sensitivity"][1][0], drawn["specificity"][1][0])[0, 1], abs=0.05)
    assert own > 0.3
    expected = at_prevalence(call_intervals(patients, positive, called), 0.3, own)["accuracy_at_prevalence"]
    found = measure(scores, options=Options(prevalence=(0.3,)), resamples=2)["a"]["accuracy_at_prevalence"]
    assert found == expected
    alone = np.arange(len(positive))
    assert correlation_of_rates(alone, positive, called) == 0
    assert correlation_of_rates(patients, positive, positive) == 0


@pytest.mark.parametrize(("patients", "spread", "share"), [(60, 1.0, 0.5), (150, 2.0, 0.3), (400, 1.0, 0.3)])
def test_the_accuracy_is_covered_where_patients_have_rows_of_both_classes(patients, spread, share):
    """1,500 tables; the Monte-Carlo error is 0.6 points. As if both rates were independent, it is not covered."""
    rng, true = np.random.default_rng(patients), norm.cdf(1 / np.sqrt(1 + spread**2))
    held = []
    for _ in range(1500):
        positive, called, clusters = difficult(rng, patients, spread)
        rates, r = call_intervals(clusters, positive, called), correlation_of_rates(clusters, positive, called)
        both = [at_prevalence(rates, share, each)["accuracy_at_prevalence"] for each in (r, 0.0)]
        held.append([e.low <= true <= e.high for e in both])
    covered, independent = np.mean(held, 0)
    assert 0.93 <= covered <= 0.97
    assert independent < 0.925


@pytest.mark.slow
@pytest.mark.parametrize(("patients", "auroc"), [(60, 0.75), (150, 0.97), (400, 0.9)])
def test_the_interval_of_the_accuracy_in_the_population_covers_it(patients, auroc):
    """Patients of 1 to 8 rows, half of the variance of the scores between patients; Monte-Carlo error 1 point."""
    d, threshold, covered = 2**0.5 * norm.ppf(auroc), 0.4, []
    cut = (logit(threshold) - logit(0.4)) / d + d / 2
    true = SHARE * norm.sf(cut - d) + (1 - SHARE) * norm.cdf(cut)
    rng = np.random.default_rng(patients)
    for _ in range(500):
        y, z, c = clustered(rng, patients, auroc, 0.4)
        scores = binary(y, z, patients=c, threshold=threshold)
        e = measure(scores, options=Options(prevalence=(SHARE,)), resamples=2)["a"]["accuracy_at_prevalence"]
        if e.low is not None:  # of 60 patients, there may be under 10 without a positive row
            covered.append(e.low <= true <= e.high)
    assert len(covered) > 400
    assert 0.92 <= np.mean(covered) <= 0.985, np.mean(covered)


# Probabilities for the population, seen in a sample


def test_probabilities_that_are_right_in_the_population_are_right_in_a_sample_after_the_move():
    rng = np.random.default_rng(0)
    y, z = sample(rng)
    scores = binary(y, z, threshold=0.02)
    as_they_are = measure(scores, resamples=100)["a"]
    assert as_they_are["calibration_intercept"].value > 3, "positives are 50 times as frequent as the model says"
    moved = move_to_rows(scores, (SHARE,))
    assert moved.logits == pytest.approx(scores.logits + logit(0.5) - logit(SHARE))
    found = measure_moved(scores, moved, resamples=100)["a"]
    for name, right in (("calibration_intercept", 0), ("calibration_slope", 1)):
        assert found[name].low < right < found[name].high, name
    assert found["brier"].value < as_they_are["brier"].value
    assert found.threshold == 0.02, "as the model has it"
    assert found.calls == as_they_are.calls
    assert found["auroc"] == as_they_are["auroc"]


def test_nothing_moves_where_the_share_is_not_known_or_a_class_is_absent():
    y, z = np.r_[np.ones(5), np.zeros(5)], np.linspace(2, -2, 10)
    assert move_to_rows(binary(y, z), ()) is None
    assert move_to_rows(binary(y, z), (None,)) is None
    assert move_to_rows(binary(np.ones(10), z), (0.1,)) is None
    two = Scores.from_logits(
        np.stack([z, z], 1), task="multilabel", labels=("a", "b"), ids=names(10), targets=np.stack([y, y], 1),
        thresholds=(0.3, 0.6), threshold_rule="chosen",
    )  # fmt: skip
    moved = move_to_rows(two, (0.1, None))
    assert moved.logits[:, 0] == pytest.approx(z - logit(0.1))
    assert moved.logits[:, 1] == pytest.approx(z)
    assert (moved.calls == two.calls).all()


def test_classes_move_by_the_ratio_of_their_shares():
    rng = np.random.default_rng(1)
    y = np.eye(3)[rng.integers(0, 3, 300)]
    z = rng.normal(size=(300, 3)) + y
    scores = Scores.from_logits(z, task="multiclass", labels=("a", "b", "c"), ids=names(300), targets=y)
    there, here = np.array([0.9, 0.07, 0.03]), y.mean(0)
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    expected = p * here / there
    assert move_to_rows(scores, there).probabilities == pytest.approx(expected / expected.sum(1, keepdims=True))


def test_weights_of_a_loss_act_as_more_positives():
    assert weighted_shares((0.1, 0.5), (), multiclass=False) == pytest.approx((0.1, 0.5))
    assert weighted_shares((0.1,), (9.0,), multiclass=False) == pytest.approx((0.5,))
    assert weighted_shares((0.8, 0.2), (1.0, 4.0), multiclass=True) == pytest.approx((0.5, 0.5))


# What a training decides


def decided(y, z, *, there=(SHARE,), trained=None, weights=(), labels=("a",), task="binary", **how):
    """Return what is decided for a model whose validation logits are these, and the model."""
    targets, logits = np.asarray(y, np.float32).reshape(len(y), -1), np.asarray(z).reshape(len(y), -1)
    table = Table(
        ids=names(len(y)), targets=targets, labels=labels, task=task, arrays=np.zeros((len(y), 1, 2, 2), np.uint8),
        prevalence=there,
    )  # fmt: skip
    model = medzoo.create("xray_cnn", in_chans=1, size=32, widths=[2, 2, 2, 2], hidden=2, labels=labels, task=task)
    predictions = ValidationPredictions(
        torch.arange(len(y)), torch.tensor(logits, dtype=torch.float32), torch.from_numpy(targets)
    )
    trained = tuple(targets.mean(0).tolist()) if trained is None else trained
    recipe = Recipe(model={"name": "xray_cnn"}, decide=how)
    return decide(model, recipe.decide, table, predictions, prevalence=trained, loss_weights=weights), model


def test_a_sampled_training_saves_probabilities_for_the_population():
    """Sampled rows, and logits that no one calibrated: in a new population the saved probabilities are right."""
    rng = np.random.default_rng(2)

    def as_trained(z):
        return 1.7 * (z - logit(SHARE)) + 0.8

    y, z = sample(rng, count=8000)
    found, model = decided(y, as_trained(z))
    calibration = model.outputs.calibration
    assert calibration.method.startswith("Platt, and a closed-form shift of the prevalence (a 0.5 to 0.02)")
    assert calibration.prevalence == (SHARE,)
    assert calibration.split == "validation"
    new_y, new_z = population(rng, 30_000)
    new = apply_calibration(binary(new_y, as_trained(new_z)), calibration)
    there = measure(new, resamples=2)["a"]
    for name, right in (("calibration_intercept", 0), ("calibration_slope", 1)):
        assert there[name].value == pytest.approx(right, abs=0.15), name
    assert new.probabilities.mean() == pytest.approx(SHARE, rel=0.1)
    assert there["brier"].value == pytest.approx(np.mean((expit(new_z) - new_y) ** 2), rel=0.01)
    # The figures of the validation part are of probabilities before the shift, which can be right there.
    figures = measure_moved(found.scores, found.moved, options=found.options, resamples=10)["a"]
    assert figures["calibration_intercept"].value == pytest.approx(0, abs=1e-6)
    assert figures["calibration_slope"].value == pytest.approx(1, abs=1e-6)
    assert figures.threshold == model.outputs.thresholds[0]
    assert any("shifted to the share of positives in the population, a 2 % (-3.89)" in note for note in found.notes)


@pytest.mark.parametrize("rule", ["youden", "sensitivity>=0.95", "specificity>=0.9", 0.5, 0.3])
@pytest.mark.parametrize("calibrate", ["auto", "none"])
def test_calls_are_those_of_the_sample_and_thresholds_move(rule, calibrate):
    y, z = sample(np.random.default_rng(3), count=400)
    z = z - logit(SHARE)
    how = {"threshold": rule, "calibrate": calibrate}
    there, model = decided(y, z, **how)
    here, other = decided(y, z, prevalence="sample", **how)
    assert (there.scores.calls == here.scores.calls).all()
    shift = logit(SHARE) - logit(0.5)
    assert there.scores.logits == pytest.approx(here.scores.logits + shift)
    assert there.predictions.logits == pytest.approx(there.scores.logits, abs=1e-5)
    assert logit(model.outputs.thresholds[0]) == pytest.approx(logit(other.outputs.thresholds[0]) + shift)
    assert model.outputs.policy.sensitivity == other.outputs.policy.sensitivity
    assert other.outputs.calibration is None or other.outputs.calibration.prevalence == ()
    both = [measure_moved(each.scores, each.moved, options=each.options, resamples=10)["a"] for each in (there, here)]
    assert both[0].calls == both[1].calls
    assert both[0]["accuracy_at_prevalence"] == both[1]["accuracy_at_prevalence"]
    for name in ("brier", "ece", "log_loss"):
        assert both[0][name].value == pytest.approx(both[1][name].value), name


def test_rules_that_depend_on_the_share_are_for_that_of_the_probabilities():
    y, z = sample(np.random.default_rng(4), count=400)
    there, model = decided(y, z, threshold="cost fn:fp=1")
    here, _ = decided(y, z, threshold="cost fn:fp=1", prevalence="sample")
    assert there.scores.calls.sum() < here.scores.calls.sum(), "where few are positive, a false alarm is the likelier"
    assert model.outputs.policy.split == "validation, for a prevalence of 0.02"


def test_an_output_that_is_not_calibrated_is_shifted_from_the_training_part_and_its_weights():
    rng = np.random.default_rng(5)
    y, z = sample(rng, count=400)
    rare = np.zeros(400, bool)
    rare[:20] = True  # too few to calibrate on
    found, model = decided(
        np.stack([y, rare], 1), np.stack([z, z], 1), labels=("a", "b"), task="multilabel", there=(SHARE, 0.001),
        trained=(0.4, 0.1), weights=(1.0, 9.0),
    )  # fmt: skip
    calibration = model.outputs.calibration
    assert calibration.slope[1] == 1
    assert calibration.intercept[1] == pytest.approx(logit(0.001) - logit(0.5)), "9 to 1 of a share of 0.1 is 0.5"
    assert calibration.prevalence == (SHARE, 0.001)
    none, unfitted = decided(y, z, calibrate="none", trained=(0.1,), weights=(9.0,))
    assert unfitted.outputs.calibration.intercept == pytest.approx((logit(SHARE) - logit(0.5),))
    assert none.honest is None
    _, closed = decided(y, z, calibrate="shift", trained=(0.1,), weights=(9.0,))
    assert closed.outputs.calibration.intercept == pytest.approx(unfitted.outputs.calibration.intercept)
    assert closed.outputs.calibration.method.count("closed-form") == 2
    kept, one = decided(rare[:20], z[:20], trained=(1.0,))
    assert one.outputs.calibration is None
    assert any("one class alone" in note for note in kept.notes)
    del found


def test_classes_are_shifted_too():
    rng = np.random.default_rng(6)
    y = np.eye(3)[rng.integers(0, 3, 300)]
    z, there = rng.normal(size=(300, 3)) + 2 * y, (0.9, 0.07, 0.03)
    found, model = decided(y, z, labels=("a", "b", "c"), task="multiclass", there=there)
    change = np.array(model.outputs.calibration.intercept)
    assert change - change[0] == pytest.approx(np.log(there) - np.log(y.mean(0)) - np.log(0.9) + np.log(y.mean(0)[0]))
    assert found.scores.thresholds == ()
    assert found.scores.probabilities[:, 0].mean() > found.moved.probabilities[:, 0].mean() + 0.1


def test_a_shifted_model_can_be_saved_read_and_moved_again(tmp_path):
    y, z = sample(np.random.default_rng(7), count=400)
    _, model = decided(y, z)
    model.save_pretrained(tmp_path / "m")
    read = medzoo.create(f"local-dir:{tmp_path / 'm'}")
    assert read.outputs == model.outputs
    again = medzoo.recalibrate(read, prevalence=0.1, to=tmp_path / "n").outputs.calibration
    assert again.prevalence == (0.1,)
    assert again.intercept[0] - model.outputs.calibration.intercept[0] == pytest.approx(logit(0.1) - logit(SHARE))
    with pytest.raises(ConfigError, match="Calibration: expected prevalence to be a list of numbers above 0 and below"):
        medzoo.Calibration("Platt", (1.0,), (0.0,), prevalence=(1.5,))
    with pytest.raises(ConfigError, match="expected prevalence of the calibration to be 1 numbers or None"):
        medzoo.Outputs(("a",), "binary", calibration=medzoo.Calibration("P", (1.0,), (0.0,), prevalence=(0.5, 0.5)))


# A run from end to end


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder of discs that are brighter in positives, two images of each of 150 patients, and a table."""
    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp("discs")
    yy, xx = np.mgrid[:32, :32]
    with (root / "t.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "disc", "pid"])
        for i in range(300):
            bright = 60 * (i // 2 % 2) + rng.normal(0, 45)
            pixels = rng.integers(0, 160, (32, 32)) + bright * ((yy - 16) ** 2 + (xx - 16) ** 2 < 64)
            pixels[0], pixels[-1] = 255, 0
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(root / f"{i}.png")
            rows.writerow([f"{i}.png", i // 2 % 2, f"p{i // 2}"])
    return root


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDZOO_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="module")
def table(folder):
    return replace(Table.from_csv(folder / "t.csv", label="disc", patient="pid"), prevalence=(SHARE,))


RECIPE = medzoo.Recipe(
    model={"name": "xray_cnn", "in_chans": 1, "options": {"size": 32, "widths": [4, 4, 8, 8], "hidden": 8}},
    data={"cache": "memory"}, split={"shares": [0.34, 0.33, 0.33]}, optimizer={"lr": 0.01},
    train={"epochs": 3, "batch": 16, "threads": 1, "device": "cpu"},
)  # fmt: skip


@pytest.fixture(scope="module")
def run(home, table, tmp_path_factory):
    return medzoo.train(RECIPE, table, to=tmp_path_factory.mktemp("runs") / "sampled")


def test_runs_of_a_sweep_are_compared_at_the_share_of_the_validation_rows(run):
    """Log-loss and accuracy at 0.5 are of the rows, not of the population that the saved probabilities are for."""
    scores = RunRecord(run.folder).predictions("valid")
    y, z = scores.targets[:, 0], scores.logits[:, 0]
    moved = z - logit(SHARE) + logit(y.mean())
    found = validated_run(RunRecord(run.folder))
    assert found.moved
    assert found.fitted is (run.model.outputs.calibration.split == "validation")
    assert found.estimates["log_loss"].value == pytest.approx(sklearn_log_loss(y, expit(moved)), rel=1e-4)
    assert found.estimates["accuracy"].value == pytest.approx(((moved >= 0) == y).mean())
    assert (z < 0).all(), "at 0.5 in the population nothing is positive"
    assert 0 < (moved >= 0).mean() < 1


def test_a_new_site_whose_table_is_a_sample_gets_probabilities_for_its_population(run, table, tmp_path):
    with pytest.warns(UserWarning, match=r"shifted to the share of positives in the population .* states, disc 2 %"):
        stated = medzoo.recalibrate(run.model, table, to=tmp_path / "stated").outputs
    given = medzoo.recalibrate(run.model, table, prevalence=SHARE, to=tmp_path / "given").outputs
    sample = medzoo.recalibrate(run.model, replace(table, prevalence=None), to=tmp_path / "sample").outputs
    assert stated == given
    assert stated.calibration.prevalence == (SHARE,)
    assert sample.calibration.prevalence == ()
    moved = stated.calibration.intercept[0] - sample.calibration.intercept[0]
    assert moved == pytest.approx(logit(SHARE) - logit(table.targets.mean()))
    with pytest.warns(UserWarning, match="in their population a label has only positives, or none"):
        none = medzoo.recalibrate(run.model, replace(table, prevalence=(0.0,)), to=tmp_path / "none").outputs
    assert none == sample


def test_the_run_states_its_sampling(run):
    assert RunRecord(run.folder).sampling() == {"disc": SHARE}
    assert run.model.outputs.calibration.prevalence == (SHARE,)
    figures = json.loads((run.folder / "report.json").read_text())
    assert figures["metrics"]["options"] == {
        "prevalence": [SHARE], "specificity": 0.9, "sensitivity": 0.9, "sampled": True
    }  # fmt: skip
    of = figures["metrics"]["labels"]["disc"]["figures"]
    assert of["ppv"]["value"] is None
    assert of["accuracy_at_prevalence"]["low"] < of["accuracy_at_prevalence"]["value"]
    assert abs(of["calibration_intercept"]["value"]) < 1, "before the shift of -3.9"
    bins = [b["predicted"] for b in figures["curves"][0]["reliability"]]
    assert max(bins) > 0.5, "so are the curves"


def test_a_run_is_evaluated_at_the_prevalence_it_states(run):
    report = medzoo.evaluate(run, resamples=200)
    figures, options = report.metrics["disc"], report.metrics.options
    assert options == Options((SHARE,), sampled=True)
    se, sp = figures["sensitivity"].value, figures["specificity"].value
    assert figures["accuracy_at_prevalence"].value == pytest.approx(SHARE * se + (1 - SHARE) * sp)
    assert abs(figures["calibration_intercept"].value) < 1.5
    assert any("as run.json states, are disc 50 % and 2 %" in note for note in report.notes)
    # The scores, and with them the examples and scores.csv, are what predict gives.
    assert report.scores.probabilities.mean() < 0.1
    assert report.moved.probabilities.mean() == pytest.approx(0.5, abs=0.15)
    plain = measure(undo_calibration(report.scores, run.model.outputs.calibration), resamples=10)["disc"]
    assert report.before[0]["disc"]["brier"].value == pytest.approx(plain["brier"].value)


def test_what_is_given_overrides_and_what_is_not_known_is_refused(run, table, folder):
    other = medzoo.evaluate(run, prevalence=0.1, resamples=100)
    assert other.metrics.options.prevalence == (0.1,)
    assert any("another share of positives than that of the population: disc 2 %, not 10 %" in n for n in other.notes)
    assert any("as was given" in note for note in other.notes)
    plain = medzoo.evaluate(run, case_sampled=False, resamples=100)
    assert plain.metrics.options == Options()
    assert not np.isnan(plain.metrics["disc"]["ppv"].value)
    of_table = medzoo.evaluate(run, table, seen="allow", resamples=100)
    assert of_table.metrics.options.prevalence == (SHARE,)
    assert any("as the table states" in note for note in of_table.notes)
    unsaid = medzoo.evaluate(run, replace(table, prevalence=None), seen="allow", resamples=100)
    assert unsaid.metrics.options == Options()
    assert any("whether these rows were is not stated" in note for note in unsaid.notes)
    with pytest.raises(ConfigError, match=r"the rows were sampled by class.*Give prevalence="):
        medzoo.evaluate(run, replace(table, prevalence=None), seen="allow", case_sampled=True)


def test_a_run_that_does_not_state_the_population_needs_it(run, tmp_path):
    facts = json.loads((run.folder / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(facts | {"prevalence": {}}))
    record = RunRecord(tmp_path)
    assert record.sampling() == {}
    with pytest.raises(ConfigError, match="Give prevalence="):
        Population.of(None, None, None, [record])
    with pytest.raises(ConfigError, match="different shares of positives"):
        Population.of(None, None, None, [record, RunRecord(run.folder)])
    assert Population.of(0.3, None, None, [record]).prevalence == 0.3


def test_both_accuracies_stand_side_by_side(run, tmp_path):
    result = CliRunner().invoke(main, ["evaluate", str(run.folder), "--to", str(tmp_path), "--resamples", "200"])
    assert result.exit_code == 0, result.output
    line = next(line for line in result.output.splitlines() if "accuracy in this sample" in line)
    assert "in this sample (50 % positive) 0." in line
    assert "in the population (2 % positive) 0." in line
    page = (tmp_path / "report.html").read_text()
    for text in ("Accuracy in this sample (50 % positive)", "Accuracy in the population (2 % positive)",
                 "Brier score, of this sample", "Average precision, of this sample", "In the population",
                 "if they are right here, they are right there", "Precision is of this sample"):  # fmt: skip
        assert text in page, text
    assert "AUROC, of this sample" not in page
    figures = json.loads((tmp_path / "report.json").read_text())
    assert figures["metrics"]["labels"]["disc"]["figures"]["accuracy_at_prevalence"]["method"]
    assert "moved" not in figures


def test_probabilities_for_the_sample_are_taken_as_they_are(run, table):
    report = medzoo.evaluate(run.model.uncalibrated(), table, resamples=100)
    assert report.moved is None
    assert report.scores.probabilities.mean() == pytest.approx(0.5, abs=0.2)
    assert any("of these as they are, in this sample" in note for note in report.notes)
    assert not any("another share of positives than that of the population" in note for note in report.notes)


@pytest.mark.slow
def test_folds_of_a_sampled_table_are_pooled_as_sampled(home, table, tmp_path):
    folds = [
        medzoo.train(RECIPE.with_(**{"split.folds": 2, "split.fold": fold}), table, to=tmp_path / f"f{fold}")
        for fold in (0, 1)
    ]
    report = medzoo.evaluate(folds, out_of_fold=True, resamples=100)
    assert report.metrics.options == Options((SHARE,), sampled=True)
    assert report.moved is not None
    assert np.isnan(report.metrics["disc"]["ppv"].value)


# Chance in words


def chance_report(y, z, **fields):
    scores = binary(y, z) if z.ndim == 1 else Scores.from_logits(
        z, task="multilabel", ids=names(len(y)), targets=np.asarray(y, np.float32), labels=("a", "b"), **fields
    )  # fmt: skip
    metrics = measure(scores, resamples=200)
    return Report("R", scores, metrics, curves(scores))


def test_a_model_that_is_not_distinguished_from_chance_is_said_to_be(tmp_path):
    rng = np.random.default_rng(8)
    y = np.arange(100) % 2
    blind = chance_report(y, rng.normal(size=100))
    low, high = (getattr(blind.metrics["a"]["auroc"], end) for end in ("low", "high"))
    assert low <= 0.5 <= high
    said = "The model cannot be distinguished from chance on this data: the interval of the AUROC holds 0.5"
    page = blind.save(tmp_path / "r.html").read_text()
    assert said in page[: page.index("<main>")], "on the first screen"
    assert said in blind.summary()
    figures = json.loads((tmp_path / "r.json").read_text())
    assert figures["not_distinguished_from_chance"] == ["a"]
    assert said in figures["summary"]
    assert any(said in text for text in figures["warnings"])


def test_other_models_are_not(tmp_path):
    rng = np.random.default_rng(9)
    y = np.arange(100) % 2
    good = chance_report(y, y + rng.normal(size=100))
    assert "chance on this data" not in good.summary()
    assert good.to_dict()["not_distinguished_from_chance"] == []
    turned = chance_report(y, -2.0 * y + rng.normal(size=100))
    assert "ranks worse than chance" in turned.summary()
    assert turned.to_dict()["worse_than_chance"] == ["a"]
    few = chance_report(y[:12], rng.normal(size=12))
    assert few.to_dict()["not_distinguished_from_chance"] == [], "without an interval nothing follows"
    both = chance_report(np.stack([y, y], 1), np.stack([2.0 * y, 0 * y], 1) + rng.normal(size=(100, 2)))
    assert "on this data for b: the interval" in both.summary()
    assert both.to_dict()["not_distinguished_from_chance"] == ["b"]


def test_a_shift_states_what_it_is_for():
    found = shift_for_prevalence(("a", "b"), 0.5, 0.1, only={"a"})
    assert found.prevalence == (0.1, None)
