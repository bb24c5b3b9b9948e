"""Regression: the only acceptable output is y itself."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["regression_target", "relative_residual"]


def regression_target(output: Tensor, y: Tensor) -> Tensor:
    """T(y) = {y}: the wanted output is y, in the dtype and on the device of the output.

    Parameters
    ----------
    output : Tensor of shape (n_samples, n_outputs)
        Output of the network.
    y : Tensor of shape (n_samples, n_outputs)
        Wanted values.

    Returns
    -------
    Tensor of shape (n_samples, n_outputs)
    """
    return y.to(output)


def relative_residual(output: Tensor, y: Tensor, scale: float = 0.0) -> Tensor:
    """‖o − y‖ / max(‖y‖, scale) per sample.

    Without a scale, where y = 0, it is zero for an exact output and infinite otherwise.

    Parameters
    ----------
    output : Tensor of shape (n_samples, n_outputs)
        Output o of the network.
    y : Tensor of shape (n_samples, n_outputs)
        Wanted values.
    scale : float
        What is small for a y.

    Returns
    -------
    Tensor of shape (n_samples,), float64
    """
    y = y.to(output.device, torch.float64)
    residual = torch.linalg.vector_norm(output.double() - y, dim=1)
    norm = torch.linalg.vector_norm(y, dim=1)
    return residual / norm.clamp_min(max(scale, torch.finfo(norm.dtype).tiny))
