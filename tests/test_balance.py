"""Weights against imbalance come from the training part, and from known labels alone."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight
from training_data import part_of

from medzoo.data.balance import class_weights, positive_weights
from medzoo.data.split import _MADE, Part
from medzoo.errors import ConfigError

NAN = float("nan")


def test_counts_are_of_the_training_part_and_of_known_labels():
    part = part_of([[1, NAN], [0, 1], [0, 0], [0, 1], [NAN, 0], [1, 1], [1, 1], [1, 1]], rows=[0, 1, 2, 3, 4])
    assert positive_weights(part, "class").positive.tolist() == [3, 1]
    assert positive_weights(part, "sqrt").positive.tolist() == pytest.approx([3**0.5, 1])
    assert positive_weights(part, "class").negative is None
    assert positive_weights(part, "none") == (None, None)
    assert class_weights(part, "none") is None


def test_normalised_weights_sum_to_1_and_are_the_share_of_the_other_class():
    part = part_of([[1]] * 23 + [[0]] * 94)  # 117 patients of whom 23 have a mutation
    positive, negative = positive_weights(part, "normalised")
    assert (positive.item(), negative.item()) == pytest.approx((0.8034, 0.1966), abs=5e-5)


def test_class_weights_equal_scikit_learn():
    classes = np.array([0] * 7 + [1] * 2 + [2])
    part = part_of(np.eye(3)[classes].tolist())
    expected = compute_class_weight("balanced", classes=np.arange(3), y=classes)
    np.testing.assert_allclose(class_weights(part, "class"), expected, rtol=1e-6)
    np.testing.assert_allclose(class_weights(part, "sqrt"), expected**0.5, rtol=1e-6)
    assert float(class_weights(part, "normalised").sum()) == pytest.approx(1)
    two = class_weights(part_of([[1, 0]] * 94 + [[0, 1]] * 23), "normalised")
    assert two.tolist() == pytest.approx([23 / 117, 94 / 117])


def test_normalised_weights_have_the_ratios_of_class():
    """The normalised weight of the largest class is below 0.01, which is no fault and no warning."""
    part = part_of(np.eye(3)[np.repeat(range(3), [1000, 10, 10])].tolist())
    weights, normalised = class_weights(part, "class"), class_weights(part, "normalised")
    np.testing.assert_allclose(normalised / normalised[0], [1, 100, 100], rtol=1e-6)
    np.testing.assert_allclose(normalised / normalised[0], weights / weights[0], rtol=1e-6)
    rare = part_of([[1]] * 2 + [[0]] * 1000)
    with pytest.warns(UserWarning, match=r"2 positive and 1000 negative\) to \[0.01, 100\]"):
        positive, negative = positive_weights(rare, "normalised")
    assert (positive / negative).item() == pytest.approx(100)
    with pytest.warns(UserWarning, match=r"third \(0 rows\)"):
        absent = class_weights(part_of(np.eye(3)[[0, 1, 1]].tolist()), "normalised")
    assert absent.tolist() == pytest.approx([2 / 3, 1 / 3, 100 / 1.5])


def test_fault_94_weights_of_one_class_are_clamped_with_a_warning():
    part = part_of([[0, 1, 1]] * 4 + [[0, 1, 0]])
    with pytest.warns(UserWarning, match=r"first \(0 positive and 5 negative\), second \(5 positive and 0 negative\)"):
        weights = positive_weights(part, "class")
    assert weights.positive.tolist() == pytest.approx([100, 0.01, 0.25])
    with pytest.warns(UserWarning, match=r"to \[0.1, 10\]"):
        weights = positive_weights(part, "normalised", clamp=(0.1, 10))
    assert weights.positive.tolist() == pytest.approx([10 / 11, 1 / 11, 0.2])
    assert weights.negative.tolist() == pytest.approx([1 / 11, 10 / 11, 0.8])
    with pytest.warns(UserWarning, match=r"third \(0 rows\)"):
        weights = class_weights(part_of(np.eye(3)[[0, 1]].tolist()), "class")
    assert weights.tolist() == pytest.approx([2 / 3, 2 / 3, 100])


def test_fault_95_a_label_that_is_never_known_has_weight_1():
    part = part_of([[NAN, 1], [NAN, 0]])
    assert positive_weights(part, "class").positive.tolist() == [1, 1]
    assert positive_weights(part, "normalised").positive.tolist() == [0.5, 0.5]
    assert class_weights(part_of([[NAN, NAN]]), "class").tolist() == [1, 1]


@pytest.mark.parametrize("weights", [positive_weights, class_weights])
def test_wrong_arguments(weights):
    part = part_of([[1, 0], [0, 1]])
    with pytest.raises(ConfigError, match="expected the training part, got the valid part"):
        weights(Part(part.table, part.rows, "valid", made=_MADE))
    with pytest.raises(ConfigError, match="'normalised', got 'balanced'"):
        weights(part, "balanced")
    with pytest.raises(ConfigError, match="two finite numbers above 0 in order"):
        weights(part, "class", clamp=(2.0, 1.0))
