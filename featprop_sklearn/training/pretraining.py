"""Pretraining of the default network, for users who bring none."""

from __future__ import annotations

from dataclasses import replace

from sklearn.base import clone
from torch import nn

from featprop_sklearn.data import to_array, to_tensor
from featprop_sklearn.networks import Chain, build_chain, default_network
from featprop_sklearn.networks.probe import random_state_kept
from featprop_sklearn.output_targets import OutputTargets
from featprop_sklearn.training.component import Component, Labelled
from featprop_sklearn.training.gradient import GradientTrainer
from featprop_sklearn.training.post_train import Trainer
from featprop_sklearn.training.standard_units import StandardUnits

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
        units = StandardUnits.of(to_array(data.y), to_array(data.weights))
        mean, spread = (to_tensor(part, data.y.dtype) for part in (units.mean, units.spread))
        scale = mean, spread
        data = _standard(data, units)
        validation = None if validation is None else _standard(validation, units)
    with random_state_kept(data.inputs.device, seed):
        module = default_network(data.inputs[:], n_outputs, data.weights, scale).eval()
    chain: Chain = build_chain(module, data.inputs[:2])
    trained = chain if scale is None else chain[:-1]  # without the way back to units of y
    component = Component("output", trained, chain[:0], data, None, OutputTargets(task), validation)
    result = _pretrainer(trainer).train(component, batch_size=-1, seed=seed, verbose=verbose)
    result.load_into(trained)
    return module, result.interrupted


def _standard(data: Labelled, units: StandardUnits) -> Labelled:
    return replace(data, y=to_tensor(units.standard(to_array(data.y)), data.y.dtype, data.y.device))


def _pretrainer(trainer: Trainer) -> GradientTrainer:
    if not isinstance(trainer, GradientTrainer):
        return PRETRAINER
    return clone(PRETRAINER).set_params(
        gradient_regularization=trainer.gradient_regularization,
        gradient_weight=trainer.gradient_weight,
    )
