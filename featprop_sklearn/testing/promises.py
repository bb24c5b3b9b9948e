"""How a check fails: which promise broke, by how much, and on what."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Subject", "norms"]


class Subject:
    """What is being checked, and how a broken promise of it is reported.

    Parameters
    ----------
    name : str
        Opens every message.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def require(self, kept: bool, promise: str, found: str) -> None:
        """Raise unless a promise is kept.

        Raises
        ------
        AssertionError
            Naming the subject, the promise and what was found instead.
        """
        if not kept:
            raise AssertionError(f"{self.name} breaks a promise: {promise}. Found: {found}.")

    def require_at_most(
        self, amount: Tensor, allowed: Tensor | float, promise: str, **inputs: Tensor
    ) -> None:
        """Raise unless, sample by sample, an amount is small enough (NaN is not).

        Parameters
        ----------
        amount : Tensor of shape (n_samples,)
            What is measured.
        allowed : Tensor of shape (n_samples,), or float
            Its upper limits.
        promise : str
            What is promised.
        **inputs : Tensor of shape (n_samples, ...)
            What it was measured on; the worst sample's are shown.

        Raises
        ------
        AssertionError
            With the figures and inputs of the worst sample.
        """
        limit = torch.as_tensor(allowed, dtype=amount.dtype, device=amount.device)
        excess = torch.nan_to_num(amount - limit, nan=torch.inf)
        worst = int(excess.argmax())
        shown = "; ".join(f"{name} = {_brief(value[worst])}" for name, value in inputs.items())
        limit = limit.expand_as(amount)
        found = f"{float(amount[worst]):.3g}, allowed {float(limit[worst]):.3g}, for {shown}"
        self.require(bool(excess[worst] <= 0), promise, found)


def norms(batch: Tensor) -> Tensor:
    """Return the Euclidean norm of each sample, of huge ones too."""
    rows = batch.reshape(len(batch), -1).double()
    size = rows.abs().amax(dim=1, keepdim=True).clamp(min=1e-300)
    return torch.linalg.vector_norm(rows / size, dim=1) * size[:, 0]


def _brief(value: Tensor) -> str:
    entries = ", ".join(f"{entry:.6g}" for entry in value.reshape(-1)[:8].tolist())
    more = ", ..." if value.numel() > 8 else ""
    return f"[{entries}{more}] of shape {tuple(value.shape)}"
