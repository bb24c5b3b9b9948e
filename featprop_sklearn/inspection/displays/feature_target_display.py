"""Pictures of image features beside their targets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.base import is_classifier

from featprop_sklearn.estimators.samples import with_labels
from featprop_sklearn.inspection.displays.axes import grid_of_axes, load_pyplot
from featprop_sklearn.inspection.displays.image_features import checked_numbers, image_features
from featprop_sklearn.inspection.feature_gap import refuse_others

__all__ = ["FeatureTargetDisplay"]

TITLES = ("feature", "target", "target − feature")


class FeatureTargetDisplay:
    """Channels of image features: as they are, as the labels ask for them, and the difference.

    Features and targets are grey, on one scale from their least to their greatest value; the
    differences are coloured, on one scale symmetric about 0.

    Parameters
    ----------
    feature : array-like of shape (n_rows, height, width)
        Channels of features, one row of the picture each.
    target : array-like of shape (n_rows, height, width)
        The same of the targets.
    names : sequence of str, default=None
        What each row is.
    split : str, default=None
        Where the features are.

    Attributes
    ----------
    axes_ : ndarray of Axes of shape (n_rows, 3)
        Feature, target and difference of each row.
    figure_ : Figure
        Their figure.
    im_ : ndarray of AxesImage of shape (n_rows, 3)
        The images.

    See Also
    --------
    FeatureGapDisplay : How far targets are from features, at every split.

    Examples
    --------
    >>> import numpy as np
    >>> from featprop_sklearn.inspection import FeatureTargetDisplay
    >>> feature = np.random.default_rng(0).normal(size=(2, 4, 4))
    >>> display = FeatureTargetDisplay(feature, 2 * feature).plot()
    >>> display.to_frame()["relative_displacement"].tolist()
    [1.0, 1.0]
    """

    axes_: NDArray
    figure_: Any
    im_: NDArray

    def __init__(
        self,
        feature: ArrayLike,
        target: ArrayLike,
        *,
        names: Sequence[str] | None = None,
        split: str | None = None,
    ) -> None:
        self.feature = feature
        self.target = target
        self.names = names
        self.split = split

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: ArrayLike | None = None,
        *,
        split: str | int | None = None,
        samples: int | Sequence[int] = (0, 1, 2),
        channels: int | Sequence[int] | None = None,
        axes: Any = None,
        **kwargs: Any,
    ) -> FeatureTargetDisplay:
        """Compute targets of chosen samples, and draw chosen channels.

        Parameters
        ----------
        estimator : fitted FeatureBackpropClassifier or FeatureBackpropRegressor
            Its ``module_`` is looked at, with its own propagation rule.
        X : array-like of shape (n_samples, ...), dict of str to such, or Dataset
            Samples, as in ``fit``.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
            Labels or values; None only for a Dataset of pairs.
        split : str or int, default=None
            Where to look; None for the estimator's own split if its features are images, or
            else the first split point whose features are.
        samples : int or sequence of int, default=(0, 1, 2)
            Numbers of samples in X; the targets of no others are computed.
        channels : int or sequence of int, default=None
            Numbers of channels, drawn for each sample; None for the one that the target
            moves most, which is another for each sample.
        axes : array of Axes of shape (n_samples × n_channels, 3), default=None
            Where to draw; None makes a figure.
        **kwargs : dict
            For :meth:`plot`.

        Returns
        -------
        FeatureTargetDisplay
            What was drawn.

        Raises
        ------
        TypeError
            If ``estimator`` is something else, a Pipeline for instance, or a number no integer.
        ValueError
            If the split is unknown or its features are no images, or a number is out of range.
        """
        load_pyplot()  # or fail before the work
        refuse_others(estimator)
        found = image_features(estimator, X, y, split, samples)
        if channels is None:
            moved = np.linalg.norm(found.target - found.feature, axis=(2, 3))
            chosen = moved.argmax(axis=1)[:, None]
        else:
            holds = f"the features at {found.split!r} have {{}} channels"
            numbers = checked_numbers("channels", channels, found.feature.shape[1], holds)
            chosen = np.tile(numbers, (len(found.samples), 1))
        labels = _labels(estimator, X, y, found.samples, found.correct)
        rows = np.repeat(np.arange(len(chosen)), chosen.shape[1])
        display = cls(
            found.feature[rows, chosen.ravel()],
            found.target[rows, chosen.ravel()],
            names=[
                f"sample {found.samples[row]}{labels[row]}\nchannel {channel}"
                for row, channel in zip(rows, chosen.ravel(), strict=True)
            ],
            split=found.split,
        )
        return display.plot(axes, **kwargs)

    def to_frame(self) -> pd.DataFrame:
        """Table how far each row's target is from its feature.

        Returns
        -------
        DataFrame
            One row a channel drawn, index its name; columns ``displacement``,
            ``relative_displacement`` (over the channel's norm; NaN where that is zero),
            ``lowest`` and ``highest`` (of the difference).
        """
        feature, target = self._checked()
        difference = (target - feature).reshape(len(feature), -1)
        moved = np.linalg.norm(difference, axis=1)
        size = np.linalg.norm(feature, axis=(1, 2))
        relative = np.divide(moved, size, out=np.full_like(size, np.nan), where=size > 0)
        return pd.DataFrame(
            {
                "displacement": moved,
                "relative_displacement": relative,
                "lowest": difference.min(axis=1),
                "highest": difference.max(axis=1),
            },
            index=None if self.names is None else [name.replace("\n", ", ") for name in self.names],
        )

    def plot(
        self, axes: Any = None, *, cmap: Any = "cividis", image_cmap: Any = "gray"
    ) -> FeatureTargetDisplay:
        """Draw.

        Parameters
        ----------
        axes : array of Axes of shape (n_rows, 3), default=None
            Where to draw; None makes a figure, with bars of both scales.
        cmap : str or Colormap, default="cividis"
            Colours of the differences, from dark (to be lowered) over mid-grey (0) to bright
            (to be raised), in grey as well.
        image_cmap : str or Colormap, default="gray"
            Colours of features and targets.

        Returns
        -------
        self
            With ``axes_``, ``figure_`` and ``im_``.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If features, targets, names and axes do not have these shapes.
        """
        feature, target = self._checked()
        self.axes_ = grid_of_axes(
            axes,
            (len(feature), len(TITLES)),
            "a row for each channel of each sample",
            figsize=(6.4, 1.45 * len(feature) + 0.9),
        )
        self.figure_ = self.axes_[0, 0].figure
        low, high = min(feature.min(), target.min()), max(feature.max(), target.max())
        furthest = np.abs(target - feature).max() or 1.0
        grey = {"cmap": image_cmap, "vmin": low, "vmax": high, "interpolation": "nearest"}
        signed = {"cmap": cmap, "vmin": -furthest, "vmax": furthest, "interpolation": "nearest"}
        columns = ((feature, grey), (target, grey), (target - feature, signed))
        self.im_ = np.array(
            [
                [panel.imshow(image, **how) for panel, image in zip(column, images, strict=True)]
                for column, (images, how) in zip(self.axes_.T, columns, strict=True)
            ]
        ).T
        self._label()
        if axes is None:
            bars = {"location": "bottom", "pad": 0.08 / len(feature), "format": "{x:.2g}"}
            self.figure_.colorbar(self.im_[0, 0], ax=self.axes_[:, :2], aspect=30, **bars)
            bars["ticks"] = [-furthest, 0, furthest]
            self.figure_.colorbar(self.im_[0, 2], ax=self.axes_[:, 2:], aspect=15, **bars)
        return self

    def _label(self) -> None:
        for panel in self.axes_.flat:
            panel.set(xticks=[], yticks=[])
        for panel, title in zip(self.axes_[0], TITLES, strict=True):
            panel.set_title(title, fontsize="medium")
        if self.split is not None:
            self.axes_[0, 0].set_title(f"feature at {self.split}", fontsize="medium")
        for panel, name in zip(self.axes_[:, 0], self.names or (), strict=False):
            panel.set_ylabel(
                name, rotation=0, horizontalalignment="right", verticalalignment="center"
            )

    def _checked(self) -> tuple[NDArray, NDArray]:
        feature = np.asarray(self.feature, dtype=float)
        target = np.asarray(self.target, dtype=float)
        if feature.ndim != 3 or feature.size == 0 or target.shape != feature.shape:
            raise ValueError(
                "feature and target must be of one shape (n_rows, height, width), not empty; got "
                f"{feature.shape} and {target.shape}."
            )
        if self.names is not None and len(self.names) != len(feature):
            raise ValueError(
                f"names must be one a row, {len(feature)} here; got {len(self.names)}."
            )
        return feature, target


def _labels(estimator: Any, X: Any, y: Any, rows: NDArray, correct: NDArray) -> list[str]:
    """Say of each sample what its label is, where it is one number or word."""
    X, y = with_labels(X, y)
    labels = estimator._check_y(estimator._known_samples(X), y)[rows]
    if labels.ndim != 1:
        return [""] * len(rows)
    if not is_classifier(estimator):
        return [f"\ny = {value:.3g}" for value in labels]
    verdicts = ["right" if right else "wrong" for right in correct]
    return [f"\nlabel {label}, got {how}" for label, how in zip(labels, verdicts, strict=True)]
