"""The network for users who bring none: standardised in, in units out."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.preprocessing import StandardScaler
from torch import nn

from featprop_sklearn.networks import Rescale, build_chain, chain_splits, default_network
from featprop_sklearn.networks.default import weighted_moments


def table(rows=40, columns=5):
    x = torch.randn(rows, columns, dtype=torch.float64)
    return x * torch.logspace(-3, 3, columns) + torch.arange(columns), torch.rand(rows).double()


def test_first_stage_standardises_as_scikit_learn_does():
    x, weights = table()
    network = default_network(x, 3, weights)
    expected = StandardScaler().fit(x.numpy(), sample_weight=weights.numpy()).transform(x.numpy())
    np.testing.assert_allclose(network.standardize(x), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_layers_dtype_and_splits(dtype):
    x, weights = table()
    network = default_network(x.to(dtype), 3, weights.to(dtype))
    assert [(n, type(layer)) for n, layer in network.named_children()] == [
        ("standardize", Rescale),
        ("hidden1", nn.Linear),
        ("relu1", nn.ReLU),
        ("hidden2", nn.Linear),
        ("relu2", nn.ReLU),
        ("output", nn.Linear),
    ]
    assert {t.dtype for t in network.state_dict().values()} == {dtype}
    chain = build_chain(network, x.to(dtype))
    assert chain.names[0] == "standardize"
    assert chain_splits(chain) == ["hidden1", "relu1", "hidden2", "relu2", "output"]
    assert chain[-1].out_shape == (3,)


def test_last_stage_restores_the_units_of_a_regression():
    x, weights = table()
    mean, deviation = torch.tensor([10.0, -3.0]).double(), torch.tensor([2.0, 0.5]).double()
    network = default_network(x, 2, weights, (mean, deviation))
    before = network[:-1](x)
    torch.testing.assert_close(network(x), deviation * before + mean, rtol=1e-12, atol=0)


def test_what_is_fixed_is_not_trained_but_saved():
    x, weights = table()
    network = default_network(x, 1, weights)
    assert not list(network.standardize.parameters())
    assert {"standardize.factor", "standardize.shift"} <= set(network.state_dict())


def test_the_draw_follows_torchs_generator():
    x, weights = table()
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(default_network(x, 1, weights).output.weight)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@given(
    values=st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=20),
    counts=st.lists(st.integers(0, 5), min_size=20, max_size=20),
)
def test_a_weight_is_a_repetition(values, counts):
    column = torch.tensor(values, dtype=torch.float64)
    count = torch.tensor(counts[: len(values)])
    count[0] += 1  # some weight is left
    mean, deviation = weighted_moments(column[:, None], count.double())
    repeated = column.repeat_interleave(count).numpy()
    scale = max(np.abs(repeated).max(), 1e-300)
    assert mean.item() == pytest.approx(repeated.mean(), abs=1e-14 * scale)
    if repeated.std() > 1e-12 * scale:  # else constant, see below
        assert deviation.item() == pytest.approx(repeated.std(), abs=1e-12 * scale, rel=1e-3)


@given(
    value=st.floats(-1e15, 1e15),  # whose square float32 still holds
    rows=st.integers(1, 3000),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_a_constant_column_is_only_centred(value, rows, dtype):
    column = torch.full((rows, 1), value, dtype=dtype)
    mean, deviation = weighted_moments(column, torch.rand(rows, dtype=dtype) + 0.1)
    assert deviation.item() == 1.0
    torch.testing.assert_close(mean, column[0], rtol=1e-5, atol=0)


def test_a_nearly_constant_column_is_scaled():
    """Years differ by little of their size, and still say something."""
    column = torch.tensor([[2000.0], [2001.0]])
    mean, deviation = weighted_moments(column, torch.ones(2))
    assert (mean.item(), deviation.item()) == (2000.5, 0.5)
