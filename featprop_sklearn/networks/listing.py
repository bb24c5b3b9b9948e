"""The split points of a network from the run that shows whether it takes the samples."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from featprop_sklearn.networks.chain import outline_chain
from featprop_sklearn.networks.layers import is_layer
from featprop_sklearn.networks.outputs import SingleOutput
from featprop_sklearn.networks.probe import random_state_kept, with_single_output
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
        self._run: Recording | None = None

    def __call__(self, network: nn.Module, x: Tensor) -> object:
        """Run a network; its own error is raised if it refuses the rows."""
        self._network, self._rows, self._run = network, x[:ROWS], None
        try:
            self._run = record(network, self._rows)
        except Exception:  # refused, or not to be watched
            return network(x)
        return self._run.output

    def splits(self, network: nn.Module) -> list[str] | None:
        """List the split points of a network; None if only :func:`build_chain` can tell."""
        if self._run is None or self._network is not network:
            return None
        with torch.no_grad(), random_state_kept(self._rows.device):
            try:
                return chain_splits(outline_chain(self._watched(network, self._run)))
            except Exception:  # a doubt, or whatever user code raises
                return None

    def _watched(self, network: nn.Module, run: Recording) -> Watched:
        """Run one row as well, and pick the network's outputs among what it returns."""
        x = self._rows
        alone = record(network, x[-1:])
        if run.depends or alone.depends:
            raise DoubtError
        single = with_single_output(network, x, (run.output, alone.output))
        if isinstance(single, SingleOutput) and single is not network:
            if single.shape is not None or is_layer(network):
                raise DoubtError
            run, alone = (r.returning(single.pick(r.output)) for r in (run, alone))
        return Watched(single, run, alone)
