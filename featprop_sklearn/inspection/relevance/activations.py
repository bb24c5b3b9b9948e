"""Which functions of torch are activations, and what their values may be."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

__all__ = ["CLIPS", "NON_NEGATIVE", "SIGNED", "ends_feature_map", "floor"]

#: what makes gates as well as features
_GATES = ("sigmoid", "hardsigmoid")
_RECTIFIERS = ("relu", "relu6", "softplus")
#: activations without negative values, as the rules of convolutions and means want their inputs
NON_NEGATIVE = (*_RECTIFIERS, *_GATES)
#: functions that clip: the same if they do so at zero, as ReLU6 does
CLIPS = ("hardtanh", "clamp", "clip", "clamp_min", "clamp_max")
#: activations with negative values
SIGNED = (
    *("leaky_relu", "rrelu", "prelu", "elu", "celu", "selu", "gelu", "silu", "mish", "hardswish"),
    *("tanh", "softsign"),
)


def ends_feature_map(name: str, func: Callable[..., Any], args: Any, kwargs: Any) -> bool:
    """Return whether a call is an activation as it follows a convolution, and no gate."""
    if name not in CLIPS:
        return name in _RECTIFIERS or name in SIGNED
    named = dict(kwargs)
    x, *others = args or (named.pop("input", None),)
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return False
    return floor(lambda low: func(low, *others, **named), x) == 0


def floor(clip: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Return the least value that a function which clips can give for inputs like these."""
    return float(clip(x.new_full((1,) * x.ndim, -math.inf)).min())
