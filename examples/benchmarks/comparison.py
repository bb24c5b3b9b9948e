"""Ours against every rival, setting by setting: paired differences and corrected p values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import PermutationMethod, wilcoxon

LEVEL = 0.05


@dataclass(frozen=True)
class Verdict:
    """Ours against the rivals in one setting; ``difference`` and ``p`` are by rival.

    Attributes
    ----------
    difference : Series
        Mean over seeds of our score minus the rival's, in points.
    p : Series
        Of the paired Wilcoxon test, corrected for the number of rivals.
    """

    difference: pd.Series
    p: pd.Series

    @property
    def best_rival(self) -> str:
        """The rival with the highest mean test score: a harder opponent than a user has."""
        return str(self.difference.idxmin())

    @property
    def lead(self) -> float:
        """Points over the best rival."""
        return float(self.difference.min())

    @property
    def beats_all(self) -> bool:
        """Whether every rival is significantly worse."""
        return bool(((self.p < LEVEL) & (self.difference > 0)).all())

    @property
    def beaten_by(self) -> list[str]:
        """The rivals that are significantly better."""
        return list(self.p.index[(self.p < LEVEL) & (self.difference < 0)])


def compare(scores: pd.DataFrame, ours: str, rivals: Sequence[str]) -> Verdict:
    """Compare on the seeds that all have been run on.

    Parameters
    ----------
    scores : DataFrame
        One row a seed, one column a method.
    ours : str
        Column to compare.
    rivals : sequence of str
        Columns to compare it with.
    """
    paired = scores[[ours, *rivals]].dropna()
    differences = 100 * paired[list(rivals)].rsub(paired[ours], axis=0)
    p = [paired_p(differences[rival].to_numpy()) for rival in rivals]
    return Verdict(differences.mean(), pd.Series(holm(p), index=list(rivals)))


def paired_p(differences: NDArray) -> float:
    """Two-sided Wilcoxon signed-rank test; zeros share their ranks between the signs.

    Small test sets make ties the rule: the null distribution is that of all sign changes
    (exact up to 16 seeds), not a table or a normal curve. One seed says nothing: 1.
    """
    differences = np.round(differences, 9)  # equal accuracies may differ in their last digit
    if len(differences) < 2 or not differences.any():
        return 1.0
    every_sign = PermutationMethod(n_resamples=2**16)
    return float(wilcoxon(differences, zero_method="zsplit", method=every_sign).pvalue)


def holm(p: Sequence[float]) -> NDArray:
    """Adjust p values for their number: Holm's step-down procedure."""
    p = np.asarray(p, dtype=float)
    order = np.argsort(p)
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted
