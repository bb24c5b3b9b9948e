"""The largest value of a small concave quadratic where no unknown is negative, batched."""

from __future__ import annotations

import torch
from torch import Tensor

from featprop_sklearn.least_squares.rows import row_products

__all__ = ["nonnegative_maximum"]

#: slopes below this share of the largest one are taken for zero
TOLERANCE = 1e-12
#: exchanges of all wrong signs at once that may fail before they go one by one
PATIENCE = 3
#: dependent unknowns may need hundreds; only samples that are not done go on
MAX_EXCHANGES = 1000


def nonnegative_maximum(matrix: Tensor, linear: Tensor) -> Tensor:
    """Solve max cᵀx − ½xᵀHx over x >= 0 for each sample.

    By block principal pivoting: guess which unknowns are positive, solve for these, exchange
    all whose signs are wrong; the last one alone where that does not help, which ends with the
    answer for every positive definite H.

    Parameters
    ----------
    matrix : Tensor of shape (n_samples, n, n)
        H, positive definite.
    linear : Tensor of shape (n_samples, n)
        c.

    Returns
    -------
    Tensor of shape (n_samples, n)
        x.

    References
    ----------
    Júdice, Pires (1994), doi:10.1016/0305-0548(94)90106-6.
    Kim, Park (2011), doi:10.1137/110821172.
    """
    n_unknowns = linear.shape[1]
    eye = torch.eye(n_unknowns, dtype=matrix.dtype, device=matrix.device)
    found = torch.zeros_like(linear)
    live = torch.arange(len(linear), device=linear.device)
    positive = linear > 0
    fewest = torch.full_like(live, n_unknowns + 1)
    patience = torch.full_like(live, PATIENCE)
    for _ in range(MAX_EXCHANGES):
        among = positive[:, :, None] & positive[:, None, :]
        system = torch.where(among, matrix, eye)
        x = torch.linalg.solve(system, torch.where(positive, linear, 0.0))
        found[live] = x
        slope = linear - row_products(matrix, x)
        tiny = TOLERANCE * linear.abs().amax(dim=1, keepdim=True)
        wrong = torch.where(positive, x < 0, slope > tiny)
        count = wrong.sum(dim=1)
        left = count > 0
        if not left.any():
            break
        fewer = count < fewest
        fewest = torch.where(fewer, count, fewest)
        patience = torch.where(fewer, PATIENCE, patience - 1)
        last = wrong & (wrong.cumsum(dim=1) == count[:, None])
        positive = positive ^ torch.where((patience >= 0)[:, None], wrong, last)
        if not left.all():
            live, matrix, linear = live[left], matrix[left], linear[left]
            positive, fewest, patience = positive[left], fewest[left], patience[left]
    return found.clamp_min(0)
