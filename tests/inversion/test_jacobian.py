"""Jacobians of a batch: dense and matrix-free ones agree with torch's own and with lstsq."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from featprop_sklearn.inversion import InversionOptions, jacobian
from featprop_sklearn.inversion.composite import GaussNewton
from featprop_sklearn.inversion.jacobian import DenseJacobian, Jacobian, linearise, rows_at_a_time


def stage(n_out):
    torch.manual_seed(1)
    return (
        nn.Sequential(nn.Conv1d(2, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(12, n_out))
        .double()
        .requires_grad_(False)
    )


def oracle(layer, x):
    one = torch.func.jacrev(lambda row: layer(row[None])[0])
    return torch.stack([one(row).reshape(-1, row.numel()) for row in x]).detach()


@pytest.mark.parametrize("n_out", [4, 10, 15])
def test_dense_and_matrix_free(n_out, monkeypatch):
    layer, x = stage(n_out), torch.randn(7, 2, 5, dtype=torch.float64)
    expected = oracle(layer, x)
    monkeypatch.setattr(jacobian, "RUN_ROWS", 20)  # several runs, the last one not full
    free = Jacobian(layer, x)
    dense = DenseJacobian(free)
    torch.testing.assert_close(dense.matrices, expected)
    d, r = torch.randn_like(x), torch.randn(7, n_out, dtype=torch.float64)
    damping = torch.linspace(0.1, 1.0, 7, dtype=torch.float64)
    for linear in (dense, free):
        torch.testing.assert_close(
            linear.apply(d), torch.einsum("bij,bj->bi", expected, d.flatten(1))
        )
        pulled = torch.einsum("bij,bi->bj", expected, r).reshape(x.shape)
        torch.testing.assert_close(linear.adjoint(r), pulled)
        exact, damped = linear.damped(r, 0 * damping), linear.damped(r, damping)
        for matrix, rhs, weight, mine, kept in zip(
            expected.numpy(), r.numpy(), damping.tolist(), exact, damped, strict=True
        ):
            best = np.linalg.lstsq(matrix, rhs)[0]
            np.testing.assert_allclose(mine.flatten(), best, rtol=1e-7, atol=1e-9)
            stacked = np.vstack([matrix, weight * np.eye(10)])
            best = np.linalg.lstsq(stacked, np.r_[rhs, np.zeros(10)])[0]
            np.testing.assert_allclose(kept.flatten(), best, rtol=1e-7, atol=1e-9)


def test_dense_where_it_fits(monkeypatch):
    layer, x = stage(4), torch.randn(50, 2, 5, dtype=torch.float64)
    outputs = layer(x)
    size = 8 * 4 * 10
    assert isinstance(linearise(layer, x), DenseJacobian)
    assert rows_at_a_time(outputs, x) == jacobian.DENSE_BYTES // size
    monkeypatch.setattr(jacobian, "DENSE_BYTES", 10 * size)
    assert rows_at_a_time(outputs, x) == 10
    assert type(linearise(layer, x)) is Jacobian
    monkeypatch.setattr(jacobian, "DENSE_BYTES", 2 * size)  # not worth the trouble
    assert rows_at_a_time(outputs, x) == 50


@pytest.mark.parametrize("damping", ["auto", 0.0, 0.1])
def test_chunks_and_products_give_the_same_preimages(monkeypatch, damping):
    layer, x = stage(4), torch.randn(30, 2, 5, dtype=torch.float64)
    wanted = layer(x + 0.3 * torch.randn_like(x))
    inverter = GaussNewton(layer, x.shape[1:], InversionOptions(damping=damping))
    whole = inverter.invert(wanted, x)
    assert whole.converged
    for rows in (10, 1):  # in chunks, and without dense matrices
        monkeypatch.setattr(jacobian, "DENSE_BYTES", rows * 8 * 4 * 10)
        part = inverter.invert(wanted, x)
        assert part.converged
        torch.testing.assert_close(part.solution, whole.solution, rtol=1e-5, atol=1e-6)


def test_torch_does_not_warn_about_itself():
    # once in a process, and this one may have heard it already
    code = (
        "import warnings, torch\n"
        "from featprop_sklearn.inversion.jacobian import Jacobian\n"
        "x = torch.ones(2, 3, dtype=torch.float64)\n"
        "warnings.simplefilter('error')\n"
        "assert Jacobian(torch.square, x).apply(x).eq(2).all()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
