"""Activations with one minimum: the root nearest to the reference, one branch on each side."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from featprop_sklearn.inversion.base import Inverter
from featprop_sklearn.inversion.elementwise import Describe, Elementwise, Piece, bracketed_root

__all__ = ["INVERTERS", "NonMonotone"]

_INF = math.inf
#: where GELU, SiLU and Mish are least
GELU_MINIMISER = -0.7517915246935645
GELU_TANH_MINIMISER = -0.7524614220710163
SILU_MINIMISER = -1.2784645427610737
MISH_MINIMISER = -1.1924312145154952
#: largest value on the left branch, which tends to 0; 0 itself is taken on the right
TAIL = -1e-15


def two_branches(layer: nn.Module, minimiser: float) -> tuple[Piece, ...]:
    """Return the pieces of f(x) = x · g(x): down from 0 to the minimum, then up to about x.

    The brackets hold because −|x| exp(x) ≤ f(x) for x < 0, and x − 1 ≤ f(x) for x > 0.
    """
    lowest = float(layer(torch.tensor(minimiser, dtype=torch.float64)))

    def left(v: Tensor) -> Tensor:
        # |low| exp(low) = |low| v² / e² ≤ |v|; an output of 0 is one that underflowed
        low = 2 * torch.log((-v).clamp(min=1e-300)) - 2
        end = torch.full_like(v, minimiser)
        high = torch.where(v == TAIL, low, end)  # the roots that count are on the right
        return bracketed_root(layer, v, torch.where(v > lowest, low, end), high, rising=False)

    def right(v: Tensor) -> Tensor:
        high = v.clamp(min=0) + 1
        end = torch.full_like(v, minimiser)
        return bracketed_root(layer, v, end, torch.where(v > lowest, high, end), rising=True)

    return (
        Piece((minimiser, _INF), (lowest, _INF), right),
        Piece((-_INF, minimiser), (lowest, TAIL), left),
    )


def hardswish(_: nn.Hardswish) -> tuple[Piece, ...]:
    """Return the pieces of x (x + 3) / 6 on [−3, 3], 0 below, x above."""

    def root(v: Tensor) -> Tensor:
        return (9 + 24 * v).clamp(min=0).sqrt()

    return (
        Piece((-_INF, -3), (0, 0)),
        Piece((-3, -1.5), (-0.375, 0), lambda v: -(3 + root(v)) / 2),
        Piece((-1.5, 3), (-0.375, 3), lambda v: 12 * v / (3 + root(v))),  # no cancellation at 0
        Piece((3, _INF), (3, _INF), lambda v: v),
    )


def gelu(layer: nn.GELU) -> tuple[Piece, ...]:
    """Return the two branches of GELU, in the form that the layer uses."""
    exact = layer.approximate == "none"
    return two_branches(layer, GELU_MINIMISER if exact else GELU_TANH_MINIMISER)


PIECES: dict[type[nn.Module], Describe] = {
    nn.GELU: gelu,
    nn.SiLU: lambda layer: two_branches(layer, SILU_MINIMISER),
    nn.Mish: lambda layer: two_branches(layer, MISH_MINIMISER),
    nn.Hardswish: hardswish,
}


class NonMonotone(Elementwise):
    """Activations with one minimum: the root nearest to x0; below the minimum, the minimiser."""

    table = PIECES


INVERTERS: dict[type[nn.Module], type[Inverter]] = dict.fromkeys(PIECES, NonMonotone)
