"""Sums over each sample, and quotients that may have nothing below the line."""

from __future__ import annotations

import torch
from torch import Tensor

from featprop_sklearn.least_squares.rows import as_rows, per_row

__all__ = ["ratio", "row_sums"]


def ratio(part: Tensor, total: Tensor) -> Tensor:
    """Return part/total, zero where the total is."""
    return torch.where(total == 0, 0.0, part / total)


def row_sums(values: Tensor) -> Tensor:
    """Sum each sample, shaped to broadcast over its entries."""
    return per_row(as_rows(values).sum(dim=1), values)
