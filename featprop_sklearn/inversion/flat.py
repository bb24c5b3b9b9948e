"""Activations with flat pieces: the nearest point of the preimage interval."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from featprop_sklearn.inversion.base import Inverter
from featprop_sklearn.inversion.elementwise import Describe, Elementwise, Piece
from featprop_sklearn.inversion.monotone import INSIDE

__all__ = ["INVERTERS", "Flat"]

_INF = math.inf


def constant(low: float, high: float, value: float) -> Piece:
    """Return the piece on which the activation is one value."""
    return Piece((low, high), (value, value))


def shifted(low: float, high: float, shift: float = 0.0) -> Piece:
    """Return the piece on which the activation is x + shift."""
    return Piece((low, high), (low + shift, high + shift), lambda v: v - shift)


def clipped(low: float, high: float) -> tuple[Piece, ...]:
    """Return the pieces of the clipping of x to [low, high]."""
    return constant(-_INF, low, low), shifted(low, high), constant(high, _INF, high)


def relu(_: nn.ReLU) -> tuple[Piece, ...]:
    """Return the pieces of max(x, 0)."""
    return constant(-_INF, 0, 0), shifted(0, _INF)


def hardsigmoid(_: nn.Hardsigmoid) -> tuple[Piece, ...]:
    """Return the pieces of x / 6 + 1/2, clipped to [0, 1]."""

    def inverse(v: Tensor) -> Tensor:
        return 6 * v - 3

    return constant(-_INF, -3, 0), Piece((-3, 3), (0, 1), inverse), constant(3, _INF, 1)


def threshold(layer: nn.Threshold) -> tuple[Piece, ...]:
    """Return the pieces of: x above the threshold, elsewhere one value; it may jump there."""
    return constant(-_INF, layer.threshold, layer.value), _identity_above(layer.threshold)


def hardshrink(layer: nn.Hardshrink) -> tuple[Piece, ...]:
    """Return the pieces of: x outside [−λ, λ], 0 inside; it jumps at both ends."""
    above = _identity_above(layer.lambd)
    (low, high), (lowest, highest) = above.domain, above.values
    below = Piece((-high, -low), (-highest, -lowest), above.inverse)
    return constant(-layer.lambd, layer.lambd, 0), above, below


def softshrink(layer: nn.Softshrink) -> tuple[Piece, ...]:
    """Return the pieces of: x moved towards 0 by λ, and 0 in between."""
    lambd = layer.lambd
    return (
        constant(-lambd, lambd, 0),
        Piece((lambd, _INF), (0, _INF), lambda v: v + lambd),
        Piece((-_INF, -lambd), (-_INF, 0), lambda v: v - lambd),
    )


def _identity_above(end: float) -> Piece:
    """Return the identity on the open interval beyond a jump."""
    # the values stop short of the jump by more than a rounding to float32 can cross
    lowest = end + INSIDE * max(1.0, abs(end))
    return Piece((math.nextafter(end, _INF), _INF), (lowest, _INF), lambda v: v)


PIECES: dict[type[nn.Module], Describe] = {
    nn.ReLU: relu,
    nn.ReLU6: lambda _: clipped(0, 6),
    nn.Hardtanh: lambda layer: clipped(layer.min_val, layer.max_val),
    nn.Hardsigmoid: hardsigmoid,
    nn.Threshold: threshold,
    nn.Hardshrink: hardshrink,
    nn.Softshrink: softshrink,
}


class Flat(Elementwise):
    """Activations with flat pieces.

    Where the wanted value is at or beyond a flat value, every input of that piece is as
    good: the reference clipped to the piece is the nearest.
    """

    table = PIECES


class Clipped(Flat):
    """Clippings: the inputs of a value form one interval, and the reference is clipped to it."""

    def _nearest(self, wanted: Tensor, reference: Tensor) -> Tensor:
        ((low, high), (lowest, highest), inverse) = next(
            (piece.domain, piece.values, piece.inverse)
            for piece in self.pieces()
            if piece.inverse is not None
        )
        if self.options.bounds is not None:
            ends = self.layer(wanted.new_tensor(self.options.bounds))
            wanted = wanted.clamp(*ends.tolist())
        x = inverse(wanted).clamp(low, high)
        left = x.masked_fill(wanted <= lowest, -_INF)
        right = x.masked_fill(wanted >= highest, _INF)
        met = self.layer(reference) == wanted
        return self._in_range(torch.where(met, reference, reference.clamp(left, right)))


INVERTERS: dict[type[nn.Module], type[Inverter]] = {
    **dict.fromkeys(PIECES, Flat),
    **dict.fromkeys((nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Hardsigmoid), Clipped),
}
