"""A module in another one's place, under whose names its parts go on."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, Self

from torch import fx, nn

from featprop_sklearn.networks.layers import is_layer

__all__ = ["StandIn", "unwrap", "wrappers"]


class StandIn(nn.Module):
    """A module that works with another one, and looks like it.

    It has the other's own children, parameters and buffers under their own names, so that
    stages, splits and states are called as they are there. A single layer is one stage: that is
    the child ``network``.

    Parameters
    ----------
    network : nn.Module
        The other, later at hand as ``original_network``.
    """

    original_network: nn.Module

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        one_layer = is_layer(network)
        shown = nn.Sequential(OrderedDict(network=network)) if one_layer else network
        shared = ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set")
        self.__dict__.update({name: shown.__dict__[name] for name in shared})
        self.__dict__["original_network"] = network  # no child, or all names were there twice
        self._opens = not one_layer
        self.training = network.training

    def running(self, x: object) -> Callable[..., Any]:
        """Return what runs the network on an input.

        ``torch.fx`` is led through the network's own forward, so that its layers become stages.
        """
        if self._opens and isinstance(x, fx.Proxy):
            # of a copy, because some keep their features as attributes
            return copy.copy(self.original_network).forward
        return self.original_network

    def train(self, mode: bool = True) -> Self:
        """Set the mode, of the network too."""
        self.original_network.train(mode)
        self.training = mode
        return self


def wrappers(module: nn.Module) -> Iterator[StandIn]:
    """Yield what stands in for a network, from the outermost on."""
    while isinstance(module, StandIn):
        yield module
        module = module.original_network


def unwrap(module: nn.Module) -> nn.Module:
    """Return a network without what reads its inputs and picks its output."""
    for wrapper in wrappers(module):
        module = wrapper.original_network
    return module
