"""``solver="auto"``: the solver that takes the least time within the memory that it may take."""

from __future__ import annotations

from dataclasses import replace
from math import isfinite
from numbers import Real

from torch import Tensor

from featprop_sklearn.least_squares.cost import Cost
from featprop_sklearn.least_squares.linear_map import LinearMap
from featprop_sklearn.least_squares.result import SolveResult
from featprop_sklearn.least_squares.solver import SOLVERS, PreparedSolver, Solver, get_solver

__all__ = ["AutoSolver"]

#: measured: share of a solver's further effort that others which square the condition may do with
SHARED = 1 / 5
#: time, as a multiple of the least, that a solver may take in all if its calls take less: there
#: may be more of them
HARDLY_MORE = 1.4


class AutoSolver(Solver):
    """Choose among the registered solvers by what each would cost.

    Time is that of the set-up and of ``n_samples`` right-hand sides, as each solver estimates
    them (:meth:`Solver.cost`) from sizes, λ and structure; of those that take hardly more than the
    least, the one whose calls take least is chosen. What exceeds ``max_bytes`` is left out; the
    matrix-free solver always fits. Where the set-up of the chosen one shows that a
    sample takes longer (it has to be refined, or iterated), the next ones are compared with
    that; a fifth of its further effort is expected of those that would square the condition, too.
    What was chosen and why is in ``SolveResult.reason``.

    Parameters
    ----------
    max_bytes : int
        Most memory that a set-up may hold.
    n_samples : int
        Right-hand sides expected over the life of a set-up.
    """

    name = "auto"
    needs = ("apply", "adjoint")

    def __init__(self, max_bytes: int = 2**30, n_samples: int = 1000) -> None:
        self.max_bytes = max_bytes
        self.n_samples = n_samples

    def costs(self, linear_map: LinearMap, damping: float) -> dict[str, Cost]:
        """Estimate the cost of every solver that the map suits.

        Parameters
        ----------
        linear_map : LinearMap
            A.
        damping : float
            λ ≥ 0.

        Returns
        -------
        dict of str to Cost
            By ascending time.
        """
        self._check_limits()
        costs = {}
        for name in SOLVERS:
            solver = self._solver(name)
            if name != self.name and set(solver.needs) <= set(linear_map.provides):
                costs[name] = solver.cost(linear_map, damping)
        return dict(sorted(costs.items(), key=lambda item: item[1].total(self.n_samples)))

    def choose(self, linear_map: LinearMap, damping: float) -> str:
        """Return the name of the solver with the least cost, before any set-up."""
        return self._preferred(self._within(self.costs(linear_map, damping)))

    def prepare(self, linear_map: LinearMap, damping: float) -> PreparedSolver:
        """Set up the solver of least cost that keeps what it promised."""
        costs = self.costs(linear_map, damping)
        expected = self._within(costs)
        found: dict[str, Cost] = {}
        prepared: PreparedSolver | None = None
        while (name := self._preferred(expected | found)) in expected:
            prepared = None  # two set-ups at a time might take too much memory
            prepared = self._solver(name).prepare(linear_map, damping)
            del expected[name]
            found[name] = costs[name].times(prepared.effort)
            shared = 1 + SHARED * (prepared.effort - 1)
            for other in expected:
                if SOLVERS[name].squares and SOLVERS[other].squares:
                    expected[other] = costs[other].times(shared)
        if prepared is None or name != [*found][-1]:
            prepared = None
            prepared = self._solver(name).prepare(linear_map, damping)
        return _Chosen(prepared, self._reason(name, costs))

    def _preferred(self, costs: dict[str, Cost]) -> str:
        """Return whose calls take least among those that take hardly more than any in all."""
        totals = {name: cost.total(self.n_samples) for name, cost in costs.items()}
        most = HARDLY_MORE * min(totals.values())
        near = [name for name, total in totals.items() if total <= most]
        return min(near, key=lambda name: (costs[name].per_sample, totals[name]))

    def _check_limits(self) -> None:
        for name in ("max_bytes", "n_samples"):
            value = getattr(self, name)
            number = isinstance(value, Real) and not isinstance(value, bool)
            if not (number and value >= 0):
                raise ValueError(
                    f"{name} of AutoSolver must be a number >= 0; got {value!r}. Use for example "
                    "max_bytes=2**30 for 1 GiB, n_samples=1000."
                )

    def _within(self, costs: dict[str, Cost]) -> dict[str, Cost]:
        within = {name: cost for name, cost in costs.items() if cost.n_bytes <= self.max_bytes}
        least = min(costs, key=lambda name: costs[name].n_bytes)
        return within or {least: costs[least]}

    def _solver(self, name: str) -> Solver:
        solver = get_solver(name)
        if "max_bytes" in solver.get_params():
            solver.set_params(max_bytes=self.max_bytes)
        return solver

    def _reason(self, chosen: str, costs: dict[str, Cost]) -> str:
        others = [name for name in costs if name != chosen and isfinite(costs[name].set_up)]
        return "; ".join(
            f"{name}: {costs[name]}" + " (too much memory)" * (costs[name].n_bytes > self.max_bytes)
            for name in (chosen, *others)
        )


class _Chosen(PreparedSolver):
    """A prepared solver that tells why it was taken."""

    def __init__(self, prepared: PreparedSolver, reason: str) -> None:
        self.prepared = prepared
        self.reason = reason

    def solve(self, rhs: Tensor) -> SolveResult:
        return replace(self.prepared.solve(rhs), reason=self.reason)
