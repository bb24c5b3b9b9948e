"""Composite stages and unknown layers: damped Gauss-Newton around the reference."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Size, Tensor, nn

from featprop_sklearn.data import module_device
from featprop_sklearn.inversion.base import (
    InversionOptions,
    Inverter,
    UnsupportedLayerError,
    uneven,
)
from featprop_sklearn.inversion.jacobian import DenseJacobian, Jacobian, linearise, rows_at_a_time
from featprop_sklearn.least_squares import LinearMap, SolveResult
from featprop_sklearn.least_squares.rows import per_row, row_dots, row_norms

__all__ = ["GaussNewton"]

MET = 1e-10
STATIONARY = 1e-6
SHARE = 1e-4
PROGRESS = 1e-3
ROUNDING = 1e-13
STOP = 1e-7
#: an output that changes by less, relative to its size, counts as constant
VARIATION = 1e-9
#: λ and μ relative to σ_max
SMALLEST_TRUST, FIRST_TRUST, LARGEST_TRUST = 1e-3, 1e-2, 1e2
MAX_STEPS = 50
MAX_HALVINGS = 8
#: with "auto", steps in which neither the merit falls by a fifth nor its slope by half
PATIENCE = 5


class GaussNewton(Inverter):
    """Solve min ‖x − x0‖² s.t. f(x) = y, or least squares, for a differentiable stage.

    Each step linearises f at x and solves, with the Jacobian J of every sample (dense where
    it is small, else through products alone), the damped problem centred on the reference::

        x⁺ = x0 + argmin_e ‖J e − (y − f(x) + J (x − x0))‖² + λ²‖e‖²

    with backtracking on ‖y − f(x)‖; where that makes hardly any progress, a step of
    Levenberg and Marquardt towards the wanted output alone, ``argmin_p ‖J p − (y − f(x))‖² +
    μ²‖p‖²``, with a μ per sample that grows where steps fail. The answer is exact for an
    affine stage and otherwise tends to a stationary point, slowly where the wanted output
    stays far; it is never worse than the reference.

    A number as ``damping`` is the λ of ``‖f(x) − y‖² + λ²‖x − x0‖²``. With "auto" every
    sample has a λ of its own, 1e-2 σ_max(J) at first, smaller after full steps and larger
    after shortened ones (iteratively regularised Gauss-Newton, Bakushinskii 1992), and the
    output is still met as far as possible; a sample that hardly gets nearer is given up.

    Raises
    ------
    UnsupportedLayerError
        If the stage cannot be differentiated with respect to its input.
    """

    def __init__(self, layer: nn.Module, in_shape: Size, options: InversionOptions) -> None:
        super().__init__(layer, in_shape, options)
        self.automatic = options.damping == "auto"
        self.penalty = 0.0 if self.automatic else float(options.damping)
        self._check_differentiable()

    def _check_differentiable(self) -> None:
        name = type(self.layer).__name__
        device = module_device(self.layer)
        # not along the line of the probes either
        waves = uneven(5, self.in_shape, device)
        probe = per_row(torch.linspace(0.0, 1.0, 5, device=device), waves) * (1 + waves[:1]) / 2
        try:
            change = Jacobian(self.layer, probe).apply(waves)
            output = self.layer(probe)
            varies = row_norms(output - output[:1]) > VARIATION * row_norms(output)
            flat = not change.any() and bool(varies.any())
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
        rows = rows_at_a_time(wanted, reference)
        parts = [
            self._invert(*chunk)
            for chunk in zip(wanted.split(rows), reference.split(rows), strict=True)
        ]
        worst = max(parts, key=lambda part: (not part.converged, part.residual))
        return replace(
            worst,
            solution=torch.cat([part.solution for part in parts]),
            iterations=max(part.iterations for part in parts),
        )

    def _invert(self, wanted: Tensor, reference: Tensor) -> SolveResult:
        state = _Search(self.layer, wanted, reference, self.penalty)
        damping = self.penalty
        while state.active.any() and state.steps < MAX_STEPS:
            state.steps += 1
            rows = state.active.nonzero()[:, 0]
            part = state.select(rows)
            damping = self._step(part)
            state.update(rows, part)
        return self._result(state, damping)

    def _step(self, state: _Search) -> float:
        """Move every sample that can be moved; return their largest λ."""
        jacobian = linearise(self.layer, state.x)
        sigma = state.largest_singular_values(jacobian)
        damping = torch.full_like(sigma, self.penalty)
        if self.automatic:
            # where nothing moves the output, any λ > 0 leaves the sample where it is
            damping = torch.where(sigma > 0, sigma * state.trust, 1e-12)
        gradient = state.gradient(jacobian)
        # a step that damping holds back makes hardly any progress: restoring then helps more
        progress = ROUNDING if self.penalty else PROGRESS
        offset = state.x - state.reference
        centred = jacobian.damped(state.residual + jacobian.apply(offset), damping) - offset
        length = state.try_step(centred, gradient, progress)
        stuck = (length == 0) & ~state.met()
        if stuck.any():
            step = self._restoring(jacobian, state, sigma)
            length = length + state.try_step(step, gradient, ROUNDING, only=stuck)
        state.adapt(length, torch.ones_like(stuck) if self.automatic else stuck)
        done = state.stationary(gradient, sigma, STOP) | (state.trust >= LARGEST_TRUST)
        state.active = (length > 0) | ~done
        if self.automatic:
            # λ > 0 holds centred steps short of an output that a restoring one has met
            state.active &= ~state.met() & state.promising(gradient, sigma)
        return float(damping.max())

    def _restoring(
        self, jacobian: Jacobian | DenseJacobian, state: _Search, sigma: Tensor
    ) -> Tensor:
        """Solve min ‖J p − r‖² + λ²‖x + p − x0‖² + μ²‖p‖², every sample with its own μ.

        The two penalties are one, (λ² + μ²)‖p − q‖², around q = λ²/(λ² + μ²)·(x0 − x).
        """
        trust = (state.trust * sigma).clamp_min(1e-12)
        both = (trust.square() + self.penalty**2).sqrt()
        centre = per_row((self.penalty / both) ** 2, state.x) * (state.reference - state.x)
        return centre + jacobian.damped(state.residual - jacobian.apply(centre), both)

    def _result(self, state: _Search, damping: float) -> SolveResult:
        relative = state.relative_residual()
        jacobian = Jacobian(self.layer, state.x)
        sigma = state.largest_singular_values(jacobian)
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


class _Search:
    """Where each sample stands: its input, its residual, whether it still moves."""

    def __init__(self, layer: nn.Module, wanted: Tensor, reference: Tensor, penalty: float) -> None:
        self.layer = layer
        self.wanted = wanted
        self.reference = reference
        self.penalty = penalty
        self.x = reference
        self.residual = wanted - layer(reference)
        self.active = ~self.met()
        self.trust = torch.full_like(self.active, FIRST_TRUST, dtype=reference.dtype)
        self.steps = 0
        self.stretched = torch.zeros_like(reference)
        # the merit and its slope when one of them was last seen to fall, and steps since
        self.best_merit = torch.full_like(self.trust, torch.inf)
        self.best_slope = torch.full_like(self.trust, torch.inf)
        self.idle = torch.zeros_like(self.trust)

    _ROWS = (
        *("wanted", "reference", "x", "residual", "active", "trust", "stretched"),
        *("best_merit", "best_slope", "idle"),
    )

    def select(self, rows: Tensor) -> _Search:
        """Return the search of some samples alone."""
        part = copy.copy(self)
        for name in self._ROWS:
            setattr(part, name, getattr(self, name)[rows])
        return part

    def update(self, rows: Tensor, part: _Search) -> None:
        """Take over where some samples have got to."""
        for name in self._ROWS:
            values = getattr(self, name).clone()
            values[rows] = getattr(part, name)
            setattr(self, name, values)

    def stationary(self, gradient: Tensor, sigma: Tensor, tolerance: float) -> Tensor:
        """Where the merit is flat, or the wanted output met."""
        size = self._merit(self.x, self.residual).sqrt()
        flat = row_norms(gradient) <= tolerance * (sigma + self.penalty) * size
        return flat | self.met()

    def promising(self, gradient: Tensor, sigma: Tensor) -> Tensor:
        """Whether the merit or its slope still falls, within some patience."""
        merit = self._merit(self.x, self.residual)
        slope = row_norms(gradient) / sigma.clamp_min(1e-300)
        falls = (merit < 0.8 * self.best_merit) | (slope < 0.5 * self.best_slope)
        self.best_merit = torch.where(falls, merit, self.best_merit)
        self.best_slope = torch.where(falls, slope, self.best_slope)
        self.idle = torch.where(falls, 0.0, self.idle + 1)
        return self.idle < PATIENCE

    def adapt(self, length: Tensor, only: Tensor) -> None:
        """Take smaller steps where they failed, larger ones again where they helped."""
        factor = torch.where(length == 1, 0.1, torch.where(length > 0, 3.0, 10.0))
        changed = (self.trust * factor).clamp(SMALLEST_TRUST, LARGEST_TRUST)
        self.trust = torch.where(only & ~self.met(), changed, self.trust)

    def relative_residual(self) -> Tensor:
        return row_norms(self.residual) / row_norms(self.wanted).clamp_min(1e-12)

    def met(self) -> Tensor:
        return self.relative_residual() <= MET

    def largest_singular_values(self, jacobian: LinearMap) -> Tensor:
        """Estimate σ_max of each sample within about a tenth, by power iteration.

        It begins with the direction of the last step, and then two rounds are enough.
        """
        first = self.steps <= 1
        start, rounds = (self.residual, 8) if first else (jacobian.apply(self.stretched), 2)
        sigma, self.stretched = _largest_singular_values(jacobian, start, rounds)
        return sigma

    def gradient(self, jacobian: LinearMap) -> Tensor:
        """Return minus half the gradient of the merit, the way down."""
        return jacobian.adjoint(self.residual) - self.penalty**2 * (self.x - self.reference)

    def try_step(
        self, step: Tensor, gradient: Tensor, progress: float, only: Tensor | None = None
    ) -> Tensor:
        """Move the active samples along a step, halved until it helps; return by what share.

        Helping is a fair share of the decrease that the slope predicts, and ``progress``
        at least, relative to the merit and the length of the step.
        """
        open_ = self.active if only is None else self.active & only
        moved = torch.zeros_like(self.trust)
        slope = 2 * row_dots(gradient, step)
        least = torch.maximum(SHARE * slope, progress * self._merit(self.x, self.residual))
        least = torch.where(slope > 0, least, torch.inf)
        length = 1.0
        for _ in range(MAX_HALVINGS):
            candidate = self.x + length * step
            residual = self.wanted - self.layer(candidate)
            better = open_ & self._improves(candidate, residual, length * least)
            self.x = torch.where(per_row(better, self.x), candidate, self.x)
            self.residual = torch.where(per_row(better, residual), residual, self.residual)
            moved = torch.where(better, length, moved)
            open_ = open_ & ~better
            if not open_.any():
                break
            length /= 2
        return moved

    def _improves(self, candidate: Tensor, residual: Tensor, least: Tensor) -> Tensor:
        new, old = self._merit(candidate, residual), self._merit(self.x, self.residual)
        far, near = row_norms(self.x - self.reference), row_norms(candidate - self.reference)
        met = MET * row_norms(self.wanted).clamp_min(1e-12)
        # among inputs that meet the wanted output, nearer is better
        both_meet = (row_norms(residual) <= met) & (row_norms(self.residual) <= met)
        nearer = near < (1 - 1e-9) * far
        return (new < old - least) | (both_meet & nearer)

    def _merit(self, x: Tensor, residual: Tensor) -> Tensor:
        return row_norms(residual) ** 2 + self.penalty**2 * row_norms(x - self.reference) ** 2


def _largest_singular_values(
    jacobian: LinearMap, start: Tensor, rounds: int
) -> tuple[Tensor, Tensor]:
    """Return the estimates of a power iteration, and the directions that are stretched most."""
    direction = jacobian.adjoint(torch.where(start == 0, 1.0, start))
    size = row_norms(direction)
    for _ in range(rounds):
        unit = direction / per_row(size.clamp_min(1e-300), direction)
        direction = jacobian.adjoint(jacobian.apply(unit))
        size = row_norms(direction)
    return size.sqrt(), direction
