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
#: where roots are looked up to begin with: how many nodes, how far from the minimum; there
#: the left branches are below TAIL and the right ones x to rounding
N_NODES, FARTHEST = 2**12, 64.0


def two_branches(layer: nn.Module, minimiser: float) -> tuple[Piece, ...]:
    """Return the pieces of f(x) = x · g(x): down from 0 to the minimum, then up to about x."""
    lowest = float(layer(torch.tensor(minimiser, dtype=torch.float64)))
    # dense near the minimum, where roots move fastest
    away = FARTHEST * torch.linspace(0, 1, N_NODES, dtype=torch.float64).square()
    left_nodes, right_nodes = minimiser - away, minimiser + away
    left_values, right_values = (sorted_values(layer, x) for x in (left_nodes, right_nodes))

    def left(v: Tensor) -> Tensor:
        near, far = around(left_nodes, left_values, v)
        # |low| exp(low) = |low| v² / e² ≤ |v|, and −|x| exp(x) ≤ f(x) for x < 0; an output of 0
        # is one that underflowed
        low = 2 * torch.log((-v).clamp(min=1e-300)) - 2
        far = torch.where(v < left_values[-2].to(v.device), far, low)
        counts = (v > lowest) & (v != TAIL)  # the other roots that count are on the right
        end = torch.full_like(v, minimiser).where(v != TAIL, far)
        low, high = torch.where(counts, far, end), torch.where(counts, near, end)
        return bracketed_root(layer, v, low, high, rising=False)

    def right(v: Tensor) -> Tensor:
        near, far = around(right_nodes, right_values, v)
        far = torch.where(v < right_values[-1].to(v.device), far, v + 1)  # x − 1 ≤ f(x), x > 0
        high = torch.where(v > lowest, far, minimiser)
        low = torch.where(v > lowest, near, minimiser)
        return bracketed_root(layer, v, low, high, rising=True)

    return (
        Piece((minimiser, _INF), (lowest, _INF), right),
        Piece((-_INF, minimiser), (lowest, TAIL), left),
    )


def sorted_values(layer: nn.Module, nodes: Tensor) -> Tensor:
    """Return the values of a layer, increasing but for their rounding, made to increase."""
    return layer(nodes).cummax(0).values


def around(nodes: Tensor, values: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Return the nodes on both sides of a root, with one to spare on each side."""
    above = torch.searchsorted(values.to(wanted.device), wanted)
    near, far = (above - 2).clamp(min=0), (above + 1).clamp(max=len(nodes) - 1)
    nodes = nodes.to(wanted.device)
    return nodes[near], nodes[far]


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

    #: the last few roots take many small rounds, which large chunks share
    entries_at_once = 2**17
    table = PIECES


INVERTERS: dict[type[nn.Module], type[Inverter]] = dict.fromkeys(PIECES, NonMonotone)
