"""Elementwise activations as monotone pieces; the strictly monotone ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import jvp

from featprop_sklearn.inversion.base import InversionOptions, Inverter
from featprop_sklearn.least_squares import SolveResult
from featprop_sklearn.networks.functional import Exp

__all__ = ["INSIDE", "INVERTERS", "Elementwise", "Monotone", "PReLU", "Piece", "bracketed_root"]

#: how far inside an open range a wanted output is clipped
INSIDE = 1e-6
_INF = math.inf
_LARGEST = torch.finfo(torch.float64).max


@dataclass(frozen=True)
class Piece:
    """An interval on which an activation is monotone, or constant.

    Attributes
    ----------
    domain : tuple of (low, high)
        The interval, closed; infinite ends are allowed.
    values : tuple of (lowest, highest)
        What the activation takes there; :data:`INSIDE` short of an end that it never reaches.
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
    table: ClassVar[dict[type[nn.Module], Describe]] = {}

    def __init__(self, layer: nn.Module, in_shape: torch.Size, options: InversionOptions) -> None:
        super().__init__(layer, in_shape, options)
        if hasattr(layer, "inplace"):
            # the reference is still needed after a forward pass
            layer.inplace = False  # type: ignore[assignment]

    def pieces(self) -> tuple[Piece, ...]:
        """Return the monotone pieces of the layer."""
        known = next(kind for kind in type(self.layer).__mro__ if kind in self.table)
        return self.table[known](self.layer)

    def invert(self, wanted: Tensor, reference: Tensor) -> SolveResult:  # noqa: D102
        reference = self._in_range(reference)
        present = self.layer(reference)
        found = [self._best_on(piece, wanted, reference, present) for piece in self.pieces()]
        inputs, values = (torch.stack(each) for each in zip(*found, strict=True))
        # beyond all values only their order counts, and a huge y would round it away
        gaps = (values - wanted.clamp(values.amin(0), values.amax(0))).abs()
        distances = (inputs - reference).abs().clamp(max=_LARGEST)
        best = distances.masked_fill(gaps > gaps.amin(0), _INF).argmin(0, keepdim=True)
        return SolveResult(inputs.gather(0, best)[0])

    def _best_on(
        self, piece: Piece, wanted: Tensor, reference: Tensor, present: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the best inputs on one piece, and their outputs."""
        low, high = max(piece.domain[0], -_LARGEST), min(piece.domain[1], _LARGEST)
        inside = (low <= reference) & (reference <= high)
        lowest, highest = (
            torch.as_tensor(end, dtype=wanted.dtype, device=wanted.device) for end in piece.values
        )
        lowest = torch.where(inside, torch.minimum(lowest, present), lowest)
        highest = torch.where(inside, torch.maximum(highest, present), highest)
        value = torch.minimum(torch.maximum(wanted, lowest), highest)
        x = (reference if piece.inverse is None else piece.inverse(value)).clamp(low, high)
        x = torch.where(inside & (value == present), reference, x)
        if self.options.bounds is not None:
            kept = self._in_range(x)
            value = torch.where(kept == x, value, self.layer(kept))
            x = kept
        return x, value

    def _in_range(self, x: Tensor) -> Tensor:
        return x if self.options.bounds is None else x.clamp(*self.options.bounds)


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
    x, step, earlier = (low + high) / 2, high - low, high - low
    sign = 1.0 if rising else -1.0
    for _ in range(200):  # steps halve every second time: a bracket of 1e3 takes at most 130
        output, slope = jvp(function, (x,), (torch.ones_like(x),))[:2]
        gap = output - value
        low = torch.where(sign * gap < 0, x, low)
        high = torch.where(sign * gap > 0, x, high)
        newton = x - gap / slope
        trusted = (low <= newton) & (newton <= high) & (2 * (newton - x).abs() <= earlier)
        following = torch.where(trusted, newton, (low + high) / 2)
        following = torch.where(gap == 0, x, following)
        earlier, step, x = step, (following - x).abs(), following
        if bool((step <= 2e-16 * x.abs()).all()):
            break
    return x


def slopes(negative: float | Tensor) -> tuple[Piece, ...]:
    """Return the pieces of x for x ≥ 0 and negative · x below; any sign, a tensor per channel."""
    slope = torch.as_tensor(negative, dtype=torch.float64)
    lowest = torch.where(slope > 0, -_INF, 0.0)
    highest = torch.where(slope < 0, _INF, 0.0)
    # a zero slope takes the value 0 alone, and any divisor sends that to the end of the piece
    divisor = torch.where(slope == 0, 1.0, slope)
    return (
        Piece((0, _INF), (0, _INF), lambda v: v),
        Piece((-_INF, 0), (lowest, highest), lambda v: v / divisor),
    )


def exponential(scale: float, width: float = 1.0, slope: float = 1.0) -> tuple[Piece, ...]:
    """Return the pieces of slope · x for x ≥ 0 and scale · (exp(x / width) − 1) below."""
    end = -scale * (1 - INSIDE) if width > 0 else -_INF
    return (
        Piece((0, _INF), (0, _INF), lambda v: v / slope),
        Piece(
            (-_INF, 0),
            (min(end, 0.0), max(end, 0.0)),
            lambda v: width * torch.log1p(v / (scale or 1.0)),
        ),
    )


def selu(layer: nn.SELU) -> tuple[Piece, ...]:
    """Return the pieces of SELU, whose two constants are read off the layer's own outputs."""
    far, one = layer(torch.tensor([-_INF, 1.0], dtype=torch.float64)).tolist()
    return exponential(-far, slope=one)


def softplus(layer: nn.Softplus) -> tuple[Piece, ...]:
    """Return the pieces of softplus: log(1 + exp(βx)) / β up to a threshold, then x itself."""
    beta, threshold = float(layer.beta), float(layer.threshold)
    if beta <= 0:
        raise ValueError(
            f"beta of Softplus must be positive for an inversion; got {beta}. "
            "Use a positive beta, or register an inverter for a subclass of the layer."
        )
    switch = threshold / beta
    highest = (max(threshold, 0.0) + math.log1p(math.exp(-abs(threshold)))) / beta
    return (
        Piece(
            (-_INF, switch),
            (min(INSIDE / beta, highest), highest),
            lambda v: v + torch.log(-torch.expm1(-beta * v)) / beta,
        ),
        Piece((math.nextafter(switch, _INF), _INF), (switch, _INF), lambda v: v),
    )


def strictly_monotone(
    lowest: float, highest: float, inverse: Callable[[Tensor], Tensor]
) -> Describe:
    """Describe an activation without parameters; its range is given as in :class:`Piece`."""
    return lambda _: (Piece((-_INF, _INF), (lowest, highest), inverse),)


PIECES: dict[type[nn.Module], Describe] = {
    nn.Tanh: strictly_monotone(INSIDE - 1, 1 - INSIDE, torch.atanh),
    nn.Sigmoid: strictly_monotone(INSIDE, 1 - INSIDE, torch.logit),
    nn.LogSigmoid: strictly_monotone(-_INF, -INSIDE, lambda v: v - torch.log(-torch.expm1(v))),
    nn.Softsign: strictly_monotone(INSIDE - 1, 1 - INSIDE, lambda v: v / (1 - v.abs())),
    nn.Tanhshrink: strictly_monotone(
        -_INF,
        _INF,
        lambda v: bracketed_root(nn.functional.tanhshrink, v, v - 1, v + 1, rising=True),
    ),
    Exp: strictly_monotone(INSIDE, _INF, torch.log),
    nn.LeakyReLU: lambda layer: slopes(layer.negative_slope),
    nn.RReLU: lambda layer: slopes((layer.lower + layer.upper) / 2),
    nn.ELU: lambda layer: exponential(layer.alpha),
    nn.CELU: lambda layer: exponential(layer.alpha, width=layer.alpha),
    nn.SELU: selu,
    nn.Softplus: softplus,
}


class Monotone(Elementwise):
    """Strictly monotone activations: x = f⁻¹(y), y clipped into the open range.

    Slopes and scales of either sign are served: where a learned one makes the layer
    flat or turns it round, the nearest of the best inputs is taken.
    """

    table = PIECES


class PReLU(Elementwise):
    """Leaky ReLU with learned slopes, one per layer or one per channel."""

    def pieces(self) -> tuple[Piece, ...]:  # noqa: D102
        weight = self.layer.get_parameter("weight")
        return slopes(weight.reshape(-1, *[1] * (len(self.in_shape) - 1)))


INVERTERS: dict[type[nn.Module], type[Inverter]] = {
    **dict.fromkeys(PIECES, Monotone),
    nn.PReLU: PReLU,
}
