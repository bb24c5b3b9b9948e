"""What a solve returns: the solution and how far it may be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ["SolveResult", "join_results"]


@dataclass(frozen=True)
class SolveResult:
    """Outcome of one batched solve; every solver and every inverter returns one.

    Attributes
    ----------
    solution : Tensor of shape (n_samples, *in_shape)
        The minimisers, float64.
    solver : str
        Who solved it: a solver's name, or ``"closed_form"``.
    status : {"converged", "not_converged"}
        Whether the solver's own stopping rule was met for every sample.
    residual : float
        Largest residual over the samples, relative to the right-hand side (the
        quantity that the stopping rule of the solver measures); 0 for closed forms.
    iterations : int
        Largest number of iterations over the samples; 0 for direct methods.
    damping : float
        The λ that was used.
    advice : str
        Empty when converged; otherwise likely causes and what to try.
    reason : str
        Where ``solver="auto"`` chose: what it estimated for each solver, the chosen one first.
    """

    solution: Tensor
    solver: str = "closed_form"
    status: str = "converged"
    residual: float = 0.0
    iterations: int = 0
    damping: float = 0.0
    advice: str = ""
    reason: str = ""

    @property
    def converged(self) -> bool:
        """Whether every sample met the stopping rule."""
        return self.status == "converged"


def join_results(parts: Sequence[SolveResult]) -> SolveResult:
    """Join the outcomes of consecutive rows: the worst residual, the first advice.

    Parameters
    ----------
    parts : sequence of SolveResult
        Of one solver and damping; at least one.

    Returns
    -------
    SolveResult
        Converged if all parts are.
    """
    if len(parts) == 1:
        return parts[0]
    failed = [part for part in parts if not part.converged]
    return replace(
        parts[0],
        solution=torch.cat([part.solution for part in parts]),
        status="not_converged" if failed else "converged",
        residual=max(part.residual for part in parts),
        iterations=max(part.iterations for part in parts),
        damping=max(part.damping for part in parts),
        advice=failed[0].advice if failed else "",
    )
