"""From the module that estimators work with back to the user's own network in it."""

from __future__ import annotations

from torch import nn

from featprop_sklearn.networks.inputs import Integers, Unpack
from featprop_sklearn.networks.outputs import SingleOutput

__all__ = ["unwrap"]


def unwrap(module: nn.Module) -> nn.Module:
    """Return a network without what reads its inputs and picks its output."""
    while isinstance(module, SingleOutput | Unpack | Integers):
        module = module.module if isinstance(module, SingleOutput) else module.original_network
    return module
