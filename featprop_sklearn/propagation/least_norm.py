"""The shortest step that meets a few linear conditions, for many samples at once.

    min ½‖e‖²  subject to  J e >= b (or = b)  and  lower <= e <= upper

Conditions are few (competitors of a label), coordinates many (a feature): the dual is solved,
with one unknown λ a condition, and e is Jᵀλ clipped to the range. The dual is concave and
piecewise quadratic. A Newton step maximises the present piece over λ >= 0, and goes as far that
way as it leads up. Without a range there is one piece, and one step is exact.
"""

from __future__ import annotations

import torch
from torch import Tensor

from featprop_sklearn.least_squares.rows import row_dots, row_products
from featprop_sklearn.propagation.falling_root import falling_root
from featprop_sklearn.propagation.quadratic import nonnegative_maximum

__all__ = ["Range", "least_norm"]

#: conditions that contradict each other share the miss, as in a least-squares problem
REGULARISATION = 1e-6
#: the dual is solved where a step changes J e by less than this share of b
TOLERANCE = 1e-9
MAX_STEPS = 25
#: a search along a step ends where the dual rises by less than this share of what it did first
FLAT = 0.1
#: numbers of J worked on at a time, in float64: what fits into a cache
CHUNK = 1 << 19

Range = tuple[Tensor, Tensor]


@torch.no_grad()
def least_norm(
    jacobian: Tensor, bound: Tensor, *, equality: bool, allowed: Range | None = None
) -> tuple[Tensor, Tensor]:
    """Solve the problem for each sample.

    Parameters
    ----------
    jacobian : Tensor of shape (n_samples, n_conditions, n_coordinates)
        J. A row of zeros is a condition that no step can serve, and is left out, as is a row
        that is not finite.
    bound : Tensor of shape (n_samples, n_conditions)
        b; −inf asks for nothing.
    equality : bool
        Whether J e = b is asked.
    allowed : tuple of two Tensors that broadcast to (n_samples, n_coordinates), optional
        lower and upper, which may be infinite.

    Returns
    -------
    step : Tensor of shape (n_samples, n_coordinates)
        e, in the dtype of J; found in float64.
    multipliers : Tensor of shape (n_samples, n_conditions), float64
        λ of the conditions scaled to rows of norm 1; zero where a condition does not bind.
    """
    n_samples, n_conditions, n_coordinates = jacobian.shape
    step = jacobian.new_zeros(n_samples, n_coordinates)
    multipliers = jacobian.new_zeros(n_samples, n_conditions, dtype=torch.float64)
    n_rows = max(CHUNK // max(n_conditions * n_coordinates, 1), 1)
    if allowed is not None:
        allowed = (allowed[0].expand_as(step), allowed[1].expand_as(step))
    for rows in map(slice, range(0, n_samples, n_rows), range(n_rows, n_samples + n_rows, n_rows)):
        part = None if allowed is None else (allowed[0][rows].double(), allowed[1][rows].double())
        dual = _Dual.scaled(jacobian[rows].double(), bound[rows].double(), part)
        multipliers[rows] = dual.maximise(equality)
        step[rows] = dual.clip(dual.pull(multipliers[rows])).to(step)
    return step, multipliers


class _Dual:
    """q(λ) = λᵀb − ½ρ‖λ‖² − max_e (λᵀJe − ½‖e‖²) over the allowed e."""

    def __init__(self, jacobian: Tensor, bound: Tensor, allowed: Range | None) -> None:
        self.jacobian = jacobian
        self.bound = bound
        self.allowed = allowed

    @classmethod
    def scaled(cls, jacobian: Tensor, bound: Tensor, allowed: Range | None) -> _Dual:
        norm = jacobian.norm(dim=2)
        served = (norm > 0) & torch.isfinite(norm) & torch.isfinite(bound)
        jacobian = jacobian / torch.where(served, norm, torch.inf)[..., None]
        if not torch.isfinite(norm).all():
            jacobian = torch.where(served[..., None], jacobian, 0.0)
        return cls(jacobian, torch.where(served, bound / norm, 0.0), allowed)

    def __getitem__(self, rows: Tensor) -> _Dual:
        allowed = self.allowed and (self.allowed[0][rows], self.allowed[1][rows])
        return _Dual(self.jacobian[rows], self.bound[rows], allowed)

    def maximise(self, equality: bool) -> Tensor:
        multipliers = found = torch.zeros_like(self.bound)
        dual, live = self, torch.arange(len(found), device=found.device)
        for _ in range(MAX_STEPS):
            multipliers, left = dual.newton(multipliers, equality)
            found[live] = multipliers
            if not left.any():
                break
            if not left.all():
                dual, live, multipliers = dual[left], live[left], multipliers[left]
        return found

    def newton(self, multipliers: Tensor, equality: bool) -> tuple[Tensor, Tensor]:
        """Go to the maximum of the present piece; say which samples may not be at that of all."""
        pulled = self.pull(multipliers)
        step = self.clip(pulled)
        free = self.jacobian
        if self.allowed is not None:
            free = free * (pulled == step)[:, None]
        hessian = free @ self.jacobian.mT
        hessian.diagonal(dim1=1, dim2=2).add_(REGULARISATION)
        gradient = self.bound - row_products(self.jacobian, step) - REGULARISATION * multipliers
        linear = gradient + row_products(hessian, multipliers)
        goal = (
            torch.linalg.solve(hessian, linear)
            if equality
            else nonnegative_maximum(hessian, linear)
        )
        if self.allowed is None:
            return goal, torch.zeros(len(goal), dtype=torch.bool, device=goal.device)
        change = row_products(hessian, goal - multipliers).abs().amax(dim=1)
        left = change > TOLERANCE * self.bound.abs().amax(dim=1)
        way = torch.where(left[:, None], goal - multipliers, 0.0)
        share = self.share(multipliers, way, pulled)
        found = torch.where(left[:, None], multipliers + share[:, None] * way, goal)
        return found, left & (share > 0)

    def share(self, multipliers: Tensor, way: Tensor, pulled: Tensor) -> Tensor:
        """Return how far to go: all the way, or near to the maximum on it."""
        along = self.pull(way)
        linear = row_dots(way, self.bound - REGULARISATION * multipliers)
        curved = REGULARISATION * row_dots(way, way)

        def slope(share: Tensor) -> Tensor:
            step = self.clip(pulled + share[:, None] * along)
            return linear - share * curved - row_dots(along, step)

        return falling_root(slope, torch.zeros_like(linear), torch.ones_like(linear), FLAT)

    def pull(self, multipliers: Tensor) -> Tensor:
        return row_products(self.jacobian.mT, multipliers)

    def clip(self, pulled: Tensor) -> Tensor:
        if self.allowed is None:
            return pulled
        return torch.minimum(torch.maximum(pulled, self.allowed[0]), self.allowed[1])
