"""Thresholds by rule, and outputs without one, which are called neither positive nor negative."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
import torch
from tensors import TINY, tiny

import medzoo
from medzoo.cli.tables import prediction_table
from medzoo.contract import Outputs
from medzoo.errors import ConfigError
from medzoo.evaluation.metrics import measure
from medzoo.evaluation.rules import KNOWN, Rule, rule_from_text, rule_text, rules_for
from medzoo.evaluation.scores import Scores
from medzoo.evaluation.thresholds import OPTIMISTIC, choose_thresholds


def scores_of(logits, targets, patients=None, task=None, **fields):
    z, y = np.asarray(logits, np.float32), np.asarray(targets, np.float32)
    if z.ndim == 1:
        z, y = z[:, None], y[:, None]
    labels = tuple("abcdefgh"[: z.shape[1]])
    return Scores.from_logits(
        z, task=task or ("binary" if z.shape[1] == 1 else "multilabel"), labels=labels, targets=y,
        ids=np.array([f"row{i}" for i in range(len(z))]), patients=patients, **fields,
    )  # fmt: skip


def simulated(n=400, labels=1, shift=1.5, seed=0, scale=1.0, **fields):
    draw = np.random.default_rng(seed)
    y = draw.random((n, labels)) < 0.3
    return scores_of(scale * (draw.normal(size=y.shape) + shift * y - 1), y, **fields)


def predicted(scores, thresholds):
    """Return the calls of ``predict``, which computes probabilities in float32."""
    outputs = Outputs(scores.labels, scores.task, thresholds)
    logits = torch.from_numpy(scores.ranks.astype(np.float32))
    return outputs.positive(torch.cat([outputs.probabilities(row[None]) for row in logits])).numpy()


def by_hand(scores, t):
    y, p = scores.targets[:, 0] == 1, scores.probabilities[:, 0]
    return ((p >= t) & y).sum() / y.sum(), ((p < t) & ~y).sum() / (~y).sum()


RULES = ["youden", "f1", "sensitivity>=0.95", "specificity>=0.9", "cost fn:fp=5", "cost fn:fp=0.2"]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("scale", [0.01, 1.0, 8.0])
def test_predict_calls_in_float32_what_the_threshold_was_chosen_for(rule, scale):
    scores = simulated(scale=scale)
    chosen = choose_thresholds(scores, rule)
    (t,) = chosen.values
    assert t is not None
    assert t not in scores.probabilities
    called = chosen.apply(scores).calls == 1
    assert (predicted(scores, chosen.values) == called).all()
    sensitivity, specificity = by_hand(scores, t)
    assert (chosen.policy.sensitivity, chosen.policy.specificity) == ((sensitivity,), (specificity,))


def test_each_rule_is_the_best_of_all_cuts():
    scores = simulated(120)
    p = np.unique(scores.probabilities)
    cuts = np.concatenate([[p[0] / 2], (p[1:] + p[:-1]) / 2, [(p[-1] + 1) / 2]])
    rates = np.array([by_hand(scores, t) for t in cuts])
    y = scores.targets[:, 0]
    positives, negatives = (y == 1).sum(), (y == 0).sum()

    def of(rule):
        return by_hand(scores, choose_thresholds(scores, rule).values[0])

    assert sum(of("youden")) == pytest.approx(rates.sum(1).max())
    assert of("sensitivity>=0.9")[1] == rates[rates[:, 0] >= 0.9][:, 1].max()
    assert of("specificity>=0.9")[0] == rates[rates[:, 1] >= 0.9][:, 0].max()

    def cost(rate):
        return 5 * positives * (1 - rate[..., 0]) + negatives * (1 - rate[..., 1])

    def f1(rate):
        tp, fp = positives * rate[..., 0], negatives * (1 - rate[..., 1])
        return 2 * tp / (tp + fp + positives)

    assert cost(np.array(of("cost fn:fp=5"))) == pytest.approx(cost(rates).min())
    assert f1(np.array(of("f1"))) == pytest.approx(f1(rates).max())


def test_sensitivity_takes_the_highest_threshold_and_specificity_the_lowest():
    scores = scores_of(np.arange(40.0) / 10 - 2, np.arange(40) >= 20)
    (high,), (low,) = (choose_thresholds(scores, rule).values for rule in ("sensitivity>=1", "specificity>=1"))
    p = scores.probabilities[:, 0]
    assert high == low == pytest.approx((p[19] + p[20]) / 2)
    (t,) = choose_thresholds(scores, "specificity>=0.5").values
    assert t == pytest.approx((p[9] + p[10]) / 2)


def test_of_equal_cuts_the_one_nearest_to_their_middle_is_taken():
    # Two cuts have the same sensitivity + specificity: 0.2 of one class is between them.
    z = np.concatenate([np.full(10, -3.0), np.full(10, -1.0), np.full(10, 0.5), np.full(10, 3.0)])
    y = np.concatenate([np.zeros(10), np.ones(10), np.zeros(10), np.ones(10)])
    scores = scores_of(z, y)
    p = np.unique(scores.probabilities)
    (t,) = choose_thresholds(scores, "youden").values
    plateau = [(p[0] + p[1]) / 2, (p[2] + p[3]) / 2]
    middle = (p[0] + p[3]) / 2
    assert t == pytest.approx(min(plateau, key=lambda cut: abs(cut - middle)))


def test_scores_that_float32_cannot_tell_apart_have_no_cut_between_them():
    z = np.concatenate([np.full(20, 30.0), np.full(20, 31.0)])
    scores = scores_of(z, np.arange(40) >= 20)
    assert scores.probabilities.min() < scores.probabilities.max() or scores.probabilities.max() == 1
    chosen = choose_thresholds(scores, "specificity>=0.5")
    assert chosen.values == (None,)
    assert chosen.notes[0].startswith(
        "a: no threshold and no yes/no call: no cut between the scores reaches specificity >= 0.5; 2 of 3 cuts are not "
    )
    assert choose_thresholds(scores, "sensitivity>=0.5").values[0] < 1


def test_a_best_cut_that_is_lost_to_float32_is_noted():
    near = simulated(scale=0.1)
    saturated = scores_of(near.ranks + 14, near.targets)
    assert saturated.probabilities.min() > 1 - 2e-6
    note = choose_thresholds(saturated).notes[0]
    assert note.startswith("a: ")
    assert "cuts are not used, the best by Youden among them: float32 cannot tell the scores" in note
    assert choose_thresholds(near).notes == (OPTIMISTIC,)
    # A lost cut that is not the best one changes nothing.
    y = np.arange(80) >= 40
    assert choose_thresholds(scores_of(np.where(y, 14.0, -14.0) + np.arange(80) / 1000, y)).notes == (OPTIMISTIC,)


@pytest.mark.parametrize("rule", ["cost fn:fp=5", "f1"])
def test_cost_and_f1_are_those_of_the_stated_prevalence(rule):
    sample = simulated(4000, shift=2.0)
    share = float(sample.targets.mean())
    y = sample.targets[:, 0] == 1
    weight = np.where(y, 0.02 / share, 0.98 / (1 - share))

    def worth(t):
        called = sample.probabilities[:, 0] >= t
        tp, fp, fn = (float(weight[rows].sum()) for rows in (called & y, called & ~y, ~called & y))
        return -(5 * fn + fp) if "cost" in rule else 2 * tp / (2 * tp + fp + fn)

    cuts = np.unique(sample.probabilities)
    best = max(map(worth, (cuts[1:] + cuts[:-1]) / 2))
    chosen = choose_thresholds(sample, rule, prevalence=0.02)
    assert worth(chosen.values[0]) == pytest.approx(best)
    assert worth(chosen.values[0]) > worth(choose_thresholds(sample, rule).values[0])
    assert chosen.policy.split == "validation, for a prevalence of 0.02"
    assert choose_thresholds(sample, rule, prevalence=share).values == choose_thresholds(sample, rule).values
    several = simulated(labels=3)
    rules = {"a": rule, "*": "youden"}
    shares = {"a": 0.1, "b": 0.2, "c": 0.3}
    assert choose_thresholds(several, rules, prevalence=shares).policy.split == "validation, for a prevalence of a 0.1"
    assert choose_thresholds(several, prevalence=shares) == choose_thresholds(several), "Youden does not depend on it"
    with pytest.raises(ConfigError, match="thresholds: expected prevalence to be above 0 and below 1"):
        choose_thresholds(sample, rule, prevalence=2)


def test_too_few_patients_give_no_threshold_whatever_their_rows():
    y = np.arange(200) < 100
    patients = np.where(y, np.arange(200) % 9, 100 + np.arange(200)).astype(str)
    scores = scores_of(np.random.default_rng(0).normal(size=200) + y, y, patients)
    chosen = choose_thresholds(scores)
    assert chosen.values == (None,)
    assert chosen.reached == (None,)
    assert chosen.policy.sensitivity == (None,)
    assert chosen.policy.positives == (100,)
    assert chosen.notes == (
        "a: no threshold and no yes/no call, with 9 positive and 100 negative patients; at least 10 of each are needed",
    )
    called = chosen.apply(scores)
    assert np.isnan(called.calls).all()
    assert measure(called, resamples=10)["a"].calls is None
    fixed = choose_thresholds(scores, 0.3)
    assert fixed.values == (0.3,)
    assert fixed.policy.rule == "fixed 0.3"
    assert fixed.reached[0].sensitivity.low is None
    assert "a: the fixed threshold is not checked, with 9 positive and 100 negative patients" in fixed.notes


def test_what_was_reached_has_an_interval_over_patients():
    one = choose_thresholds(simulated())
    assert one.reached[0].sensitivity.method == "Wilson"
    assert OPTIMISTIC in one.notes
    draw = np.random.default_rng(0)
    y = np.repeat(draw.random(100) < 0.4, 4)
    shared = np.repeat(draw.normal(size=100), 4)
    scores = scores_of(shared + 1.5 * y + 0.1 * draw.normal(size=400), y, np.repeat(np.arange(100), 4).astype(str))
    found = choose_thresholds(scores).reached[0].sensitivity
    assert found.method == "Wilson at the effective sample size"
    assert found.low < found.value < found.high
    alone = choose_thresholds(scores_of(scores.ranks, scores.targets, task="binary")).reached[0].sensitivity
    assert found.high - found.low > 1.3 * (alone.high - alone.low), "patients, not rows, are the sample"


def test_patients_that_are_all_alike_do_not_make_a_rate_certain():
    """One row of each patient is called, and the other is not: percentiles of a bootstrap have no width here."""
    z, patients = np.tile([2.0, -2.0], 40), np.repeat(np.arange(40), 2).astype(str)
    y = np.arange(80) < 40
    (found,) = choose_thresholds(scores_of(z, y, patients), 0.5).reached
    assert found.sensitivity.value == found.specificity.value == 0.5
    assert found.sensitivity.high - found.sensitivity.low > 0.25
    assert found.specificity.high - found.specificity.low > 0.25


def test_unknown_labels_do_not_count():
    scores = simulated(300)
    hidden = scores.targets.copy()
    hidden[::3] = np.nan
    known = np.flatnonzero(~np.isnan(hidden[:, 0]))
    targets = scores_of(scores.ranks, hidden, task="binary")
    assert choose_thresholds(targets).values == choose_thresholds(scores.select(known)).values


def test_rules_by_label_with_one_for_the_others():
    scores = simulated(labels=3)
    for others in ("*", ""):
        chosen = choose_thresholds(scores, {"b": "f1", others: "youden"}, split="tuning", scale="calibrated")
        assert chosen.values[1] == choose_thresholds(scores, "f1").values[1]
        assert chosen.values[0] == choose_thresholds(scores).values[0]
        assert chosen.policy.rule == "a: Youden; b: F1; c: Youden"
        assert (chosen.policy.split, chosen.policy.scale) == ("tuning", "calibrated")
        assert choose_thresholds(scores, rule_from_text(scores.labels, chosen.policy.rule)).values == chosen.values
    with pytest.raises(ConfigError, match=r"no label 'bb'. Did you mean 'b'"):
        choose_thresholds(scores, {"bb": "f1", "*": "youden"})
    with pytest.raises(ConfigError, match="expected a rule for each label, got none for 'a'"):
        choose_thresholds(scores, {"b": "f1"})
    assert rule_from_text(scores.labels, "by eye") is None


@pytest.mark.parametrize("text", [*KNOWN, " Sensitivity >= .95 ", "FIXED 1e-3", "cost fn:fp = 0.25"])
def test_a_rule_is_read_back_from_its_text(text):
    rules = rules_for(("a",), text)
    assert rules_for(("a",), rule_text(("a",), rules)) == rules
    assert Rule.parse(str(rules[0])) == rules[0]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            "yuoden",
            r"no rule 'yuoden'\. Did you mean 'youden'\? Rules are 'fixed 0\.5', 'youden', 'sensitivity>=0\.95'",
        ),
        ("sensitivity", r"no rule 'sensitivity'\. Did you mean 'sensitivity>=0\.95'"),
        ("sensitivity>=95", "expected a sensitivity above 0 and up to 1"),
        ("specificity>=0", "expected a specificity above 0 and up to 1"),
        ("fixed 1", "expected a fixed threshold between 0 and 1"),
        (0, "expected a fixed threshold between 0 and 1"),
        ("cost fn:fp=0", "expected the cost of a missed positive in false alarms, above 0"),
        ("cost fn:fp=1e400", "above 0 and finite, got 'cost fn:fp=1e400'"),
        (True, "no rule True"),
        (None, "no rule None"),
    ],
)
def test_a_rule_that_there_is_not_is_refused_with_those_that_there_are(rule, message):
    with pytest.raises(ConfigError, match=f"^thresholds: .*{message}"):
        choose_thresholds(simulated(), rule)


def test_multiclass_has_no_thresholds():
    y = np.eye(3)[np.arange(90) % 3]
    chosen = choose_thresholds(scores_of(y + np.random.default_rng(0).normal(size=y.shape), y, task="multiclass"))
    assert (chosen.values, chosen.policy, chosen.reached) == ((), None, ())
    model = medzoo.create("cnn3d_small", num_classes=3, **TINY)
    model.set_outputs(labels=["x", "y", "z"], task="multiclass")
    chosen.store(model)
    assert model.outputs.decided == (True, True, True)


def test_no_call_is_neither_yes_nor_no_everywhere(tmp_path):
    model = medzoo.create("cnn3d_small", num_classes=2, **TINY).eval()
    model.set_outputs(labels=["a", "b"], task="multilabel", thresholds=[1e-6, None])
    assert model.outputs.decided == (True, False)
    probabilities = torch.tensor([[0.5, 0.999], [1.0, 1.0]])
    assert model.outputs.positive(probabilities).tolist() == [[True, False], [True, False]]
    volume = np.random.default_rng(0).random((1, 20, 20, 20), np.float32)
    found = medzoo.predict(model, volume)
    assert found.positive == {"a": True, "b": None}
    assert found.to_dict()["positive"] == {"a": True, "b": None}
    assert json.loads(found.to_json())["positive"]["b"] is None
    (row,) = csv.DictReader(io.StringIO(found.to_csv()))
    assert (row["positive:a"], row["positive:b"]) == ("True", "")
    assert row["probability:b"]
    assert "–" in list(prediction_table(found).columns[2].cells)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["outputs"]["thresholds"] == [1e-6, None]
    assert medzoo.create(f"local-dir:{tmp_path}").outputs == model.outputs
    card = (tmp_path / "README.md").read_text()
    assert "| b | yes | none |" in card
    assert "- threshold none: none was chosen" in card


def test_thresholds_are_stored_with_what_they_reached(tmp_path):
    scores = simulated(labels=2)
    few = scores.targets.copy()
    few[:, 1] = np.arange(len(scores)) < 5
    chosen = choose_thresholds(scores_of(scores.ranks, few), "sensitivity>=0.9")
    model = medzoo.create("cnn3d_small", num_classes=2, **TINY).eval()
    model.set_outputs(labels=["a", "b"], task="multilabel", prevalence=[0.3, 0.1])
    chosen.store(model)
    assert model.outputs.thresholds == chosen.values
    assert chosen.values[1] is None
    assert model.outputs.prevalence == (0.3, 0.1), "everything else stays"
    model.save_pretrained(tmp_path)
    again = medzoo.create(f"local-dir:{tmp_path}")
    assert again.outputs == model.outputs
    assert again.outputs.policy.sensitivity[1] is None
    card = (tmp_path / "README.md").read_text()
    assert "| output | trained | threshold | sensitivity there | specificity there | prevalence in training |" in card
    assert "| b | yes | none | none | none | 0.1 |" in card
    assert "optimistic" in card


def test_thresholds_of_another_scale_or_of_rescaled_probabilities_are_not_stored():
    chosen = choose_thresholds(simulated(), scale="calibrated")
    model = tiny("cnn3d_small").eval()
    model.set_outputs(labels=["a"], task="binary")
    with pytest.raises(ConfigError, match="chosen on the scale 'calibrated'"):
        chosen.store(model)
    model.outputs = Outputs(("a",), "binary", (0.2,), (True,), normalised=True)
    with pytest.raises(ConfigError, match="got ones that thresholds rescale"):
        choose_thresholds(simulated()).store(model)
    with pytest.raises(ConfigError, match="expected a threshold for each label to normalise by"):
        Outputs(("a",), "binary", (None,), (True,), normalised=True)
    done = medzoo.Calibration("Platt", (1.0,), (0.0,))
    with pytest.raises(ConfigError, match="normalised by operating points have no calibration"):
        Outputs(("a",), "binary", (0.2,), (True,), normalised=True, calibration=done)
