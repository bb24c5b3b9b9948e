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

from featprop_sklearn.least_squares.rows import row_products
from featprop_sklearn.propagation.quadratic import nonnegative_maximum

__all__ = ["Range", "least_norm"]

#: conditions that contradict each other share the miss, as in a least-squares problem
REGULARISATION = 1e-6
#: the dual is solved where a step changes J e by less than this share of b
TOLERANCE = 1e-9
MAX_STEPS = 25
MAX_BISECTIONS = 40
#: numbers of J worked on at a time, in float64
CHUNK = 2_000_000

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
        scale = torch.where(served, norm, 1.0)
        jacobian = torch.where(served[..., None], jacobian / scale[..., None], 0.0)
        return cls(jacobian, torch.where(served, bound / scale, 0.0), allowed)

    def __getitem__(self, rows: Tensor) -> _Dual:
        allowed = self.allowed and (self.allowed[0][rows], self.allowed[1][rows])
        return _Dual(self.jacobian[rows], self.bound[rows], allowed)

    def maximise(self, equality: bool) -> Tensor:
        multipliers = found = torch.zeros_like(self.bound)
        dual, live = self, torch.arange(len(found), device=found.device)
        for _ in range(MAX_STEPS):
            multipliers, change = dual.newton(multipliers, equality)
            found[live] = multipliers
            left = torch.nonzero(change > TOLERANCE * dual.bound.abs().amax(dim=1))[:, 0]
            if dual.allowed is None or not len(left):
                break
            if len(left) < len(live):
                dual, live, multipliers = dual[left], live[left], multipliers[left]
        return found

    def newton(self, multipliers: Tensor, equality: bool) -> tuple[Tensor, Tensor]:
        """Go to the maximum of the present piece, and say by how much that changes J e."""
        pulled = self.pull(multipliers)
        step = self.clip(pulled)
        free = self.jacobian * (pulled == step)[:, None]
        hessian = free @ self.jacobian.mT
        hessian.diagonal(dim1=1, dim2=2).add_(REGULARISATION)
        gradient = self.bound - row_products(self.jacobian, step) - REGULARISATION * multipliers
        linear = gradient + row_products(hessian, multipliers)
        goal = (
            torch.linalg.solve(hessian, linear)
            if equality
            else nonnegative_maximum(hessian, linear)
        )
        way = goal - multipliers
        share = 1.0 if self.allowed is None else self.share(multipliers, way, pulled)
        return multipliers + share * way, row_products(hessian, way).abs().amax(dim=1)

    def share(self, multipliers: Tensor, way: Tensor, pulled: Tensor) -> Tensor:
        """Return how far to go: all the way, or to within half of the maximum on it."""
        along = self.pull(way)
        linear = (way * (self.bound - REGULARISATION * multipliers)).sum(dim=1, keepdim=True)
        curved = REGULARISATION * way.square().sum(dim=1, keepdim=True)

        def up(share: Tensor) -> Tensor:
            step = self.clip(pulled + share * along)
            return linear - share * curved >= (along * step).sum(dim=1, keepdim=True)

        high = torch.ones_like(linear)
        low = torch.where(up(high), high, 0.0)
        for _ in range(MAX_BISECTIONS):
            if (2 * low >= high).all():
                break
            middle = (low + high) / 2
            rising = up(middle)
            low, high = torch.where(rising, middle, low), torch.where(rising, high, middle)
        return low

    def pull(self, multipliers: Tensor) -> Tensor:
        return row_products(self.jacobian.mT, multipliers)

    def clip(self, pulled: Tensor) -> Tensor:
        if self.allowed is None:
            return pulled
        return torch.minimum(torch.maximum(pulled, self.allowed[0]), self.allowed[1])
