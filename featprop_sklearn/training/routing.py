"""Layers that data are led to, or past: experts of a mixture, what follows an early exit."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from featprop_sklearn.data import Inputs, batches
from featprop_sklearn.networks import Chain, Site

__all__ = ["routed_layers"]


@torch.no_grad()
def routed_layers(
    chain: Chain, sites: Sequence[Site], inputs: Inputs, batch_size: int
) -> set[nn.Module]:
    """Find the layers that some of the data do not pass just once, one row a sample.

    A few examples cannot tell: they may all be led the same way.

    Parameters
    ----------
    chain : Chain
        In eval mode.
    sites : sequence of Site
        Layers of it that take one row a sample for the first samples.
    inputs : Inputs of shape (n_samples, ...)
        All data.
    batch_size : int
        Rows worked on at a time.

    Returns
    -------
    set of nn.Module
        Those of the sites' layers that do not do so for all. A layer that is a stage does.
    """
    inner = [site for site in sites if chain[site.stage].module is not site.layer]
    if not inner:
        return set()
    chain = chain[: inner[-1].stage + 1]
    rows_given: dict[nn.Module, list[int]] = {}

    def note(layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        rows_given[layer].append(len(args[0]))

    routed: set[nn.Module] = set()
    with ExitStack() as hooks:
        for site in inner:
            hooks.enter_context(site.layer.register_forward_hook(note))
        for rows in batches(len(inputs), batch_size):
            rows_given.update({site.layer: [] for site in inner})
            chain(inputs[rows])
            every = [rows.stop - rows.start]
            routed.update(layer for layer, given in rows_given.items() if given != every)
    return routed
