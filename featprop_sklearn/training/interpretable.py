"""Interpretable gradients: training that keeps the gradient near to the guided one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from featprop_sklearn.networks.guided import VisibleInPlace, guided, relu_nodes

__all__ = ["GRADIENT_ERRORS", "WithInput", "gradient_errors", "input_gradients"]

#: a gradient that is shorter has no direction
LEAST_NORM = 1e-12


def _cosine(delta: Tensor, gamma: Tensor) -> Tensor:
    directions = delta / _norm(delta), gamma / _norm(gamma)
    return 1 - (directions[0] * directions[1]).sum(dim=1)


def _histogram_intersection(delta: Tensor, gamma: Tensor) -> Tensor:
    shares = [g.abs() / g.abs().sum(dim=1, keepdim=True) for g in (delta, gamma)]
    return 1 - torch.minimum(*shares).sum(dim=1)


def _norm(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=1, keepdim=True)


#: name -> error of each row of gradients (δ, γ), both of shape (n_samples, n_values)
GRADIENT_ERRORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cosine": _cosine,
    "histogram_intersection": _histogram_intersection,
    "mae": lambda delta, gamma: (delta - gamma).abs().mean(dim=1),
    "mse": lambda delta, gamma: (delta - gamma).square().mean(dim=1),
}


def gradient_errors(name: str, delta: Tensor, gamma: Tensor) -> Tensor:
    """Return how far each sample's gradient δ is from its guided gradient γ.

    Parameters
    ----------
    name : {"cosine", "histogram_intersection", "mae", "mse"}
        With d the number of values of a sample: 1 − δ·γ/(‖δ‖‖γ‖);
        1 − Σ min(|δ|/‖δ‖₁, |γ|/‖γ‖₁); ‖δ − γ‖₁/d; ‖δ − γ‖²/d. The first two do not depend on
        the scale of the gradients.
    delta, gamma : Tensor of shape (n_samples, ...)
        Gradients.

    Returns
    -------
    Tensor of shape (n_samples,)
        0 where δ or γ is shorter than 1e-12.

    References
    ----------
    Figueroa, Zhang, Sicre, Avrithis and Ayache, "A Learning Paradigm for Interpretable
    Gradients", VISAPP 2024, arXiv:2404.15024.
    """
    delta, gamma = delta.flatten(1), gamma.flatten(1)
    known = (_norm(delta.detach()) >= LEAST_NORM) & (_norm(gamma) >= LEAST_NORM)
    # ones, because the derivatives of a norm at zero are not finite
    errors = GRADIENT_ERRORS[name](*(torch.where(known, g, 1.0) for g in (delta, gamma)))
    return errors * known[:, 0]


def input_gradients(losses: Tensor, output: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Differentiate each sample's loss by its input, ordinarily and guided.

    Both ways go back through one and the same run of the network, so that dropout drops the
    same, and BatchNorm sees the batch once. (Its batch statistics tie samples together: then
    the sum of the losses is what is differentiated.)

    Parameters
    ----------
    losses : Tensor of shape (n_samples,)
        Not averaged, so that the gradients do not depend on the batch size.
    output, x : Tensor
        As :class:`WithInput` returns them.

    Returns
    -------
    delta : Tensor of the shape of x
        ∂ℓ/∂x, which can be differentiated again.
    gamma : Tensor of the shape of x
        The same with guided ReLUs, a constant.

    Raises
    ------
    ValueError
        If the outputs were not computed by any ReLU, or have no derivative at the input.
    """
    relus = relu_nodes(output)
    if not relus:
        raise ValueError(
            "gradient_regularization compares the gradient with that of guided ReLUs, and there "
            "is none in the network (looked for: ReLU, ReLU6, and hardtanh, clamp or threshold "
            "that are flat below 0, as modules or functions). Use gradient_regularization=None, or "
            "a network with ReLUs."
        )
    total = losses.sum()
    with guided(relus):
        (gamma,) = torch.autograd.grad(total, x, retain_graph=True, allow_unused=True)
    if gamma is None:
        raise ValueError(
            "gradient_regularization needs the derivative of the loss at the input, and there is "
            "none: the network reads its input as integers, such as token numbers, or detaches "
            "it. Use gradient_regularization=None."
        )
    (delta,) = torch.autograd.grad(total, x, create_graph=True)
    return delta, gamma


class WithInput(nn.Module):
    """A network that in training returns its input, too, as the start of autograd's graph.

    Parameters
    ----------
    network : nn.Module
        Returns a tuple.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return what the network does, and in training its input."""
        if not self.training:
            return self.network(x)
        start = x.detach().requires_grad_()
        # fused attention cannot be differentiated twice; leaves cannot be overwritten
        with VisibleInPlace(), sdpa_kernel(SDPBackend.MATH):
            return (*self.network(start.clone()), start)
