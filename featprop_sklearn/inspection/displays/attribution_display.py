"""Pictures of attribution maps: below the images, or as bars, signed, readable in grey."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from featprop_sklearn.inspection.displays.axes import grid_of_axes, load_pyplot

__all__ = ["AttributionDisplay"]


class AttributionDisplay:
    """Attribution maps, drawn one a column, below their images where there are any.

    Parameters
    ----------
    maps : array-like of shape (n_samples, height, width) or (n_samples, n_features)
        What speaks for a class, and against it: images, or bars for the features of a table.
    images : array-like of shape (n_samples, channels, height, width), default=None
        What the maps belong to: RGB, or grey, the mean of any other number of channels.
    wanted : array-like of shape (n_samples, channels, height, width), default=None
        Images that should have been seen instead, drawn between the two.
    titles : sequence of str, default=None
        One a sample, such as the target.
    method : str, default=None
        Name of the method, for the label of the maps.
    feature_names : sequence of str, default=None
        One a feature of a table.

    Attributes
    ----------
    figure_ : Figure
        What was drawn on.
    axes_ : ndarray of Axes, of shape (1, 2 or 3, n_samples)
        Images and wanted images, where there are any, and maps.

    See Also
    --------
    attribute : Computes maps; its result draws itself.

    Examples
    --------
    >>> import numpy as np
    >>> from featprop_sklearn.inspection import AttributionDisplay
    >>> display = AttributionDisplay(np.random.default_rng(0).normal(size=(3, 8, 8))).plot()
    >>> display.axes_.shape
    (1, 3)
    """

    figure_: Any
    axes_: NDArray

    def __init__(
        self,
        maps: ArrayLike,
        *,
        images: ArrayLike | None = None,
        wanted: ArrayLike | None = None,
        titles: Sequence[str] | None = None,
        method: str | None = None,
        feature_names: Sequence[str] | None = None,
    ) -> None:
        self.maps = maps
        self.images = images
        self.wanted = wanted
        self.titles = titles
        self.method = method
        self.feature_names = feature_names

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        method: Any = "rsp",
        *,
        target: Any = None,
        axes: Any = None,
        cmap: Any = "cividis",
        **options: Any,
    ) -> AttributionDisplay:
        """Compute maps, and draw them.

        Parameters
        ----------
        estimator : FeatureBackpropClassifier or -Regressor, nn.Module, or skorch net; fitted
            Whose network is explained.
        X : array-like of shape (n_samples, ...)
            The samples, all of which are drawn.
        method : str or callable
            As in :func:`attribute`.
        target : None, label, or one label a sample
            The class to explain.
        axes, cmap
            As in :meth:`plot`.
        **options : dict
            Of the method.

        Returns
        -------
        AttributionDisplay
            What was drawn.
        """
        from featprop_sklearn.inspection.attribute import attribute

        load_pyplot()  # or fail before the work
        found = attribute(estimator, X, method, target=target, **options)
        return found.plot(np.arange(len(found.maps)), axes=axes, cmap=cmap)

    def to_frame(self) -> pd.DataFrame:
        """Table the numbers.

        Returns
        -------
        DataFrame
            One row a sample; a column for each feature, by its name, or for each position.
        """
        maps = np.asarray(self.maps, dtype=float)
        columns: Any = self.feature_names
        if maps.ndim > 2:
            columns = pd.MultiIndex.from_product(map(range, maps.shape[1:]))
        return pd.DataFrame(maps.reshape(len(maps), -1), self.titles, columns)

    def plot(self, axes: Any = None, *, cmap: Any = "cividis") -> AttributionDisplay:
        """Draw.

        Each map is divided by its greatest absolute value. The default colours run from dark
        (against) over mid-grey (0) to bright (for), in grey as well. All images are on one scale.

        Parameters
        ----------
        axes : array of Axes, of shape (rows, n_samples)
            Where to draw: a row of images and one of wanted images where they are given, and one
            of maps. None makes a figure.
        cmap : str or Colormap
            Colours of −1 to 1.

        Returns
        -------
        self
            With ``figure_`` and ``axes_``.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If maps, images, names or axes do not fit each other.
        """
        maps, pictures = self._checked()
        is_table = maps.ndim == 2
        rows, n_samples = len(pictures) + 1, len(maps)
        height = 0.2 * maps.shape[1] + 1 if is_table else 1.6 * rows + 0.2
        self.axes_ = grid_of_axes(
            axes,
            (rows, n_samples),
            "a row for each kind of image that is drawn and one of maps",
            figsize=(1.5 * n_samples + 1, height),
        )
        self.figure_ = self.axes_[0, 0].figure
        self._draw_pictures(pictures)
        positions = tuple(range(1, maps.ndim))
        scaled = maps / np.abs(maps).max(axis=positions, keepdims=True).clip(1e-300)
        if is_table:
            self._draw_bars(scaled, load_pyplot().get_cmap(cmap))
        else:
            self._draw_maps(scaled, cmap, with_scale=axes is None)
        for panel, title in zip(self.axes_[0], self.titles or (), strict=False):
            panel.set_title(title)
        if self.method:
            self.axes_[-1, 0].set_ylabel(self.method)
        return self

    def _draw_pictures(self, pictures: dict[str, NDArray]) -> None:
        if not pictures:
            return
        # from black to white whatever the colours of the page
        low = min(images.min() for images in pictures.values())
        high = max(images.max() for images in pictures.values())
        for panels, (name, images) in zip(self.axes_, pictures.items(), strict=False):
            for panel, image in zip(panels, images, strict=True):
                shown = (image - low) / max(high - low, 1e-12)
                panel.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            if len(pictures) > 1:
                panels[0].set_ylabel(name)
        for panel in self.axes_[: len(pictures)].flat:
            panel.set(xticks=[], yticks=[])

    def _draw_maps(self, maps: NDArray, cmap: Any, *, with_scale: bool) -> None:
        for panel, one in zip(self.axes_[-1], maps, strict=True):
            drawn = panel.imshow(one, cmap=cmap, vmin=-1, vmax=1, interpolation="nearest")
            panel.set(xticks=[], yticks=[])
        if with_scale:
            width = 0.2 / (len(maps) + 1)
            bar = self.figure_.colorbar(
                drawn, ax=self.axes_, fraction=width, pad=width, aspect=20, ticks=[-1, 0, 1]
            )
            bar.ax.set_yticklabels(["against", "0", "for"])

    def _draw_bars(self, maps: NDArray, cmap: Any) -> None:
        features = np.arange(maps.shape[1])
        for panel, one in zip(self.axes_[0], maps, strict=True):
            # an edge in mid-grey shows on any page
            panel.barh(features, one, color=cmap(0.5 + one / 2), edgecolor="0.5")
            panel.axvline(0, color="0.5", linewidth=0.8)
            panel.set(xlim=(-1.1, 1.1), xticks=[-1, 0, 1], yticks=[], xlabel="against – for")
            panel.invert_yaxis()
        names = self.feature_names if self.feature_names is not None else features
        self.axes_[0, 0].set_yticks(features, names, fontsize="small")

    def _checked(self) -> tuple[NDArray, dict[str, NDArray]]:
        """Return the maps, and what is drawn above them, ready to be shown."""
        maps = np.asarray(self.maps, dtype=float)
        if maps.ndim not in (2, 3) or maps.size == 0:
            raise ValueError(
                "maps must be of shape (n_samples, height, width) or (n_samples, n_features) to be "
                f"drawn; got {maps.shape}. Of other inputs take the numbers: "
                "AttributionResult.to_frame()."
            )
        for name, given, count in (
            ("titles", self.titles, len(maps)),
            ("feature_names", self.feature_names, maps.shape[1]),
        ):
            if given is not None and len(given) != count:
                raise ValueError(f"{name} must hold {count} names; got {len(given)}.")
        given_images = {"images": self.images, "wanted": self.wanted}
        pictures = {name: np.asarray(one) for name, one in given_images.items() if one is not None}
        for name, images in pictures.items():
            if maps.ndim != 3 or images.ndim != 4 or _size(images) != maps.shape:
                raise ValueError(
                    f"{name} must be of shape (n_samples, channels, height, width) for maps of "
                    f"shape {maps.shape}; got {images.shape}."
                )
        return maps, {name: _without_channels(images) for name, images in pictures.items()}


def _size(images: NDArray) -> tuple[int, ...]:
    return (len(images), *images.shape[2:])


def _without_channels(images: NDArray) -> NDArray:
    return np.moveaxis(images, 1, -1) if images.shape[1] == 3 else images.mean(axis=1)
