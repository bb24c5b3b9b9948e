"""Every layer is inverted on an accelerator as on the processor."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from featprop_sklearn import LayerInverter
from featprop_sklearn.inversion import prepare_inverter
from featprop_sklearn.inversion.set_ups import SET_UPS
from tests.inversion.cases import CASES


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_layer_that_lies_there(case, dtype, accelerator):
    layer = case.layer().eval().to(dtype)
    X = np.random.default_rng(0).normal(size=(6, *case.in_shape)).astype(np.float32)
    here = LayerInverter(layer).fit(X)
    there = LayerInverter(copy.deepcopy(layer).to(accelerator)).fit(X)
    wanted = here.transform(X[::-1])
    expected = here.inverse_transform(wanted, reference=X)
    # whatever the layer's precision, it is inverted in float64
    found = there.inverse_transform(wanted, reference=X)
    np.testing.assert_allclose(found, expected, atol=1e-8 * max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize("layer", [nn.LayerNorm(6, bias=False), nn.BatchNorm1d(6, affine=False)])
def test_weights_without_a_bias(layer, accelerator):
    X = np.random.default_rng(0).normal(size=(5, 6))
    expected = LayerInverter(layer).fit(X)
    found = LayerInverter(copy.deepcopy(layer).to(accelerator)).fit(X)
    wanted = expected.transform(X) + 0.1
    np.testing.assert_allclose(
        found.inverse_transform(wanted), expected.inverse_transform(wanted), atol=1e-8
    )


def test_outputs_and_references_that_lie_there(accelerator):
    layer, X = nn.Linear(3, 2), np.random.default_rng(0).normal(size=(6, 3))
    inverter = LayerInverter(layer).fit(X)
    wanted = inverter.transform(X) + 1
    expected = inverter.inverse_transform(wanted, reference=X)
    x0, y, x = (torch.from_numpy(values).to(accelerator) for values in (X, wanted, expected))
    np.testing.assert_array_equal(inverter.inverse_transform(y, reference=x0), x.cpu())


@pytest.mark.parametrize("layer", [nn.Linear(3, 2), nn.Sequential(nn.Linear(3, 2), nn.Tanh())])
def test_layer_on_a_device_without_float64(layer, without_double):
    X = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    expected = LayerInverter(layer).fit(X)
    there = copy.deepcopy(layer).to(without_double)
    found = LayerInverter(there).fit(X)
    wanted = expected.transform(X[::-1])
    np.testing.assert_array_equal(found.transform(X[::-1]), wanted)
    np.testing.assert_array_equal(
        found.inverse_transform(wanted), expected.inverse_transform(wanted)
    )
    assert {p.device.type for p in there.parameters()} == {without_double}


@pytest.mark.parametrize("case", CASES)
def test_data_that_lie_there(case, accelerator):
    layer = case.layer().eval().double()
    reference = torch.randn(6, *case.in_shape, dtype=torch.float64)
    with torch.no_grad():
        wanted = layer(reference.flip(0))
        expected = prepare_inverter(layer, case.in_shape).invert(wanted, reference).solution
        inverter = prepare_inverter(layer, case.in_shape, device=accelerator)
        found = inverter.invert(wanted.to(accelerator), reference.to(accelerator)).solution
    assert found.device.type == accelerator
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("solver", ["auto", "direct", "sparse", "torus", "torch", "lsqr"])
def test_solver_where_new_tensors_go_there(solver, accelerator):
    layer, X = nn.Conv2d(2, 3, 3, padding=1), np.random.default_rng(0).normal(size=(4, 2, 5, 5))
    expected = LayerInverter(layer, solver=solver).fit(X)
    wanted = expected.transform(X) + 1
    SET_UPS.clear()
    with torch.device(accelerator):
        found = LayerInverter(layer, solver=solver).fit(X)
        np.testing.assert_allclose(
            found.inverse_transform(wanted), expected.inverse_transform(wanted), atol=1e-8
        )


@pytest.mark.parametrize("case", CASES)
def test_layer_where_new_tensors_go_there(case, accelerator):
    layer = case.layer().eval().double()
    X = np.random.default_rng(0).normal(size=(6, *case.in_shape))
    expected = LayerInverter(layer).fit(X)
    wanted = expected.transform(X[::-1])
    SET_UPS.clear()
    with torch.device(accelerator):
        found = LayerInverter(layer).fit(X).inverse_transform(wanted, reference=X)
    expected = expected.inverse_transform(wanted, reference=X)
    np.testing.assert_allclose(found, expected, atol=1e-8 * max(1.0, np.abs(expected).max()))
