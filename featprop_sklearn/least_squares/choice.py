"""What ``solver="auto"`` stands for."""

from __future__ import annotations

from featprop_sklearn.least_squares.convolution_map import ConvolutionMap
from featprop_sklearn.least_squares.linear_map import LinearMap
from featprop_sklearn.least_squares.solver import PreparedSolver, entries, get_solver
from featprop_sklearn.least_squares.torus import TorusSolver, embedding

__all__ = ["choose_solver", "prepare_chosen"]

#: largest dense matrix, and its smaller side
ENTRIES = 2**25
SMALLER_SIDE = 4096
#: from here on a convolution's perimeter is cheaper to factorise than its matrix
TORUS_FROM_ENTRIES = 2**20
TORUS_FRAME = 8000


def choose_solver(linear_map: LinearMap) -> str:
    """Return the name of the solver that ``solver="auto"`` stands for.

    ``"direct"`` where a closed form (A'A diagonal) or a small matrix makes it cheap;
    ``"torus"`` for convolutions beyond a million entries of the matrix, whose perimeter is
    of at most 8000 unknowns; ``"direct"`` for other matrices of at most 256 MiB whose smaller
    side is at most 4096; else ``"torch"``.

    Parameters
    ----------
    linear_map : LinearMap
        A.

    Returns
    -------
    str
        A name for :func:`get_solver`.
    """
    if linear_map.gram_diagonal() is not None:
        return "direct"
    large = entries(linear_map) > TORUS_FROM_ENTRIES
    if large and isinstance(linear_map, ConvolutionMap):
        torus = embedding(linear_map)
        if torus.frame_size <= TORUS_FRAME and torus.bytes_needed <= TorusSolver().max_bytes:
            return "torus"
    return _by_matrix(linear_map)


def prepare_chosen(linear_map: LinearMap, damping: float) -> tuple[str, PreparedSolver]:
    """Set up the chosen solver, or the next one where the torus would have to iterate.

    Parameters
    ----------
    linear_map : LinearMap
        A.
    damping : float
        λ.

    Returns
    -------
    name : str
        Of the solver.
    prepared : PreparedSolver
        Ready for use.
    """
    name = choose_solver(linear_map)
    prepared = get_solver(name).prepare(linear_map, damping)
    if name == "torus" and not TorusSolver.is_exact(prepared):
        name = _by_matrix(linear_map)
        prepared = get_solver(name).prepare(linear_map, damping)
    return name, prepared


def _by_matrix(linear_map: LinearMap) -> str:
    small = min(linear_map.shape) <= SMALLER_SIDE and entries(linear_map) <= ENTRIES
    return "direct" if small and "matrix" in linear_map.provides else "torch"
