"""The shortest step that meets a few linear conditions, for many samples at once.

    min ½‖e‖²  subject to  J e >= b (or = b)  and  lower <= e <= upper

Conditions are few (competitors of a label), coordinates many (a feature): the dual has one
unknown a condition, and is solved by a projected Newton method (Bertsekas, "Projected Newton
methods for optimization problems with simple constraints", 1982, doi:10.1137/0320018). For a
given λ the best step is Jᵀλ, clipped to the range.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Range", "least_norm"]

MAX_ITERATIONS = 50
MAX_HALVINGS = 12
#: conditions that contradict each other share the miss, as in a least-squares problem
REGULARISATION = 1e-6
TOLERANCE = 1e-9

Range = tuple[Tensor, Tensor]


@torch.no_grad()
def least_norm(
    jacobian: Tensor, bound: Tensor, *, equality: bool, allowed: Range | None = None
) -> tuple[Tensor, Tensor]:
    """Solve the problem for each sample.

    Parameters
    ----------
    jacobian : Tensor of shape (n_samples, n_conditions, n_coordinates)
        J; a row of zeros is a condition that no step can serve, and is left out.
    bound : Tensor of shape (n_samples, n_conditions)
        b; −inf asks for nothing.
    equality : bool
        Whether J e = b is asked.
    allowed : tuple of two Tensors that broadcast to (n_samples, n_coordinates), optional
        lower and upper.

    Returns
    -------
    step : Tensor of shape (n_samples, n_coordinates), float64
        e.
    multipliers : Tensor of shape (n_samples, n_conditions), float64
        λ of the conditions scaled to rows of norm 1; zero where a condition does not bind.
    """
    jacobian = jacobian.double()
    norm = jacobian.norm(dim=2)
    served = (norm > 0) & torch.isfinite(bound)
    scale = torch.where(served, norm, torch.ones_like(norm))
    jacobian = torch.where(served[..., None], jacobian / scale[..., None], 0.0)
    bound = torch.where(served, bound.double() / scale, 0.0)
    dual = _Dual(jacobian, bound, allowed)
    multipliers = torch.zeros_like(bound)
    value, gradient, hessian = dual.at(multipliers)
    tolerance = TOLERANCE * bound.abs().amax(dim=1).clamp_min(1e-300)
    for _ in range(MAX_ITERATIONS):
        fixed = torch.zeros_like(served) if equality else (multipliers <= 0) & (gradient <= 0)
        fixed = fixed | ~served
        done = ((gradient.abs() <= tolerance[:, None]) | fixed).all(dim=1)
        if done.all():
            break
        direction = _newton(hessian, gradient, fixed)
        length = torch.ones_like(value)
        new = multipliers
        for _ in range(MAX_HALVINGS):
            trial = multipliers + length[:, None] * direction
            trial = trial if equality else trial.clamp_min(0)
            better = ~done & (dual.value(trial) >= value)
            new = torch.where(better[:, None], trial, new)
            done = done | better
            if done.all():
                break
            length = torch.where(better, length, length / 2)
        if torch.equal(new, multipliers):
            break
        multipliers = new
        value, gradient, hessian = dual.at(multipliers)
    return dual.step(multipliers), multipliers


def _newton(hessian: Tensor, gradient: Tensor, fixed: Tensor) -> Tensor:
    """Solve for the free multipliers alone; the fixed ones do not move."""
    free = ~fixed
    eye = torch.eye(fixed.shape[1], dtype=hessian.dtype, device=hessian.device)
    matrix = torch.where(free[:, :, None] & free[:, None, :], hessian, eye)
    return torch.linalg.solve(matrix, torch.where(free, gradient, 0.0))


class _Dual:
    """q(λ) = λᵀb − ½ρ‖λ‖² − max_e (λᵀJe − ½‖e‖²) over the allowed e: concave, smooth."""

    def __init__(self, jacobian: Tensor, bound: Tensor, allowed: Range | None) -> None:
        self.jacobian = jacobian
        self.bound = bound
        self.allowed = allowed
        self.gram = jacobian @ jacobian.mT
        self.ridge = REGULARISATION * torch.eye(
            bound.shape[1], dtype=bound.dtype, device=bound.device
        )

    def step(self, multipliers: Tensor) -> Tensor:
        pulled = (multipliers[:, None, :] @ self.jacobian)[:, 0]
        if self.allowed is None:
            return pulled
        return torch.minimum(torch.maximum(pulled, self.allowed[0]), self.allowed[1])

    def value(self, multipliers: Tensor) -> Tensor:
        size = REGULARISATION * multipliers.square().sum(1)
        if self.allowed is None:
            size = size + ((multipliers[:, None] @ self.gram)[:, 0] * multipliers).sum(1)
        else:
            pulled = (multipliers[:, None, :] @ self.jacobian)[:, 0]
            step = torch.minimum(torch.maximum(pulled, self.allowed[0]), self.allowed[1])
            size = size + (2 * pulled * step - step.square()).sum(1)
        return (multipliers * self.bound).sum(1) - size / 2

    def at(self, multipliers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Value, gradient and (generalised) negative Hessian."""
        ridge = REGULARISATION * multipliers
        if self.allowed is None:
            reached = (self.gram @ multipliers[..., None])[..., 0]
            curvature = self.gram
        else:
            pulled = (multipliers[:, None, :] @ self.jacobian)[:, 0]
            lower, upper = self.allowed
            step = torch.minimum(torch.maximum(pulled, lower), upper)
            reached = (self.jacobian @ step[..., None])[..., 0]
            free = ((pulled >= lower) & (pulled <= upper)).to(pulled)
            curvature = (self.jacobian * free[:, None, :]) @ self.jacobian.mT
        return self.value(multipliers), self.bound - reached - ridge, curvature + self.ridge
