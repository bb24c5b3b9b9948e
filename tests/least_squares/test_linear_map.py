"""Every kind of linear map: adjoint, dense and sparse form agree with the function itself."""

import pickle
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from featprop_sklearn.least_squares import (
    BatchMap,
    DiagonalMap,
    FunctionMap,
    MatrixMap,
    SelectionMap,
    linear_map,
)


def f64(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def convolution(channels_in, channels_out):
    weight = f64(channels_out, channels_in, 3)
    return FunctionMap(partial(F.conv1d, weight=weight), (channels_in, 6), (channels_out, 4))


MAPS = {
    "function, wide": lambda: convolution(3, 2),
    "function, tall": lambda: convolution(1, 4),
    "matrix": lambda: MatrixMap(f64(4, 7)),
    "diagonal": lambda: DiagonalMap(f64(2, 3)),
    "permutation": lambda: SelectionMap(torch.randperm(12).reshape(3, 4), (2, 6)),
    "selection": lambda: SelectionMap(torch.tensor([[2, -1], [2, 0]]), (4,)),
}
each_map = pytest.mark.parametrize("build", MAPS.values(), ids=MAPS)


@each_map
def test_adjoint(build):
    a = build()
    d, r = f64(5, *a.in_shape), f64(5, *a.out_shape)
    forward = (a.apply(d) * r).reshape(5, -1).sum(1)
    backward = (d * a.adjoint(r)).reshape(5, -1).sum(1)
    torch.testing.assert_close(forward, backward, rtol=1e-12, atol=1e-12)


@each_map
@pytest.mark.parametrize("probe_bytes", [linear_map.PROBE_BYTES, 200])
def test_matrices_agree_with_the_products(build, probe_bytes, monkeypatch):
    monkeypatch.setattr(linear_map, "PROBE_BYTES", probe_bytes)  # 200: a few units at a time
    a = build()
    units = torch.eye(a.shape[1], dtype=torch.float64).reshape(-1, *a.in_shape)
    expected = a.apply(units).reshape(a.shape[::-1]).T
    torch.testing.assert_close(a.matrix(), expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(a.sparse().toarray(), expected, rtol=1e-12, atol=1e-12)
    left, values, right = a.svd()
    torch.testing.assert_close(left * values @ right, expected, rtol=1e-12, atol=1e-12)


@each_map
def test_matrices_are_computed_once(build):
    a = build()
    assert a.matrix() is a.matrix()
    assert a.sparse() is a.sparse()
    assert a.svd() is a.svd()


@each_map
def test_as_linear_operator(build):
    a = build()
    operator, matrix = a.as_linear_operator(), a.matrix().numpy()
    d, r = np.random.default_rng(0).normal(size=a.shape[1]), np.ones(a.shape[0])
    np.testing.assert_allclose(operator @ d, matrix @ d, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(operator.T @ r, matrix.T @ r, rtol=1e-12, atol=1e-12)


@each_map
def test_diagonal_gram_matrix_is_known_where_it_is_diagonal(build):
    a = build()
    gram = a.matrix().T @ a.matrix()
    known = a.gram_diagonal()
    if known is None:
        assert (gram - gram.diagonal().diag()).abs().max() > 1e-3
    else:
        torch.testing.assert_close(known.reshape(-1).diag(), gram, rtol=1e-12, atol=1e-12)


@each_map
def test_pickles_after_use(build):
    a = build()
    r = f64(2, *a.out_shape)
    expected = a.adjoint(r)
    torch.testing.assert_close(pickle.loads(pickle.dumps(a)).adjoint(r), expected)


def test_batch_map_gives_each_sample_its_own_matrix():
    matrices = f64(3, 4, 5)
    a = BatchMap(
        lambda d: torch.einsum("nij,nj->ni", matrices, d),
        lambda r: torch.einsum("nij,ni->nj", matrices, r),
        (5,),
        (4,),
    )
    d = f64(3, 5)
    torch.testing.assert_close(a.apply(d)[1], matrices[1] @ d[1])
    torch.testing.assert_close(a.adjoint(d[:, :4])[2], matrices[2].T @ d[2, :4])
    assert a.provides == ("apply", "adjoint")


@each_map
def test_empty_batch(build):
    a = build()
    assert a.apply(f64(0, *a.in_shape)).shape == (0, *a.out_shape)
    assert a.adjoint(f64(0, *a.out_shape)).shape == (0, *a.in_shape)
