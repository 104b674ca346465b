"""Calibration: fitted on logits, applied to scores, cross-fitted, in closed form, folded into a model, and undone."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from tensors import TINY, batch, scatter_weights, tiny
from test_evaluation_thresholds import scores_of, simulated
from torch import nn
from torch.nn.utils import prune

import medzoo
from medzoo.errors import ConfigError
from medzoo.evaluation.calibration import (
    apply_calibration,
    cross_fitted,
    fit_calibration,
    fold_calibration,
    shift_for_loss_weights,
    shift_for_prevalence,
    undo_calibration,
)
from medzoo.evaluation.scores import Scores
from medzoo.evaluation.thresholds import choose_thresholds
from medzoo.provenance import Calibration, ThresholdPolicy


def model_of(name="cnn3d_small", n=2, task="multilabel", **options):
    model = tiny(name, num_classes=n, **options).eval()
    scatter_weights(model)
    model.set_outputs(labels=list("abcdefgh"[:n]), task=task)
    return model


def calibrated_truth(n=4000, slope=0.4, intercept=-1.0, seed=0, **fields):
    """Return scores whose true probability is sigmoid(slope * logit + intercept)."""
    draw = np.random.default_rng(seed)
    z = 3 * draw.normal(size=n)
    return scores_of(z, draw.random(n) < 1 / (1 + np.exp(-(slope * z + intercept))), **fields)


def log_loss(scores):
    y, z = scores.targets, scores.log_odds
    return float(np.logaddexp(0, np.where(y == 1, -z, z)).mean())


def test_platt_finds_the_slope_and_the_intercept():
    scores = calibrated_truth()
    fitted = fit_calibration(scores, split="tuning")
    found = fitted.calibration
    assert (found.method, found.split, fitted.notes) == ("Platt", "tuning", ())
    assert found.slope[0] == pytest.approx(0.4, abs=0.05)
    assert found.intercept[0] == pytest.approx(-1, abs=0.1)
    after = apply_calibration(scores, found)
    # At the optimum both derivatives of the log-loss are 0.
    off = after.probabilities - scores.targets
    assert abs(off.mean()) < 1e-6
    assert abs((off * scores.logits).mean()) < 1e-6
    assert log_loss(after) < log_loss(scores)
    assert (np.argsort(after.ranks[:, 0]) == np.argsort(scores.ranks[:, 0])).all()


@pytest.mark.parametrize("factor", [1e-4, 1e4])
def test_the_fit_does_not_depend_on_the_size_of_the_logits(factor):
    scores = calibrated_truth(1000)
    plain = fit_calibration(scores).calibration
    scaled = fit_calibration(Scores.from_logits(
        scores.logits * factor, task="binary", labels=("a",), ids=scores.ids, targets=scores.targets
    )).calibration  # fmt: skip
    if factor > 1:  # logits beyond ±700 are not those of probabilities of 0 and 1 here
        assert scaled is None or scaled.slope[0] == pytest.approx(plain.slope[0] / factor, rel=1e-4)
    else:
        assert scaled.slope[0] == pytest.approx(plain.slope[0] / factor, rel=1e-4)


@pytest.mark.parametrize(
    ("logits", "why"),
    [
        (lambda y, draw: draw.normal(size=len(y)) - 2 * y, "which is not above 0, as of a model that learned nothing"),
        (lambda y, draw: -8.0 * y, "the slope would be -inf"),
        (lambda y, draw: 4.0 * y - 3 + 0.1 * draw.random(len(y)), "separate the classes completely"),
        (lambda y, draw: np.full(len(y), 2.0), "all logits are the same"),
    ],
)
def test_a_slope_that_is_not_above_0_or_not_finite_leaves_the_intercept_alone(logits, why):
    draw = np.random.default_rng(0)
    y = draw.random(300) < 0.3
    scores = scores_of(logits(y, draw), y)
    fitted = fit_calibration(scores)
    assert (fitted.calibration.method, fitted.calibration.slope) == ("intercept", (1.0,))
    assert why in fitted.notes[0]
    after = apply_calibration(scores, fitted.calibration)
    assert after.probabilities.mean() == pytest.approx(y.mean(), abs=1e-9)
    with pytest.raises(ConfigError, match="expected slopes above 0"):
        Calibration("Platt", (-0.5,), (0.0,))


def test_labels_with_too_few_rows_or_patients_are_not_calibrated():
    scores = simulated(600, labels=4)
    y = scores.targets.copy()
    y[:, 1] = np.arange(600) < 29
    y[:, 2] = np.arange(600) < 40
    y[:, 3] = np.random.default_rng(1).random(600) < 0.5
    patients = np.where(np.arange(600) < 40, np.arange(600) % 9, 100 + np.arange(600)).astype(str)
    some = scores_of(scores.ranks, y, patients)
    fitted = fit_calibration(some)
    assert fitted.calibration.slope[1:3] == (1.0, 1.0)
    assert fitted.calibration.intercept[1:3] == (0.0, 0.0)
    assert fitted.calibration.method == "Platt or intercept per label: a Platt, b none, c none, " + (
        "d intercept" if fitted.calibration.slope[3] == 1 else "d Platt"
    )
    assert fitted.notes[0].startswith("b: not calibrated, with 29 positive and 571 negative rows")
    assert "c: not calibrated, with 40 positive and 560 negative rows of 9 and" in fitted.notes[1]
    few = fit_calibration(some.select(np.arange(20)))
    assert few.calibration is None
    assert len(few.notes) == 4


def multiclass(n=2000, seed=0, temperature=2.5):
    draw = np.random.default_rng(seed)
    z = 2 * draw.normal(size=(n, 3))
    p = np.exp(z / temperature)
    p /= p.sum(1, keepdims=True)
    truth = (draw.random((n, 1)) > p.cumsum(1)).sum(1)
    return scores_of(z, np.eye(3)[truth], task="multiclass")


def test_one_temperature_for_all_classes():
    scores = multiclass()
    fitted = fit_calibration(scores)
    assert (fitted.calibration.method, fitted.calibration.intercept) == ("temperature", (0.0, 0.0, 0.0))
    assert len(set(fitted.calibration.slope)) == 1
    assert fitted.calibration.slope[0] == pytest.approx(1 / 2.5, rel=0.1)
    after = apply_calibration(scores, fitted.calibration)
    assert (after.calls == scores.calls).all()
    assert apply_calibration(after, Calibration("x", (1 / 0.4,) * 3, (0,) * 3)).probabilities.sum(1) == pytest.approx(1)
    assert fit_calibration(scores.select(np.arange(60))).calibration is None
    assert "of each class are needed" in fit_calibration(scores.select(np.arange(60))).notes[0]


@pytest.mark.parametrize(("factor", "why"), [(-1, "learned nothing"), (100, "every row is classified correctly")])
def test_a_temperature_that_there_is_not_is_not_fitted(factor, why):
    y = np.eye(3)[np.arange(300) % 3]
    fitted = fit_calibration(scores_of(factor * y + np.random.default_rng(0).random(y.shape), y, task="multiclass"))
    assert fitted.calibration is None
    assert why in fitted.notes[0]


def test_probabilities_that_are_no_sigmoid_are_not_calibrated():
    scores = simulated()
    other = Scores.from_logits(
        scores.logits, probabilities=scores.probabilities**2, task="binary", labels=("a",), ids=scores.ids,
        targets=scores.targets,
    )  # fmt: skip
    fitted = fit_calibration(other)
    assert fitted == type(fitted)(None, ("not calibrated: the probabilities are not the sigmoid of the logits",))
    with pytest.raises(ConfigError, match="expected probabilities that are the sigmoid"):
        apply_calibration(other, Calibration("x", (1,), (0,)))
    given = Scores.from_probabilities(
        scores.probabilities, task="binary", labels=("a",), ids=scores.ids, targets=scores.targets
    )
    assert fit_calibration(given).calibration.slope == pytest.approx(fit_calibration(scores).calibration.slope)
    zero = given.probabilities.copy()
    zero[3] = 0
    fitted = fit_calibration(Scores.from_probabilities(
        zero, task="binary", labels=("a",), ids=scores.ids, targets=scores.targets
    ))  # fmt: skip
    assert fitted.calibration is None
    assert fitted.notes == ("a: not calibrated: 1 probabilities are 0 or 1, and have no logit",)


def test_cross_fitted_scores_were_calibrated_on_other_patients():
    draw = np.random.default_rng(0)
    patients = np.repeat(np.arange(150), 4).astype(str)
    y = np.repeat(draw.random(150) < 0.4, 4)
    scores = scores_of(2 * draw.normal(size=600) + y, y, patients)
    found = cross_fitted(scores)
    assert (cross_fitted(scores).probabilities == found.probabilities).all(), "seeded"
    assert (found.ranks == scores.ranks).all()
    assert found.thresholds == (None,)
    # Within a fold the map from logit to logit is one line, and a patient is in one fold.
    slope = {}
    for patient in np.unique(patients):
        rows = patients == patient
        line = np.polyfit(scores.logits[rows, 0], found.logits[rows, 0], 1)
        slope[patient] = round(line[0], 6)
    assert len(set(slope.values())) == 5
    # The labels of a patient do not change how the patient is calibrated.
    in_sample = apply_calibration(scores, fit_calibration(scores).calibration)
    assert log_loss(in_sample) < log_loss(found) < log_loss(scores)
    assert cross_fitted(scores.select(np.arange(40))) is None
    with pytest.raises(ConfigError, match="folds to be an int >= 2"):
        cross_fitted(scores, folds=1)


def test_cross_fitted_keeps_what_is_not_calibrated_and_knows_classes():
    scores = simulated(400, labels=2)
    y = scores.targets.copy()
    y[:, 1] = np.arange(400) < 20
    found = cross_fitted(scores_of(scores.ranks, y))
    assert (found.logits[:, 1] == scores.logits[:, 1]).all()
    many = cross_fitted(multiclass(600))
    assert many.probabilities.sum(1) == pytest.approx(1)
    assert many.thresholds == ()


def test_the_shift_for_loss_weights_is_what_the_weights_did():
    found = shift_for_loss_weights(("a", "b"), (9.0, 1.0))
    assert found.slope == (1.0, 1.0)
    assert found.intercept == pytest.approx((-np.log(9), 0))
    assert found.method == "closed-form shift for the weights of the loss (a 9, b 1), not a fit"
    # A constant model under a weight of 9 predicts 9 p / (9 p + 1 - p).
    p = 0.1
    z = np.log(9 * p / (1 - p)) + found.intercept[0]
    assert 1 / (1 + np.exp(-z)) == pytest.approx(p)
    for weights in ((0.0, 1.0), (1.0,), (np.nan, 1.0), "ab"):
        with pytest.raises(ConfigError, match=r"weights.* expected"):
            shift_for_loss_weights(("a", "b"), weights)


def test_the_shift_for_another_prevalence():
    assert shift_for_prevalence(("a",), 1500 / 3500, 1 / 485).intercept[0] == pytest.approx(-5.9, abs=0.01)
    found = shift_for_prevalence(("a", "b"), [0.5, 0.2], {"b": 0.2, "a": 0.1})
    assert found.intercept == pytest.approx((np.log(1 / 9), 0))
    assert "not a fit" in found.method
    classes = shift_for_prevalence(("a", "b"), [0.5, 0.5], [0.9, 0.1], multiclass=True)
    p = np.exp(np.array(classes.intercept) + np.log([0.5, 0.5]))
    assert p / p.sum() == pytest.approx([0.9, 0.1])
    for before, after, message in (
        (0.0, 0.1, "above 0 and below 1"), ([0.1], 0.1, "each of 2 labels"), ({"a": 0.1}, 0.1, "for a, b, got a"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            shift_for_prevalence(("a", "b"), before, after)
    with pytest.raises(ConfigError, match="sum to 1"):
        shift_for_prevalence(("a", "b"), 0.5, 0.1, multiclass=True)


MODELS = [
    ("cnn3d_small", 1, "binary"),
    ("cnn3d_small", 3, "multiclass"),
    ("xray_cnn", 2, "multilabel"),
    pytest.param("swin_encoder_mlp", 2, "multilabel", marks=pytest.mark.slow),
    pytest.param("resnet18_multilabel", 3, "multiclass", marks=pytest.mark.slow),
    pytest.param("densenet121_xray", 1, "binary", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "n", "task"), MODELS)
def test_a_folded_model_gives_slope_times_logit_plus_intercept(name, n, task, tmp_path):
    model, x = model_of(name, n, task), batch(name, 3)
    slope = (0.37,) * n if task == "multiclass" else tuple(0.37 + 0.9 * i for i in range(n))
    made = Calibration("Platt", slope, tuple(0.0 if task == "multiclass" else 0.8 - i for i in range(n)), "validation")
    with torch.inference_mode():
        before = model(x)
        fold_calibration(model, made)
        expected = torch.tensor(made.slope) * before + torch.tensor(made.intercept)
        torch.testing.assert_close(model(x), expected, rtol=1e-6, atol=1e-6)
        assert model.outputs.calibration == made
        torch.testing.assert_close(medzoo.optimize(model)(x), expected, rtol=1e-5, atol=1e-5)
        for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(again(x), model(x))
            assert again.outputs == model.outputs
        model.save_pretrained(tmp_path)
        saved = medzoo.create(f"local-dir:{tmp_path}").eval()
        assert torch.equal(saved(x), model(x))
        assert saved.outputs == model.outputs
        torch.testing.assert_close(saved.uncalibrated()(x), before, rtol=1e-5, atol=1e-5)
    # The same as what scores of the model become.
    ids, labels = np.array(["p", "q", "r"]), model.outputs.labels
    scores = Scores.from_logits(before.numpy(), task=task, labels=labels, ids=ids, targets=np.zeros((3, n), np.float32))
    with torch.inference_mode():
        p = model.outputs.probabilities(model(x)).numpy()
    assert apply_calibration(scores, made).probabilities == pytest.approx(p, abs=1e-6)
    undone = undo_calibration(apply_calibration(scores, made), made)
    assert undone.probabilities == pytest.approx(scores.probabilities, abs=1e-12)


def ulps(a, b):
    """Return how many float32 numbers are between two tensors."""
    return (a.view(torch.int32).long() - b.view(torch.int32).long()).abs().max().item()


def test_undoing_is_exact_to_a_unit_in_the_last_place():
    model = model_of("cnn3d_small", 4)
    first = copy.deepcopy(model.head.classifier)
    made = Calibration("Platt", (0.371, 3.7, 1.0, 0.25), (0.8, -2.0, 0.0, 0.0))
    fold_calibration(model, made)
    calibrated = model.head.classifier.weight.clone()
    plain = model.uncalibrated()
    assert torch.equal(model.head.classifier.weight, calibrated), "the model itself is not changed"
    weight, bias = plain.head.classifier.weight, plain.head.classifier.bias
    assert ulps(weight, first.weight) <= 1
    assert not torch.equal(weight[:2], first.weight[:2]), "which is why it is not said to be exact"
    assert torch.equal(weight[2:], first.weight[2:]), "slope 1, and a power of 2"
    assert torch.equal(bias[2:], first.bias[2:])
    limit = 2.0**-23 * torch.maximum(first.bias.abs(), torch.tensor([0.8 / 0.371, 2 / 3.7, 0, 0]))
    assert ((bias - first.bias).abs() <= limit).all()
    assert plain.outputs.calibration is None
    with pytest.raises(ConfigError, match="expected a model with a calibration to undo"):
        plain.uncalibrated()
    fold_calibration(plain, made)  # and again


def test_a_bias_of_minus_zero_keeps_its_sign():
    model = model_of("cnn3d_small", 2)
    with torch.no_grad():
        model.head.classifier.bias.fill_(-0.0)
    fold_calibration(model, Calibration("Platt", (1.0, 2.0), (0.0, 1.0)))
    assert torch.signbit(model.head.classifier.bias).tolist() == [True, False]


def test_thresholds_move_with_the_logits_and_calls_stay(tmp_path):
    model = model_of("cnn3d_small", 3)
    x = batch("cnn3d_small", 20)
    with torch.inference_mode():
        p = model.outputs.probabilities(model(x))
        middle = [float((one.sort()[0][9] + one.sort()[0][10]) / 2) for one in p.T]
        model.set_outputs(thresholds=[*middle[:2], None], policy=ThresholdPolicy("Youden", sensitivity=(1, 0.5, None)))
        before = model.outputs.positive(p)
        fold_calibration(model, Calibration("Platt", (0.2, 5.0, 1.0), (-3.0, 2.0, 1.0)))
        assert model.outputs.policy.scale == "calibrated"
        assert model.outputs.thresholds[2] is None
        assert model.outputs.thresholds[:2] != tuple(middle[:2])
        assert torch.equal(model.outputs.positive(model.outputs.probabilities(model(x))), before)
        model.save_pretrained(tmp_path)
    saved = medzoo.create(f"local-dir:{tmp_path}").eval()
    volumes = list(np.random.default_rng(0).random((4, 1, 16, 16, 16), np.float32))
    here, there = (medzoo.predict(one, volumes) for one in (model, saved))
    assert [p.positive for p in here] == [p.positive for p in there]
    assert [p.probabilities for p in here] == [p.probabilities for p in there]
    plain = model.uncalibrated()
    assert plain.outputs.thresholds[:2] == pytest.approx(middle[:2])
    assert plain.outputs.policy.scale == "probability"


def test_a_default_threshold_that_nobody_chose_is_dropped():
    model = model_of("cnn3d_small", 3)
    model.set_outputs(thresholds=[0.5, 0.3, 0.5])
    shift = shift_for_prevalence(("a", "b", "c"), 0.5, 0.1)
    fold_calibration(model, shift)
    first, second, third = model.outputs.thresholds
    assert first is third is None
    assert second == pytest.approx(0.3 / 0.7 / 9 / (1 + 0.3 / 0.7 / 9))
    chosen = model_of("cnn3d_small", 1, "binary")
    chosen.set_outputs(policy=ThresholdPolicy("fixed 0.5"))
    fold_calibration(chosen, shift_for_prevalence(("a",), 0.5, 0.1))
    assert chosen.outputs.thresholds == pytest.approx((0.1,))
    far = model_of("cnn3d_small", 1, "binary")
    far.set_outputs(thresholds=[0.4])
    fold_calibration(far, Calibration("Platt", (1.0,), (80.0,)))
    assert far.outputs.thresholds == (None,), "float32 has no such probability below 1"
    # Of scores, likewise.
    scores = replace(simulated(), thresholds=(0.5,))
    made = Calibration("Platt", (1.0,), (-1.0,))
    assert apply_calibration(scores, made).thresholds == (None,)
    known = replace(scores, threshold_rule="fixed 0.5")
    assert (apply_calibration(known, made).calls == known.calls).all()


@pytest.mark.parametrize("undo", [False, True])
def test_what_was_loaded_is_no_longer_claimed(undo, tmp_path):
    model_of("cnn3d_small", 2).save_pretrained(
        tmp_path, license="MIT", trained_on="CT", intended_use=medzoo.IntendedUse(("CT",))
    )
    model = medzoo.create(f"local-dir:{tmp_path}").eval()
    digest = model.load_report.digest
    fold_calibration(model, Calibration("Platt", (2.0, 3.0), (0.0, 1.0)))
    if undo:
        model = model.uncalibrated()
    report = model.load_report
    names = {"head.classifier.weight", "head.classifier.bias"}
    assert set(report.changed) == names
    assert not names & {*report.loaded, *report.new}
    how = "calibration undone (Platt)" if undo else "calibration (Platt)"
    assert f"changed after loading head.classifier.bias: {how}" in str(report)
    assert "25 of 25 tensors loaded, 0 random" in str(report)
    source = report.source
    stated = medzoo.predict(model, np.random.default_rng(0).random((1, 16, 16, 16), np.float32)).provenance
    assert stated["digest"] == "none"
    assert stated["weights"] == f"{source} ({digest}), but for 2 tensors changed after loading: {how}"
    assert (report.license, report.trained_on, model.intended_use.modality) == ("MIT", "CT", ("CT",))
    model.save_pretrained(tmp_path / "again")
    again = medzoo.create(f"local-dir:{tmp_path / 'again'}")
    assert not again.load_report.changed
    assert again.load_report.digest != digest
    model.reset_classifier(2)
    assert not model.load_report.changed


def test_what_cannot_be_folded_is_refused_and_leaves_the_model():
    model = model_of("cnn3d_small", 2)
    made = Calibration("Platt", (2.0, 3.0), (0.0, 1.0))
    state = copy.deepcopy(model.state_dict())

    def refused(of, calibration, message):
        with pytest.raises(ConfigError, match=message):
            fold_calibration(of, calibration)

    refused(model, Calibration("Platt", (2.0,), (0.0,)), "^cnn3d_small: expected slope and intercept .* to be 2")
    refused(model, Calibration("Platt", (1e42, 1.0), (0.0, 0.0)), "beyond the range of torch.float32")
    refused(model, None, "expected a medzoo.Calibration, got NoneType")
    refused(medzoo.create("cnn3d_small", features_only=True, **TINY), made, "features_only=True has no logits")
    refused(medzoo.create("cnn3d_small", num_classes=0, **TINY), made, "Linear, got Identity")
    rescaled = copy.deepcopy(model)
    rescaled.outputs = replace(model.outputs, normalised=True)
    refused(rescaled, made, "^cnn3d_small: probabilities that are normalised .* are not calibrated")
    odd = copy.deepcopy(model)
    nn.utils.parametrizations.weight_norm(odd.head.classifier)
    refused(odd, made, "to be a torch.nn.Linear, got ParametrizedLinear")
    bare = copy.deepcopy(model)
    bare.head.classifier = nn.Linear(bare.head.classifier.in_features, 2, bias=False)
    refused(bare, made, "to have a bias")
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in state.items())
    assert model.outputs.calibration is None
    fold_calibration(model, made)
    refused(model, made, r"calibrated already \(Platt\)\. Undo that first, with model\.uncalibrated\(\)")
    refused(pickle.loads(pickle.dumps(model)), made, "calibrated already")


def tie(model, **names):
    model.extra = nn.Linear(1, 1)
    for to, name in names.items():
        setattr(model.extra, to, getattr(model.head.classifier, name))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: nn.utils.weight_norm(model.head.classifier), "a plain layer, got one with forward hooks"),
        (lambda model: nn.utils.spectral_norm(model.head.classifier), "with forward hooks"),
        (lambda model: prune.l1_unstructured(model.head.classifier, "weight", amount=0.3), "with forward hooks"),
        (lambda model: model.head.classifier.register_forward_hook(lambda _layer, _x, y: y * 3), "with forward hooks"),
        (lambda model: model.head.classifier.register_forward_pre_hook(lambda _layer, x: x), "with forward hooks"),
        (lambda model: tie(model, weight="weight"), "to have its weight and bias, got head.classifier, extra, which"),
        (lambda model: tie(model, bias="bias"), "got head.classifier, extra"),
        (lambda model: model.add_module("twin", model.head.classifier), "got head.classifier, twin"),
    ],
)
def test_a_layer_whose_weight_is_not_its_own_alone_is_refused(change, message):
    model = model_of("cnn3d_small", 2)
    change(model)
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(ConfigError, match=f"^cnn3d_small: .*{message}"):
        fold_calibration(model, Calibration("Platt", (2.0, 3.0), (0.0, 1.0)))
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in state.items())
    assert model.outputs.calibration is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_are_folded_in_float64_and_rounded_once(dtype):
    model = model_of("cnn3d_small", 2).to(dtype)
    weight = model.head.classifier.weight.detach().double().clone()
    fold_calibration(model, Calibration("Platt", (0.3, 3.0), (0.1, 0.2)))
    expected = (torch.tensor([[0.3], [3.0]], dtype=torch.float64) * weight).to(dtype)
    assert torch.equal(model.head.classifier.weight, expected)


def test_a_model_made_in_inference_mode_and_an_optimised_one_can_be_folded():
    with torch.inference_mode():
        model = model_of("cnn3d_small", 1, "binary")
    fast = medzoo.optimize(model_of("cnn3d_small", 1, "binary"))
    x = batch("cnn3d_small", 2)
    for one in (model, fast):
        with torch.inference_mode():
            before = one(x)
        fold_calibration(one, Calibration("Platt", (0.5,), (1.0,)))
        with torch.inference_mode():
            torch.testing.assert_close(one(x), 0.5 * before + 1, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(one.uncalibrated()(x), before, rtol=1e-5, atol=1e-5)


def test_thresholds_are_chosen_after_calibration():
    scores = calibrated_truth(800)
    fitted = fit_calibration(scores).calibration
    chosen = choose_thresholds(apply_calibration(scores, fitted), "sensitivity>=0.9", scale="calibrated")
    model = model_of("cnn3d_small", 1, "binary")
    fold_calibration(model, fitted)
    chosen.store(model)
    assert model.outputs.calibration == fitted
    assert model.outputs.policy.scale == "calibrated"
