"""The sparse solver against numpy on the map's matrix, over random geometry."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import sparse
from torch import nn

from featprop_sklearn.inversion.affine import convolution_map
from featprop_sklearn.least_squares import (
    BatchMap,
    DirectSolver,
    FunctionMap,
    MatrixMap,
    nested_dissection,
)
from featprop_sklearn.least_squares.cost import Cost
from featprop_sklearn.least_squares.nested_dissection import Coupling, front_sizes, fronts
from featprop_sklearn.least_squares.normal_equations import Exact, Iterated
from featprop_sklearn.least_squares.sparse import SparseCholesky, SparseSolver, coupling
from featprop_sklearn.testing import check_solver
from tests.least_squares.cases import convolutions, lstsq

LAYERS = convolutions({1: 30, 2: 9, 3: 5}, most_dilated=3)
MAPS_OF_LAYERS = LAYERS.map(lambda layer_and_shape: convolution_map(*layer_and_shape))


@pytest.fixture
def _small_fronts(monkeypatch):
    """Dissect small grids too."""
    monkeypatch.setattr(nested_dissection, "LEAF", 6)


def conv(*channels, size, kernel=3, kind=nn.Conv2d, edit=lambda weight: None, **options):
    layer = kind(*channels, kernel, bias=False, **options).double().requires_grad_(False)
    edit(layer.weight)
    dims = layer.weight.ndim - 2
    return convolution_map(layer, (channels[0], *(size,) * dims))


@pytest.mark.usefixtures("_small_fronts")
@settings(deadline=None, max_examples=60, derandomize=True)
@given(MAPS_OF_LAYERS, st.sampled_from((0.0, 0.0, 1e-3, 0.1)))
def test_solutions_are_those_of_numpy(linear_map, damping):
    matrix = linear_map.matrix().numpy()
    sizes = np.linalg.svd(matrix, compute_uv=False)
    assume(sizes[0] > 0)
    sizes = sizes[sizes > 1e-12 * sizes[0]]
    assume(damping > 0 or sizes[0] < 3e3 * sizes[-1])
    damping = damping * sizes[0]
    rhs = torch.randn(3, *linear_map.out_shape).double()
    result = SparseSolver().prepare(linear_map, damping).solve(rhs)
    assert result.converged, result
    expected = lstsq(matrix, rhs.reshape(3, -1).numpy(), damping)
    found = result.solution.reshape(3, -1).numpy()
    assert np.linalg.norm(found - expected) <= 1e-8 * np.linalg.norm(expected)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(LAYERS)
def test_the_matrix_from_the_kernel_is_that_of_the_layer(layer_and_shape):
    layer, shape = layer_and_shape
    found = convolution_map(layer, shape).sparse()
    units = torch.eye(found.shape[1], dtype=torch.float64).reshape(-1, *shape)
    assert found.has_canonical_format
    np.testing.assert_allclose(found.toarray(), layer(units).flatten(1).T, rtol=0, atol=1e-15)


def fresh(linear_map):
    """Forget the kernel."""
    return FunctionMap(linear_map.apply, linear_map.in_shape, linear_map.out_shape)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(MAPS_OF_LAYERS)
def test_the_coupling_covers_the_gram_matrix_and_no_pattern_beats_the_kernel(linear_map):
    from_kernel, from_pattern = coupling(linear_map), coupling(fresh(linear_map))
    matrix = linear_map.sparse()
    wide = matrix.shape[0] <= matrix.shape[1]
    gram = (matrix @ matrix.T if wide else matrix.T @ matrix).tocoo()
    channels = (linear_map.out_shape if wide else linear_map.in_shape)[0]
    for found in (from_kernel, from_pattern):
        row = np.unravel_index(gram.row, (channels, *found.size))
        column = np.unravel_index(gram.col, (channels, *found.size))
        for a, b, reach, step in zip(row[1:], column[1:], found.reach, found.step, strict=True):
            assert np.all(np.abs(a - b) <= reach)
            assert np.all((a - b) % step == 0)
        label = {c: i for i, together in enumerate(found.channels) for c in together}
        assert sorted(label) == list(range(channels))
        labels = np.array([label[c] for c in range(channels)])
        assert np.array_equal(labels[row[0]], labels[column[0]])
        assert gram.nnz <= found.n_entries
    assert from_pattern.n_entries <= from_kernel.n_entries


@pytest.mark.usefixtures("_small_fronts")
@settings(deadline=None, max_examples=40, derandomize=True)
@given(MAPS_OF_LAYERS)
def test_fronts_hold_every_entry_of_a_cholesky_factor(linear_map):
    found = coupling(linear_map)
    order, parts = fronts(found)
    size = min(linear_map.shape)
    assert np.array_equal(np.sort(order), np.arange(size))
    sizes = np.array([(part.stop - part.start, len(part.later)) for part in parts])
    assert np.array_equal(np.sort(sizes, axis=0), np.sort(front_sizes(found), axis=0))
    allowed = np.eye(size, dtype=bool)
    for part in parts:
        own = slice(part.start, part.stop)
        allowed[own, own] = True
        allowed[part.later, own] = True
    matrix = linear_map.matrix().numpy()
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    factor = np.linalg.cholesky((gram + np.eye(size))[np.ix_(order, order)])
    assert np.abs(factor[~allowed]).max(initial=0.0) <= 1e-14 * np.abs(factor).max()


MAPS = {
    "bilinear upsampling": (nn.Upsample(scale_factor=2, mode="bilinear"), (3, 5, 6)),
    "nearest upsampling": (nn.Upsample(scale_factor=2), (2, 4, 4)),
    "pooling": (nn.AvgPool2d(3, 2, 1), (3, 9, 8)),
    "pooling to a size": (nn.AdaptiveAvgPool2d((3, 4)), (2, 7, 9)),
    "circular padding": (
        nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular", bias=False),
        (2, 6, 6),
    ),
    "differences": (lambda x: x[:, 1:] - x[:, :-1], (20,)),
    "mean": (lambda x: x.mean(dim=1), (20,)),
    "zero": (lambda x: 0 * x, (3, 4)),
}


@pytest.mark.usefixtures("_small_fronts")
@pytest.mark.parametrize("damping", [0.0, 0.3])
@pytest.mark.parametrize("name", MAPS)
def test_other_maps(name, damping):
    function, in_shape = MAPS[name]
    if isinstance(function, nn.Module):
        function = function.double().requires_grad_(False)
    out_shape = function(torch.zeros(1, *in_shape).double()).shape[1:]
    linear_map = FunctionMap(function, in_shape, tuple(out_shape))
    rhs = torch.randn(4, *out_shape).double()
    result = SparseSolver().prepare(linear_map, damping).solve(rhs)
    assert result.converged
    assert result.solver == "sparse"
    assert result.solution.shape == (4, *in_shape)
    expected = lstsq(linear_map.matrix().numpy(), rhs.reshape(4, -1).numpy(), damping)
    np.testing.assert_allclose(
        result.solution.reshape(4, -1).numpy(), expected, rtol=1e-9, atol=1e-10
    )


@pytest.mark.parametrize(
    "build",
    [
        lambda: conv(4, 4, size=14, padding=1),
        lambda: conv(3, 4, size=14, padding=4, dilation=4),
        lambda: conv(4, 8, size=12, groups=4, stride=2),
        lambda: conv(2, 3, size=6, padding=1, kind=nn.Conv3d),
        lambda: conv(3, 2, size=9, kind=nn.ConvTranspose2d, stride=2),
    ],
)
def test_the_same_as_the_direct_solver(build):
    linear_map = build()
    rhs = torch.randn(5, *linear_map.out_shape).double()
    prepared = SparseSolver().prepare(linear_map, 0.05)
    assert isinstance(prepared, Exact)
    expected = DirectSolver().prepare(linear_map, 0.05).solve(rhs).solution
    torch.testing.assert_close(prepared.solve(rhs).solution, expected, rtol=1e-9, atol=1e-10)


def _repeat_channels(weight):
    weight[-1] = weight[0]
    weight[:, -1] = weight[:, 0]


def test_a_rank_deficient_map_is_iterated_to_the_solution_of_least_norm():
    for channels in ((3, 3), (2, 5), (5, 3)):
        linear_map = conv(*channels, size=8, padding=1, edit=_repeat_channels)
        matrix = linear_map.matrix().numpy()
        assert np.linalg.matrix_rank(matrix) < min(matrix.shape)
        prepared = SparseSolver().prepare(linear_map, 0.0)
        assert isinstance(prepared, Iterated)
        rhs = torch.randn(3, *linear_map.out_shape).double()
        result = prepared.solve(rhs)
        assert result.converged
        expected = lstsq(matrix, rhs.reshape(3, -1).numpy(), 0.0)
        found = result.solution.reshape(3, -1).numpy()
        assert np.linalg.norm(found - expected) <= 1e-8 * np.linalg.norm(expected)


def test_the_promises_of_every_solver():
    check_solver(SparseSolver)


@pytest.mark.parametrize("damping", [0.0, 0.1])
@pytest.mark.parametrize("deficient", [False, True])
def test_an_empty_batch(damping, deficient):
    edit = {"edit": _repeat_channels} if deficient else {}
    linear_map = conv(2, 3, size=6, padding=1, **edit)
    prepared = SparseSolver().prepare(linear_map, damping)
    assert isinstance(prepared, Exact) == (damping > 0 or not deficient)
    result = prepared.solve(torch.zeros(0, 3, 6, 6).double())
    assert result.solution.shape == (0, 2, 6, 6)
    assert result.converged


def test_each_sample_is_solved_for_itself():
    linear_map = conv(3, 2, size=8, padding=1)
    rhs = torch.randn(6, *linear_map.out_shape).double()
    prepared = SparseSolver().prepare(linear_map, 0.1)
    together = prepared.solve(rhs).solution
    one_by_one = torch.cat([prepared.solve(one[None]).solution for one in rhs])
    torch.testing.assert_close(together, one_by_one, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_a_prepared_solver_survives_pickling(damping):
    linear_map = conv(3, 2, size=6, padding=1, edit=_repeat_channels)
    rhs = torch.randn(2, 2, 6, 6).double()
    prepared = SparseSolver().prepare(linear_map, damping)
    again = pickle.loads(pickle.dumps(prepared))
    assert torch.equal(prepared.solve(rhs).solution, again.solve(rhs).solution)


def test_what_has_no_matrix_is_refused():
    batch_map = BatchMap(lambda x: x, lambda x: x, (3,), (3,))
    with pytest.raises(ValueError, match="solver='sparse' needs sparse of the linear map"):
        SparseSolver().prepare(batch_map, 0.0)


def test_too_large_a_factor_is_refused_before_anything_is_computed():
    linear_map = conv(64, 64, size=64, padding=1)
    message = (
        r"solver='sparse' factorises the Gram matrix of the ConvolutionMap, here of 262144 "
        r"unknowns, which takes \d+\.\d GiB, more than 1\.0 GiB\. Use solver='auto' or "
        "solver='torch'"
    )
    with pytest.raises(ValueError, match=message):
        SparseSolver().check(linear_map)
    with pytest.raises(ValueError, match=message):
        SparseSolver().prepare(linear_map, 0.1)
    assert linear_map._sparse is None
    SparseSolver(max_bytes=2**40).check(linear_map)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e200])
def test_weights_that_are_not_finite_are_refused(bad):
    linear_map = conv(2, 2, size=5, padding=1, edit=lambda weight: weight[0].fill_(bad))
    with pytest.raises(ValueError, match=r"of shape \(50, 50\).* must be below 1e\+140"):
        SparseSolver().prepare(linear_map, 0.1)


def test_cost_is_known_from_the_kernel_alone():
    linear_map = conv(8, 8, size=32, padding=1)
    cost = SparseSolver().cost(linear_map, 0.1)
    assert linear_map._sparse is None
    prepared = SparseSolver().prepare(linear_map, 0.1)
    factor = sum(p.triangle.numel() + p.below.numel() for p in prepared.factor.pieces)
    assert factor == (np.prod(front_sizes(coupling(linear_map)) @ [[1, 1], [0, 1]], axis=1)).sum()
    assert 8 * factor < cost.n_bytes < 6 * 8 * factor
    larger = SparseSolver().cost(conv(16, 16, size=32, padding=1), 0.1)
    assert cost.set_up < larger.set_up
    assert cost.per_sample < larger.per_sample
    assert SparseSolver().cost(MatrixMap(torch.eye(3)), 0.1) == Cost()


@settings(deadline=None, max_examples=25, derandomize=True)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 3), st.integers(0, 100))
def test_cholesky_of_any_matrix_that_the_coupling_covers(rows, columns, reach, seed):
    generator = np.random.default_rng(seed)
    at = np.stack(np.unravel_index(np.arange(rows * columns), (rows, columns)), axis=1)
    near = np.abs(at[:, None] - at).max(axis=2) <= reach
    full = np.where(near, generator.normal(size=near.shape), 0.0)
    full = full + full.T
    full += (np.abs(full).sum(axis=1).max() + 1) * np.eye(len(full))
    reaches = min(reach, rows - 1), min(reach, columns - 1)
    order, parts = fronts(Coupling((rows, columns), reaches, (1, 1), ((0,),)))
    ordered = sparse.csr_matrix(full[np.ix_(order, order)])
    factor = SparseCholesky.attempt(ordered, order, parts)
    values = generator.normal(size=(2, len(full)))
    found = factor.solve(torch.from_numpy(values)).numpy()
    np.testing.assert_allclose(found, np.linalg.solve(full, values.T).T, rtol=1e-10, atol=1e-13)
    indefinite = sparse.csr_matrix(-full[np.ix_(order, order)])
    assert SparseCholesky.attempt(indefinite, order, parts) is None
