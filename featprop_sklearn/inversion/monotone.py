"""Strictly monotone activations: their inverses, and the open ranges that these are asked in."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from featprop_sklearn.inversion.base import Inverter
from featprop_sklearn.inversion.elementwise import Describe, Elementwise, Piece, bracketed_root
from featprop_sklearn.networks import Exp

__all__ = ["INSIDE", "INVERTERS", "Monotone", "PReLU", "Tanhshrink"]

#: how far inside an open range a wanted output is clipped
INSIDE = 1e-6
_INF = math.inf


def slopes(negative: float | Tensor) -> tuple[Piece, ...]:
    """Return the pieces of x for x ≥ 0 and negative · x below; any sign, a tensor per channel."""
    place = negative.device if isinstance(negative, Tensor) else torch.device("cpu")
    slope = torch.as_tensor(negative, dtype=torch.float64, device=place)
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


class Tanhshrink(Monotone):
    """Tanhshrink, x − tanh(x): its inverse is looked for by iterations."""

    #: the last few roots take many small rounds, which large chunks share
    entries_at_once = 2**17


class PReLU(Elementwise):
    """Leaky ReLU with learned slopes, one per layer or one per channel."""

    def pieces(self) -> tuple[Piece, ...]:  # noqa: D102
        weight = self.layer.get_parameter("weight")
        return slopes(weight.reshape(-1, *[1] * (len(self.in_shape) - 1)))


INVERTERS: dict[type[nn.Module], type[Inverter]] = {
    **dict.fromkeys(PIECES, Monotone),
    nn.Tanhshrink: Tanhshrink,
    nn.PReLU: PReLU,
}
