"""T(y) as conditions on the logits, one number each: what a solver asks of an output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

__all__ = ["Conditions"]


@dataclass(frozen=True)
class Conditions:
    """Linear conditions g(o) − b >= 0 (or = 0) on the logits o of some samples.

    Attributes
    ----------
    kind : {"lead", "sign", "equal"}
        The label's lead over each competitor, o_y − o_j >= b_j; each logit on its side,
        ±o_j >= b_j; or the logits themselves, o_j = b_j.
    y : Tensor
        Label indices (n_samples,) for "lead", signs ±1 (n_samples, n_outputs) for "sign",
        unused for "equal".
    bounds : Tensor of shape (n_samples, n_outputs)
        b; −inf where nothing is asked.
    to_logits : callable
        From network outputs to logits, differentiable.
    """

    kind: str
    y: Tensor
    bounds: Tensor
    to_logits: Callable[[Tensor], Tensor]

    @property
    def equality(self) -> bool:
        """Whether slacks must be zero, not only >= 0."""
        return self.kind == "equal"

    @property
    def labels(self) -> Tensor:
        """Rows that are equal where the same output is wanted, of shape (n_samples, n_labels)."""
        return self.bounds if self.equality else self.y if self.y.ndim == 2 else self.y[:, None]

    def __getitem__(self, rows: Any) -> Conditions:
        """Select samples."""
        return replace(self, y=self.y[rows], bounds=self.bounds[rows])

    def __len__(self) -> int:
        return len(self.bounds)

    def slack(self, output: Tensor) -> Tensor:
        """Return g(o) − b of each condition; +inf where nothing is asked.

        Parameters
        ----------
        output : Tensor of shape (n_samples, n_outputs) or (n_samples,)
            Network outputs.

        Returns
        -------
        Tensor of shape (n_samples, n_outputs)
        """
        logits = self.to_logits(output[:, None] if output.ndim == 1 else output)
        return self._values(logits) - self.bounds

    def violation(self, slack: Tensor) -> Tensor:
        """Return by how much each sample misses its worst condition, >= 0; NaN counts as inf."""
        missed = slack.abs() if self.equality else (-slack).clamp_min(0)
        return missed.nan_to_num(nan=torch.inf, posinf=torch.inf).amax(dim=1)

    def _values(self, logits: Tensor) -> Tensor:
        if self.kind == "lead":
            return logits.gather(1, self.y[:, None]) - logits
        return self.y * logits if self.kind == "sign" else logits
