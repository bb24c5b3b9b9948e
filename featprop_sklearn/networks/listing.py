"""The split points of a network from the run that shows whether it takes the samples."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from featprop_sklearn.networks.chain import outline_chain
from featprop_sklearn.networks.layers import is_layer
from featprop_sklearn.networks.outputs import SingleOutput
from featprop_sklearn.networks.probe import random_state_kept, single_output_of
from featprop_sklearn.networks.recording import Recording, record
from featprop_sklearn.networks.splits import chain_splits
from featprop_sklearn.networks.watched import DoubtError, Watched

__all__ = ["WatchedRun"]

#: two rows tell the batch from a dimension that one row leaves as it is
ROWS = 2


class WatchedRun:
    """Runs a network on a few rows, and watches it; the last run tells where splits are.

    Called with a network and rows, it returns what the network does, or raises.
    """

    def __init__(self) -> None:
        self._network: nn.Module | None = None
        self._rows = torch.empty(0)
        self._few: Recording | None = None

    def __call__(self, network: nn.Module, x: Tensor) -> object:
        """Run a network; its own error is raised if it refuses the rows."""
        self._network, self._rows, self._few = network, x, None
        try:
            self._few = record(network, x[:ROWS])
        except Exception:  # refused, or not to be watched
            return network(x)
        return self._few.output

    def splits(self, network: nn.Module) -> list[str] | None:
        """List the split points of a network; None if only :func:`build_chain` can tell."""
        if self._few is None or self._network is not network:
            return None
        with torch.no_grad(), random_state_kept(self._rows.device):
            for careful in (False, True):
                try:
                    return chain_splits(outline_chain(self._watched(network, careful=careful)))
                except Exception:  # a doubt, or whatever user code raises
                    continue
        return None

    def _watched(self, network: nn.Module, *, careful: bool) -> Watched:
        """Run one row as well, and pick the network's outputs among what it returns."""
        x = self._rows if careful else self._rows[:ROWS]
        run = self._few if self._few and not careful else record(network, x)
        alone = record(network, x[-1:])
        single = single_output_of(network, x, run.output, alone.output)
        if isinstance(single, SingleOutput) and single is not network:
            if single.shape is not None or is_layer(network):
                raise DoubtError
            run, alone = (r.returning(single.pick(r.output)) for r in (run, alone))
        return Watched(single, run, alone, careful)
