"""Set-ups are made once for equal weights and shapes, and are bounded."""

import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.sparse.linalg import splu
from torch import nn

from featprop_sklearn import LayerInverter
from featprop_sklearn.inversion import affine, prepare
from featprop_sklearn.inversion.registry import _FACTORIES
from featprop_sklearn.inversion.set_ups import SetUps, held_bytes
from featprop_sklearn.least_squares import SOLVERS, DirectSolver


@pytest.fixture
def kept(monkeypatch):
    """An empty store in place of that of the process."""
    store = SetUps()
    monkeypatch.setattr(prepare, "SET_UPS", store)
    return store


@pytest.fixture
def prepared(monkeypatch):
    """How often a matrix was factorised."""
    calls = []
    real = DirectSolver.prepare
    monkeypatch.setattr(DirectSolver, "prepare", lambda *args: calls.append(args) or real(*args))
    return calls


def linear(seed=0):
    torch.manual_seed(seed)
    return nn.Linear(6, 4)


X = np.random.default_rng(0).normal(size=(5, 6))


def test_equal_layers_share_one_set_up(kept, prepared):
    first, second = (LayerInverter(linear()).fit(X) for _ in range(2))
    assert len(prepared) == len(kept) == 1
    wanted = first.transform(X) + 1
    np.testing.assert_array_equal(
        first.inverse_transform(wanted, X), second.inverse_transform(wanted, X)
    )


def test_changed_weights_are_set_up_anew(kept, prepared):
    layer = linear()
    before = LayerInverter(layer).fit(X)
    wanted = before.transform(X) + 1
    first = before.inverse_transform(wanted, X)
    with torch.no_grad():
        layer.weight.mul_(2)
    after = LayerInverter(layer).fit(X)
    assert len(prepared) == 2
    np.testing.assert_array_equal(before.inverse_transform(wanted, X), first)
    found = after.inverse_transform(wanted, X)
    np.testing.assert_allclose(after.transform(found), wanted, atol=1e-5)


@pytest.mark.parametrize(
    "options", [{"solver": "lsqr"}, {"damping": 0.1}, {"bounds": (-5.0, 5.0)}, {"solver": "direct"}]
)
def test_whatever_decides_is_in_the_key(kept, options):
    LayerInverter(linear()).fit(X)
    LayerInverter(linear(), **options).fit(X)
    assert len(kept) == 2


def test_a_solver_registered_anew_is_not_confused(kept, monkeypatch):
    class Other(DirectSolver):
        pass

    LayerInverter(linear(), solver="direct").fit(X)
    monkeypatch.setitem(SOLVERS, "direct", Other)
    LayerInverter(linear(), solver="direct").fit(X)
    assert len(kept) == 2


def test_shapes_are_told_apart(kept):
    layer = nn.Conv1d(2, 3, 3)
    for length in (5, 6):
        LayerInverter(layer).fit(np.zeros((2, 2, length)))
    assert len(kept) == 2


def test_the_oldest_go_when_there_is_too_much(kept):
    for seed in range(3):
        LayerInverter(linear(seed)).fit(X)
    assert len(kept) == 3
    kept.max_bytes = kept.n_bytes * 3 // 4
    LayerInverter(linear(0)).fit(X)  # used again, so the newest
    LayerInverter(linear(3)).fit(X)
    assert kept.n_bytes <= kept.max_bytes
    remaining = len(kept)
    LayerInverter(linear(0)).fit(X)
    assert len(kept) == remaining
    kept.clear()
    assert len(kept) == kept.n_bytes == 0


def test_one_that_is_larger_than_the_store_is_not_kept(kept):
    kept.max_bytes = 10
    assert LayerInverter(linear()).fit(X).result_.converged
    assert len(kept) == 0


def test_inverters_that_do_not_say_so_are_not_shared(kept, monkeypatch):
    built = []

    class Mine(affine.AffineInverter):
        reusable = False

        def __init__(self, layer, in_shape, options):
            super().__init__(layer, in_shape, options)
            built.append(self)

    monkeypatch.setitem(_FACTORIES, nn.Linear, Mine)
    for _ in range(2):
        LayerInverter(linear()).fit(X)
    assert len(built) == 2
    assert len(kept) == 0


def test_held_bytes_counts_each_buffer_once():
    tensor = torch.zeros(100, dtype=torch.float64)
    array = np.zeros(50)
    factor = splu(sparse.eye(10, format="csc"))
    values = {"a": tensor, "b": [tensor[:10], tensor.reshape(10, 10)], "c": (array, array[:3])}
    assert held_bytes(values) == 800 + 400
    assert held_bytes(factor) == 12 * factor.nnz
    assert held_bytes(object()) == 0
