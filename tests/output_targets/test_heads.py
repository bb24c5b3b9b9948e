"""Heads: outputs to logits and back, and finding out which head a network has."""

import numpy as np
import pytest
import scipy.special
import torch
from torch import nn

from featprop_sklearn.output_targets import HEADS, Head, resolve_head

LINKS = {
    Head("logits"): lambda o: o,
    Head("probabilities"): lambda o: scipy.special.softmax(o, axis=1),
    Head("log_probabilities"): lambda o: scipy.special.log_softmax(o, axis=1),
    Head("probabilities", sigmoid=True): scipy.special.expit,
    Head("log_probabilities", sigmoid=True): scipy.special.log_expit,
}
LAST_LAYERS = {
    nn.Softmax: Head("probabilities"),
    nn.LogSoftmax: Head("log_probabilities"),
    nn.Sigmoid: Head("probabilities", sigmoid=True),
    nn.LogSigmoid: Head("log_probabilities", sigmoid=True),
}


def random_logits(n=20, c=4, scale=3.0, dtype=torch.float64):
    return scale * torch.randn(n, c, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize("head", LINKS, ids=str)
def test_to_output_agrees_with_scipy(head):
    logits = random_logits()
    np.testing.assert_allclose(head.to_output(logits), LINKS[head](logits.numpy()), rtol=1e-12)


@pytest.mark.parametrize("head", LINKS, ids=str)
def test_to_logits_inverts_to_output(head):
    logits = random_logits()
    back = head.to_logits(head.to_output(logits))
    if not head.sigmoid and head.name != "logits":
        logits = logits.log_softmax(1)
    np.testing.assert_allclose(back, logits, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("head", LINKS, ids=str)
def test_to_logits_is_differentiable(head):
    output = head.to_output(random_logits(5, 3, scale=1.0)).requires_grad_()
    assert torch.autograd.gradcheck(head.to_logits, output)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("head", [h for h in LINKS if h.name == "probabilities"], ids=str)
def test_saturated_probabilities_have_finite_logits_and_derivatives(head, dtype):
    output = torch.tensor([[0.0, 1.0]], dtype=dtype, requires_grad=True)
    logits = head.to_logits(output)
    logits.sum().backward()
    assert logits.dtype == dtype
    assert logits[0, 0] < -80
    assert torch.isfinite(logits).all()
    assert torch.isfinite(output.grad).all()


def test_saturated_log_sigmoid_keeps_its_far_end():
    head = Head("log_probabilities", sigmoid=True)
    logits = head.to_logits(torch.tensor([[0.0, -1000.0]]))
    assert logits[0, 1] == -1000
    assert 15 < logits[0, 0] < 20


@pytest.mark.parametrize("last", LAST_LAYERS)
def test_auto_goes_by_the_last_layer_and_its_subclasses(last):
    subclass = type("Mine", (last,), {})
    per_logit = LAST_LAYERS[last].sigmoid
    outputs = LAST_LAYERS[last].to_output(random_logits())
    assert resolve_head("auto", last, outputs, per_logit) == LAST_LAYERS[last]
    assert resolve_head("auto", subclass, outputs, per_logit) == LAST_LAYERS[last]


@pytest.mark.parametrize("last", [None, nn.Linear])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", HEADS)
def test_auto_goes_by_the_values_of_competing_outputs(last, dtype, name):
    outputs = Head(name).to_output(random_logits(c=100).to(dtype))
    assert resolve_head("auto", last, outputs, per_logit=False) == Head(name)


def test_auto_by_value_needs_every_row_to_sum_to_one():
    outputs = random_logits().softmax(1)
    outputs[7] *= 1 + 2e-5
    assert resolve_head("auto", None, outputs, per_logit=False) == Head("logits")
    outputs[7] /= 1 + 1.5e-5
    assert resolve_head("auto", None, outputs, per_logit=False) == Head("probabilities")


def test_auto_takes_rows_that_sum_to_one_but_are_negative_for_logits():
    outputs = torch.tensor([[1.5, -0.5], [0.3, 0.7]])
    assert resolve_head("auto", None, outputs, per_logit=False) == Head("logits")


def test_auto_does_not_guess_where_outputs_do_not_compete_or_are_missing():
    halves = torch.full((3, 2), 0.5)
    assert resolve_head("auto", torch.nn.Linear, halves, per_logit=True) == Head("logits")
    with pytest.raises(ValueError, match=r"head='auto' cannot tell .* Pass head='probabilities'"):
        resolve_head("auto", None, halves, per_logit=True)
    assert resolve_head("auto", None, torch.zeros(0, 2), per_logit=False) == Head("logits")


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("flat", [False, True])
def test_explicit_heads_of_one_output(name, flat):
    expected = Head(name, sigmoid=name != "logits")
    outputs = expected.to_output(random_logits(c=1))
    assert resolve_head(name, None, outputs[:, 0] if flat else outputs, True) == expected


def test_the_user_may_call_a_softmax_logits():
    outputs = random_logits().softmax(1)
    assert resolve_head("logits", nn.Softmax, outputs, per_logit=False) == Head("logits")


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ([[1.2, -0.2]], r"needs outputs in \[0, 1\], got outputs from -0.2 to 1.2; pass head="),
        ([[float("nan"), 0.5]], r"needs outputs in \[0, 1\]"),
        ([[0.5, 0.2]], r"needs outputs that sum to one in every row, got .* sums from 0.7 to 0.7"),
    ],
)
def test_refuses_what_cannot_be_probabilities(outputs, message):
    with pytest.raises(ValueError, match=r"head='probabilities' " + message):
        resolve_head("probabilities", None, torch.tensor(outputs), per_logit=False)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ([[0.5, -2.0]], r"needs outputs <= 0, got outputs from -2 to 0.5; pass head="),
        ([[-1.0, -2.0]], r"needs exponentials that sum to one in every row"),
    ],
)
def test_refuses_what_cannot_be_log_probabilities(outputs, message):
    with pytest.raises(ValueError, match=r"head='log_probabilities' " + message):
        resolve_head("log_probabilities", None, torch.tensor(outputs), per_logit=False)


@pytest.mark.parametrize("head", ["auto", "probabilities"])
def test_refuses_a_softmax_over_outputs_that_do_not_compete(head):
    with pytest.raises(
        ValueError, match=r"ends in a softmax.*decision of its own.*argmax\(axis=1\)"
    ):
        resolve_head(head, nn.Softmax, torch.full((3, 2), 0.5), per_logit=True)


def test_refuses_unknown_names():
    with pytest.raises(ValueError, match=r"head must be one of \['auto', 'logits', .*'softmax'"):
        resolve_head("softmax", None, torch.zeros(1, 2), per_logit=False)
    with pytest.raises(ValueError, match=r"head must be one of \['logits', .*got 'auto'"):
        Head("auto")
