"""The other rules: maximum assignment, one-hot, one decision a logit, regression."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import lsq_linear

from featprop_sklearn.output_targets import (
    OutputTargets,
    margin_violation,
    max_assign_target,
    one_hot_target,
    per_logit,
    regression_target,
)
from featprop_sklearn.output_targets.regression import relative_residual


def test_max_assign_moves_the_label_only():
    logits = torch.tensor([[1.0, 5.0, 2.0], [1.0, 5.0, 2.0], [3.0, 3.0, 0.0]])
    target = max_assign_target(logits, torch.tensor([0, 1, 0]), 2.0)
    assert target.tolist() == [[7.0, 5.0, 2.0], [1.0, 5.0, 2.0], [5.0, 3.0, 0.0]]


@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    c=st.integers(2, 40),
    margin=st.floats(0, 100),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
def test_max_assign_is_feasible_and_keeps_what_is(seed, c, margin, dtype):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(30, c, generator=generator, dtype=dtype)
    labels = torch.randint(c, (30,), generator=generator)
    target = max_assign_target(logits, labels, margin)
    assert target.dtype == dtype
    assert (margin_violation(target, labels, margin) <= 0).all()
    inside = margin_violation(logits, labels, margin) <= 0
    others = torch.arange(c) != labels[:, None]
    assert torch.equal(target[inside], logits[inside])
    assert torch.equal(target[others], logits[others])
    assert torch.equal(max_assign_target(target, labels, margin), target)


def test_one_hot_is_the_identity_matrix_row():
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([5, 0, 3, 3])
    target = one_hot_target(logits, labels, 7.0)
    assert target.dtype == torch.float32
    assert np.array_equal(target, np.eye(6)[labels])


@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    k=st.integers(1, 6),
    margin=st.floats(0, 5),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
def test_per_logit_nearest_is_the_bounded_least_squares_answer(seed, k, margin, dtype):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, k, generator=generator, dtype=dtype)
    labels = torch.randint(2, (5, k), generator=generator)
    target = per_logit.nearest(logits, labels, margin)
    lower = np.where(labels, margin / 2, -np.inf).ravel()
    upper = np.where(labels, np.inf, -margin / 2).ravel()
    expected = lsq_linear(np.eye(5 * k), logits.double().numpy().ravel(), (lower, upper), tol=1e-14)
    assert target.dtype == dtype
    np.testing.assert_allclose(target.ravel(), expected.x, atol=2e-6)
    assert torch.equal(per_logit.nearest(target, labels, margin), target)
    assert (per_logit.violation(target, labels, margin) <= 0).all()
    assert torch.equal(per_logit.max_assign(logits, labels, margin), target)


def test_per_logit_keeps_logits_on_their_side_bit_for_bit():
    logits = torch.tensor([[-0.0, 3.0, -3.0, 0.5]])
    labels = torch.tensor([[1, 1, 0, 0]])
    target = per_logit.nearest(logits, labels, 0.0)
    assert torch.equal(target.signbit(), torch.tensor([[True, False, True, True]]))
    assert target.tolist() == [[0.0, 3.0, -3.0, 0.0]]


def test_per_logit_one_hot_is_the_difference_of_two_one_hot_logits():
    pair = one_hot_target(torch.zeros(2, 2), torch.tensor([0, 1]))
    single = per_logit.one_hot(torch.zeros(2, 1), torch.tensor([[0], [1]]))
    assert torch.equal(single[:, 0], pair[:, 1] - pair[:, 0])


def test_per_logit_violation_is_the_worst_logit():
    logits = torch.tensor([[3.0, -2.0], [0.25, -5.0]])
    labels = torch.tensor([[1, 1], [1, 0]])
    assert per_logit.violation(logits, labels, 1.0).tolist() == [2.5, 0.25]


@pytest.mark.parametrize("rule", [per_logit.nearest, per_logit.max_assign, max_assign_target])
def test_refuses_negative_margins(rule):
    with pytest.raises(ValueError, match=r"margin must be 'auto' or a finite number >= 0, got -1"):
        rule(torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.int64), -1)


def test_regression_wants_y_itself():
    y = torch.tensor([[1.5], [-2.0]], dtype=torch.float64)
    target = regression_target(torch.zeros(2, 1), y)
    assert target.dtype == torch.float32
    assert target.tolist() == [[1.5], [-2.0]]


def test_relative_residual_including_zero_targets():
    output = torch.tensor([[3.0, 4.5], [0.0, 0.0], [0.0, 1e-9]])
    y = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 0.0]])
    residual = relative_residual(output, y)
    assert residual[0].item() == pytest.approx(0.1)
    assert residual[1] == 0
    assert residual[2] > 1e100
    np.testing.assert_allclose(relative_residual(output, y, scale=2.0), [0.1, 0, 5e-10])


def test_zeros_are_reached_on_the_scale_of_the_other_values():
    targets = OutputTargets("regression", scale=10.0)
    y = torch.tensor([[0.0], [0.0], [100.0], [100.0]])
    output = torch.tensor([[0.009], [0.011], [100.09], [100.11]])
    assert targets.reached(output, y).tolist() == [True, False, True, False]
