"""What a layer gets and what it lacks, summed over all samples: what its refit needs to know.

The samples are divided into tasks, which may run on other machines, and those into batches. Where
the boundaries lie, and in which order the sums are added, does not depend on the workers: one gives
the same bits as a hundred.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce

import torch
from joblib import Parallel, delayed
from torch import Tensor

from featprop_sklearn.data import batches
from featprop_sklearn.networks import Chain, Site, differentiable
from featprop_sklearn.output_targets import OutputTargets
from featprop_sklearn.propagation import Acceptable, nearest_acceptable
from featprop_sklearn.training.component import Labelled
from featprop_sklearn.training.design_rows import design_rows, output_rows, row_size
from featprop_sklearn.training.gram import GramSums

__all__ = ["layer_sums"]

#: competitors of a label looked at: a refit explains a part of a target, more change nothing
COMPETITORS = 3
#: numbers in the largest feature of a batch: its derivatives take many times as much
FEATURE_BUDGET = 4_000_000
#: numbers in the design rows that are formed at a time
ROW_BUDGET = 4_000_000
#: design rows a task, at least: fewer are summed in less time than they and their sums travel in
TASK_ROWS = 8_192
#: length of a move that missed its aim, in units of the output's, at most
LONGEST = 2.0
#: tasks a layer, at most: each sends a Gram matrix to the one machine that adds them up
MOST_TASKS = 256


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
        Rows worked on at a time; fewer where features are large.
    n_jobs : int, optional
        Tasks worked on at a time, as in joblib. The sums do not depend on it.
    """
    positions, largest = _measure(chain, site, data)
    step = max(1, min(batch_size, FEATURE_BUDGET // max(largest, 1)))
    work = _Work(chain, site, output_targets, step)
    tasks = list(_tasks(len(data), positions, step))
    if len(tasks) == 1:  # joblib would send even one away to a cluster
        return _task_sums(work, data)
    parts = Parallel(n_jobs=n_jobs, batch_size=1, return_as="generator")(
        delayed(_task_sums)(work, data.take(rows)) for rows in tasks
    )
    return reduce(operator.iadd, parts)


def _tasks(n_samples: int, positions: int, step: int) -> Iterator[slice]:
    """Divide the samples into few, long tasks: of a batch of ``step`` rows at least."""
    most = min(MOST_TASKS, n_samples * positions // TASK_ROWS, -(-n_samples // step))
    return batches(n_samples, -(-n_samples // max(1, most)))


@torch.no_grad()
def _measure(chain: Chain, site: Site, data: Labelled) -> tuple[int, int]:
    """Return how many design rows a sample gives, and the size of its largest feature."""
    output = site.read(chain, chain[: site.stage](data.inputs[:1]))[1]
    sizes = [stage.out_shape.numel() for stage in chain[site.stage :]]
    return output_rows(site.layer, output).shape[2], max(output[0].numel(), *sizes)


@dataclass(frozen=True)
class _Work:
    """What all tasks of a layer share: one object, in which the layer is one of the chain's."""

    chain: Chain
    site: Site
    output_targets: OutputTargets
    step: int

    def __sizeof__(self) -> int:
        """Tell Dask that it is large: it then travels once a layer, not with every task."""
        return sum(parameter.nbytes for parameter in self.chain.parameters())


def _task_sums(work: _Work, data: Labelled) -> GramSums:
    """One task: its batches one after the other."""
    rows_of_batches = batches(len(data), work.step)
    with differentiable(work.chain.modules()):
        return reduce(operator.iadd, (_batch_sums(work, data[rows]) for rows in rows_of_batches))


@torch.no_grad()
def _batch_sums(work: _Work, data: Labelled) -> GramSums:
    """One batch: the layer's inputs, and what its outputs lack of the joint targets."""
    chain, site = work.chain, work.site
    x = chain[: site.stage](data.inputs)
    inputs, outputs = site.read(chain, x)
    tail = site.tail(chain, x)
    every = torch.arange(len(x), device=x.device)
    logits = tail(outputs, every)
    found = nearest_acceptable(
        tail,
        outputs,
        logits,
        data.y,
        work.output_targets,
        max_steps=1,
        refinements=0,
        competitors=COMPETITORS,
    )
    lacking = _trusted(found, outputs)
    return reduce(
        operator.iadd,
        (
            GramSums.of(
                design_rows(site.layer, inputs[rows]),
                output_rows(site.layer, lacking[rows]),
                data.weights[rows],
            )
            for rows in batches(len(x), max(1, ROW_BUDGET // row_size(site.layer, outputs)))
        ),
    )


def _trusted(found: Acceptable, outputs: Tensor) -> Tensor:
    """Return the moves to the targets, of at most twice the output's length if in vain.

    Where little that follows depends on an output, as on the keys of a saturated attention, the
    linearisation asks for moves of any length, and holds for none of them.
    """
    move = found.targets - outputs
    move = torch.where(torch.isfinite(move), move, 0)
    missed = [name not in ("met", "reached") for name in found.status]
    longest, length = LONGEST * _lengths(outputs), _lengths(move)
    # a layer that puts out nothing yet says nothing of what is far
    cut = torch.tensor(missed, device=move.device) & (longest > 0) & (length > longest)
    share = torch.where(cut, longest / length, 1)
    return move * share.to(move).reshape(-1, *[1] * (move.ndim - 1))


def _lengths(rows: Tensor) -> Tensor:
    return rows.double().flatten(1).norm(dim=1)
