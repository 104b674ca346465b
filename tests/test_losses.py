"""Losses agree with PyTorch's and scikit-learn's, and survive labels that are unknown or of one class."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss
from torch.nn import BCEWithLogitsLoss, CrossEntropyLoss
from torch.testing import assert_close
from training_data import part_of

from medzoo.errors import ConfigError
from medzoo.training.losses import ClassificationLoss, loss_from_recipe
from medzoo.training.recipe import LossSection

NAN = float("nan")


def random_batch(n=40, labels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, labels, generator=generator)
    return logits, (torch.rand(n, labels, generator=generator) < 0.4).float()


def one_hot(n=40, labels=3, seed=0):
    classes = torch.randint(labels, (n,), generator=torch.Generator().manual_seed(seed))
    return classes, torch.nn.functional.one_hot(classes, labels).float()


def test_bce_equals_torch():
    logits, targets = random_batch()
    weight = torch.tensor([0.5, 2.0, 30.0])
    assert_close(ClassificationLoss("bce")(logits, targets), BCEWithLogitsLoss()(logits, targets))
    assert_close(
        ClassificationLoss("bce", weight)(logits, targets), BCEWithLogitsLoss(pos_weight=weight)(logits, targets)
    )


def test_bce_equals_scikit_learn():
    logits, targets = random_batch(labels=1)
    truth, probabilities = targets[:, 0].numpy(), logits[:, 0].double().sigmoid().numpy()
    assert float(ClassificationLoss("bce")(logits, targets)) == pytest.approx(log_loss(truth, probabilities), rel=1e-6)
    weights = np.where(truth == 1, 0.8034, 0.1966)
    ours = ClassificationLoss("bce", torch.tensor([0.8034]), torch.tensor([0.1966]))(logits, targets)
    expected = log_loss(truth, probabilities, sample_weight=weights, normalize=False) / len(truth)
    assert float(ours) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weight", [None, torch.tensor([0.2, 1.0, 5.0])], ids=["", "weight"])
def test_cross_entropy_equals_torch(weight, smoothing):
    logits, _ = random_batch()
    classes, targets = one_hot()
    expected = CrossEntropyLoss(weight=weight, label_smoothing=smoothing)(logits, classes)
    assert_close(ClassificationLoss("cross_entropy", weight, smoothing=smoothing)(logits, targets), expected)


def test_cross_entropy_equals_scikit_learn():
    logits, _ = random_batch()
    classes, targets = one_hot()
    expected = log_loss(classes.numpy(), logits.double().softmax(1).numpy(), labels=[0, 1, 2])
    assert float(ClassificationLoss("cross_entropy")(logits, targets)) == pytest.approx(expected, rel=1e-6)


def test_smoothing_of_bce_moves_the_targets():
    logits, targets = random_batch()
    expected = BCEWithLogitsLoss()(logits, targets * 0.8 + 0.1)
    assert_close(ClassificationLoss("bce", smoothing=0.2)(logits, targets), expected)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["bce", "cross_entropy"]), st.sampled_from([0.0, 0.1]))
def test_unknown_labels_are_as_if_they_were_absent(seed, kind, smoothing):
    weight = torch.tensor([0.5, 2.0, 7.0])
    logits, targets = random_batch(seed=seed)
    if kind == "cross_entropy":
        targets = one_hot(seed=seed)[1]
    known = torch.rand(targets.shape, generator=torch.Generator().manual_seed(seed)) < 0.6
    loss = ClassificationLoss(kind, weight, smoothing=smoothing)
    logits.requires_grad_()
    masked = loss(logits, targets.masked_fill(~known, NAN))
    masked.backward()
    if kind == "cross_entropy":
        rows = known.all(1)
        expected = loss(logits[rows], targets[rows])
        assert not logits.grad[~rows].any()
    else:
        # Each label alone has its own count, so the mean over all is weighted by them.
        total = sum(
            ClassificationLoss(kind, weight[i : i + 1], smoothing=smoothing)(
                logits[known[:, i], i : i + 1], targets[known[:, i], i : i + 1]
            )
            * known[:, i].sum()
            for i in range(3)
        )
        expected = total / known.sum()
        assert not logits.grad[~known].any()
    assert_close(masked, expected)
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("kind", ["bce", "cross_entropy"])
def test_a_batch_without_labels_has_loss_and_gradient_0(kind):
    logits = torch.randn(4, 3, requires_grad=True)
    loss = ClassificationLoss(kind, torch.ones(3))(logits, torch.full((4, 3), NAN))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_extreme_logits_stay_finite():
    logits = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    loss = ClassificationLoss("bce", torch.tensor([100.0]), torch.tensor([0.01]))(logits, torch.tensor([[0.0], [1.0]]))
    loss.backward()
    assert torch.isfinite(loss)
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("balance", ["none", "sqrt", "class", "normalised"])
@pytest.mark.parametrize("value", [0.0, 1.0, NAN])
def test_fault_94_one_class_in_training_leaves_the_loss_finite(balance, value):
    part = part_of([[value, i % 2] for i in range(8)])
    with warnings.catch_warnings(record=True, action="always") as caught:
        loss = loss_from_recipe(LossSection(balance=balance), "multilabel", part)
    clamped = balance != "none" and value == value
    assert [("first" in str(w.message), "[0.01, 100]" in str(w.message)) for w in caught] == [(True, True)] * clamped
    logits = torch.randn(8, 2, requires_grad=True)
    found = loss(logits, torch.from_numpy(part.table.targets))
    found.backward()
    assert torch.isfinite(found)
    assert logits.grad.isfinite().all()
    weights = loss.positive_weight
    assert weights is None or ((weights >= 0.0099) & (weights <= 100)).all()  # a ratio of 100 normalised is 1 : 101


def test_weights_are_in_no_state_dict_and_follow_the_module():
    loss = ClassificationLoss("bce", torch.tensor([2.0]), torch.tensor([0.5]))
    assert dict(loss.state_dict()) == dict(loss.named_buffers()) == {}
    twin = copy.deepcopy(loss).to("meta")
    assert twin.positive_weight.device.type == twin.negative_weight.device.type == "meta"
    assert loss.positive_weight.device.type == "cpu"
    assert "positive_weight=[2.0]" in repr(loss)


def test_float16_logits_are_computed_in_float32():
    logits, targets = random_batch()
    found = ClassificationLoss("bce", torch.full((3,), 100.0))(logits.bfloat16(), targets)
    assert found.dtype == torch.float32


def test_loss_of_a_recipe():
    binary = part_of([[1], [0], [0], [0]])
    assert repr(loss_from_recipe(LossSection(balance="class"), "binary", binary)) == (
        "ClassificationLoss('bce', positive_weight=[3.0])"
    )
    given_pair = loss_from_recipe(LossSection(weights=[0.1966, 0.8034]), "binary", binary)
    assert given_pair.positive_weight.tolist() == pytest.approx([0.8034])
    assert given_pair.negative_weight.tolist() == pytest.approx([0.1966])
    classes = part_of(torch.eye(3)[[0, 0, 0, 1, 1, 2]].tolist())
    found = loss_from_recipe(LossSection(balance="class", smoothing=0.1), "multiclass", classes)
    assert (found.kind, found.smoothing) == ("cross_entropy", 0.1)
    assert found.positive_weight.tolist() == pytest.approx([6 / 9, 1, 2])
    three = loss_from_recipe(LossSection(weights=[1, 2, 3]), "multiclass", classes)
    assert three.positive_weight.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("section", "task", "message"),
    [
        ({"kind": "cross_entropy"}, "binary", "cross_entropy does not go with binary labels"),
        ({"kind": "bce"}, "multiclass", "need cross_entropy"),
        ({"weights": [1, 2, 3]}, "multilabel", "expected 2, one for each of first, second, got 3"),
    ],
)
def test_loss_of_a_recipe_that_cannot_be(section, task, message):
    with pytest.raises(ConfigError, match=message):
        loss_from_recipe(LossSection(**section), task, part_of([[0, 1], [1, 0]]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mse",), "'bce' or 'cross_entropy', got 'mse'"),
        (("cross_entropy", None, torch.ones(2)), "one weight per class"),
        (("bce", torch.tensor([1.0, NAN])), "one finite number above 0 for each output"),
        (("bce", None, None, 0.5), r"smoothing in \[0, 0.5\), got 0.5"),
    ],
)
def test_a_loss_that_cannot_be(arguments, message):
    with pytest.raises(ConfigError, match=message):
        ClassificationLoss(*arguments)


def test_shapes_are_checked():
    with pytest.raises(ConfigError, match=r"shape of the logits, \(4, 1\), got \(4,\)"):
        ClassificationLoss("bce")(torch.zeros(4, 1), torch.zeros(4))
    with pytest.raises(ConfigError, match="2 weights"):
        ClassificationLoss("bce", torch.ones(2))(torch.zeros(4, 3), torch.zeros(4, 3))
