"""The automatic margin, against NumPy's quantiles and repetition."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featprop_sklearn.output_targets import auto_margin

seeds = st.integers(0, 10**6)


def random_logits(seed, n, c, dtype=torch.float64):
    return torch.randn(n, c, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(seed=seeds, n=st.integers(1, 40), c=st.integers(2, 30))
def test_is_the_lower_median_of_standard_deviations(seed, n, c):
    logits = random_logits(seed, n, c)
    expected = np.quantile(logits.numpy().std(axis=1), 0.5, method="inverted_cdf")
    assert auto_margin(logits) == pytest.approx(expected, rel=1e-12)
    assert auto_margin(logits, multiple=2.5) == pytest.approx(2.5 * expected, rel=1e-12)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(seed=seeds, n=st.integers(1, 40))
def test_float_weights_agree_with_a_weighted_quantile(seed, n):
    logits = random_logits(seed, n, 5)
    weight = np.random.default_rng(seed).uniform(0.1, 3, n)
    spread = logits.numpy().std(axis=1)
    expected = np.quantile(spread, 0.5, weights=weight, method="inverted_cdf")
    assert auto_margin(logits, torch.from_numpy(weight)) == pytest.approx(expected, rel=1e-12)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    seed=seeds,
    weights=st.lists(st.integers(0, 4), min_size=1, max_size=20).filter(any),
    c=st.integers(1, 20),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
def test_a_weight_is_exactly_a_repetition(seed, weights, c, dtype):
    logits = random_logits(seed, len(weights), c, dtype)
    weight = torch.tensor(weights)
    repeated = logits.repeat_interleave(weight, dim=0)
    assert auto_margin(logits, weight) == auto_margin(repeated)


@pytest.mark.parametrize("flat", [False, True])
def test_one_logit_counts_from_the_threshold(flat):
    logits = torch.tensor([[3.0], [-1.0], [-2.0]])
    assert auto_margin(logits[:, 0] if flat else logits) == 2


def test_multi_label_logits_count_from_the_threshold():
    assert auto_margin(torch.full((4, 3), 5.0), per_logit=True) == pytest.approx(5)


def test_one_logit_and_two_logits_lead_to_the_same_lead():
    difference = random_logits(0, 21, 1)
    pair = torch.cat([-difference / 2, difference / 2], dim=1)
    # one logit must be margin / 2 away from zero, two logits margin apart
    assert auto_margin(difference) / 2 == pytest.approx(auto_margin(pair), rel=1e-12)


def test_mostly_constant_rows_leave_the_median_to_the_others():
    logits = torch.tensor([[0.1, 0.1, 0.1]] * 5 + [[0.0, 0.0, 3.0]], dtype=torch.float64)
    assert auto_margin(logits) == pytest.approx(np.std([0, 0, 3]))


def test_constant_rows_count_where_the_median_is_positive():
    assert auto_margin(torch.tensor([[0.0, 0.0], [0.0, 2.0], [0.0, 4.0], [0.0, 6.0]])) == 1


@pytest.mark.parametrize("value", [0.0, 0.1, 1e9])
def test_equal_logits_give_one(value):
    assert auto_margin(torch.full((4, 3), value, dtype=torch.float64)) == 1
    assert auto_margin(torch.full((4, 3), value), multiple=3) == 3


def test_rows_of_weight_zero_count_for_nothing():
    logits = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 8.0]])
    assert auto_margin(logits, torch.tensor([0, 0, 0.5])) == 4
    assert auto_margin(logits, torch.tensor([1, 1, 0])) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"multiple": 0}, r"multiple must be a finite number > 0, got 0"),
        ({"multiple": float("nan")}, r"multiple must be a finite number > 0, got nan"),
        ({"logits": torch.zeros(0, 2)}, r"at least one row, got shape \(0, 2\)"),
        ({"logits": torch.tensor([[np.nan, 1.0]])}, r"must be finite .* with 1 NaN or infinite"),
        ({"sample_weight": torch.ones(3)}, r"sample_weight must have shape \(2,\).*got \(3,\)"),
        ({"sample_weight": torch.tensor([-1.0, 2])}, r"sample_weight must be.*from -1 to 2"),
        ({"sample_weight": torch.zeros(2)}, r"at least one positive weight, got values from 0"),
    ],
)
def test_refuses_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        auto_margin(**{"logits": torch.eye(2), **arguments})
