"""Linear maps and the solvers of damped least-squares problems over them."""

from featprop_sklearn.least_squares.choice import choose_solver, prepare_chosen
from featprop_sklearn.least_squares.convolution_map import ConvolutionMap, Kernel
from featprop_sklearn.least_squares.damping import check_damping, resolve_damping
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
from featprop_sklearn.least_squares.result import SolveResult
from featprop_sklearn.least_squares.solver import (
    SOLVERS,
    PreparedSolver,
    Solver,
    get_solver,
    register_solver,
)
from featprop_sklearn.least_squares.torus import TorusSolver

for _solver in (DirectSolver, LsqrSolver, KrylovSolver, TorusSolver):
    register_solver(_solver.name, _solver)

__all__ = [
    "SOLVERS",
    "BatchMap",
    "ConvolutionMap",
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
    "TorusSolver",
    "check_damping",
    "choose_solver",
    "get_solver",
    "prepare_chosen",
    "register_solver",
    "resolve_damping",
]
