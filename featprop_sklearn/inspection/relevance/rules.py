"""Relevance through elementwise layers, pooling and residual additions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from featprop_sklearn.inspection.relevance.activations import CLIPS, NON_NEGATIVE, floor
from featprop_sklearn.inspection.relevance.registry import Call, Rule, as_relu, unsupported
from featprop_sklearn.inspection.relevance.sums import ratio

__all__ = ["RULES", "clipped", "pass_through", "proportional", "shared"]

#: keeps a window of zeros divisible
SMALL = 1e-9


def pass_through(call: Call, relevance: Tensor, x: Tensor) -> Tensor:
    """Hand the relevance of each output to the input at the same place.

    The rule of activations without negative values, as ReLU, of BatchNorm in eval mode and of
    arithmetic with constants.
    """
    return relevance.sum_to_size(x.shape)


def clipped(call: Call, relevance: Tensor, x: Tensor) -> Tensor:
    """Hand relevance on through ReLU6 and its like, and through what clips large values only.

    Raises
    ------
    ValueError
        If values are clipped below zero.
    """
    if -math.inf < floor(call, x) < 0:
        raise unsupported(call.path, call.name, "with a lower end below zero", as_relu(call.name))
    return pass_through(call, relevance, x)


def proportional(call: Call, relevance: Tensor, x: Tensor) -> Tensor:
    """Share the relevance of each window in proportion to what its inputs bring.

    R_in = x' ⊙ poolᵀ(R / pool(x')), x' = x + 1e-9: a maximum gives all to where it is, a mean
    to each input its part.
    """
    with torch.enable_grad():
        shifted = (x.detach() + SMALL).requires_grad_()
        pooled = call(shifted)
        (back,) = torch.autograd.grad(pooled, shifted, ratio(relevance, pooled.detach()))
    return shifted.detach() * back


def shared(
    call: Call, relevance: Tensor, a: Tensor, b: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """Share relevance between the two branches of a residual addition.

    R_a = R a'/(a' + b'), with a' = max(a, 0) + 1e-9 and the like for b. A constant takes none.
    """
    if b is None:
        return pass_through(call, relevance, a)
    left = a.clamp_min(0) + SMALL
    right = (call.others.get("alpha", 1) * b).clamp_min(0) + SMALL
    portion = left / (left + right)
    return (
        (relevance * portion).sum_to_size(a.shape),
        (relevance * (1 - portion)).sum_to_size(b.shape),
    )


_ELEMENTWISE = (
    *NON_NEGATIVE,
    "batch_norm",
    *("sub", "subtract", "mul", "multiply", "div", "divide", "true_divide"),
)
_POOLING = (
    *(f"{kind}_pool{n}d" for kind in ("max", "avg") for n in (1, 2, 3)),
    *(f"adaptive_{kind}_pool{n}d" for kind in ("max", "avg") for n in (1, 2, 3)),
    "mean",
)
RULES: dict[str, Rule] = {
    "add": shared,
    **dict.fromkeys(_ELEMENTWISE, pass_through),
    **dict.fromkeys(CLIPS, clipped),
    **dict.fromkeys(_POOLING, proportional),
}
