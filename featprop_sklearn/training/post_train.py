"""Training every component of a network towards its targets, independently of the others."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from joblib import Parallel, delayed

from featprop_sklearn.data import Inputs, RowStore, batches
from featprop_sklearn.networks import Chain, differentiable
from featprop_sklearn.output_targets import OutputTargets
from featprop_sklearn.training.auto import AutoTrainer
from featprop_sklearn.training.closed_form import ClosedFormTrainer
from featprop_sklearn.training.component import Component, Labelled, TrainingResult
from featprop_sklearn.training.gradient import GradientTrainer
from featprop_sklearn.training.judge import Judge

__all__ = ["Trainer", "post_train"]

Trainer = GradientTrainer | ClosedFormTrainer | AutoTrainer


def post_train(
    chain: Chain,
    splits: Sequence[str],
    data: Labelled,
    targets: Mapping[str, Inputs],
    output_targets: OutputTargets,
    trainer: Trainer,
    *,
    validation: Labelled | None,
    batch_size: int,
    seeds: Sequence[int],
    n_jobs: int | None = None,
    verbose: int = 0,
    chunk: dict[str, dict[str, Any]] | None = None,
) -> tuple[list[dict[str, Any]], bool, list[str]]:
    """Train the stages up to the last split, and give the chain the trained weights.

    Each component reads the present features at its input and is trained towards the
    targets at its output, with everything downstream as it is now: the components do
    not see each other's training, so they can run in parallel. Several may therefore not fit
    together: in forward order, each is used unless the whole network is clearly worse with it,
    on held-out data where there is some.

    Parameters
    ----------
    chain : Chain
        The network; the stages up to the last split receive the trained weights.
    splits : sequence of str
        In forward order.
    data : Labelled
        Samples at the network's input.
    targets : dict of str to Inputs
        Feature targets of ``data`` at each split, where the trainer needs them.
    output_targets : OutputTargets
        Task and head.
    trainer : Trainer
        How a component is trained.
    validation : Labelled or None
        Held-out samples at the network's input.
    batch_size : int
        Rows a step.
    seeds : sequence of int
        One per split.
    n_jobs : int, optional
        Processes, as in joblib: components at a time, or batches of a single one.
    verbose : int
        1 prints a line per epoch.
    chunk : dict, optional
        What a trainer remembers of earlier chunks of the data, by split; with it, ``data`` is
        the next chunk.

    Returns
    -------
    history : list of dict
        The entries of all components, in forward order.
    interrupted : bool
        Whether Ctrl-C ended the training early.
    left_out : list of str
        Splits whose components are as they were.
    """
    components = []
    start = 0
    for split in splits:
        stop = chain.names.index(split) + 1
        before = chain[:start]
        components.append(
            Component(
                split,
                chain[start:stop],
                chain[stop:],
                _carry(data, before, batch_size),
                targets.get(split),
                output_targets,
                None if validation is None else _carry(validation, before, batch_size),
                before,
            )
        )
        start = stop
    options: dict[str, Any] = {"batch_size": batch_size, "verbose": verbose}
    results: list[TrainingResult]
    if chunk is not None:
        results = [
            _trained(
                trainer.train_chunk,
                component,
                chunk.setdefault(component.split, {}),
                seed=seed,
                n_jobs=n_jobs,
                **options,
            )
            for component, seed in zip(components, seeds, strict=True)
        ]
    elif len(splits) == 1:  # joblib would send even one away to a cluster, with all its data
        results = [_trained(trainer.train, components[0], seed=seeds[0], n_jobs=n_jobs, **options)]
    else:
        results = Parallel(n_jobs=n_jobs)(
            delayed(_trained)(trainer.train, component, seed=seed, **options)
            for component, seed in zip(components, seeds, strict=True)
        )
    left_out = []
    if len(splits) > 1:
        left_out = _load_what_fits(
            components, results, Judge(chain, output_targets, validation or data, batch_size)
        )
    else:
        results[0].load_into(components[0].stages)
    history = [entry for result in results for entry in result.history]
    return history, any(result.interrupted for result in results), left_out


def _trained(
    train: Callable[..., TrainingResult], component: Component, *args: Any, **options: Any
) -> TrainingResult:
    """Train a component, here or in another process."""
    with differentiable((*component.stages.modules(), *component.after.modules())):
        return train(component, *args, **options)


def _load_what_fits(
    components: Sequence[Component], results: Sequence[TrainingResult], judge: Judge
) -> list[str]:
    """Load one result after the other unless the judge is against it; return whose it was."""
    left_out = []
    for component, result in zip(components, results, strict=True):
        states: list[Mapping[str, Any]] = [
            copy.deepcopy(stage.module.state_dict()) for stage in component.stages
        ]
        result.load_into(component.stages)
        if not judge.accepts():
            left_out.append(component.split)
            TrainingResult(states, []).load_into(component.stages)
    return left_out


@torch.no_grad()
def _carry(data: Labelled, before: Chain, batch_size: int) -> Labelled:
    """Run samples through the stages before a component."""
    if not len(before):
        return data
    size = len(data) if batch_size == -1 else batch_size
    features = RowStore(data.inputs)
    for rows in batches(len(data), size):
        features.append(before(data.inputs[rows]))
    return Labelled(features.result(), data.y, data.weights)
