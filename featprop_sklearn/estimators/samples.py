"""What users pass as X, checked against the network and against what was fitted on."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from featprop_sklearn.data import (
    DatasetSource,
    Layout,
    LazyRows,
    check_rows,
    check_samples,
    check_whole,
    find_source,
    is_large,
    is_named,
    pack,
    shape_samples,
)
from featprop_sklearn.networks import reads_integers, refuse_sequence

__all__ = ["EXAMPLES", "Samples", "TakesSamples", "with_labels"]

Samples = NDArray | LazyRows
#: rows of samples that do not fit in memory which show how the network reads them
EXAMPLES = 1000


class TakesSamples(BaseEstimator):
    """Part of the estimators: from whatever X is to checked rows of one array."""

    module: Any
    module_: torch.nn.Module
    input_shape: tuple[int, ...] | None
    _layout: Layout | None
    _sample_shape: tuple[int, ...]

    def _samples(self, X: Any, *, reset: bool) -> Samples:
        """Check X, and give its rows the shape that the network takes; pack several inputs."""
        source = find_source(X)
        if source is not None and is_large(source):
            return self._lazy_samples(source, reset=reset)
        if isinstance(source, DatasetSource):
            X = source.read(range(len(source)))
        return self._whole_samples(X, reset=reset)

    def _lazy_samples(self, source: Any, *, reset: bool) -> LazyRows:
        """Check some rows as if they were all, and the others as they are read."""
        examples = min(EXAMPLES if reset else 1, len(source))
        self._whole_samples(source.read(range(examples)), reset=reset)
        if self._layout is not None:
            step = partial(_packed, layout=self._layout, owner=type(self).__name__)
            return LazyRows(source, step)
        return LazyRows(source, check_rows, partial(shape_samples, input_shape=self.input_shape))

    def _whole_samples(self, X: Any, *, reset: bool) -> NDArray:
        if is_named(X):
            return self._named_samples(X, reset=reset)
        refuse_sequence(self.module, X)
        if reset:
            self._layout = None
        elif self._layout is not None:
            raise ValueError(
                f"{type(self).__name__} was fitted on a dict with the keys {self._layout.names}; "
                f"X is a {type(X).__name__}. Pass a dict of arrays."
            )
        return shape_samples(check_samples(self, X, reset=reset), self.input_shape)

    def _named_samples(self, X: Any, *, reset: bool) -> NDArray:
        """Check a dict of arrays, and lay the inputs of each sample one after the other."""
        if self.module is None:
            raise ValueError(
                "module=None trains a small network on one table; X is a dict. Pass a pretrained "
                "network as module, or X of shape (n_samples, n_features)."
            )
        if self.input_shape is not None:
            raise ValueError(
                f"input_shape={self.input_shape!r} is for X as one table; X is a dict. Give its "
                "arrays the shapes that the network takes."
            )
        if not reset and self._layout is None:
            raise ValueError(
                f"{type(self).__name__} was fitted on one array; X is a dict with the keys "
                f"{list(X.keys())}. Pass one array."
            )
        samples, layout = pack(X, None if reset else self._layout, type(self).__name__)
        self._layout = layout
        return check_samples(self, samples, reset=reset)

    def _known_samples(self, X: Any) -> Samples:
        """Check X against what the network was fitted on."""
        check_is_fitted(self)
        samples = self._samples(X, reset=False)
        if samples.shape[1:] != self._sample_shape:
            raise ValueError(
                f"X holds samples of shape {samples.shape[1:]}, but {type(self).__name__} was "
                f"fitted on samples of shape {self._sample_shape}."
            )
        if not reads_integers(self.module_):
            return samples
        if isinstance(samples, LazyRows):
            return samples.then(check_whole)
        return check_whole(samples)


def with_labels(X: Any, y: ArrayLike | None) -> tuple[Any, Any]:
    """Take the labels of a dataset of pairs where none are given."""
    if y is not None:
        return X, y
    source = find_source(X)
    return X, source.labels() if isinstance(source, DatasetSource) else None


def _packed(given: Any, layout: Layout, owner: str) -> NDArray:
    return pack(given, layout, owner)[0]
