"""Relevance rules of single layers: worked examples, dense oracles, invariants."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from featprop_sklearn.inspection.relevance import RelativeSectionalPropagation
from featprop_sklearn.inspection.relevance import convolution as convolution_file
from featprop_sklearn.inspection.relevance.convolution import through_hidden_convolution
from featprop_sklearn.inspection.relevance.first_layer import through_first_convolution
from featprop_sklearn.inspection.relevance.padding import padded
from featprop_sklearn.inspection.relevance.purging import purge_by_sign
from featprop_sklearn.inspection.relevance.registry import Call, Options, ruled_layers
from featprop_sklearn.inspection.relevance.rules import pass_through, proportional, shared
from featprop_sklearn.inspection.relevance.windows import Windows

CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
# shape of x, of W, and the other arguments; few windows against many channels take one
# order of the products, many against few the other
GEOMETRIES = [
    pytest.param((1, 6, 7), (3, 1, 2, 3), {}, id="plain"),
    pytest.param((2, 9, 9), (2, 2, 3, 3), {"padding": 1}, id="padded"),
    pytest.param((8, 4, 4), (8, 8, 3, 3), {}, id="few windows"),
    pytest.param((8, 4, 4), (8, 4, 3, 3), {"groups": 2}, id="few windows, groups"),
    pytest.param((4, 7, 8), (4, 1, 3, 3), {"groups": 4, "stride": 2}, id="depthwise, strided"),
    pytest.param((2, 7, 6), (4, 2, 3, 2), {"stride": (2, 3), "padding": (2, 1)}, id="uneven"),
    pytest.param((2, 7, 7), (2, 2, 2, 2), {"padding": "same", "dilation": 2}, id="same, dilated"),
    pytest.param((2, 5, 5), (2, 2, 2, 4), {"padding": "same"}, id="same, even kernel"),
    pytest.param((2, 5, 5), (2, 2, 3, 3), {"padding": "valid"}, id="valid"),
    pytest.param((3, 5, 5), (2, 3, 1, 1), {"stride": 2}, id="point"),
    pytest.param((3, 5, 5), (2, 3, 1, 2), {}, id="one row"),
    pytest.param((2, 9), (3, 2, 3), {"padding": 2, "stride": 2}, id="1-D"),
    pytest.param((2, 4, 3, 4), (3, 2, 2, 2, 2), {"padding": 1}, id="3-D"),
]


pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def random_layer(shape, weight_shape, options, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(3, *shape, generator=g, dtype=torch.float64)
    weight = torch.randn(weight_shape, generator=g, dtype=torch.float64)
    convolution = CONVOLUTIONS[len(shape) - 1]
    relevance = torch.randn(convolution(x, weight, **options).shape, generator=g).double()
    return x, weight, relevance, convolution


def windows_of(weight, options):
    given = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, **options}
    return Windows.of(weight.shape[2:], **given)


def pool(function, x, relevance):
    return proportional(Call(function), relevance, x)


# worked examples of the specification -------------------------------------------------------


def test_hidden_convolution_of_the_specification():
    x = tensor([[[[1, 2, 0], [0, 1, 1], [2, 0, 1]]]])
    relevance = tensor([[[[2, -1], [0.5, 0]]]])
    found = through_hidden_convolution(Windows.of((2, 2), 1, 0, 1, 1), relevance, x)
    expected = [[0.315385, 1.135897, 0], [0, 0.674359, -0.633333], [0.007692, 0, 0]]
    torch.testing.assert_close(found[0, 0], tensor(expected), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.sum(), tensor(1.5))


def test_point_convolution_of_the_specification():
    x, relevance = tensor([[[[1, 2]], [[3, 0]]]]), tensor([[[[1, -0.5]]]])
    found = through_hidden_convolution(Windows.of((1, 1), 1, 0, 1, 1), relevance, x)
    expected = tensor([[[[0.1, -0.5]], [[0.9, 0]]]])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_dead_windows_lose_their_share_and_no_more():
    x = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    x[..., 0, 0] = 1
    relevance = torch.ones(1, 1, 3, 3, dtype=torch.float64)
    found = through_hidden_convolution(Windows.of((2, 2), 1, 0, 1, 1), relevance, x)
    torch.testing.assert_close(found, x)


def test_first_convolution_of_the_specification():
    x, weight = tensor([[[[0, 1], [2, -1]]]]), tensor([[[[1, -1], [2, 0.5]]]])
    windows = windows_of(weight, {})
    found = through_first_convolution(weight, windows, tensor([[[[3]]]]), x)
    expected = tensor([[[[0.375, 0.375], [2.25, 0]]]])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_pooling_of_the_specification():
    x, relevance = tensor([[[1, 3, 0, 0]]]), tensor([[[2]]])
    average = pool(lambda x: F.avg_pool1d(x, 4), x, relevance)
    torch.testing.assert_close(average, tensor([[[0.5, 1.5, 0, 0]]]), rtol=0, atol=1e-6)
    greatest = pool(lambda x: F.max_pool1d(x, 4), x, relevance)
    torch.testing.assert_close(greatest, tensor([[[0, 2, 0, 0]]]), rtol=0, atol=1e-12)


def test_residual_addition_of_the_specification():
    a, b, relevance = tensor([2, -1, 0]), tensor([1, 3, -2]), tensor([3, -1, 0.5])
    of_a, of_b = shared(Call(torch.add, places=(0, 1)), relevance, a, b)
    torch.testing.assert_close(of_a, tensor([2, 0, 0.25]), rtol=0, atol=1e-6)
    torch.testing.assert_close(of_b, tensor([1, -1, 0.25]), rtol=0, atol=1e-6)


def test_purging_of_the_specification():
    relevance = tensor([[[0.5, -0.4], [-0.2, -0.3], [0.1, 0.2]]])
    expected = tensor([[[0.666667, -0.514286], [0, -0.385714], [0.133333, 0]]])
    found = purge_by_sign(relevance)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.sum(), tensor(-0.1))


# dense oracles ------------------------------------------------------------------------------


def hidden_by_autograd(x, weight, relevance, convolution, options):
    """Follow the specification's formulas for one sample, with torch's own derivatives."""
    x = x.clamp_min(0)[None]

    def one_sign(part):
        w = weight.clone().requires_grad_()
        (g,) = torch.autograd.grad((convolution(x, w, **options) * part).sum(), w)
        z = convolution(x, g, **options)
        given = x.clone().requires_grad_()
        share = torch.where(z == 0, 0, part / z)
        (back,) = torch.autograd.grad((convolution(given, g, **options) * share).sum(), given)
        return x * back

    found = one_sign(relevance[None].clamp_min(0)) - one_sign((-relevance[None]).clamp_min(0))
    if math.prod(weight.shape[2:]) == 1:
        return found[0]
    doubled = 2 * found
    support = doubled.abs() > 0
    return (doubled - support * doubled.sum() / 2 / support.sum())[0]


@pytest.mark.parametrize(("shape", "weight_shape", "options"), GEOMETRIES)
def test_hidden_convolution_follows_its_formulas(shape, weight_shape, options):
    x, weight, relevance, convolution = random_layer(shape, weight_shape, options)
    found = through_hidden_convolution(windows_of(weight, options), relevance, x)
    expected = [
        hidden_by_autograd(one, weight, r, convolution, options)
        for one, r in zip(x, relevance, strict=True)
    ]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-9, atol=1e-9)


def test_both_orders_of_the_products_give_the_same():
    signed = torch.randn(2, 1, 8, 3, dtype=torch.float64)
    patches = torch.rand(2, 1, 40, 3, dtype=torch.float64)
    found = convolution_file._back_to_patches(signed, patches)
    # windows of nothing change no share, but so many of them change the cheaper order
    nothing = (0, 1000)
    padded = convolution_file._back_to_patches(F.pad(signed, nothing), F.pad(patches, nothing))
    torch.testing.assert_close(padded[..., :3], found)


def dense(convolution, weight, options, shape):
    """Return the matrix of a convolution: rows its outputs, columns the pixels."""
    units = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
    return convolution(units, weight, **options).flatten(1).T.numpy()


def z_b_by_matrix(x, matrix, relevance, low, high):
    """Share relevance output by output; a window at its bounds shares equally."""
    found = np.zeros(x.size)
    for row, r in zip(matrix, relevance, strict=True):
        parts = row * x - low * np.maximum(row, 0) - high * np.minimum(row, 0)
        total = parts.sum()
        inside = row != 0
        found += r * (parts / total if abs(total) > 1e-12 else inside / inside.sum())
    return found


@pytest.mark.parametrize("bounds", [None, (-6.0, 5.0)])
@pytest.mark.parametrize(("shape", "weight_shape", "options"), GEOMETRIES)
def test_first_convolution_agrees_with_its_matrix(shape, weight_shape, options, bounds):
    x, weight, relevance, convolution = random_layer(shape, weight_shape, options)
    found = through_first_convolution(weight, windows_of(weight, options), relevance, x, bounds)
    matrix = dense(convolution, weight, options, shape)
    for one, r, result in zip(x, relevance, found, strict=True):
        low, high = bounds or (float(one.min()), float(one.max()))
        expected = z_b_by_matrix(one.flatten().numpy(), matrix, r.flatten().numpy(), low, high)
        np.testing.assert_allclose(result.flatten(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("value", [0.1, 1.0])  # 0.1 is no sum of powers of two
def test_a_first_window_at_its_bounds_shares_equally(value):
    x = torch.full((1, 2, 5, 5), value, dtype=torch.float64)
    x[..., 4, 4] = 3  # the other windows are all at the lower bound, under positive filters
    weight = torch.rand(3, 2, 3, 3, dtype=torch.float64) + 0.1
    relevance = torch.randn(1, 3, 5, 5, dtype=torch.float64)
    found = through_first_convolution(weight, windows_of(weight, {"padding": 1}), relevance, x)
    matrix = dense(F.conv2d, weight, {"padding": 1}, (2, 5, 5))
    expected = z_b_by_matrix(x.flatten().numpy(), matrix, relevance.flatten().numpy(), value, 3.0)
    np.testing.assert_allclose(found.flatten(), expected, atol=1e-10)
    torch.testing.assert_close(found.sum(), relevance.sum())


def test_bounds_of_each_channel():
    x, weight, relevance, _ = random_layer((2, 4, 4), (1, 2, 2, 2), {})
    low, high = tensor([-5, -6]).reshape(2, 1, 1), tensor([5, 7]).reshape(2, 1, 1)
    found = through_first_convolution(weight, windows_of(weight, {}), relevance, x, (low, high))
    matrix = dense(F.conv2d, weight, {}, (2, 4, 4))
    ends = [(end + torch.zeros(2, 4, 4)).flatten().numpy() for end in (low, high)]
    expected = z_b_by_matrix(x[0].flatten().numpy(), matrix, relevance[0].flatten().numpy(), *ends)
    np.testing.assert_allclose(found[0].flatten(), expected, rtol=1e-9, atol=1e-9)


def test_bounds_that_do_not_hold_the_input():
    x, weight, relevance, _ = random_layer((1, 4, 4), (1, 1, 2, 2), {})
    text = r"bounds=\(0\.0, 1\.0\) must hold all inputs of the first convolution; they go from -"
    with pytest.raises(ValueError, match=text):
        through_first_convolution(weight, windows_of(weight, {}), relevance, x, (0.0, 1.0))


POOLS = [
    nn.AvgPool2d(2),
    nn.AvgPool2d(3, 2, 1),
    nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
    nn.AdaptiveAvgPool2d((2, 3)),
]


@pytest.mark.parametrize("layer", POOLS, ids=str)
def test_average_pooling_agrees_with_its_matrix(layer):
    x = torch.rand(2, 1, 5, 6, dtype=torch.float64)
    units = torch.eye(30, dtype=torch.float64).reshape(-1, 1, 5, 6)
    matrix = layer(units).flatten(1).T
    relevance = torch.randn(layer(x).shape, dtype=torch.float64)
    found = pool(layer, x, relevance)
    shares = matrix * x.flatten(1)[:, None]
    shares = shares / shares.sum(dim=2, keepdim=True)
    expected = (shares * relevance.flatten(1)[..., None]).sum(dim=1).reshape(x.shape)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)  # the 1e-9 in x'


@pytest.mark.parametrize("layer", [nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1), nn.AdaptiveMaxPool2d(2)])
def test_max_pooling_gives_all_to_the_maximum(layer):
    x = torch.rand(2, 3, 6, 6, dtype=torch.float64)
    relevance = torch.randn(layer(x).shape, dtype=torch.float64)
    found = pool(layer, x, relevance)
    layer.return_indices = True
    where = layer(x)[1].flatten(2)
    expected = torch.zeros(2, 3, 36).double().scatter_add(2, where, relevance.flatten(2))
    torch.testing.assert_close(found.flatten(2), expected)


@pytest.mark.parametrize("pad", [(1, 2), (0, 1, 2, 0), (-1, 2), (1, 0, 0, 2, 1, 1)])
def test_constant_borders_give_to_the_nearest_entry(pad):
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    relevance = torch.randn(F.pad(x, pad).shape, dtype=torch.float64)
    found = padded(Call(F.pad, {1: pad}), relevance, x)
    expected = np.zeros(x.shape)
    before = [0, *([0, 0, 0, *pad[-2::-2]][-3:])]
    for place, value in np.ndenumerate(relevance.numpy()):
        moved = np.subtract(place, before)
        expected[tuple(np.clip(moved, 0, np.array(x.shape) - 1))] += value
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_borders_that_repeat_entries_give_to_these(mode):
    x = torch.arange(12, dtype=torch.float64).reshape(1, 1, 3, 4)
    call = Call(F.pad, {"pad": (1, 2, 2, 1), "mode": mode})
    relevance = torch.randn(1, 1, 6, 7, dtype=torch.float64)
    came_from = call(x).long().flatten()  # each entry is its own number
    expected = torch.zeros(12).double().index_add(0, came_from, relevance.flatten())
    torch.testing.assert_close(padded(call, relevance, x).flatten(), expected)


def test_windows_of_zeros_share_equally_under_a_mean():
    relevance = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    x = torch.zeros(1, 1, 2, 2, dtype=torch.float64)
    found = pool(lambda x: x.mean(dim=(2, 3), keepdim=True), x, relevance)
    torch.testing.assert_close(found, torch.full_like(x, 0.25))


def test_additions_that_broadcast_or_scale():
    a, b = tensor([[1.0, 2.0], [3.0, 4.0]]), tensor([[1.0], [2.0]])
    call = Call(torch.add, {"alpha": 3}, (0, 1))
    relevance = tensor([[4.0, 5.0], [9.0, 10.0]])
    of_a, of_b = shared(call, relevance, a, b)
    torch.testing.assert_close(of_a, tensor([[1.0, 2.0], [3.0, 4.0]]), rtol=0, atol=1e-8)
    torch.testing.assert_close(of_b, tensor([[6.0], [12.0]]), rtol=0, atol=1e-8)
    assert torch.equal(shared(call, relevance, a), relevance)
    assert torch.equal(pass_through(call, relevance, b), relevance.sum(dim=1, keepdim=True))


# invariants ---------------------------------------------------------------------------------

PROPERTY = settings(deadline=None, max_examples=25, derandomize=True)
LAYERS = st.tuples(st.sampled_from(GEOMETRIES), st.integers(0, 10_000))


def hidden(case, seed):
    x, weight, relevance, _ = random_layer(*case.values, seed=seed)
    windows = windows_of(weight, case.values[2])
    return x, relevance, lambda x, r: through_hidden_convolution(windows, r, x)


def assert_same(found, expected):
    scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9 * scale)


@PROPERTY
@given(LAYERS, st.floats(1e-3, 1e3))
def test_scales_and_signs(layer, factor):
    x, relevance, rule = hidden(*layer)
    found = rule(x, relevance)
    assert_same(rule(x, factor * relevance), factor * found)
    assert_same(rule(x, -relevance), -found)
    assert_same(rule(factor * x, relevance), found)


@PROPERTY
@given(LAYERS)
def test_convolutions_keep_the_sum(layer):
    case, seed = layer
    x, weight, relevance, _ = random_layer(*case.values, seed=seed)
    windows = windows_of(weight, case.values[2])
    for found in (
        through_hidden_convolution(windows, relevance, x.abs() + 0.1),  # no dead window
        through_first_convolution(weight, windows, relevance, x),
    ):
        torch.testing.assert_close(
            found.flatten(1).sum(1), relevance.flatten(1).sum(1), rtol=1e-5, atol=1e-8
        )


@PROPERTY
@given(LAYERS)
def test_a_batch_is_its_samples(layer):
    x, relevance, rule = hidden(*layer)
    each = [rule(one[None], r[None]) for one, r in zip(x, relevance, strict=True)]
    assert_same(rule(x, relevance), torch.cat(each))


@PROPERTY
@given(st.integers(0, 10_000), st.floats(-2, 2))
def test_purging_keeps_sums_and_one_sign_a_position(seed, shift):
    g = torch.Generator().manual_seed(seed)
    relevance = torch.randn(3, 4, 5, generator=g, dtype=torch.float64) + shift
    found = purge_by_sign(relevance)
    for side in (torch.Tensor.clamp_min, torch.Tensor.clamp_max):
        torch.testing.assert_close(side(found, 0).sum((1, 2)), side(relevance, 0).sum((1, 2)))
    net = relevance.sum(dim=1, keepdim=True) > 0
    mixed = net.any(2).squeeze(1) & (~net).any(2).squeeze(1)
    assert not ((found > 0) & ~net)[mixed].any()
    assert not ((found < 0) & net)[mixed].any()


def test_purging_leaves_a_sign_that_would_vanish():
    relevance = tensor([[[1.0, 1.0], [-2.0, -3.0]]])
    assert torch.equal(purge_by_sign(relevance), relevance)


def test_samples_are_worked_on_a_few_at_a_time(monkeypatch):
    x, weight, relevance, convolution = random_layer((2, 6, 6), (3, 2, 3, 3), {"padding": 1})
    for is_first in (False, True):
        call = Call(convolution, {1: weight, "padding": 1}, (0,), "conv2d", is_first=is_first)
        whole = convolution_file.convolution(call, relevance, x)
        with monkeypatch.context() as patch:
            patch.setattr(convolution_file, "PATCHES", 1)
            torch.testing.assert_close(convolution_file.convolution(call, relevance, x), whole)


def test_only_hidden_convolutions_are_purged():
    x, weight, relevance, convolution = random_layer((2, 6, 6), (3, 2, 3, 3), {})
    windows = windows_of(weight, {})
    found = {}
    for is_first in (False, True):
        call = Call(convolution, {1: weight}, is_first=is_first, options=Options(purge="sign"))
        found[is_first] = convolution_file.convolution(call, relevance, x)
    expected = through_hidden_convolution(windows, purge_by_sign(relevance), x)
    torch.testing.assert_close(found[False], expected)
    torch.testing.assert_close(
        found[True], through_first_convolution(weight, windows, relevance, x)
    )


# every rule ---------------------------------------------------------------------------------


def of_dimension(n):
    """Calls of the functions for n dimensions."""
    weight = torch.arange(12.0).cos().reshape(3, 4, *(1,) * n).double()
    calls = {f"conv{n}d": lambda x: CONVOLUTIONS[n](x, weight)}
    for kind in ("max", "avg"):
        calls[f"{kind}_pool{n}d"] = partial(getattr(F, f"{kind}_pool{n}d"), kernel_size=2)
        name = f"adaptive_{kind}_pool{n}d"
        calls[name] = partial(getattr(F, name), output_size=2)
    return calls


CALLS = {
    "add": lambda x: x + x.flip(-1),
    "pad": lambda x: F.pad(x, (1, 2)),
    **{name: getattr(F, name) for name in ("relu", "relu6", "softplus", "hardsigmoid")},
    "sigmoid": torch.sigmoid,
    "hardtanh": lambda x: F.hardtanh(x, 0.0, 1.0),
    **{name: partial(getattr(torch, name), min=0) for name in ("clamp", "clip", "clamp_min")},
    "clamp_max": partial(torch.clamp_max, max=0.5),
    "batch_norm": lambda x: F.batch_norm(x, torch.zeros(4).to(x), torch.ones(4).to(x)),
    "mean": lambda x: x.mean(dim=-1, keepdim=True),
    **{name: partial(getattr(torch, name), other=0.2) for name in ("sub", "subtract")},
    **{name: partial(getattr(torch, name), other=2) for name in ("mul", "multiply")},
    **{name: partial(getattr(torch, name), other=2) for name in ("div", "divide", "true_divide")},
    **{name: call for n in (1, 2, 3) for name, call in of_dimension(n).items()},
}


class Around(nn.Module):
    """A small network around a call."""

    def __init__(self, call, first):
        super().__init__()
        self.call, self.first = call, first

    def forward(self, x):
        return F.relu(self.call(F.relu(self.first(x)) + 0.1)).flatten(2).mean(2)


@pytest.mark.parametrize("name", CALLS)
def test_every_rule_keeps_the_sum(name):
    n = int(name[-2]) if name.endswith("d") and name[-2].isdigit() else 2
    first = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[n](1, 4, 3, padding=1)
    rsp = RelativeSectionalPropagation(Around(CALLS[name], first))
    found = rsp.attribute(torch.randn(3, 1, *(6,) * n, dtype=torch.float64), 0, [1])
    torch.testing.assert_close(found.flatten(1).sum(1), torch.ones(3).double(), rtol=0, atol=1e-5)


def test_every_rule_has_a_case():
    assert set(CALLS) == set(ruled_layers())
