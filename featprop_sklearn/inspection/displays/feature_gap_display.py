"""Pictures of the feature gap: how far targets are from features, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from featprop_sklearn.inspection.displays.axes import label_splits, load_pyplot, spread_out
from featprop_sklearn.inspection.displays.groups import group_samples
from featprop_sklearn.inspection.feature_gap import refuse_others

__all__ = ["FeatureGapDisplay"]

KINDS = ("lines", "heatmap")
#: groups that are told apart as lines: each has its marker and its dashes, for grey print
STYLES = ("o-", "s--", "^-.", "D:")
#: groups that stand out where there are more than these
HIGHLIGHTED = 3


class FeatureGapDisplay:
    """Mean displacement of the feature targets at every split, one line a group of samples.

    Displacement is the distance of the feature that the label asks for from the feature that
    the network has. Make it with :meth:`from_estimator`; the numbers are in :meth:`to_frame`.

    Parameters
    ----------
    displacement : array-like of shape (n_splits, n_groups)
        Means over the samples of each group; NaN is not drawn.
    splits : sequence of str
        Names of the splits, in forward order.
    groups : sequence, default=None
        Names of the groups: labels, or "right" and "wrong"; numbers if None.
    n_samples : array-like of shape (n_groups,), default=None
        How many samples each group has.
    by : {"class", "prediction", None}, default=None
        What the groups are.
    relative : bool, default=True
        Whether displacements are over the norms of the features.

    Attributes
    ----------
    ax_ : Axes
        What was drawn on.
    figure_ : Figure
        Its figure.
    lines_ : list of Line2D
        One a group, in the order of ``groups``; of a heat map None.
    im_ : AxesImage
        The heat map; of lines None.
    text_ : list of Text
        Labels at the ends of lines; of a heat map None.

    See Also
    --------
    feature_gap : The table of all measures, over all samples.
    FeatureTargetDisplay : The features themselves.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from featprop_sklearn import FeatureBackpropClassifier
    >>> from featprop_sklearn.inspection import FeatureGapDisplay
    >>> X, y = load_iris(return_X_y=True)
    >>> estimator = FeatureBackpropClassifier(random_state=0).fit(X, y)
    >>> display = FeatureGapDisplay.from_estimator(estimator, X, y, by="class")
    >>> display.to_frame().shape
    (5, 3)
    """

    ax_: Any
    figure_: Any
    lines_: list[Any] | None
    im_: Any
    text_: list[Any] | None

    def __init__(
        self,
        displacement: ArrayLike,
        *,
        splits: Sequence[str],
        groups: Sequence[Any] | None = None,
        n_samples: ArrayLike | None = None,
        by: str | None = None,
        relative: bool = True,
    ) -> None:
        self.displacement = displacement
        self.splits = splits
        self.groups = groups
        self.n_samples = n_samples
        self.by = by
        self.relative = relative

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: ArrayLike | None = None,
        *,
        splits: Any = None,
        by: str | None = None,
        relative: bool = True,
        ax: Any = None,
        **kwargs: Any,
    ) -> FeatureGapDisplay:
        """Measure the feature targets of a fitted estimator's network, and draw the gap.

        Parameters
        ----------
        estimator : fitted FeatureBackpropClassifier or FeatureBackpropRegressor
            Its ``module_`` is measured, with its own propagation rule.
        X : array-like of shape (n_samples, ...), dict of str to such, or Dataset
            Samples, as in ``fit``.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
            Labels or values; None only for a Dataset of pairs.
        splits : str, int or list of them, default=None
            Where to measure; None for every split point.
        by : {"class", "prediction", None}, default=None
            One group for each label in y, for right and wrong predictions, or for all samples.
        relative : bool, default=True
            Whether to divide each displacement by the norm of its feature (samples whose
            feature is zero are left out); only relative ones compare between layers.
        ax : Axes, default=None
            Where to draw; None makes a figure.
        **kwargs : dict
            For :meth:`plot`.

        Returns
        -------
        FeatureGapDisplay
            What was drawn.

        Raises
        ------
        TypeError
            If ``estimator`` is something else, a Pipeline for instance.
        ValueError
            If a split is unknown, or ``by`` is something else or asks for what y has not.
        """
        load_pyplot()  # or fail before the work
        refuse_others(estimator)
        if isinstance(splits, str | Integral):
            splits = [splits]
        quality = estimator._propagate(X, y, splits, keep_targets=False).quality
        correct = next(iter(quality.values())).correct
        members = group_samples(by, estimator, X, y, correct)
        column = "relative_displacement" if relative else "displacement"
        means = [
            [at.summary(group)[column] for group in members.values()] for at in quality.values()
        ]
        display = cls(
            np.array(means),
            splits=list(quality),
            groups=list(members),
            n_samples=np.array([group.sum() for group in members.values()]),
            by=by,
            relative=relative,
        )
        return display.plot(ax, **kwargs)

    def to_frame(self) -> pd.DataFrame:
        """Table the numbers.

        Returns
        -------
        DataFrame
            Index: the splits; one column a group.
        """
        values, names = self._checked()
        return pd.DataFrame(
            values, index=pd.Index(self.splits, name="split"), columns=pd.Index(names, name=self.by)
        )

    def plot(
        self,
        ax: Any = None,
        *,
        kind: str = "lines",
        cmap: Any = "cividis",
        line_kw: dict[str, Any] | None = None,
    ) -> FeatureGapDisplay:
        """Draw.

        Up to four groups are all named; of more, the three that have the greatest gap in the
        mean of the splits stand out, and the others are grey. A heat map shows each.

        Parameters
        ----------
        ax : Axes, default=None
            Where to draw; None makes a figure.
        kind : {"lines", "heatmap"}, default="lines"
            Lines against the splits, or a row a group, greatest gap on top.
        cmap : str or Colormap, default="cividis"
            Colours of the heat map.
        line_kw : dict, default=None
            For ``Axes.plot``, of the lines that are named.

        Returns
        -------
        self
            With ``ax_``, ``figure_``, and what was drawn.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If ``kind`` is something else, or the arrays' shapes do not belong together.
        """
        if kind not in KINDS:
            raise ValueError(f"kind must be 'lines' or 'heatmap'; got {kind!r}.")
        values, names = self._checked()
        if ax is None:
            width = np.clip(0.2 * len(values) + 2.5, 6.4, 16)  # room for the names of layers
            _, ax = load_pyplot().subplots(figsize=(width, 4.8), layout="constrained")
        self.ax_, self.figure_ = ax, ax.figure
        self.lines_ = self.im_ = self.text_ = None
        if kind == "lines":
            self._draw_lines(values, names, line_kw or {})
        else:
            self._draw_heatmap(values, names, cmap)
        label_splits(ax, self.splits)
        return self

    def _draw_lines(self, values: NDArray, names: list[Any], line_kw: dict[str, Any]) -> None:
        several = len(names) > len(STYLES)
        named = _greatest_first(values)[:HIGHLIGHTED] if several else np.arange(len(names))
        grey = {"color": "0.6", "linewidth": 0.8, "zorder": 1}
        self.lines_ = [self.ax_.plot(column, **grey)[0] for column in values.T]
        for place, group in enumerate(named):
            self.lines_[group].remove()
            [self.lines_[group]] = self.ax_.plot(
                values[:, group], STYLES[place], color=f"C{place}", markersize=4, **line_kw
            )
        self.ax_.set_ylabel(self._quantity())
        if self.ax_.get_yscale() == "linear":
            self.ax_.set_ylim(bottom=0)
        texts = [(group, self._name(names, group)) for group in named]
        if several:
            others = np.setdiff1d(np.arange(len(names)), named)
            middle = others[np.argsort(values[-1, others])[len(others) // 2]]
            texts.append((middle, f"the other {len(others)}"))
        self.text_ = self._label_ends(values, texts)

    def _label_ends(self, values: NDArray, texts: list[tuple[Any, str]]) -> list[Any]:
        """Name lines at their right ends, apart from each other."""
        ax = self.ax_
        ends = np.array([[len(values) - 1, values[-1, group]] for group, _ in texts])
        ax.get_ylim()  # settles the limits, which the transform alone does not
        to_axes = ax.transData + ax.transAxes.inverted()
        height = 72 * ax.get_window_extent().height / ax.figure.dpi
        places = spread_out(to_axes.transform(np.nan_to_num(ends))[:, 1], 14 / height)
        return [
            ax.annotate(
                text,
                end,
                (1.03, place),
                textcoords="axes fraction",
                verticalalignment="center",
                annotation_clip=False,
                arrowprops={"arrowstyle": "-", "color": "0.6", "linewidth": 0.6},
            )
            for (_, text), end, place in zip(texts, ends, places, strict=True)
        ]

    def _draw_heatmap(self, values: NDArray, names: list[Any], cmap: Any) -> None:
        order = _greatest_first(values)
        self.im_ = self.ax_.imshow(
            values.T[order], cmap=cmap, vmin=0, aspect="auto", interpolation="nearest"
        )
        self.ax_.set_yticks(range(len(order)), [self._name(names, group) for group in order])
        self.figure_.colorbar(self.im_, ax=self.ax_, label=self._quantity())

    def _quantity(self) -> str:
        return "mean relative displacement" if self.relative else "mean displacement"

    def _name(self, names: list[Any], group: Any) -> str:
        name = f"class {names[group]}" if self.by == "class" else str(names[group])
        return name if self.n_samples is None else f"{name} ({np.asarray(self.n_samples)[group]})"

    def _checked(self) -> tuple[NDArray, list[Any]]:
        values = np.asarray(self.displacement, dtype=float)
        n_groups = values.shape[-1] if values.ndim == 2 else 0
        names = list(range(n_groups)) if self.groups is None else list(self.groups)
        if values.shape != (len(self.splits), len(names)) or values.size == 0:
            raise ValueError(
                "displacement must be of shape (n_splits, n_groups), here "
                f"({len(self.splits)}, {len(names)}), and not empty; got {values.shape}."
            )
        return values, names


def _greatest_first(values: NDArray) -> NDArray:
    """Order groups by their share of the greatest gap at each split, in the mean of splits."""
    known = np.where(np.isfinite(values), values, 0)
    greatest = known.max(axis=1, keepdims=True)
    shares = np.divide(known, greatest, out=np.zeros_like(known), where=greatest > 0)
    return np.argsort(-shares.mean(axis=0), kind="stable")
