"""Linear maps and the solvers of damped least-squares problems over them."""

from featprop_sklearn.least_squares.choice import AutoSolver
from featprop_sklearn.least_squares.convolution_map import ConvolutionMap, Kernel
from featprop_sklearn.least_squares.cost import Cost
from featprop_sklearn.least_squares.damping import (
    check_damping,
    condition_number,
    resolve_damping,
)
from featprop_sklearn.least_squares.direct import DirectSolver
from featprop_sklearn.least_squares.krylov import KrylovSolver
from featprop_sklearn.least_squares.linear_map import LinearMap
from featprop_sklearn.least_squares.lsqr import LsqrSolver
from featprop_sklearn.least_squares.maps import (
    BatchMap,
    DiagonalMap,
    FunctionMap,
    MatrixMap,
    SelectionMap,
)
from featprop_sklearn.least_squares.result import SolveResult, join_results
from featprop_sklearn.least_squares.solver import (
    SOLVERS,
    PreparedSolver,
    Solver,
    get_solver,
    register_solver,
)
from featprop_sklearn.least_squares.sparse import SparseSolver
from featprop_sklearn.least_squares.torus import TorusSolver

SOLVERS[AutoSolver.name] = AutoSolver
for _solver in (DirectSolver, SparseSolver, TorusSolver, KrylovSolver, LsqrSolver):
    register_solver(_solver.name, _solver)

__all__ = [
    "SOLVERS",
    "AutoSolver",
    "BatchMap",
    "ConvolutionMap",
    "Cost",
    "DiagonalMap",
    "DirectSolver",
    "FunctionMap",
    "Kernel",
    "KrylovSolver",
    "LinearMap",
    "LsqrSolver",
    "MatrixMap",
    "PreparedSolver",
    "SelectionMap",
    "SolveResult",
    "Solver",
    "SparseSolver",
    "TorusSolver",
    "check_damping",
    "condition_number",
    "get_solver",
    "join_results",
    "register_solver",
    "resolve_damping",
]
