"""How well feature targets do what they are for: the measures of every report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featprop_sklearn.networks import Chain
from featprop_sklearn.output_targets import OutputTargets

__all__ = ["STATUSES", "TargetQuality", "measure_targets"]

#: what can become of a sample: its output was acceptable as it was; it is, given the target; or
#: why not (see :class:`Acceptable`)
STATUSES = ("met", "reached", "missed", "blocked", "stalled", "not_finite")
MET, REACHED, MISSED = np.arange(3, dtype=np.int8)


@dataclass(frozen=True)
class TargetQuality:
    """Per-sample measures of the feature targets at one split, arrays of shape (n_samples,).

    Attributes
    ----------
    correct : ndarray of bool
        Whether the network classifies the sample as its label now.
    corrected : ndarray of bool
        Whether it would, given the feature target.
    reached : ndarray of bool
        Whether the output given the feature target is acceptable, in T(y).
    displacement, relative_displacement : ndarray
        ‖target − feature‖, and the same over ‖feature‖ (NaN, and left out of means, where
        the feature is zero).
    residual : ndarray
        ‖output given the target − wanted output‖ over ‖wanted output‖; for regression over
        the spread of y where that is larger.
    status : ndarray of int8
        What became of the sample, a number in ``STATUSES``.
    """

    correct: NDArray
    corrected: NDArray
    reached: NDArray
    displacement: NDArray
    relative_displacement: NDArray
    residual: NDArray
    status: NDArray

    @classmethod
    def concatenate(cls, parts: Sequence[TargetQuality]) -> TargetQuality:
        """Join the measures of several batches."""
        columns = [[getattr(part, field.name) for part in parts] for field in fields(cls)]
        return cls(*map(np.concatenate, columns))

    def counts(self) -> dict[str, int]:
        """Count the samples by what became of them."""
        numbers = np.bincount(self.status, minlength=len(STATUSES)).tolist()
        return {name: n for name, n in sorted(zip(STATUSES, numbers, strict=True)) if n}

    def summary(self, weights: NDArray | None = None) -> dict[str, float]:
        """Weighted means: the columns of ``feature_gap`` and of ``report_``.

        A rate over no samples (a repair rate where nothing is wrong) is NaN.
        """
        weights = np.ones(len(self.correct)) if weights is None else weights
        return {
            "repair_rate": _mean(self.corrected, weights * ~self.correct),
            "kept_rate": _mean(self.corrected, weights * self.correct),
            "reached": _mean(self.reached, weights),
            "displacement": _mean(self.displacement, weights),
            "relative_displacement": _mean(self.relative_displacement, weights),
            "residual": _mean(self.residual, weights),
        }


def measure_targets(
    after: Chain,
    feature: Tensor,
    target: Tensor,
    output: Tensor,
    wanted: Tensor,
    y: Tensor,
    output_targets: OutputTargets,
    status: Sequence[str] | None = None,
) -> TargetQuality:
    """Push feature targets forward through the frozen stages and judge what comes out.

    Parameters
    ----------
    after : Chain
        The stages after the split; empty where the split is the output.
    feature, target : Tensor of shape (n_samples, ...)
        The feature at the split and its target.
    output, wanted : Tensor of shape (n_samples, n_outputs)
        The network's output now, and the wanted one.
    y : Tensor
        Encoded labels or values.
    output_targets : OutputTargets
        Says what is right and what is acceptable.
    status : sequence of str, optional
        What the rule says of each sample.

    Returns
    -------
    TargetQuality
        Of these samples.
    """
    with torch.no_grad():
        reached_output = after(target)
    displacement = _row_norm(target - feature)
    met = output_targets.reached(output, y).cpu().numpy()
    reached = output_targets.reached(reached_output, y).cpu().numpy()
    why = np.full(len(met), MISSED)
    if status is not None:
        why = np.maximum(why, np.array([STATUSES.index(name) for name in status], dtype=np.int8))
    return TargetQuality(
        correct=output_targets.correct(output, y).cpu().numpy(),
        corrected=output_targets.correct(reached_output, y).cpu().numpy(),
        reached=reached,
        displacement=displacement,
        relative_displacement=_relative(displacement, _row_norm(feature)),
        residual=_ratio(
            _row_norm(reached_output - wanted),
            np.maximum(_row_norm(wanted), output_targets.scale),
        ),
        status=np.where(reached, np.where(met, MET, REACHED), why),
    )


def _row_norm(rows: Tensor) -> NDArray:
    return rows.double().reshape(len(rows), -1).norm(dim=1).cpu().numpy()


def _ratio(a: NDArray, b: NDArray) -> NDArray:
    return np.divide(a, b, out=np.where(a > 0, np.inf, 0.0), where=b > 0)


def _relative(displacement: NDArray, size: NDArray) -> NDArray:
    """Displacement over size; NaN where the feature is zero and nothing is relative to it."""
    return np.divide(displacement, size, out=np.full_like(size, np.nan), where=size > 0)


def _mean(values: NDArray, weights: NDArray) -> float:
    counted = ~np.isnan(values.astype(np.float64)) & (weights > 0)
    total = weights[counted].sum()
    return float((weights * values)[counted].sum() / total) if total > 0 else float("nan")
