"""Preconditioned conjugate gradients for many right-hand sides, with an honest end."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import torch
from torch import Tensor

__all__ = ["Product", "conjugate_gradients"]

Product = Callable[[Tensor], Tensor]
#: steps without a smaller residual after which nothing more is to be gained
PATIENCE = 5


def conjugate_gradients(
    product: Product,
    precondition: Product,
    rhs: Tensor,
    *,
    lift: Product | None = None,
    tolerance: float,
    accuracy: float = inf,
    max_iterations: int,
) -> tuple[Tensor, Tensor, int]:
    """Solve M z = rhs, M = product ∘ lift symmetric and positive semidefinite, for each sample.

    What is returned is lift(z): with A and A' for product and lift the d = A'z of least norm with
    A d = rhs, and z, which may be far larger, is never formed. Residuals are computed anew in
    every step, not carried along: what is returned is true, and a preconditioner of the same
    accuracy as M refines the answer instead of stalling. The best iterate of each sample is
    kept, and samples that are done are left out once they are the half.

    Parameters
    ----------
    product, precondition : callable
        Multiply (n_samples, n) by M, or by its first part, and by an approximate inverse of M:
        any samples.
    rhs : Tensor of shape (n_samples, n)
        Right-hand sides, in the range of M.
    lift : callable, optional
        The second part of M, the adjoint of the first; by default there is none.
    tolerance : float
        Of the residual, relative to the right-hand side.
    accuracy : float
        Of lift(z), relative to its norm; by default that is not looked at. Its error is √(ρ'M⁻¹ρ),
        ρ the residual, and the preconditioner stands for M⁻¹.
    max_iterations : int
        At most.

    Returns
    -------
    solution : Tensor of shape (n_samples, n), or what ``lift`` makes of it
    residual : Tensor of shape (n_samples,)
        Relative, of the solution returned.
    iterations : int
        Made.
    """
    size = rhs.norm(dim=1).clamp_min(torch.finfo(rhs.dtype).tiny)
    direction, old = torch.zeros_like(rhs), torch.ones_like(size)
    x = best = lift(direction) if lift else direction
    least, residual = torch.ones_like(size), rhs
    waiting = torch.zeros_like(size, dtype=torch.int64)
    running = torch.ones_like(size, dtype=torch.bool)
    found, reached, live = best.clone(), least.clone(), torch.arange(len(rhs), device=rhs.device)
    iterations = 0
    while iterations < max_iterations:
        better = precondition(residual)
        new = (residual * better).sum(dim=1)
        running &= (least > tolerance) | (new > (accuracy * x.norm(dim=1)) ** 2)
        running &= waiting < PATIENCE
        count = int(running.sum())
        if count <= len(running) // 2:
            # the others have what they shall have
            found[live], reached[live] = best, least
            if not count:
                break
            state = live, rhs, size, direction, old, x, best, least, residual, waiting, better, new
            kept = (values[running] for values in state)
            live, rhs, size, direction, old, x, best, least, residual, waiting, better, new = kept
            running = running[running]
        iterations += 1
        direction = better + (new / old)[:, None] * direction
        lifted = lift(direction) if lift else direction
        curvature = (lifted.square() if lift else direction * product(lifted)).sum(dim=1)
        step = torch.where(curvature > 0, new / curvature, 0.0)
        x = x + step[:, None] * lifted
        residual, old = rhs - product(x), torch.where(new > 0, new, 1.0)
        now = residual.norm(dim=1) / size
        lower = now < least
        best = torch.where(lower[:, None], x, best)
        least = torch.where(lower, now, least)
        waiting = torch.where(lower, 0, waiting + 1)
    found[live], reached[live] = best, least
    return found, reached, iterations
