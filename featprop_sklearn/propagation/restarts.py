"""Where to begin again, for samples whose search from the feature itself led nowhere.

A unit that is off has no derivative that could wake it. Elsewhere it is on.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["borrowed_start", "scattered_start"]


def borrowed_start(
    feature: Tensor, label: Tensor, known: Tensor, known_label: Tensor, *, exact: bool
) -> Tensor:
    """Return moves to other samples' acceptable features.

    Parameters
    ----------
    feature : Tensor of shape (n_samples, n_coordinates)
        Features of the samples.
    label : Tensor of shape (n_samples, n_labels)
        Their labels or values.
    known : Tensor of shape (n_known, n_coordinates)
        Features of others, which are acceptable.
    known_label : Tensor of shape (n_known, n_labels)
        Labels or values of the others.
    exact : bool
        Whether another label is of no use.

    Returns
    -------
    Tensor of shape (n_samples, n_coordinates)
        To the nearest of the features with the nearest label; zero where there is none.
    """
    if not len(known):
        return torch.zeros_like(feature)
    differ = (label[:, None] - known_label[None]).abs().amax(dim=2)
    least = differ.amin(dim=1, keepdim=True)
    distance = torch.cdist(feature, known).masked_fill(differ > least, torch.inf)
    move = known[distance.argmin(dim=1)] - feature
    return torch.where((least == 0) | (not exact), move, 0)


def scattered_start(feature: Tensor, spread: float) -> Tensor:
    """Return random moves, the same direction for all samples.

    Parameters
    ----------
    feature : Tensor of shape (n_samples, n_coordinates)
        Features of the samples.
    spread : float
        Length of the moves, in units of the sample's own feature; absolute where that is zero,
        as behind dead units.

    Returns
    -------
    Tensor of shape (n_samples, n_coordinates)
    """
    generator = torch.Generator(device=feature.device).manual_seed(0)
    noise = torch.randn(
        feature.shape[1], generator=generator, dtype=feature.dtype, device=feature.device
    )
    size = feature.square().mean(dim=1, keepdim=True).sqrt()
    return spread * torch.where(size > 0, size, 1) * noise
