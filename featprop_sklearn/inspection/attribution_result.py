"""What an attribution method found: maps, what they leave over, and how to look at them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from featprop_sklearn.inspection.displays.attribution_display import AttributionDisplay

__all__ = ["AttributionResult"]


@dataclass(frozen=True, eq=False)
class AttributionResult:
    """Attribution maps of some samples.

    Parameters
    ----------
    maps : ndarray of shape (n_samples, ...), float64
        What speaks for the target, positive, and against it, negative, at each position of
        the inputs; of tables at each feature. The scale is the method's own.
    residual : ndarray of shape (n_samples,), float64
        What the maps leave over of the sum that the method promises: for rsp 1 − the sum of
        the map (NaN without hostile classes); for integrated gradients the sum − the difference
        of the target's logit to that of the baseline; for lrp the target's logit − the
        sum. NaN for methods that promise none.
    target : ndarray of shape (n_samples,) or (n_samples, n_outputs)
        The class that is explained; of method "displacement" what was wanted.
    method : str
        Name of the method.
    inputs : ndarray of shape (n_samples, channels, ...)
        The samples.
    wanted : ndarray of shape (n_samples, channels, ...), default=None
        Of method "displacement": the inputs that the network should have seen.
    """

    maps: NDArray
    residual: NDArray
    target: NDArray
    method: str
    inputs: NDArray
    wanted: NDArray | None = None

    def to_frame(self) -> pd.DataFrame:
        """Table the maps: target, residual, sums of either sign, and where the maximum lies.

        Returns
        -------
        DataFrame
            One row a sample; columns ``target``, ``residual``, ``positive``, ``negative``,
            ``peak`` (its index, a tuple).
        """
        flat = self.maps.reshape(len(self.maps), -1)
        peaks = np.unravel_index(flat.argmax(axis=1), self.maps.shape[1:])
        return pd.DataFrame(
            {
                "target": self.target if self.target.ndim == 1 else list(self.target),
                "residual": self.residual,
                "positive": flat.clip(min=0).sum(axis=1),
                "negative": flat.clip(max=0).sum(axis=1),
                "peak": [tuple(map(int, place)) for place in zip(*peaks, strict=True)],
            }
        )

    def plot(self, rows: Sequence[int] | NDArray | None = None, **kwargs: Any) -> Any:
        """Draw the maps below their images.

        Parameters
        ----------
        rows : sequence of int, default=None
            Which samples; None draws the first eight.
        **kwargs : dict
            For :meth:`AttributionDisplay.plot`.

        Returns
        -------
        AttributionDisplay
            What was drawn.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If the maps are not two-dimensional.
        """
        chosen = np.arange(min(8, len(self.maps))) if rows is None else np.asarray(rows)
        display = AttributionDisplay(
            self.maps[chosen],
            images=self.inputs[chosen],
            wanted=None if self.wanted is None else self.wanted[chosen],
            titles=[str(label) for label in self.target[chosen]],
            method=self.method,
        )
        return display.plot(**kwargs)
