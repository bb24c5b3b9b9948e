"""What a layer gets and what it lacks, summed over all samples: what its refit needs to know."""

from __future__ import annotations

import torch
from joblib import Parallel, delayed

from featprop_sklearn.data import batches
from featprop_sklearn.networks import Chain, Site
from featprop_sklearn.output_targets import OutputTargets
from featprop_sklearn.propagation import nearest_acceptable
from featprop_sklearn.training.component import Labelled
from featprop_sklearn.training.design_rows import design_rows, output_rows, row_size
from featprop_sklearn.training.gram import GramSums

__all__ = ["layer_sums"]

#: numbers in the design rows that are formed at a time
ROW_BUDGET = 4_000_000


def layer_sums(
    chain: Chain,
    site: Site,
    data: Labelled,
    output_targets: OutputTargets,
    batch_size: int,
    n_jobs: int | None = None,
) -> GramSums:
    """Sum up a layer's inputs, and what its outputs lack of the joint targets.

    Parameters
    ----------
    chain : Chain
        The network.
    site : Site
        The layer.
    data : Labelled
        Samples at the input of the chain.
    output_targets : OutputTargets
        What is acceptable at the network's output.
    batch_size : int
        Rows worked on at a time; fewer where the layer's design rows are long.
    n_jobs : int, optional
        Batches worked on at a time, as in joblib.
    """
    step = _rows_at_a_time(chain, site, data, batch_size)
    parts = Parallel(n_jobs=n_jobs, return_as="generator")(
        delayed(_batch_sums)(chain, site, data[rows], output_targets)
        for rows in batches(len(data), step)
    )
    total: GramSums | None = None
    for part in parts:
        total = part if total is None else total + part
    assert total is not None
    return total


@torch.no_grad()
def _rows_at_a_time(chain: Chain, site: Site, data: Labelled, batch_size: int) -> int:
    x = chain[: site.stage](data.inputs[:1])
    size = row_size(site.layer, site.read(chain, x)[1])
    return max(1, min(batch_size, ROW_BUDGET // max(size, 1)))


@torch.no_grad()
def _batch_sums(
    chain: Chain, site: Site, data: Labelled, output_targets: OutputTargets
) -> GramSums:
    """One batch: the layer's inputs, and what its outputs lack of the joint targets."""
    x = chain[: site.stage](data.inputs)
    inputs, outputs = site.read(chain, x)
    tail = site.tail(chain, x)
    every = torch.arange(len(x), device=x.device)
    found = nearest_acceptable(
        tail, outputs, tail(outputs, every), data.y, output_targets, max_steps=1, refinements=0
    )
    lacking = output_rows(site.layer, found.targets - outputs)
    return GramSums.of(design_rows(site.layer, inputs), lacking, data.weights)
