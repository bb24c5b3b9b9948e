"""Pretraining of the default network, for users who bring none."""

from __future__ import annotations

from sklearn.base import clone
from torch import nn

from featprop_sklearn.networks import Chain, build_chain, default_network, weighted_moments
from featprop_sklearn.networks.probe import random_state_kept
from featprop_sklearn.output_targets import OutputTargets
from featprop_sklearn.training.component import Component, Labelled
from featprop_sklearn.training.gradient import GradientTrainer
from featprop_sklearn.training.post_train import Trainer

__all__ = ["pretrain_default_network"]

PRETRAINER = GradientTrainer(alpha=0.0, max_epochs=150, lr=1e-2, weight_decay=1e-2)


def pretrain_default_network(
    data: Labelled,
    n_outputs: int,
    task: str,
    *,
    trainer: Trainer,
    validation: Labelled | None,
    seed: int,
    verbose: int = 0,
) -> tuple[nn.Module, bool]:
    """Train the default MLP on a table: AdamW on all rows at once, in float64.

    All rows at once make a sample weight equal to a repetition.

    Parameters
    ----------
    data : Labelled
        Samples.
    n_outputs : int
        Width of the network's output.
    task : str
        As in OutputTargets.
    trainer : Trainer
        What post-trains the network: where that regularises gradients, pretraining does.
    validation : Labelled or None
        Held-out samples, which choose the epoch.
    seed : int
        Of the initial weights.
    verbose : int
        1 prints a line per epoch.

    Returns
    -------
    module : nn.Module
        In eval mode.
    interrupted : bool
        Whether Ctrl-C ended it early.
    """
    scale = None
    if task == "regression":
        scale = weighted_moments(data.y.reshape(len(data), -1), data.weights)
    with random_state_kept(data.inputs.device, seed):
        module = default_network(data.inputs[:], n_outputs, data.weights, scale).eval()
    chain: Chain = build_chain(module, data.inputs[:2])
    component = Component("output", chain, chain[:0], data, None, OutputTargets(task), validation)
    result = _pretrainer(trainer).train(component, batch_size=-1, seed=seed, verbose=verbose)
    result.load_into(chain)
    return module, result.interrupted


def _pretrainer(trainer: Trainer) -> GradientTrainer:
    if not isinstance(trainer, GradientTrainer):
        return PRETRAINER
    return clone(PRETRAINER).set_params(
        gradient_regularization=trainer.gradient_regularization,
        gradient_weight=trainer.gradient_weight,
    )
