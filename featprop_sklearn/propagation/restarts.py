"""Where to begin again, for samples whose search from the feature itself led nowhere.

A unit that is off has no derivative that could wake it. Elsewhere it is on, and on average over
what lies around it has a derivative everywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

from featprop_sklearn.least_squares.rows import as_rows
from featprop_sklearn.propagation.downstream import Tail

__all__ = ["COPIES", "borrowed_start", "scattered_start", "smoothed"]

#: features that a smoothed output is the mean over
COPIES = 8


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
    return spread * _size(feature) * _draw(1, 0, feature)


def smoothed(tail: Tail, feature: Tensor, rows: Tensor, spread: float, seed: int) -> Tail:
    """Return the network's mean output over noise that is added to a feature.

    The noise is the same for all samples, but for its size, and comes with either sign: an
    affine tail is not changed.

    Parameters
    ----------
    tail : callable
        The network from a feature on.
    feature : Tensor of shape (n_samples, ...)
        Features of the samples.
    rows : Tensor of shape (n_samples,), int64
        Their numbers in the tail.
    spread : float
        Standard deviation of the noise, in units of the sample's own feature; absolute where
        that is zero.
    seed : int
        Of the noise.

    Returns
    -------
    callable
        A tail for these rows.
    """
    flat = as_rows(feature)
    noise = spread * _draw(COPIES // 2, seed, flat)
    noise = torch.cat([noise, -noise])[:, None]
    size = flat.new_zeros(int(rows.max()) + 1, 1)
    size[rows] = _size(flat)

    def mean_output(value: Tensor, rows: Tensor) -> Tensor:
        around = as_rows(value) + noise * size[rows]
        output = tail(around.reshape(-1, *value.shape[1:]), rows.repeat(COPIES))
        return output.unflatten(0, (COPIES, len(rows))).mean(dim=0)

    return mean_output


def _size(flat: Tensor) -> Tensor:
    size = flat.square().mean(dim=1, keepdim=True).sqrt()
    return torch.where(size > 0, size, 1)


def _draw(n_draws: int, seed: int, like: Tensor) -> Tensor:
    """Draw rows of noise, the same ones in any precision and on any device."""
    generator = torch.Generator().manual_seed(seed)
    size = (n_draws, like.shape[1])
    return torch.randn(size, generator=generator, dtype=torch.float32, device="cpu").to(like)
