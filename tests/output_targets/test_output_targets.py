"""Wanted outputs through every head, and the two verdicts on an output."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import one_hot

from featprop_sklearn.output_targets import (
    RULES,
    Head,
    OutputTargets,
    max_assign_target,
    nearest_target,
)

SOFTMAX_HEADS = [Head("logits"), Head("probabilities"), Head("log_probabilities")]
SIGMOID_HEADS = [
    Head("logits"),
    Head("probabilities", sigmoid=True),
    Head("log_probabilities", sigmoid=True),
]
CASES = [
    *[("multiclass", 5, head) for head in [*SOFTMAX_HEADS, *SIGMOID_HEADS[1:]]],
    *[("binary", 1, head) for head in SIGMOID_HEADS],
    *[("multilabel", 4, head) for head in SIGMOID_HEADS],
]
DTYPES = [torch.float64, torch.float32]


def make(task, width, head, dtype=torch.float64, n=60, seed=0, scale=1.5):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(n, width, generator=generator, dtype=torch.float64)
    shape = (n,) if task == "multiclass" else (n, width)
    y = torch.randint(width if task == "multiclass" else 2, shape, generator=generator)
    return head.to_output(logits.to(dtype)), y


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("task", "width", "head"), CASES)
def test_wanted_outputs_are_classified_as_their_label_and_reach_it(task, width, head, rule, dtype):
    output, y = make(task, width, head, dtype)
    targets = OutputTargets(task, rule, margin=1.0, head=head)
    wanted = targets.wanted(output, y)
    assert wanted.dtype == dtype
    assert wanted.shape == output.shape
    assert targets.correct(wanted, y).all()
    assert not targets.correct(output, y).all()
    assert targets.reached(wanted, y).all()
    assert not targets.reached(output, y).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", ["nearest", "max_assign"])
@pytest.mark.parametrize(("task", "width", "head"), CASES)
def test_outputs_that_keep_the_margin_are_returned_bit_identical(task, width, head, rule, dtype):
    output, y = make(task, width, head, dtype, n=300)
    logits = head.to_logits(output)
    if task == "multiclass":
        others = logits.masked_fill(one_hot(y, width).bool(), -torch.inf).amax(1)
        inside = logits.gather(1, y[:, None])[:, 0] - others >= 0.5
    else:
        inside = (logits * (2 * y - 1) >= 0.25).all(1)
    assert 0 < inside.sum() < 300
    wanted = OutputTargets(task, rule, margin=0.5, head=head).wanted(output, y)
    assert torch.equal(wanted[inside], output[inside])
    assert (wanted[~inside] != output[~inside]).any(1).all()


@pytest.mark.parametrize("head", SOFTMAX_HEADS)
def test_the_rule_works_on_logits(head):
    logits = torch.randn(20, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.arange(20) % 4
    for rule, function in (("nearest", nearest_target), ("max_assign", max_assign_target)):
        wanted = OutputTargets("multiclass", rule, 2.0, head=head).wanted(head.to_output(logits), y)
        expected = head.to_output(function(logits, y, 2.0))
        np.testing.assert_allclose(wanted, expected, rtol=1e-12, atol=1e-14)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(step=st.floats(0.01, 1), seed=st.integers(0, 1000), case=st.sampled_from(CASES))
def test_a_step_goes_its_share_of_the_way_on_the_logits(step, seed, case):
    task, width, head = case
    output, y = make(task, width, head, seed=seed)
    full = OutputTargets(task, margin=1.0, head=head).wanted(output, y)
    part = OutputTargets(task, margin=1.0, step=step, head=head).wanted(output, y)
    start, end, reached = (head.to_logits(o) for o in (output, full, part))
    expected = start + step * (end - start)
    if head.name != "logits" and not head.sigmoid:
        expected, reached = expected.log_softmax(1), reached.log_softmax(1)
    np.testing.assert_allclose(reached, expected, rtol=1e-8, atol=1e-10)


def test_verdicts_of_competing_logits():
    output = torch.tensor([[1.0, 0.5, 0.0], [1.0, 0.0, 0.0], [0.9995, 0.0, 0.0], [0.99, 0, 0]])
    y = torch.zeros(4, dtype=torch.int64)
    targets = OutputTargets("multiclass", margin=1.0)
    assert targets.correct(output, y).tolist() == [True] * 4
    assert targets.correct(output, y + 1).tolist() == [False] * 4
    assert targets.reached(output, y).tolist() == [False, True, True, False]


def test_verdicts_of_single_logits():
    output = torch.tensor([[2.0], [0.1], [-2.0], [0.0]])
    targets = OutputTargets("binary", margin=2.0)
    ones, zeros = torch.ones(4, 1), torch.zeros(4, 1)
    assert targets.correct(output, ones).tolist() == [True, True, False, False]
    assert targets.correct(output, zeros).tolist() == [False, False, True, True]
    assert targets.reached(output, ones).tolist() == [True, False, False, False]


def test_every_label_of_a_multi_label_sample_must_be_right():
    targets = OutputTargets("multilabel", margin=1.0)
    output = torch.tensor([[3.0, -3.0], [3.0, 3.0], [3.0, -0.1]])
    y = torch.tensor([[1, 0]] * 3)
    assert targets.correct(output, y).tolist() == [True, False, True]
    assert targets.reached(output, y).tolist() == [True, False, False]


def test_reached_does_not_depend_on_the_other_samples():
    output, y = make("multiclass", 5, Head(), scale=100.0)
    targets = OutputTargets("multiclass", margin=20.0)
    output = targets.wanted(output, y) * torch.logspace(-1e-2, 1e-2, len(y))[:, None]
    output = torch.cat([output, 1e9 * output])
    together = targets.reached(output, y.repeat(2))
    alone = torch.cat([targets.reached(output[i : i + 1], y[i % len(y)][None]) for i in range(120)])
    assert torch.equal(together, alone)
    assert 0 < alone[: len(y)].sum() < len(y)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_reach_their_own_targets(dtype):
    output, y = make("multiclass", 5, Head(), dtype, n=500)
    targets = OutputTargets("multiclass", margin=0.01)
    wanted = targets.wanted(output, y)
    assert wanted.dtype == dtype
    assert targets.reached(wanted, y).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_margin_leaves_ties_which_are_reached(dtype):
    output, y = make("multiclass", 5, Head(), dtype, n=500)
    targets = OutputTargets("multiclass", margin=0.0)
    wanted = targets.wanted(output, y)
    assert targets.reached(wanted, y).all()
    assert not targets.correct(wanted, y).all()


def test_one_hot_accepts_nothing_but_one_hot_logits():
    targets = OutputTargets("multiclass", "one_hot")
    output = torch.tensor([[1.0, 0.0], [1.0005, 0.0], [5.0, 0.0]])
    y = torch.zeros(3, dtype=torch.int64)
    assert targets.reached(output, y).tolist() == [True, True, False]
    assert targets.wanted(output, y).tolist() == [[1.0, 0.0]] * 3


def test_regression():
    targets = OutputTargets("regression", step=0.5)
    output = torch.tensor([[1.0, 1.0], [3.0, 4.0], [3.0, 4.004], [3.0, 4.006]])
    y = torch.tensor([[3.0, 4.0]] * 4, dtype=torch.float64)
    assert targets.wanted(output, y)[0].tolist() == [2.0, 2.5]
    assert torch.equal(targets.wanted(output, y)[1], output[1])
    assert targets.reached(output, y).tolist() == [False, True, True, False]
    assert torch.equal(targets.correct(output, y), targets.reached(output, y))


@pytest.mark.parametrize(("task", "y"), [("regression", [2.0, -2.0]), ("binary", [1, 0])])
@pytest.mark.parametrize("flat_output", [False, True])
@pytest.mark.parametrize("flat_y", [False, True])
def test_flat_arrays_and_columns_mean_the_same(task, y, flat_output, flat_y):
    output, y = torch.tensor([[0.3], [1.7]]), torch.tensor(y)[:, None]
    targets = OutputTargets(task, margin=1.0)
    expected = targets.wanted(output, y)
    shape = (2,) if flat_output else (2, 1)
    flat_y_values = y[:, 0] if flat_y else y
    wanted = targets.wanted(output.reshape(shape), flat_y_values)
    assert wanted.shape == shape
    assert torch.equal(wanted.ravel(), expected.ravel())
    assert targets.correct(output.reshape(shape), flat_y_values).shape == (2,)
    assert targets.reached(output.reshape(shape), flat_y_values).shape == (2,)


def test_broken_outputs_are_neither_correct_nor_reached():
    nan, inf = torch.nan, torch.inf
    output = torch.tensor([[nan, 0.0], [0.0, nan], [inf, 0.0], [-inf, -inf]])
    y = torch.zeros(4, dtype=torch.int64)
    targets = OutputTargets("multiclass", margin=1.0)
    assert targets.correct(output, y)[:2].tolist() == [False, False]
    assert not targets.reached(output, y).any()
    regression = OutputTargets("regression")
    assert not regression.reached(output, torch.zeros(4, 2)).any()
    with pytest.raises(ValueError, match=r"4 of 4 samples have NaN or infinite network outputs"):
        targets.wanted(output, y)


def test_targets_carry_no_gradient():
    output = torch.randn(3, 2, requires_grad=True)
    wanted = OutputTargets("multiclass", margin=1.0).wanted(output, torch.tensor([0, 1, 0]))
    assert not wanted.requires_grad


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "ranking"}, r"task must be one of \['multiclass', .*got 'ranking'"),
        ({"rule": "closest"}, r"output_target must be one of \['nearest', .*got 'closest'"),
        ({"margin": -0.5}, r"margin must be 'auto' or a finite number >= 0, got -0.5"),
        ({"step": 0}, r"target_step must be a number in \(0, 1\], got 0"),
        ({"step": 1.5}, r"target_step must be a number in \(0, 1\], got 1.5"),
        (
            {"task": "regression", "head": Head("probabilities")},
            r"a regression task cannot have Head.*use Head\('logits'\)",
        ),
        (
            {"task": "binary", "head": Head("probabilities")},
            r"a binary task cannot have Head.*Head\('probabilities', sigmoid=True\)",
        ),
    ],
)
def test_refuses_bad_parameters(arguments, message):
    with pytest.raises(ValueError, match=message):
        OutputTargets(**{"task": "multiclass", **arguments})


@pytest.mark.parametrize(
    ("task", "output_shape", "y_shape", "message"),
    [
        ("multiclass", (3, 1), (3,), r"needs two or more outputs a sample, got .*\(3, 1\)"),
        ("binary", (3, 2), (3,), r"a binary task needs one output a sample, got .*\(3, 2\)"),
        ("regression", (3, 2, 2), (3,), r"needs a row of outputs a sample, got .*\(3, 2, 2\)"),
        ("multilabel", (3, 2), (3,), r"y must have shape \(3, 2\) for a multilabel .*got \(3,\)"),
        ("multiclass", (3, 2), (4,), r"y must have shape \(3,\) for a multiclass task.*\(4,\)"),
    ],
)
def test_refuses_shapes_that_do_not_fit(task, output_shape, y_shape, message):
    targets = OutputTargets(task)
    with pytest.raises(ValueError, match=message):
        targets.correct(torch.zeros(output_shape), torch.zeros(y_shape, dtype=torch.int64))
