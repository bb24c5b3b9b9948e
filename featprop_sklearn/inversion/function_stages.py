"""Stages that stand for calls inside a ``forward``, and for units."""

from __future__ import annotations

from torch import Tensor, nn

from featprop_sklearn.inversion.affine import RearrangementInverter
from featprop_sklearn.networks import Permute, Rescale, Reshape

__all__ = ["INVERTERS"]


def _rescale(layer: nn.Module, wanted: Tensor, reference: Tensor) -> Tensor:
    return (wanted - layer.shift) / layer.factor  # type: ignore[operator]


INVERTERS = {
    Reshape: RearrangementInverter,
    Permute: RearrangementInverter,
    Rescale: _rescale,
}
