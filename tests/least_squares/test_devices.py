"""Where there is an accelerator, the solvers give there what they give on the processor."""

import pytest
import torch
from torch import nn

from featprop_sklearn.inversion.base import InversionOptions
from featprop_sklearn.inversion.prepare import prepare_inverter

LAYERS = {
    "linear": (nn.Linear(12, 7), (12,)),
    "convolution": (nn.Conv2d(2, 3, 3, padding=1), (2, 9, 9)),
    "strided": (nn.Conv2d(4, 2, 3, stride=2, groups=2), (4, 9, 9)),
    "transposed": (nn.ConvTranspose1d(3, 2, 4, stride=2), (3, 8)),
}


@pytest.mark.parametrize("damping", [0.0, 0.1])
@pytest.mark.parametrize(
    ("name", "solver"),
    [
        (name, solver)
        for name in LAYERS
        for solver in ("auto", "direct", "sparse", "torus", "torch", "lsqr")
        if (name, solver) != ("linear", "torus")
    ],
)
def test_same_answers(name, solver, damping, accelerator):
    layer, in_shape = LAYERS[name]
    torch.manual_seed(0)
    reference = torch.randn(3, *in_shape, dtype=torch.float64)
    with torch.no_grad():
        wanted = layer.double()(reference) + torch.randn_like(layer(reference))
        expected = prepare_inverter(layer, in_shape, InversionOptions("direct", damping))
        options = InversionOptions(solver, damping)
        found = prepare_inverter(layer, in_shape, options, accelerator)
        result = found.invert(wanted.to(accelerator), reference.to(accelerator))
        solution = expected.invert(wanted, reference).solution
    assert result.converged
    assert result.solution.device.type == accelerator
    torch.testing.assert_close(result.solution.cpu(), solution, rtol=1e-8, atol=1e-8)
