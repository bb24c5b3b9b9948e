"""What a solve returns: the solution and how far it may be trusted."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["SolveResult"]


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
