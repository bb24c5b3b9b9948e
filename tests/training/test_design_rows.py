"""Design rows times coefficients must be the layer itself, whatever its geometry."""

import copy

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from featprop_sklearn.training.design_rows import (
    add_to_weights,
    design_rows,
    output_rows,
    row_size,
    weight_rows,
)

# torch's own remark on speed
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}

# layer, shape of one sample
LAYERS = [
    (lambda: nn.Linear(5, 3), (5,)),
    (lambda: nn.Linear(3, 5, bias=False), (2, 4, 3)),
    (lambda: nn.Linear(1, 1), (1,)),
    (lambda: nn.Conv1d(2, 3, 3, 2, 1), (2, 7)),
    (lambda: nn.Conv1d(4, 4, 2, groups=4, bias=False), (4, 5)),
    (lambda: nn.Conv2d(2, 3, 3, padding="same", dilation=2), (2, 4, 5)),
    (lambda: nn.Conv2d(2, 3, (2, 4), padding="same"), (2, 4, 5)),
    (lambda: nn.Conv2d(2, 4, 3, padding="valid", groups=2), (2, 4, 5)),
    (lambda: nn.Conv2d(2, 4, 3, padding=1, groups=2, padding_mode="reflect"), (2, 4, 4)),
    (lambda: nn.Conv2d(1, 2, 3, padding=(2, 1), padding_mode="circular"), (1, 4, 3)),
    (lambda: nn.Conv2d(1, 2, 4, padding="same", padding_mode="circular"), (1, 4, 3)),
    (lambda: nn.Conv3d(2, 2, (2, 1, 2), (1, 2, 1), padding=1, groups=2), (2, 2, 3, 2)),
    (lambda: nn.Conv3d(1, 2, 2, padding=1, padding_mode="replicate"), (1, 2, 3, 2)),
    (lambda: nn.ConvTranspose1d(2, 1, 3, 2, output_padding=1), (2, 4)),
    (lambda: nn.ConvTranspose1d(2, 3, 2, 3, padding=2), (2, 4)),  # crops more than it adds
    (lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, groups=2, dilation=2), (4, 3, 2)),
    (lambda: nn.ConvTranspose2d(2, 3, (1, 3), (2, 1), bias=False), (2, 2, 3)),
    (lambda: nn.ConvTranspose3d(2, 4, 2, (1, 2, 1), groups=2), (2, 2, 2, 2)),
]


def check(layer, x):
    """The linear model is the layer, before and after its coefficients change."""
    layer = copy.deepcopy(layer)
    rows, coefficients, output = design_rows(layer, x), weight_rows(layer), layer(x).detach()
    assert rows.dtype == coefficients.dtype == torch.float64
    assert rows.shape[:2] == (len(coefficients), len(x))
    torch.testing.assert_close(rows @ coefficients[:, None], output_rows(layer, output))
    assert row_size(layer, output) == rows[:, 0].numel()
    places = torch.arange(0, rows.shape[1] * rows.shape[2], 3).flip(0)
    assert torch.equal(design_rows(layer, x, places)[:, :, 0], rows.flatten(1, 2)[:, places])

    change = torch.randn_like(coefficients)
    add_to_weights(layer, change)
    torch.testing.assert_close(weight_rows(layer), coefficients + change)
    gain = output_rows(layer, layer(x).detach() - output)
    torch.testing.assert_close(gain, rows @ change[:, None])


@pytest.mark.parametrize(("make", "shape"), LAYERS)
@pytest.mark.parametrize("n_samples", [1, 3])
def test_rows_times_coefficients_are_the_layer(make, shape, n_samples):
    check(make().double(), torch.randn(n_samples, *shape, dtype=torch.float64))


def axes(dims, low, high):
    return st.tuples(*[st.integers(low, high)] * dims)


@st.composite
def convolutions(draw):
    """A convolution of any geometry and an input that it takes."""
    dims = draw(st.integers(1, 3))
    groups, per_group_in, per_group_out = (draw(st.integers(1, 2)) for _ in range(3))
    kernel, dilation = draw(axes(dims, 1, 3)), draw(axes(dims, 1, 2))
    size = draw(axes(dims, 1, 4))
    options = {"groups": groups, "dilation": dilation, "bias": draw(st.booleans())}
    channels = groups * per_group_in, groups * per_group_out
    if draw(st.booleans()):
        stride, padding = draw(axes(dims, 1, 3)), draw(axes(dims, 0, 3))
        most = [max(pair) - 1 for pair in zip(stride, dilation, strict=True)]
        extra = tuple(draw(st.integers(0, limit)) for limit in most)
        layer = TRANSPOSED[dims](*channels, kernel, stride, padding, extra, **options)
        spans = zip(size, stride, padding, dilation, kernel, extra, strict=True)
        sizes = [(n - 1) * s - 2 * p + d * (k - 1) + e + 1 for n, s, p, d, k, e in spans]
    else:
        mode = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
        same = draw(st.booleans())
        stride = (1,) * dims if same else draw(axes(dims, 1, 3))
        padding = "same" if same else draw(axes(dims, 0, 2))
        layer = CONVOLUTIONS[dims](*channels, kernel, stride, padding, padding_mode=mode, **options)
        reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        sides = [-(-r // 2) for r in reach] if same else padding
        limits = {"reflect": [n - 1 for n in size], "circular": size}.get(mode, [99] * dims)
        assume(all(side <= limit for side, limit in zip(sides, limits, strict=True)))
        around = [r / 2 for r in reach] if same else padding
        sizes = [n + 2 * p - r for n, p, r in zip(size, around, reach, strict=True)]
    assume(min(sizes) >= 1)
    x = torch.randn(draw(st.integers(1, 2)), channels[0], *size, dtype=torch.float64)
    return layer.double(), x


@given(convolutions())
def test_any_geometry(case):
    check(*case)


def test_float32_layers_are_read_and_changed_in_their_own_dtype():
    layer, x = nn.Conv2d(2, 3, 3), torch.randn(4, 2, 5, 5)
    rows = design_rows(layer, x) @ weight_rows(layer)[:, None]
    torch.testing.assert_close(rows.float(), output_rows(layer, layer(x).detach()).float())
    assert design_rows(layer, x).dtype == torch.float64
    weight = layer.weight
    add_to_weights(layer, torch.ones_like(weight_rows(layer)))
    assert layer.weight is weight
    assert weight.dtype == torch.float32
    assert weight.requires_grad
