"""Composite stages and unknown layers: damped Gauss-Newton around the reference."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Size, Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from featprop_sklearn.inversion.base import InversionOptions, Inverter, UnsupportedLayerError
from featprop_sklearn.least_squares import KrylovSolver, LinearMap, SolveResult

__all__ = ["GaussNewton"]

MET = 1e-10
STATIONARY = 1e-6
MAX_STEPS = 30
MAX_HALVINGS = 8


class GaussNewton(Inverter):
    """Solve min ‖x − x0‖² s.t. f(x) = y, or least squares, for a differentiable stage.

    Each step linearises f at x and solves, matrix-free by products with the Jacobian J
    (``torch.func.jvp`` / ``vjp``), the damped problem centred on the reference::

        x⁺ = x0 + argmin_e ‖J e − (y − f(x) + J (x − x0))‖² + λ²‖e‖²

    with backtracking on ‖y − f(x)‖; where that fails, a step towards the wanted output
    alone, ``argmin_p ‖J p − (y − f(x))‖² + λ²‖p‖²``. The answer is exact for an affine
    stage and a stationary point elsewhere; it is never worse than the reference.

    A number as ``damping`` is the λ of ``‖f(x) − y‖² + λ²‖x − x0‖²``. With "auto" the
    steps use λ = σ_max(J)/1e3 and the output is still met as far as possible.

    Raises
    ------
    UnsupportedLayerError
        If the stage cannot be differentiated with respect to its input.
    """

    def __init__(self, layer: nn.Module, in_shape: Size, options: InversionOptions) -> None:
        super().__init__(layer, in_shape, options)
        self.penalty = 0.0 if options.damping == "auto" else float(options.damping)
        self._check_differentiable()

    def _check_differentiable(self) -> None:
        name = type(self.layer).__name__
        tensors = [*self.layer.parameters(), *self.layer.buffers()]
        device = tensors[0].device if tensors else torch.device("cpu")
        probe = torch.ones(2, *self.in_shape, dtype=torch.float64, device=device)
        try:
            output = _Jacobian(self.layer, probe).apply(torch.ones_like(probe))
            reason = "" if output.is_floating_point() else f"its output is {output.dtype}"
        except Exception as error:  # whatever a user's forward may raise
            reason = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
        if reason:
            raise UnsupportedLayerError(
                f"{name} cannot be inverted: it has no inversion of its own, and it cannot be "
                f"differentiated with respect to its input ({reason}). Register one with "
                f"register_inverter({name}, function), function(layer, wanted, reference) "
                "returning the preimages, or choose a split after this layer."
            )

    def invert(self, wanted: Tensor, reference: Tensor) -> SolveResult:  # noqa: D102
        state = _Search(self.layer, wanted, reference, self.penalty)
        damping = self.penalty
        for _ in range(MAX_STEPS):
            if not state.active.any():
                break
            state.steps += 1
            jacobian = _Jacobian(self.layer, state.x)
            if self.options.damping == "auto":
                damping = _largest_singular_value(jacobian, state.residual) / 1e3
            solve = KrylovSolver(tolerance=1e-12, max_iterations=500).prepare(jacobian, damping)
            centred = solve.solve(state.residual + jacobian.apply(state.x - reference)).solution
            moved = state.try_step(reference + centred - state.x)
            if self.penalty == 0.0 and not bool(moved[state.active].all()):
                restoring = solve.solve(state.residual).solution
                moved = moved | state.try_step(restoring, only=~moved)
            state.active = state.active & moved
        return self._result(state, damping)

    def _result(self, state: _Search, damping: float) -> SolveResult:
        relative = state.relative_residual()
        gradient = _Jacobian(self.layer, state.x).adjoint(state.residual)
        gradient = gradient - self.penalty**2 * (state.x - state.reference)
        scale = _largest_singular_value(_Jacobian(self.layer, state.x), state.residual)
        stationary = _norm(gradient) <= STATIONARY * scale * _norm(state.residual) + 1e-300
        short = int((~(stationary | (relative <= STATIONARY))).sum())
        return SolveResult(
            state.x,
            solver="gauss_newton",
            status="not_converged" if short else "converged",
            residual=float(relative.max()) if len(relative) else 0.0,
            iterations=state.steps,
            damping=damping,
            advice=(
                f"Gauss-Newton ended short of a stationary point for {short} of {len(relative)} "
                "samples: their wanted output may be out of reach, or the stage too curved. "
                "Use target_step < 1, or a split after this stage."
                if short
                else ""
            ),
        )


class _Jacobian(LinearMap):
    """The Jacobian of a stage at each sample, through products alone."""

    provides = ("apply", "adjoint")

    def __init__(self, layer: nn.Module, x: Tensor) -> None:
        with _differentiable():
            output, self._pull = torch.func.vjp(layer, x)[:2]
        super().__init__(tuple(x.shape[1:]), tuple(output.shape[1:]), x.device)
        self._layer: Callable[[Tensor], Tensor] = layer
        self._x = x

    def apply(self, inputs: Tensor) -> Tensor:
        with _differentiable():
            return torch.func.jvp(self._layer, (self._x,), (inputs,))[1]

    def adjoint(self, outputs: Tensor) -> Tensor:
        with _differentiable():
            return self._pull(outputs)[0]


class _Search:
    """Where each sample stands: its input, its residual, whether it still moves."""

    def __init__(self, layer: nn.Module, wanted: Tensor, reference: Tensor, penalty: float) -> None:
        self.layer = layer
        self.wanted = wanted
        self.reference = reference
        self.penalty = penalty
        self.x = reference
        self.residual = wanted - layer(reference)
        self.active = self.relative_residual() > MET
        self.steps = 0

    def relative_residual(self) -> Tensor:
        return _norm(self.residual) / _norm(self.wanted).clamp_min(1e-12)

    def try_step(self, step: Tensor, only: Tensor | None = None) -> Tensor:
        """Move the active samples along a step, halved until it helps; return who moved."""
        open_ = self.active if only is None else self.active & only
        moved = torch.zeros_like(open_)
        length = 1.0
        for _ in range(MAX_HALVINGS):
            candidate = self.x + length * step
            residual = self.wanted - self.layer(candidate)
            better = open_ & self._improves(candidate, residual, length)
            self.x = torch.where(_like(better, self.x), candidate, self.x)
            self.residual = torch.where(_like(better, residual), residual, self.residual)
            moved, open_ = moved | better, open_ & ~better
            if not open_.any():
                break
            length /= 2
        return moved

    def _improves(self, candidate: Tensor, residual: Tensor, length: float) -> Tensor:
        new, old = self._merit(candidate, residual), self._merit(self.x, self.residual)
        far, near = _norm(self.x - self.reference), _norm(candidate - self.reference)
        met = MET * _norm(self.wanted).clamp_min(1e-12)
        # among inputs that meet the wanted output, nearer is better
        both_meet = (_norm(residual) <= met) & (_norm(self.residual) <= met)
        nearer = near < (1 - 1e-9) * far
        return (new < (1 - 1e-3 * length) * old) | (both_meet & nearer)

    def _merit(self, x: Tensor, residual: Tensor) -> Tensor:
        return _norm(residual) ** 2 + self.penalty**2 * _norm(x - self.reference) ** 2


def _largest_singular_value(jacobian: LinearMap, start: Tensor) -> float:
    """Estimate σ_max over the samples by power iteration, within about a tenth."""
    direction = jacobian.adjoint(torch.where(start == 0, 1.0, start))
    size = _norm(direction)
    for _ in range(8):
        unit = direction / _like(size.clamp_min(1e-300), direction)
        direction = jacobian.adjoint(jacobian.apply(unit))
        size = _norm(direction)
    return float(size.max().sqrt()) if len(size) else 0.0


@contextlib.contextmanager
def _differentiable() -> Iterator[None]:
    """Leave out the fused kernels that have no forward-mode derivative."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _norm(values: Tensor) -> Tensor:
    return torch.linalg.vector_norm(values.reshape(len(values), -1), dim=1)


def _like(rows: Tensor, like: Tensor) -> Tensor:
    return rows.reshape(-1, *(1,) * (like.ndim - 1))
