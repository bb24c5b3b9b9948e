"""Solvers by name, what they need, and which one is chosen."""

import pytest

from featprop_sklearn.least_squares import (
    SOLVERS,
    BatchMap,
    DirectSolver,
    SparseSolver,
    get_solver,
    register_solver,
)


def per_sample():
    return BatchMap(lambda d: d, lambda r: r, (3,), (3,))


def test_names():
    assert list(SOLVERS) == ["auto", "direct", "sparse", "torus", "torch", "lsqr"]
    assert all(get_solver(name).name == name for name in SOLVERS)


@pytest.mark.parametrize(
    ("name", "hint"), [("direkt", "Did you mean 'direct'"), ("xyz", "got 'xyz'."), (3, "got 3.")]
)
def test_unknown_name(name, hint):
    with pytest.raises(
        ValueError, match="solver must be one of 'auto', 'direct', 'sparse', 'torus'"
    ):
        get_solver(name)
    with pytest.raises(ValueError, match=hint):
        get_solver(name)


def test_a_solver_stands_for_itself():
    mine = SparseSolver(max_bytes=3)
    assert get_solver(mine) is mine
    assert repr(mine) == "SparseSolver(max_bytes=3)"


def test_registration(monkeypatch):
    monkeypatch.delitem(SOLVERS, "torch")  # restored, with all else, afterwards

    class Mine(DirectSolver):
        name = "torch"

    register_solver("torch", Mine)
    assert type(get_solver("torch")) is Mine


@pytest.mark.parametrize("wrong", [DirectSolver(), int, "direct"])
def test_registration_of_something_else(wrong):
    with pytest.raises(TypeError, match=r"must be a subclass of Solver; got .* Pass the class"):
        register_solver("mine", wrong)


def test_auto_is_taken():
    with pytest.raises(ValueError, match="'auto' stands for the automatic choice"):
        register_solver("auto", DirectSolver)


@pytest.mark.parametrize(("name", "missing"), [("direct", "matrix"), ("lsqr", "sparse")])
def test_solver_says_what_the_map_lacks(name, missing):
    message = (
        f"solver='{name}' needs {missing} of the linear map; BatchMap provides only "
        "apply, adjoint. Use solver='auto' or solver='torch'"
    )
    with pytest.raises(ValueError, match=message):
        get_solver(name).prepare(per_sample(), 0.0)
