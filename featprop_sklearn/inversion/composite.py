"""Composite stages and unknown layers: damped Gauss-Newton around the reference."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Size, Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from featprop_sklearn.inversion.base import InversionOptions, Inverter, UnsupportedLayerError
from featprop_sklearn.least_squares import BatchMap, KrylovSolver, LinearMap, SolveResult

__all__ = ["GaussNewton"]

MET = 1e-10
STATIONARY = 1e-6
SHARE = 1e-4
PROGRESS = 1e-3
ROUNDING = 1e-13
STOP = 1e-7
#: μ relative to σ_max
SMALLEST_TRUST, LARGEST_TRUST = 1e-3, 1e2
MAX_STEPS = 50
MAX_HALVINGS = 8


class GaussNewton(Inverter):
    """Solve min ‖x − x0‖² s.t. f(x) = y, or least squares, for a differentiable stage.

    Each step linearises f at x and solves, matrix-free by products with the Jacobian J
    (``torch.func.jvp`` / ``vjp``), the damped problem centred on the reference::

        x⁺ = x0 + argmin_e ‖J e − (y − f(x) + J (x − x0))‖² + λ²‖e‖²

    with backtracking on ‖y − f(x)‖; where that makes hardly any progress, a step of
    Levenberg and Marquardt towards the wanted output alone, ``argmin_p ‖J p − (y − f(x))‖² +
    μ²‖p‖²``, with a μ per sample that grows where steps fail. The answer is exact for an
    affine stage and otherwise tends to a stationary point, slowly where the wanted output
    stays far; it is never worse than the reference.

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
        ones = torch.ones(5, *self.in_shape, dtype=torch.float64, device=device)
        probe = ones * _like(torch.linspace(0.0, 1.0, 5, device=device), ones)
        try:
            change = _Jacobian(self.layer, probe).apply(torch.ones_like(probe))
            output = self.layer(probe)
            flat = not change.any() and bool((output != output[:1]).any())
            reason = "its derivative is zero although its output varies" if flat else ""
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
            sigma = _largest_singular_values(jacobian, state.residual)
            if self.options.damping == "auto":
                damping = float(sigma.max()) * SMALLEST_TRUST
            gradient = state.gradient(jacobian)
            # a step that damping holds back makes hardly any progress: restoring then helps more
            progress = ROUNDING if self.penalty else PROGRESS
            moved = state.try_step(self._centred(jacobian, state, damping), gradient, progress)
            if not bool(moved[state.active].all()):
                step = self._restoring(jacobian, state, sigma)
                restored = state.try_step(step, gradient, ROUNDING, only=~moved)
                state.adapt(moved, restored)
                done = state.stationary(gradient, sigma, STOP) | (state.trust >= LARGEST_TRUST)
                state.active = state.active & (moved | restored | ~done)
        return self._result(state, damping)

    def _centred(self, jacobian: LinearMap, state: _Search, damping: float) -> Tensor:
        solve = KrylovSolver(tolerance=1e-12, max_iterations=500).prepare(jacobian, damping)
        centred = solve.solve(state.residual + jacobian.apply(state.x - state.reference)).solution
        return state.reference + centred - state.x

    def _restoring(self, jacobian: LinearMap, state: _Search, sigma: Tensor) -> Tensor:
        """Solve min ‖J p − r‖² + λ²‖x + p − x0‖² + μ²‖p‖², every sample with its own μ."""
        scale = _like((state.trust * sigma.clamp_min(1e-12)).reciprocal(), state.x.flatten(1))
        size, penalty = jacobian.shape[0], self.penalty

        def apply(p: Tensor) -> Tensor:
            return scale * torch.cat([jacobian.apply(p).flatten(1), penalty * p.flatten(1)], dim=1)

        def adjoint(r: Tensor) -> Tensor:
            image, shift = (scale * r).split([size, r.shape[1] - size], dim=1)
            pulled = jacobian.adjoint(image.reshape(-1, *jacobian.out_shape))
            return pulled + penalty * shift.reshape(pulled.shape)

        stacked = BatchMap(apply, adjoint, jacobian.in_shape, (sum(jacobian.shape),), scale.device)
        offset = penalty * (state.reference - state.x)
        rhs = scale * torch.cat([state.residual.flatten(1), offset.flatten(1)], dim=1)
        solver = KrylovSolver(tolerance=1e-12, max_iterations=500)
        return solver.prepare(stacked, 1.0).solve(rhs).solution

    def _result(self, state: _Search, damping: float) -> SolveResult:
        relative = state.relative_residual()
        jacobian = _Jacobian(self.layer, state.x)
        sigma = _largest_singular_values(jacobian, state.residual)
        stationary = state.stationary(state.gradient(jacobian), sigma, STATIONARY)
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
        self.trust = torch.full_like(self.active, SMALLEST_TRUST, dtype=reference.dtype)
        self.steps = 0

    def stationary(self, gradient: Tensor, sigma: Tensor, tolerance: float) -> Tensor:
        """Where the merit is flat, or the wanted output met."""
        size = self._merit(self.x, self.residual).sqrt()
        flat = _norm(gradient) <= tolerance * (sigma + self.penalty) * size
        return flat | (self.relative_residual() <= MET)

    def adapt(self, moved: Tensor, restored: Tensor) -> None:
        """Take smaller steps where they failed, larger ones again where they helped."""
        changed = torch.where(restored, self.trust / 3, self.trust * 10)
        changed = changed.clamp(SMALLEST_TRUST, LARGEST_TRUST)
        self.trust = torch.where(moved | ~self.active, self.trust, changed)

    def relative_residual(self) -> Tensor:
        return _norm(self.residual) / _norm(self.wanted).clamp_min(1e-12)

    def gradient(self, jacobian: LinearMap) -> Tensor:
        """Return minus half the gradient of the merit, the way down."""
        return jacobian.adjoint(self.residual) - self.penalty**2 * (self.x - self.reference)

    def try_step(
        self, step: Tensor, gradient: Tensor, progress: float, only: Tensor | None = None
    ) -> Tensor:
        """Move the active samples along a step, halved until it helps; return who moved.

        Helping is a fair share of the decrease that the slope predicts, and ``progress``
        at least, relative to the merit and the length of the step.
        """
        open_ = self.active if only is None else self.active & only
        moved = torch.zeros_like(open_)
        slope = 2 * (gradient * step).reshape(len(step), -1).sum(dim=1)
        least = torch.maximum(SHARE * slope, progress * self._merit(self.x, self.residual))
        least = torch.where(slope > 0, least, torch.inf)
        length = 1.0
        for _ in range(MAX_HALVINGS):
            candidate = self.x + length * step
            residual = self.wanted - self.layer(candidate)
            better = open_ & self._improves(candidate, residual, length * least)
            self.x = torch.where(_like(better, self.x), candidate, self.x)
            self.residual = torch.where(_like(better, residual), residual, self.residual)
            moved, open_ = moved | better, open_ & ~better
            if not open_.any():
                break
            length /= 2
        return moved

    def _improves(self, candidate: Tensor, residual: Tensor, least: Tensor) -> Tensor:
        new, old = self._merit(candidate, residual), self._merit(self.x, self.residual)
        far, near = _norm(self.x - self.reference), _norm(candidate - self.reference)
        met = MET * _norm(self.wanted).clamp_min(1e-12)
        # among inputs that meet the wanted output, nearer is better
        both_meet = (_norm(residual) <= met) & (_norm(self.residual) <= met)
        nearer = near < (1 - 1e-9) * far
        return (new < old - least) | (both_meet & nearer)

    def _merit(self, x: Tensor, residual: Tensor) -> Tensor:
        return _norm(residual) ** 2 + self.penalty**2 * _norm(x - self.reference) ** 2


def _largest_singular_values(jacobian: LinearMap, start: Tensor) -> Tensor:
    """Estimate σ_max of each sample by power iteration, within about a tenth."""
    direction = jacobian.adjoint(torch.where(start == 0, 1.0, start))
    size = _norm(direction)
    for _ in range(8):
        unit = direction / _like(size.clamp_min(1e-300), direction)
        direction = jacobian.adjoint(jacobian.apply(unit))
        size = _norm(direction)
    return size.sqrt()


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
    return torch.linalg.vector_norm(values.flatten(1), dim=1)


def _like(rows: Tensor, like: Tensor) -> Tensor:
    return rows.reshape(-1, *(1,) * (like.ndim - 1))
