"""Pictures of attribution maps: below the images, signed, readable in grey."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from featprop_sklearn.inspection.displays.axes import grid_of_axes, load_pyplot

__all__ = ["AttributionDisplay"]


class AttributionDisplay:
    """Attribution maps, drawn one a column below their images.

    Parameters
    ----------
    maps : array-like of shape (n_samples, height, width)
        What speaks for a class, and against it.
    images : array-like of shape (n_samples, channels, height, width), default=None
        What the maps belong to, grey or RGB.
    wanted : array-like of shape (n_samples, channels, height, width), default=None
        Images that should have been seen instead, drawn between the two.
    titles : sequence of str, default=None
        One a sample, such as the target.
    method : str, default=None
        Name of the method, for the label of the maps.

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
    ) -> None:
        self.maps = maps
        self.images = images
        self.wanted = wanted
        self.titles = titles
        self.method = method

    @classmethod
    def from_estimator(
        cls, estimator: Any, X: Any, method: Any = "rsp", *, target: Any = None, **options: Any
    ) -> AttributionDisplay:
        """Compute maps, and draw them.

        Parameters
        ----------
        estimator : FeatureBackpropClassifier or -Regressor, nn.Module, or skorch net; fitted
            Whose network is explained.
        X : array-like of shape (n_samples, channels, height, width)
            The images, all of which are drawn.
        method : str or callable
            As in :func:`attribute`.
        target : None, label, or one label a sample
            The class to explain.
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
        return found.plot(np.arange(len(found.maps)))

    def plot(self, axes: Any = None, *, cmap: Any = "cividis") -> AttributionDisplay:
        """Draw.

        Each map is divided by its greatest absolute value. The default colours run from dark
        (against) over mid-grey (0) to bright (for), in grey as well.

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
            If maps, images or axes do not have these shapes.
        """
        maps, pictures = self._checked()
        rows = len(pictures) + 1
        self.axes_ = grid_of_axes(
            axes,
            (rows, len(maps)),
            "a row for each kind of image that is drawn and one of maps",
            figsize=(1.5 * len(maps) + 1, 1.6 * rows + 0.2),
        )
        self.figure_ = self.axes_[0, 0].figure
        for panels, (name, images) in zip(self.axes_, pictures.items(), strict=False):
            for panel, image in zip(panels, images, strict=True):
                # from black to white whatever the colours of the page, of all rows alike
                panel.imshow(image, cmap="gray", interpolation="nearest")
            if len(pictures) > 1:
                panels[0].set_ylabel(name)
        for panel, one in zip(self.axes_[-1], maps, strict=True):
            scale = np.abs(one).max() or 1.0
            drawn = panel.imshow(one / scale, cmap=cmap, vmin=-1, vmax=1, interpolation="nearest")
        for panel in self.axes_.flat:
            panel.set(xticks=[], yticks=[])
        for panel, title in zip(self.axes_[0], self.titles or (), strict=False):
            panel.set_title(title)
        if self.method:
            self.axes_[-1, 0].set_ylabel(self.method)
        if axes is None:
            bar = self.figure_.colorbar(drawn, ax=self.axes_, fraction=0.03, ticks=[-1, 0, 1])
            bar.ax.set_yticklabels(["against", "0", "for"])
        return self

    def _checked(self) -> tuple[NDArray, dict[str, NDArray]]:
        """Return the maps, and what is drawn above them, ready to be shown."""
        maps = np.asarray(self.maps, dtype=float)
        if maps.ndim != 3 or len(maps) == 0:
            raise ValueError(
                "maps must be of shape (n_samples, height, width) to be drawn; got "
                f"{maps.shape}. Of other inputs take the numbers: AttributionResult.to_frame()."
            )
        given = {"images": self.images, "wanted": self.wanted}
        pictures = {name: np.asarray(one) for name, one in given.items() if one is not None}
        for name, images in pictures.items():
            if images.ndim != 4 or (len(images), *images.shape[2:]) != maps.shape:
                raise ValueError(
                    f"{name} must be of shape (n_samples, channels, height, width) for maps of "
                    f"shape {maps.shape}; got {images.shape}."
                )
        return maps, _shown(pictures)


def _shown(pictures: dict[str, NDArray]) -> dict[str, NDArray]:
    """Turn channels into grey, or colours on the scale of the first pictures."""
    if not pictures:
        return {}
    first = next(iter(pictures.values()))
    if first.shape[1] != 3:
        return {name: images.mean(axis=1) for name, images in pictures.items()}
    low, high = first.min(), first.max()
    return {
        name: np.moveaxis(((images - low) / max(high - low, 1e-12)).clip(0, 1), 1, -1)
        for name, images in pictures.items()
    }
