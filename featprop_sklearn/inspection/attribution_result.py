"""What an attribution method found: maps, what they leave over, and how to look at them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from featprop_sklearn.inspection.displays.attribution_display import AttributionDisplay

__all__ = ["AttributionResult", "column_names"]

#: letters of a title in one line
TITLE = 12


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
    feature_names : list of str, default=None
        Names of the columns, where X was a DataFrame.
    """

    maps: NDArray
    residual: NDArray
    target: NDArray
    method: str
    inputs: NDArray
    wanted: NDArray | None = None
    feature_names: list[str] | None = None

    def to_frame(self) -> pd.DataFrame:
        """Table the maps: target, residual, sums of either sign, and where the maximum lies.

        Returns
        -------
        DataFrame
            One row a sample; columns ``target``, ``residual``, ``positive``, ``negative``,
            ``peak`` (its index, a tuple, or the name of its column).
        """
        flat = self.maps.reshape(len(self.maps), -1)
        highest = flat.argmax(axis=1)
        if self.feature_names is None:
            places = zip(*np.unravel_index(highest, self.maps.shape[1:]), strict=True)
            peaks: list[Any] = [tuple(map(int, place)) for place in places]
        else:
            peaks = [self.feature_names[column] for column in highest]
        return pd.DataFrame(
            {
                "target": self.target if self.target.ndim == 1 else list(self.target),
                "residual": self.residual,
                "positive": flat.clip(min=0).sum(axis=1),
                "negative": flat.clip(max=0).sum(axis=1),
                "peak": peaks,
            }
        )

    def plot(self, rows: int | Sequence[int] | NDArray | None = None, **kwargs: Any) -> Any:
        """Draw the maps below their images, or a bar for each feature of a table.

        Parameters
        ----------
        rows : int or sequence of int, default=None
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
            If the maps have more than two dimensions, or no sample is chosen.
        """
        chosen = np.arange(len(self.maps))[:8]
        if rows is not None:
            given = np.atleast_1d(rows)
            chosen = np.arange(len(self.maps))[given if given.size else given.astype(int)]
        is_table = self.maps.ndim == 2
        display = AttributionDisplay(
            self.maps[chosen],
            images=None if is_table else self.inputs[chosen],
            wanted=None if is_table or self.wanted is None else self.wanted[chosen],
            titles=[_title(label) for label in self.target[chosen]],
            method=self.method,
            feature_names=self.feature_names,
        )
        return display.plot(**kwargs)


def column_names(X: Any) -> list[str] | None:
    """Return the names of a DataFrame's columns, None for anything else."""
    columns = getattr(X, "columns", None)
    return None if columns is None else [str(name) for name in columns]


def _title(label: Any) -> str:
    """Write a label, in several lines where it is long."""
    text = f"{label:.3g}" if isinstance(label, float | np.floating) else str(label)
    return textwrap.fill(text, TITLE)
