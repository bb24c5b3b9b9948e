"""How much of what the loss asks of a layer's outputs the layer could learn to give.

The gradient of the loss at the outputs is regressed on the inputs, as a refit would regress
targets: one run forward and backward serves all layers, where targets take a search each.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from featprop_sklearn.data import batches
from featprop_sklearn.networks import Chain, Site
from featprop_sklearn.output_targets import OutputTargets
from featprop_sklearn.training.component import Labelled
from featprop_sklearn.training.design_rows import design_rows, output_rows, weight_rows
from featprop_sklearn.training.gram import validation_scores
from featprop_sklearn.training.losses import task_losses

__all__ = ["explained_shares"]

#: samples, at most
SAMPLES = 256
#: rows a layer, at least and at most: more put the layers in hardly another order
ROWS = 1024, 4096
#: numbers that the rows of a layer may have, where that is more than the least
ROW_BUDGET = 1 << 20
#: numbers that the inputs and outputs of all layers may have in a batch
FEATURE_BUDGET = 1 << 25


def explained_shares(
    chain: Chain,
    sites: Sequence[Site],
    data: Labelled,
    output_targets: OutputTargets,
    batch_size: int,
) -> list[float]:
    """Estimate what share of the loss's gradient at its outputs each layer can follow.

    Ridge regression of the gradients g on the layer's inputs leaves RSS of Σ‖g‖². The share is
    1 − min_λ GCV(λ) / Σ‖g‖², GCV = RSS / (1 − df/n)² (see :func:`~.gram.solve_ridge`), which
    estimates the same on other samples. It does not depend on the scale of inputs or outputs.

    Parameters
    ----------
    chain : Chain
        The network.
    sites : sequence of Site
        Layers of it.
    data : Labelled
        Samples at the input of the chain; 256 are looked at, at most.
    output_targets : OutputTargets
        Task and head.
    batch_size : int
        Rows run at a time; fewer where features are large.

    Returns
    -------
    list of float
        In [0, 1], one a site.
    """
    n_samples = min(len(data), SAMPLES)
    data = data.take(torch.arange(n_samples, device="cpu") * len(data) // n_samples)
    one = _watched(chain, sites, data[:1], output_targets)
    step = max(1, FEATURE_BUDGET // sum(x.numel() + gradient.numel() for x, gradient in one))
    most = ROW_BUDGET // max(weight_rows(site.layer).shape[1] for site in sites)
    most = min(max(most, ROWS[0]), ROWS[1])
    found: list[list[tuple[Tensor, ...]]] = [[] for _ in sites]
    draw = torch.Generator().manual_seed(0)
    for rows in batches(n_samples, min(batch_size, step)):
        batch = data[rows]
        seen = _watched(chain, sites, batch, output_targets)
        for site, parts, (x, gradient) in zip(sites, found, seen, strict=True):
            n_rows = -(-most * len(batch) // n_samples)
            parts.append(_drawn(site.layer, x, gradient, batch.weights, n_rows, draw))
    return [_share(*map(torch.cat, zip(*parts, strict=True))) for parts in found]


def _watched(
    chain: Chain, sites: Sequence[Site], data: Labelled, output_targets: OutputTargets
) -> list[tuple[Tensor, Tensor]]:
    """Return each layer's inputs, and the gradients of each sample's loss at its outputs."""
    inputs: dict[Any, Tensor] = {}
    changes: dict[Any, Tensor] = {}

    def watch(layer: Any, args: tuple[Tensor], output: Tensor) -> Tensor:
        inputs[layer] = args[0].detach().clone()  # what follows may overwrite it
        changes[layer] = torch.zeros_like(output).requires_grad_()
        return output + changes[layer]

    with ExitStack() as hooks, torch.enable_grad():
        for site in sites:
            hooks.enter_context(site.layer.register_forward_hook(watch))
        losses = task_losses(chain(data.inputs[:]), data.y, output_targets)
        layers = [site.layer for site in sites]
        gradients = torch.autograd.grad(
            losses.sum(),
            [changes[layer] for layer in layers],
            allow_unused=True,
            materialize_grads=True,
        )
    return [(inputs[layer], gradient) for layer, gradient in zip(layers, gradients, strict=True)]


def _drawn(
    layer: Any, x: Tensor, gradient: Tensor, weights: Tensor, n_rows: int, draw: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw design rows, what is to be explained there, and their weights; rows come first."""
    asked = output_rows(layer, gradient)
    n_samples, n_positions = asked.shape[1:3]
    places = torch.randperm(n_samples * n_positions, generator=draw, device=draw.device)
    places = places[:n_rows].to(x.device)
    rows = design_rows(layer, x, places)[:, :, 0]
    asked = asked.flatten(1, 2)[:, places]
    # nothing is lost: they are the network's own numbers, which may take half the room
    kept = rows.transpose(0, 1).to(x.dtype), asked.transpose(0, 1).to(gradient.dtype)
    return *kept, weights.double()[places // n_positions]


def _share(rows: Tensor, asked: Tensor, weights: Tensor) -> float:
    """Return 1 − the least error of generalised cross-validation, over Σ w ‖g‖²."""
    root = weights.sqrt()[None, :, None]
    a, g = rows.transpose(0, 1) * root, asked.transpose(0, 1) * root
    square = g.square().sum(dim=(1, 2))
    if not (torch.isfinite(a).all() and torch.isfinite(square).all() and a.any() and g.any()):
        return 0.0
    scores = validation_scores(*_spectrum(a, g), square, float(weights.sum()))
    return max(0.0, 1 - float(scores.min()) / float(square.sum()))


def _spectrum(a: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues of aᵀa, and ‖vᵀaᵀg‖² for each eigenvector v; by way of aaᵀ if that is smaller."""
    if a.shape[2] <= a.shape[1]:
        values, vectors = torch.linalg.eigh(a.mT @ a)
        return values.clamp_min(0), (vectors.mT @ (a.mT @ g)).square().sum(dim=2)
    values, vectors = torch.linalg.eigh(a @ a.mT)
    values = values.clamp_min(0)
    return values, values * (vectors.mT @ g).square().sum(dim=2)
