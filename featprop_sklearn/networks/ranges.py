"""What a stage can put out: closed ranges, carried forward along the chain."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import nn

from featprop_sklearn.networks.chain import Chain
from featprop_sklearn.networks.functional import Exp, Permute, Reshape

__all__ = ["output_ranges"]

Range = tuple[float, float]

_GELU_MINIMUM = {"none": -0.16997120747990369, "tanh": -0.17004075057125407}
_SILU_MINIMUM = -0.27846454276107380
_MISH_MINIMUM = -0.30884341301725051
_SELU_INFIMUM = -1.7580993408473766

_ACTIVATIONS: dict[type[nn.Module], Callable[[Any], Range]] = {
    nn.ReLU: lambda _: (0.0, math.inf),
    nn.ReLU6: lambda _: (0.0, 6.0),
    nn.Hardtanh: lambda layer: (layer.min_val, layer.max_val),
    nn.Hardsigmoid: lambda _: (0.0, 1.0),
    nn.Sigmoid: lambda _: (0.0, 1.0),
    nn.Softmax: lambda _: (0.0, 1.0),
    nn.LogSoftmax: lambda _: (-math.inf, 0.0),
    nn.LogSigmoid: lambda _: (-math.inf, 0.0),
    nn.Tanh: lambda _: (-1.0, 1.0),
    nn.Softsign: lambda _: (-1.0, 1.0),
    nn.Softplus: lambda _: (0.0, math.inf),
    nn.ELU: lambda layer: (min(0.0, -layer.alpha), math.inf),
    nn.CELU: lambda layer: (-layer.alpha if layer.alpha > 0 else -math.inf, math.inf),
    nn.SELU: lambda _: (_SELU_INFIMUM, math.inf),
    nn.Hardswish: lambda _: (-0.375, math.inf),
    nn.GELU: lambda layer: (_GELU_MINIMUM[layer.approximate], math.inf),
    nn.SiLU: lambda _: (_SILU_MINIMUM, math.inf),
    nn.Mish: lambda _: (_MISH_MINIMUM, math.inf),
    Exp: lambda _: (0.0, math.inf),
}
# these hand on values of their input, or means of them: the range stays
_KEEPING = (
    nn.Identity,
    nn.Flatten,
    nn.Unflatten,
    Reshape,
    Permute,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
)


def output_ranges(chain: Chain) -> list[Range | None]:
    """Return the closed range of each stage's output; None where every value is possible."""
    ranges: list[Range | None] = []
    current: Range | None = None
    for stage in chain:
        current = _range_after(stage.module, current)
        ranges.append(current)
    return ranges


def _range_after(layer: nn.Module, before: Range | None) -> Range | None:
    if isinstance(layer, _KEEPING):
        return before
    for layer_type in type(layer).__mro__:
        if layer_type in _ACTIVATIONS:
            return _ACTIVATIONS[layer_type](layer)
    return None
