"""Torus solver: convolutions, exactly, at about the cost of one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from featprop_sklearn.least_squares.conjugate_gradients import Product, conjugate_gradients
from featprop_sklearn.least_squares.convolution_map import ConvolutionMap
from featprop_sklearn.least_squares.linear_map import LinearMap
from featprop_sklearn.least_squares.result import SolveResult
from featprop_sklearn.least_squares.solver import PreparedSolver, Solver
from featprop_sklearn.least_squares.torus_embedding import TorusEmbedding
from featprop_sklearn.least_squares.torus_gram import TorusGram, times

__all__ = ["TorusSolver"]

#: share of σ_max added to a symbol that is singular, or nearly
SHIFT = 1e-4
#: relative residual of the normal equations that counts as exact, and as solved
EXACT = 1e-11
SOLVED = 1e-10
MAX_REFINEMENTS = 2
MAX_ITERATIONS = 200
#: share of the solution below which the rest of it is taken for rounding
CLEAN = 1e-13
MAX_CLEANINGS = 10


class TorusSolver(Solver):
    """Minimise ‖A d − r‖² + λ²‖d‖² for a convolution A, by transforms.

    The convolution is embedded in one on a torus, which is a small matrix per frequency; what
    the torus adds lies on its frame, and is set right by one real system of the size of the
    perimeter, factorised once (:class:`TorusGram`). Exact for any λ. Where λ = 0 and the
    symbol of the convolution is singular or nearly so, the same with a little damping
    preconditions conjugate gradients on the normal equations, whose residual is verified.

    Parameters
    ----------
    max_bytes : int
        Most memory that the factors may take.
    """

    name = "torus"
    needs = ("kernel",)

    def __init__(self, max_bytes: int = 2**30) -> None:
        self.max_bytes = max_bytes

    def check(self, linear_map: LinearMap) -> None:
        """Refuse what is no convolution, or one with too long a perimeter.

        Raises
        ------
        ValueError
            Naming the map, its size and the alternatives.
        """
        self._embed(linear_map)

    def _embed(self, linear_map: LinearMap) -> TorusEmbedding:
        super().check(linear_map)
        assert isinstance(linear_map, ConvolutionMap)
        torus = embedding(linear_map)
        if torus.bytes_needed > self.max_bytes:
            raise ValueError(
                "solver='torus' factorises a system of the perimeter of the convolution: here "
                f"{torus.frame_size} unknowns, {torus.bytes_needed / 2**30:.1f} GiB in all, more "
                f"than {self.max_bytes / 2**30:.1f} GiB. Use solver='auto' or solver='torch'."
            )
        return torus

    def prepare(self, linear_map: LinearMap, damping: float) -> PreparedSolver:
        """Factorise once."""
        torus = self._embed(linear_map)
        assert isinstance(linear_map, ConvolutionMap)
        exact = _Exact.attempt(linear_map, torus, damping)
        return exact or _Preconditioned(linear_map, torus, damping)

    @staticmethod
    def is_exact(prepared: PreparedSolver) -> bool:
        """Whether a solver that was prepared here needs no iterations."""
        return isinstance(prepared, _Exact)


def embedding(linear_map: ConvolutionMap) -> TorusEmbedding:
    """Lay the convolution, or the one whose adjoint the map is, on its torus."""
    inputs, outputs = linear_map.in_shape[1:], linear_map.out_shape[1:]
    if linear_map.kernel.transposed:
        inputs, outputs = outputs, inputs
    return TorusEmbedding(linear_map.kernel, inputs, outputs)


class _OnTorus(PreparedSolver):
    """A convolution, its adjoint, and its normal equations, by transforms."""

    def __init__(self, linear_map: ConvolutionMap, torus: TorusEmbedding, damping: float) -> None:
        self.linear_map = linear_map
        self.torus = torus
        self.damping = damping
        self.wide = linear_map.shape[0] <= linear_map.shape[1]

    def split(self, values: Tensor) -> Tensor:
        """Shape (n_samples, channels, *size) into (n_samples, groups, channels / groups, n)."""
        return values.reshape(len(values), self.torus.groups, -1, values.shape[2:].numel())

    def forward(self, values: Tensor) -> Tensor:
        """Multiply by A."""
        return self.adjoint_convolve(values) if self._transposed else self.convolve(values)

    def backward(self, values: Tensor) -> Tensor:
        """Multiply by A'."""
        return self.convolve(values) if self._transposed else self.adjoint_convolve(values)

    def convolve(self, values: Tensor) -> Tensor:
        torus = self.torus
        found = torus.frequencies(torus.inputs.lay(values, torus.inputs.order))
        return torus.cells(times(torus.symbol, found), 1)[..., torus.outputs.order]

    def adjoint_convolve(self, values: Tensor) -> Tensor:
        torus = self.torus
        found = torus.frequencies(torus.outputs.lay(values, torus.outputs.order))
        return torus.cells(times(torus.symbol.mH, found), torus.phases)[..., torus.inputs.order]

    @property
    def _transposed(self) -> bool:
        return self.linear_map.kernel.transposed

    def gram(self, squared_damping: float, *, dual: bool) -> TorusGram:
        """Return the inverse of AA' + λ², or of A'A + λ²."""
        return TorusGram(self.torus, squared_damping, of_outputs=dual != self._transposed)

    def result(self, solution: Tensor, **details: object) -> SolveResult:
        shaped = solution.reshape(-1, *self.linear_map.in_shape)
        return SolveResult(shaped, solver="torus", damping=self.damping, **details)  # type: ignore


class _Exact(_OnTorus):
    """z = (AA' + λ²)⁻¹ r and d = A'z if A is wide, d = (A'A + λ²)⁻¹ A'r if it is tall."""

    inverse: TorusGram
    refinements = 0

    @classmethod
    def attempt(
        cls, linear_map: ConvolutionMap, torus: TorusEmbedding, damping: float
    ) -> _Exact | None:
        """Return the solver, or None where the system is singular or too ill-conditioned."""
        self = cls(linear_map, torus, damping)
        sizes = torch.linalg.svdvals(torus.symbol)
        of_outputs = self.wide != linear_map.kernel.transposed
        full = torus.symbol.shape[2 if of_outputs else 3] == sizes.shape[-1]
        least = float(sizes.min()) ** 2 if full else 0.0
        if least + damping**2 <= SHIFT**2 * float(sizes.max()) ** 2:
            return None
        self.inverse = self.gram(damping**2, dual=self.wide)
        if not self.inverse.regular:
            return None
        # any values, not only those that A or A' gives: a singular system shows by them
        shape = linear_map.out_shape if self.wide else linear_map.in_shape
        generator = torch.Generator().manual_seed(0)
        probe = torch.randn(1, *shape, generator=generator, dtype=torch.float64)
        wanted = self.split(probe.to(torus.symbol.device))
        for self.refinements in range(MAX_REFINEMENTS + 1):
            remainder = self._remainder(wanted, self._refined(wanted))
            if float(remainder.norm() / wanted.norm()) <= EXACT:
                return self
        return None

    def solve(self, rhs: Tensor) -> SolveResult:
        values = self.split(rhs)
        if not self.refinements:
            found = self.inverse.solve(values, from_other=not self.wide, to_other=self.wide)
        elif self.wide:
            found = self.backward(self._refined(values))
        else:
            found = self._refined(self.backward(values))
        return self.result(found)

    def _refined(self, wanted: Tensor) -> Tensor:
        found = self.inverse.solve(wanted)
        for _ in range(self.refinements):
            found = found + self.inverse.solve(self._remainder(wanted, found))
        return found

    def _remainder(self, wanted: Tensor, found: Tensor) -> Tensor:
        image = (
            self.forward(self.backward(found)) if self.wide else self.backward(self.forward(found))
        )
        return wanted - image - self.damping**2 * found


class _Preconditioned(_OnTorus):
    """Conjugate gradients on (A'A + λ²) d = A'r, preconditioned by the same with more damping."""

    def __init__(self, linear_map: ConvolutionMap, torus: TorusEmbedding, damping: float) -> None:
        super().__init__(linear_map, torus, damping)
        largest = float(torch.linalg.matrix_norm(torus.symbol, ord=2).max())
        self.inverse = self.gram(max(damping**2, (SHIFT * largest) ** 2), dual=False)

    def solve(self, rhs: Tensor) -> SolveResult:
        wanted = self.backward(self.split(rhs))
        shape = wanted.shape

        def product(rows: Tensor) -> Tensor:
            values = rows.reshape(shape)
            image = self.backward(self.forward(values)) + self.damping**2 * values
            return image.flatten(1)

        def precondition(rows: Tensor) -> Tensor:
            return self.inverse.solve(rows.reshape(shape)).flatten(1)

        found, residual, iterations = conjugate_gradients(
            product,
            precondition,
            wanted.flatten(1),
            tolerance=SOLVED * 1e-3,
            max_iterations=MAX_ITERATIONS,
        )
        worst = float(residual.max())
        solved = worst <= SOLVED
        if self.damping == 0:
            found, clean = _of_least_norm(found, product, precondition)
            solved = solved and clean
        return self.result(
            found,
            status="converged" if solved else "not_converged",
            residual=worst,
            iterations=iterations,
            advice="" if solved else ADVICE,
        )


def _of_least_norm(found: Tensor, product: Product, precondition: Product) -> tuple[Tensor, bool]:
    """Take out what A does not see: rounding, which the preconditioner has amplified.

    Each step of A'A (A'A + ε)⁻¹ takes over what A sees of the rest, and nothing else. Beyond a
    condition of about 1e4 what A sees cannot be told from rounding.
    """
    clean, rest = torch.zeros_like(found), found
    for _ in range(MAX_CLEANINGS):
        seen = product(precondition(rest))
        clean, rest = clean + seen, rest - seen
        if bool((seen.norm(dim=1) <= CLEAN * clean.norm(dim=1)).all()):
            return clean, True
    return found, False


ADVICE = (
    "The convolution is close to rank-deficient. Use damping='auto' or a number > 0, or "
    "solver='lsqr' or 'torch'."
)
