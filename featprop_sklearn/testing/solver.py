"""The check of a least-squares solver: numpy's answers, and no more of the map than declared."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from featprop_sklearn.least_squares import (
    ConvolutionMap,
    Kernel,
    LinearMap,
    Solver,
    SolveResult,
    get_solver,
)
from featprop_sklearn.testing.promises import Subject, norms

__all__ = ["check_solver"]

#: name -> (rows, columns, rank); columns are even, so that inputs can have two dimensions
PROBLEMS = {
    "shrinking": (5, 8, 5),
    "square": (6, 6, 6),
    "expanding": (9, 4, 4),
    "rank-deficient shrinking": (5, 8, 3),
    "rank-deficient expanding": (9, 4, 2),
}
#: name -> (channels in and out, size, kernel size, stride, padding), for what needs a kernel
CONVOLUTIONS = {
    "shrinking convolution": (2, 1, 6, 3, 1, 1),
    "expanding convolution": (1, 3, 6, 3, 1, 1),
    "strided convolution": (2, 3, 8, 4, 2, 1),
}
DAMPINGS = (0.0, 0.5)
CONDITION = 10.0
TOLERANCE = 1e-8


def check_solver(solver: type[Solver] | str, *, seed: int = 0) -> None:
    """Check a least-squares solver against ``numpy.linalg.lstsq``, and its declarations.

    On small shrinking, square, expanding and rank-deficient problems of condition 10 (on
    convolutions, where it needs their kernel), undamped and damped: the solution is the
    minimiser of ‖A d − r‖² + λ²‖d‖² (for λ = 0 that of least norm) to 1e-8, in the shape of
    the input; the result says so. The solver has a name, asks of the map only what ``needs``
    lists, and refuses a map without it.

    Parameters
    ----------
    solver : subclass of Solver, or str
        The class, built without arguments, or the name under which it is registered.
    seed : int, default=0
        Of the random problems.

    Raises
    ------
    AssertionError
        Saying which promise was broken, by how much and on what problem.
    TypeError
        If ``solver`` is neither a class nor a name.

    Examples
    --------
    >>> from featprop_sklearn.testing import check_solver
    >>> check_solver("direct")
    """
    made = _build(solver)
    subject = Subject(type(made).__name__)
    _check_declarations(subject, made)
    generator = np.random.default_rng(seed)
    maps = _convolutions if "kernel" in made.needs else _matrices
    for name, linear_map, matrix in maps(made.needs, generator):
        rhs = torch.from_numpy(generator.normal(size=(3, *linear_map.out_shape)))
        for damping in DAMPINGS:
            problem = f"{name}, damping {damping})"
            _check_problem(subject, made, linear_map, matrix, damping, rhs, problem)


def _matrices(
    needs: tuple[str, ...], generator: np.random.Generator
) -> Iterator[tuple[str, LinearMap, Tensor]]:
    for name, (rows, columns, rank) in PROBLEMS.items():
        matrix = _matrix(rows, columns, rank, generator)
        label = f"{name} problem ({rows} x {columns}, rank {rank}"
        yield label, _DeclaredMap(matrix, needs), matrix


def _convolutions(
    needs: tuple[str, ...], generator: np.random.Generator
) -> Iterator[tuple[str, LinearMap, Tensor]]:
    for name, (c_in, c_out, size, width, stride, padding) in CONVOLUTIONS.items():
        weight = torch.from_numpy(generator.normal(size=(c_out, c_in, width)))
        weight[:, :, 0] += 5 * torch.eye(c_out, c_in)  # well conditioned
        kernel = Kernel(weight, (stride,), (1,), (padding,), 1)
        linear_map = _DeclaredConvolution(kernel, size, needs)
        units = torch.eye(c_in * size, dtype=torch.float64).reshape(-1, c_in, size)
        label = f"{name} (kernel {tuple(weight.shape)}, stride {stride}, size {size}"
        images = torch.nn.functional.conv1d(units, weight, stride=stride, padding=padding)
        yield label, linear_map, images.flatten(1).T


def _build(solver: type[Solver] | str) -> Solver:
    if isinstance(solver, type) and issubclass(solver, Solver):
        return solver()
    if isinstance(solver, str):
        return get_solver(solver)
    raise TypeError(
        "solver must be a subclass of Solver or the name of a registered one; "
        f"got {solver!r}. Pass the class, not an instance."
    )


def _check_declarations(subject: Subject, solver: Solver) -> None:
    name, needs = getattr(solver, "name", None), getattr(solver, "needs", None)
    subject.require(
        isinstance(name, str) and bool(name), "name is the string that users type", repr(name)
    )
    known = ConvolutionMap.provides
    subject.require(
        isinstance(needs, tuple) and bool(needs) and set(needs) <= set(known),
        f"needs is a tuple of what it asks of the map, out of {known}",
        repr(needs),
    )
    try:
        solver.prepare(_DeclaredMap(torch.eye(2, dtype=torch.float64), ()), 0.0)
    except ValueError:
        return
    promise = "prepare refuses a map without what it needs, by self.check(linear_map)"
    subject.require(False, promise, "no ValueError")


def _check_problem(
    subject: Subject,
    solver: Solver,
    linear_map: LinearMap,
    matrix: Tensor,
    damping: float,
    rhs: Tensor,
    problem: str,
) -> None:
    try:
        prepared = solver.prepare(linear_map, damping)
        results = [prepared.solve(part) for part in (rhs, rhs[:1], 0 * rhs)]
    except _UndeclaredError as error:
        promise = f"on a {problem} it asks the map only for needs = {solver.needs}"
        subject.require(False, promise, str(error))
    expected = _lstsq(matrix, damping, rhs.flatten(1)).reshape(-1, *linear_map.in_shape)
    for result, wanted in zip(results, (expected, expected[:1], 0 * expected), strict=True):
        _check_result(subject, result, wanted, damping, problem, rhs)


def _check_result(
    subject: Subject,
    result: SolveResult,
    expected: Tensor,
    damping: float,
    problem: str,
    rhs: Tensor,
) -> None:
    shape = tuple(expected.shape)
    found = result.solution
    subject.require(
        tuple(found.shape) == shape and found.dtype == torch.float64,
        f"solution is float64 of shape (n_samples, *in_shape) = {shape}",
        f"{found.dtype} of shape {tuple(found.shape)}",
    )
    subject.require(
        result.converged, f"it converges on a {problem}", f"{result.status}, {result.advice!r}"
    )
    subject.require(result.damping == damping, f"result.damping is {damping}", repr(result.damping))
    subject.require_at_most(
        norms(found - expected),
        TOLERANCE * norms(expected),
        f"on a {problem} the solution is that of numpy.linalg.lstsq",
        r=rhs[: len(expected)],
        expected=expected,
    )


class _UndeclaredError(Exception):
    """A solver asked a map for something that it had not declared to need."""


class _Declared:
    """What a map gives: only what a solver declared."""

    provides: tuple[str, ...]

    def _ask(self, what: str) -> None:
        if what not in self.provides:
            raise _UndeclaredError(f"it called {what}, which is not among them")


class _DeclaredConvolution(_Declared, ConvolutionMap):
    """A convolution of one dimension."""

    def __init__(self, kernel: Kernel, size: int, needs: tuple[str, ...]) -> None:
        shape = (kernel.weight.shape[1], size)
        probe = torch.zeros(1, *shape, dtype=torch.float64)
        image = torch.nn.functional.conv1d(
            probe, kernel.weight, stride=kernel.stride, padding=kernel.padding
        )
        super().__init__(kernel, shape, tuple(image.shape[1:]))
        self.provides = needs

    def apply(self, inputs: Tensor) -> Tensor:
        self._ask("apply")
        return super().apply(inputs)

    def adjoint(self, outputs: Tensor) -> Tensor:
        self._ask("adjoint")
        return super().adjoint(outputs)


class _DeclaredMap(_Declared, LinearMap):
    """A matrix on inputs of two dimensions."""

    def __init__(self, matrix: Tensor, needs: tuple[str, ...]) -> None:
        super().__init__((2, matrix.shape[1] // 2), (matrix.shape[0],))
        self.provides = needs
        self._hidden = matrix

    def apply(self, inputs: Tensor) -> Tensor:
        self._ask("apply")
        return inputs.reshape(len(inputs), -1) @ self._hidden.T

    def adjoint(self, outputs: Tensor) -> Tensor:
        self._ask("adjoint")
        return (outputs @ self._hidden).reshape(-1, *self.in_shape)

    def matrix(self) -> Tensor:
        self._ask("matrix")
        return self._hidden.clone()

    def sparse(self) -> Any:
        self._ask("sparse")
        return sparse.csr_matrix(self._hidden.numpy())


def _matrix(rows: int, columns: int, rank: int, generator: np.random.Generator) -> Tensor:
    left = np.linalg.qr(generator.normal(size=(rows, rank)))[0]
    right = np.linalg.qr(generator.normal(size=(columns, rank)))[0]
    values = np.logspace(0, -np.log10(CONDITION), rank)
    return torch.from_numpy(left * values @ right.T)


def _lstsq(matrix: Tensor, damping: float, rhs: Tensor) -> Tensor:
    """Solve the stacked system [A; λI] d = [r; 0] in the least-squares sense."""
    columns = matrix.shape[1]
    stacked = np.vstack([matrix.numpy(), damping * np.eye(columns)])
    padded = np.hstack([rhs.numpy(), np.zeros((len(rhs), columns))])
    return torch.from_numpy(np.linalg.lstsq(stacked, padded.T, rcond=1e-10)[0].T)
