"""Nearest preimages under max pooling, whatever its windows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Size, Tensor, nn

from featprop_sklearn.inversion.base import Bounds, InversionOptions, Inverter
from featprop_sklearn.inversion.max_pool_windows import (
    POOL_DIMENSIONS,
    pooling_windows,
    window_of_each_position,
)
from featprop_sklearn.least_squares import SolveResult

__all__ = ["INVERTERS", "MaxPoolInverter"]

_ROUNDS_OF_AVERAGING = 5
_WINDOW_ENTRIES_AT_ONCE = 2**16


class MaxPoolInverter(Inverter):
    """Nearest input whose window maxima are the wanted ones.

    Solves, channel by channel, with W_w the positions of window w::

        minimise ||x - x0||^2   subject to   max over i in W_w of x_i = y_w   for all w

    Position i may not exceed u_i, the least y_w over the windows that hold it, so
    x = min(x0, u) is where every answer starts. A window that is then still below y_w
    needs one position raised to it; positions are raised greedily, the cheapest per
    window served first. Positions outside every window keep their reference.

    Disjoint windows, with or without padding: exact and nearest, in closed form (the
    greatest reference of the window is the one to raise, the first of equals).
    Overlapping windows: the wanted output is met whenever it is an output of the layer,
    nearness is a heuristic (it is a set cover). An output that no input has is replaced by
    one that some input has, found by averaging the wanted values over the windows that
    share a maximum; its residual is never above that of the reference, and need not be
    the smallest.

    With ``bounds`` the wanted outputs are clipped into the range first, and the
    preimages stay in it.

    Parameters
    ----------
    layer, in_shape, options
        See :class:`~featprop_sklearn.inversion.base.Inverter`.

    Raises
    ------
    ValueError
        If the layer returns indices beside its output.
    """

    supports_bounds = True

    def __init__(self, layer: nn.Module, in_shape: Size, options: InversionOptions) -> None:
        super().__init__(layer, in_shape, options)
        if layer.return_indices:
            raise ValueError(
                f"return_indices must be False for {type(layer).__name__} to be inverted; got "
                "True, which gives two outputs where a stage has one. Build the layer with "
                "return_indices=False."
            )
        windows, self.n_positions = pooling_windows(layer, in_shape)
        # Dilation can leave a window with nothing but padding: its output is always -inf.
        self.holds_any = (windows < self.n_positions).any(dim=1)
        self.windows = windows[self.holds_any]
        self.window_of = window_of_each_position(self.windows, self.n_positions)

    def invert(self, wanted: Tensor, reference: Tensor) -> SolveResult:  # noqa: D102
        pooling = self._pooling(reference.device)
        rows = reference.reshape(-1, self.n_positions)
        targets = wanted.reshape(len(rows), -1)[:, self.holds_any.to(reference.device)]
        at_once = max(1, _WINDOW_ENTRIES_AT_ONCE // max(1, self.windows.numel()))
        chunks = zip(targets.split(at_once), rows.split(at_once), strict=True)
        solution = torch.cat([pooling.best_preimage(y, x0) for y, x0 in chunks])
        return SolveResult(solution.reshape(reference.shape))

    def _pooling(self, device: torch.device) -> _DisjointPooling | _OverlappingPooling:
        windows, bounds = self.windows.to(device), self.options.bounds
        if self.window_of is None:
            return _OverlappingPooling(windows, self.n_positions, bounds)
        # the first position in place of the padding changes no maximum
        held = windows.where(windows < self.n_positions, windows[:, :1])
        return _DisjointPooling(held, self.window_of.to(device), bounds)


@dataclass(frozen=True)
class _DisjointPooling:
    """Max pooling of rows of positions, none of which lies in two windows."""

    windows: Tensor
    window_of: Tensor
    bounds: Bounds | None

    def best_preimage(self, wanted: Tensor, reference: Tensor) -> Tensor:
        """Clip what exceeds y; the greatest entry becomes y, be it clipped or raised."""
        possible, start = _clipped(wanted, self.bounds), _clipped(reference, self.bounds)
        ceiling = torch.nn.functional.pad(possible, (0, 1), value=torch.inf)[:, self.window_of]
        # of what the range has clipped alike, the nearest to y is the greatest reference
        greatest = reference[:, self.windows].max(dim=2, keepdim=True).indices
        position = self.windows.expand(len(reference), -1, -1).gather(2, greatest).squeeze(2)
        return start.minimum(ceiling).scatter_(1, position, possible)


@dataclass(frozen=True)
class _OverlappingPooling:
    """Max pooling of rows of positions, (n_rows, n_positions) -> (n_rows, n_windows)."""

    windows: Tensor
    n_positions: int
    bounds: Bounds | None

    def best_preimage(self, wanted: Tensor, reference: Tensor) -> Tensor:
        """Preimage where there is one, else the best of the compromises tried."""
        possible, start = _clipped(wanted, self.bounds), _clipped(reference, self.bounds)
        best = self._preimage(possible, start, reference)
        hard = (self.maxima(best) != possible).any(dim=1)
        if hard.any():
            best[hard] = self._compromise(wanted[hard], start[hard], reference[hard], best[hard])
        return best

    def maxima(self, x: Tensor) -> Tensor:
        """Window maxima."""
        return self._gather(x, -torch.inf).amax(dim=2)

    def _preimage(self, wanted: Tensor, start: Tensor, reference: Tensor) -> Tensor:
        """Meet every window that can be met without exceeding any, greedily by cost."""
        ceiling = self._ceiling(wanted)
        x = start.minimum(ceiling)
        goal = self.maxima(ceiling)
        # (u - x0)^2 - (x - x0)^2, written without the cancellation
        cost = ((ceiling - x) * (ceiling + x - 2 * reference)).clamp(max=torch.finfo(x.dtype).max)
        while (unmet := self.maxima(x) < goal).any():
            chosen = self._cheapest(cost, ceiling, goal, unmet)
            x = torch.where(chosen, ceiling, x)
        return x

    def _cheapest(self, cost: Tensor, ceiling: Tensor, goal: Tensor, unmet: Tensor) -> Tensor:
        """Positions that are the cheapest per window served in all windows they serve.

        These do not compete with each other, so that one round makes many choices of
        the sequential greedy rule at once; the cheapest of all is always among them
        (ties go to the lowest position, in every window alike).
        """
        serves = (self._gather(ceiling, -torch.inf) == goal[..., None]) & unmet[..., None]
        n_served = self._count(serves)
        score = (cost / n_served).where(n_served > 0, torch.inf)
        scores = self._gather(score, torch.inf).where(serves, torch.inf)
        preferred = torch.zeros_like(serves).scatter(2, scores.argmin(2, keepdim=True), True)
        return (n_served > 0) & (self._count(preferred & serves) == n_served)

    def _compromise(self, wanted: Tensor, start: Tensor, reference: Tensor, best: Tensor) -> Tensor:
        """Lower the residual of an unreachable output, as k-means does.

        Windows that share the position of their maximum can only be given one value,
        the best is their mean; the maxima then move, and so on. Begun at both inputs at hand.
        """
        for x in (best, start):
            for _ in range(_ROUNDS_OF_AVERAGING):
                possible = _clipped(self._averaged(wanted, x), self.bounds)
                x = self._preimage(possible, start, reference)
                best = torch.where(self._is_better(x, best, wanted), x, best)
        return torch.where(self._is_better(best, start, wanted), best, start)

    def _averaged(self, wanted: Tensor, x: Tensor) -> Tensor:
        """Mean of the wanted values over the windows whose maxima share a position.

        Of several positions with the maximum, the one that most windows share counts.
        """
        held = self._gather(x, -torch.inf)
        is_maximum = held == held.amax(dim=2, keepdim=True)
        sharing = self._gather(self._count(is_maximum), 0.0) * is_maximum
        place = sharing.argmax(dim=2, keepdim=True)
        position = self.windows.expand(len(x), -1, -1).gather(2, place).squeeze(2)
        empty = torch.zeros_like(x)
        mean = empty.scatter_reduce(1, position, wanted, "mean", include_self=False)
        return mean.gather(1, position)

    def _is_better(self, x: Tensor, other: Tensor, wanted: Tensor) -> Tensor:
        """Whether the residual of x is smaller, without the cancellation of two squares."""
        here, there = self.maxima(x), self.maxima(other)
        return ((here - there) * (here + there - 2 * wanted)).sum(1, keepdim=True) < 0

    def _ceiling(self, wanted: Tensor) -> Tensor:
        """Least wanted value over the windows that hold a position, inf outside them."""
        per_place = wanted[..., None].expand(-1, *self.windows.shape)
        highest = wanted.new_full((len(wanted), self.n_positions + 1), torch.inf)
        return highest.scatter_reduce(1, self._places(wanted), per_place.flatten(1), "amin")[:, :-1]

    def _count(self, marked: Tensor) -> Tensor:
        """Per position, the number of windows in which it is marked."""
        zeros = torch.zeros(len(marked), self.n_positions + 1, device=marked.device)
        marks = marked.flatten(1).to(zeros.dtype)
        return zeros.scatter_add(1, self._places(marked), marks)[:, :-1]

    def _gather(self, values: Tensor, fill: float) -> Tensor:
        """Values per window and place in it, (n_rows, n_windows, window_size)."""
        padded = torch.nn.functional.pad(values, (0, 1), value=fill)
        return padded[:, self.windows]

    def _places(self, like: Tensor) -> Tensor:
        """Position of every place of every window, once per row."""
        return self.windows.reshape(1, -1).expand(len(like), -1)


def _clipped(values: Tensor, bounds: Bounds | None) -> Tensor:
    return values if bounds is None else values.clamp(*bounds)


INVERTERS: dict[type[nn.Module], type[Inverter]] = dict.fromkeys(POOL_DIMENSIONS, MaxPoolInverter)
