"""Elementwise activations as monotone pieces: the best input on each piece, then the best piece."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from featprop_sklearn.inversion.base import Inverter
from featprop_sklearn.inversion.jacobian import jvp
from featprop_sklearn.least_squares import SolveResult

__all__ = ["Describe", "Elementwise", "Piece", "bracketed_root", "by_chunks"]

_LARGEST = torch.finfo(torch.float64).max


@dataclass(frozen=True)
class Piece:
    """An interval on which an activation is monotone, or constant.

    Attributes
    ----------
    domain : tuple of (low, high)
        The interval, closed; infinite ends are allowed.
    values : tuple of (lowest, highest)
        What the activation takes there; a little short of an end that it never reaches.
    inverse : callable or None
        From values to inputs; None where the activation is constant.
    """

    domain: tuple[float, float]
    values: tuple[float | Tensor, float | Tensor]
    inverse: Callable[[Tensor], Tensor] | None = None


#: from a layer to its pieces, which together cover the real line
Describe = Callable[[Any], tuple[Piece, ...]]


class Elementwise(Inverter):
    """Solve min |x − x0| over argmin |f(x) − y|, x in a range, for each element by itself.

    On every monotone piece of f the best input follows from clipping y to the values of
    that piece; among the pieces the least residual wins, then the least distance to x0.
    Open ranges extend as far as f(x0), so that the answer is never worse than x0.
    Subclasses say in ``table`` of which pieces their activations are made.
    """

    supports_bounds = True
    elementwise = True
    #: a dozen temporaries of this size stay in the processor's cache
    entries_at_once: ClassVar[int] = 2**14
    table: ClassVar[dict[type[nn.Module], Describe]] = {}

    def pieces(self) -> tuple[Piece, ...]:
        """Return the monotone pieces of the layer."""
        known = next(kind for kind in type(self.layer).__mro__ if kind in self.table)
        return self.table[known](self.layer)

    @torch.no_grad()
    def invert(self, wanted: Tensor, reference: Tensor) -> SolveResult:  # noqa: D102
        return SolveResult(by_chunks(self._nearest, wanted, reference, self.entries_at_once))

    def _nearest(self, wanted: Tensor, reference: Tensor) -> Tensor:
        """Return the best of the best inputs on the pieces."""
        reference = self._in_range(reference)
        present = self.layer(reference)
        found = [self._best_on(piece, wanted, reference, present) for piece in self.pieces()]
        (best, value), *others = found
        if not others:
            return best
        lowest, highest = value, value
        for _, other in others:
            lowest, highest = torch.minimum(lowest, other), torch.maximum(highest, other)
        # beyond all values only their order counts, and a huge y would round it away
        wanted = wanted.clamp(lowest, highest)
        gap, distance = (value - wanted).abs_(), (best - reference).abs_()
        for x, value in others:
            other_gap, other_distance = (value - wanted).abs_(), (x - reference).abs_()
            better = (other_gap < gap) | ((other_gap == gap) & (other_distance < distance))
            best = torch.where(better, x, best)
            gap = torch.where(better, other_gap, gap)
            distance = torch.where(better, other_distance, distance)
        return best

    def _best_on(
        self, piece: Piece, wanted: Tensor, reference: Tensor, present: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the best inputs on one piece, and their outputs."""
        low, high = max(piece.domain[0], -_LARGEST), min(piece.domain[1], _LARGEST)
        lowest, highest = (
            torch.as_tensor(end, dtype=wanted.dtype, device=wanted.device) for end in piece.values
        )
        if piece.inverse is None:
            x, value = reference.clamp(low, high), lowest
        else:
            inside = (low <= reference) & (reference <= high)
            value = wanted
            if bool((lowest > -torch.inf).any()):
                value = value.maximum(lowest.where(~inside, present.minimum(lowest)))
            if bool((highest < torch.inf).any()):
                value = value.minimum(highest.where(~inside, present.maximum(highest)))
            x = piece.inverse(value).clamp(low, high)
            x = torch.where(inside & (value == present), reference, x)
        if self.options.bounds is not None:
            kept = self._in_range(x)
            value = torch.where(kept == x, value, self.layer(kept))
            x = kept
        return x, value

    def _in_range(self, x: Tensor) -> Tensor:
        return x if self.options.bounds is None else x.clamp(*self.options.bounds)


def by_chunks(
    nearest: Callable[[Tensor, Tensor], Tensor],
    wanted: Tensor,
    reference: Tensor,
    entries_at_once: int,
) -> Tensor:
    """Call ``nearest(wanted, reference)`` on as many rows at once as make so many entries."""
    rows = max(1, entries_at_once // max(1, prod(reference.shape[1:])))
    solution = torch.empty_like(reference)
    chunks = (batch.split(rows) for batch in (solution, wanted, reference))
    for part, y, x0 in zip(*chunks, strict=True):
        part.copy_(nearest(y, x0))
    return solution


def bracketed_root(
    function: Callable[[Tensor], Tensor], value: Tensor, low: Tensor, high: Tensor, rising: bool
) -> Tensor:
    """Solve function(x) = value, low ≤ x ≤ high, elementwise, for a monotone function.

    Newton's method; a step that leaves the bracket, or is not half as long as the one
    before the last, is replaced by bisection, so that the bracket always closes.

    Parameters
    ----------
    function : callable
        Elementwise, differentiable and monotone between ``low`` and ``high``.
    value, low, high : Tensor of shape (...)
        ``value`` lies between ``function(low)`` and ``function(high)``.
    rising : bool
        Whether the function increases.

    Returns
    -------
    Tensor of shape (...)
        The roots, to the last few digits of float64.
    """
    width = high - low
    roots = ((low + high) / 2).flatten()
    moving = width.flatten().nonzero()[:, 0]
    state = torch.stack([roots.view_as(low), low, high, width, width, value]).flatten(1)[:, moving]
    for _ in range(200):  # steps halve every second time: a bracket of 1e3 takes at most 130
        if not len(moving):
            break
        state, gap = _newton_or_bisection(function, state, rising)
        x, step, value_ = state[0], state[3], state[5]
        roots[moving] = x
        unsettled = (step > 2e-16 * x.abs()) & (gap.abs() > 2e-16 * value_.abs())
        moving, state = moving[unsettled], state[:, unsettled]
    return roots.reshape(value.shape)


def _newton_or_bisection(
    function: Callable[[Tensor], Tensor], state: Tensor, rising: bool
) -> tuple[Tensor, Tensor]:
    """Make one step from (x, low, high, length of the last step, of the one before, value).

    Return the new state, and by how much the function missed the value before the step.
    """
    x, low, high, last, before, value = state
    output, slope = jvp(function, x, torch.ones_like(x))
    gap = output - value
    below = gap < 0 if rising else gap > 0
    low = torch.where(below, x, low)
    high = torch.where(below | (gap == 0), high, x)
    newton = x - gap / slope
    trusted = (low <= newton) & (newton <= high) & (2 * (newton - x).abs() <= before)
    following = torch.where(trusted, newton, (low + high) / 2)
    following = torch.where(gap == 0, x, following)
    return torch.stack([following, low, high, (following - x).abs(), last, value]), gap
