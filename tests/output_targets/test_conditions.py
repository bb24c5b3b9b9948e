"""T(y) as conditions: their slacks against plain numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from featprop_sklearn.output_targets import Conditions, Head, OutputTargets


def same(value):
    return value


def slack_in_numpy(kind, y, bounds, logits):
    rows = range(len(logits))
    values = {
        "lead": lambda: np.array([logits[i, y[i]] - logits[i] for i in rows]),
        "sign": lambda: np.array([y[i] * logits[i] for i in rows]),
        "equal": lambda: logits,
    }
    return values[kind]() - bounds


def random_case(kind, seed, n_samples, n_outputs):
    rng = np.random.default_rng(seed)
    logits, bounds = rng.normal(size=(2, n_samples, n_outputs))
    y = {
        "lead": rng.integers(n_outputs, size=n_samples),
        "sign": rng.choice([-1.0, 1.0], size=(n_samples, n_outputs)),
        "equal": bounds,
    }[kind]
    conditions = Conditions(kind, torch.tensor(y), torch.tensor(bounds), same)
    return conditions, slack_in_numpy(kind, y, bounds, logits), torch.tensor(logits)


cases = given(
    kind=st.sampled_from(["lead", "sign", "equal"]),
    seed=st.integers(0, 1000),
    n_samples=st.integers(1, 7),
    n_outputs=st.integers(1, 6),
)


@cases
def test_slack_and_violation(kind, seed, n_samples, n_outputs):
    conditions, expected, logits = random_case(kind, seed, n_samples, n_outputs)
    slack = conditions.slack(logits)
    np.testing.assert_array_equal(slack, expected)
    missed = np.abs(expected) if kind == "equal" else np.maximum(-expected, 0)
    np.testing.assert_array_equal(conditions.violation(slack), missed.max(axis=1))
    assert conditions.equality == (kind == "equal")
    assert len(conditions) == n_samples


@cases
def test_selected_samples_keep_their_slacks(kind, seed, n_samples, n_outputs):
    conditions, _, logits = random_case(kind, seed, n_samples, n_outputs)
    whole = conditions.slack(logits)
    mask = torch.arange(n_samples) % 2 == 0
    for rows in (mask, torch.arange(n_samples).flip(0), torch.zeros(3, dtype=torch.int64)):
        part = conditions[rows]
        assert torch.equal(part.slack(logits[rows]), whole[rows])
        assert torch.equal(part.labels, conditions.labels[rows])
        assert len(part) == len(whole[rows])


@pytest.mark.parametrize(
    ("kind", "y", "bounds", "labels"),
    [
        ("lead", [2, 0], [[1.0, 1, 1], [1, 1, 1]], [[2], [0]]),
        ("sign", [[1.0, -1], [-1, -1]], [[0.5, 0.5], [0.5, 0.5]], [[1.0, -1], [-1, -1]]),
        ("equal", [0, 0], [[0.25, 2], [3, 4]], [[0.25, 2], [3, 4]]),
    ],
)
def test_labels_say_which_output_is_wanted(kind, y, bounds, labels):
    conditions = Conditions(kind, torch.tensor(y), torch.tensor(bounds), same)
    assert conditions.labels.tolist() == labels


@pytest.mark.parametrize("kind", ["lead", "sign"])
def test_where_nothing_is_asked_nothing_is_violated(kind):
    y = torch.tensor([0, 0]) if kind == "lead" else torch.ones(2, 3)
    bounds = torch.tensor([[0.0, -torch.inf, 0], [-torch.inf, -torch.inf, -torch.inf]])
    conditions = Conditions(kind, y, bounds, same)
    slack = conditions.slack(torch.tensor([[1.0, -1e30, 0.5], [-5.0, 1e30, -3]]))
    assert slack.isposinf().tolist() == [[False, True, False], [True, True, True]]
    assert conditions.violation(slack).tolist() == [0, 0]


@pytest.mark.parametrize("kind", ["lead", "sign", "equal"])
@pytest.mark.parametrize("broken", [torch.nan, -torch.inf])
def test_what_is_not_finite_counts_as_infinitely_violated(kind, broken):
    y = torch.tensor([0, 0]) if kind == "lead" else torch.ones(2, 3)
    conditions = Conditions(kind, y, torch.zeros(2, 3), same)
    output = torch.tensor([[broken, 1.0, 2.0], [0.0, 0.0, 0.0]])
    assert conditions.violation(conditions.slack(output)).tolist() == [torch.inf, 0]


def test_a_flat_output_is_a_column():
    conditions = Conditions("sign", torch.tensor([[1.0], [-1]]), torch.zeros(2, 1), same)
    assert conditions.slack(torch.tensor([3.0, 4.0])).tolist() == [[3.0], [-4.0]]


@pytest.mark.parametrize("sigmoid", [False, True])
def test_conditions_are_on_the_logits_of_a_head(sigmoid):
    logits = torch.randn(5, 3).double()
    output = logits.sigmoid() if sigmoid else logits.softmax(1)
    head = Head("probabilities", sigmoid=sigmoid)
    task = "multilabel" if sigmoid else "multiclass"
    y = torch.ones(5, 3).long() if sigmoid else torch.arange(5) % 3
    after_head = OutputTargets(task, margin=0.7, head=head).conditions(output, y)
    plain = OutputTargets(task, margin=0.7).conditions(logits, y)
    torch.testing.assert_close(after_head.slack(output), plain.slack(logits))


@given(
    seed=st.integers(0, 1000),
    task=st.sampled_from(["multiclass", "multilabel", "regression"]),
    margin=st.floats(0, 3),
)
def test_violation_is_zero_exactly_in_the_acceptable_outputs(seed, task, margin):
    torch.manual_seed(seed)
    output = torch.randn(20, 3).double() * 2
    y = {
        "multiclass": torch.randint(3, (20,)),
        "multilabel": torch.randint(2, (20, 3)),
        "regression": output.round(),
    }[task]
    targets = OutputTargets(task, margin=margin)
    wanted = targets.wanted(output, y)
    conditions = targets.conditions(output, y)
    assert conditions.violation(conditions.slack(wanted)).max() <= 1e-12
    outside = ~targets.reached(output, y)
    assert (conditions.violation(conditions.slack(output))[outside] > 0).all()
