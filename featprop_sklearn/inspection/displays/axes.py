"""Where displays draw: new figures, and axes whose x is the layers of a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["grid_of_axes", "label_splits", "load_pyplot", "spread_out"]

#: height of a line of tick labels, in points
LINE = 10.0


def load_pyplot() -> Any:
    """Import ``matplotlib.pyplot``.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    """
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError(
            "Plots need matplotlib, which is not installed. Run pip install "
            "'featprop_sklearn[plots]'."
        ) from error
    return pyplot


def grid_of_axes(axes: Any, shape: tuple[int, int], rows: str, **options: Any) -> NDArray:
    """Return axes to draw on: those given, or those of a new figure.

    Parameters
    ----------
    axes : array of Axes, or None
        What the caller was given.
    shape : tuple of int
        Rows and columns.
    rows : str
        What the rows are, for the error.
    **options : dict
        For ``pyplot.subplots``, if a figure is made.

    Returns
    -------
    ndarray of Axes of that shape

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    ValueError
        If the axes are not as many.
    """
    if axes is None:
        return load_pyplot().subplots(*shape, squeeze=False, layout="constrained", **options)[1]
    panels = np.asarray(axes)
    if panels.size != shape[0] * shape[1]:
        raise ValueError(f"axes must hold {shape[0]} × {shape[1]} Axes, {rows}; got {panels.size}.")
    return panels.reshape(shape)


def label_splits(ax: Any, splits: Sequence[str]) -> None:
    """Name the layers along x, upright; where there is no room for all, every k-th."""
    n = len(splits)
    width = 72 * ax.get_window_extent().width / ax.figure.dpi
    every = max(1, int(np.ceil(n * LINE / max(width, LINE))))
    shown = range((n - 1) % every, n, every)  # the last one, the output, among them
    upright = n > 4
    ax.set_xticks(
        list(shown),
        [splits[index] for index in shown],
        rotation=90 if upright else 0,
        fontsize="small" if upright else None,
    )
    ax.set_xlim(-0.5, n - 0.5)
    ax.set_xlabel("split, from input to output")


def spread_out(heights: ArrayLike, distance: float) -> NDArray:
    """Move labels apart where they are too near: upwards, and back down from the top, 1.

    Parameters
    ----------
    heights : array-like of shape (n_labels,)
        Where they would be.
    distance : float
        Between any two at least; what there is no room for ends below 0.

    Returns
    -------
    ndarray of shape (n_labels,)
        Where they go.
    """
    wanted = np.clip(np.asarray(heights, dtype=float), 0, 1)
    order = np.argsort(wanted, kind="stable")
    steps = distance * np.arange(len(wanted))
    # of heights less their steps nothing may fall: from below, then back from the top
    lifted = np.maximum.accumulate(wanted[order] - steps)
    placed = np.empty_like(wanted)
    placed[order] = np.minimum(lifted, 1 - steps[-1:]) + steps
    return placed
