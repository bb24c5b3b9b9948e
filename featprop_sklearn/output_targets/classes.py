"""Which output of the network is which class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np

__all__ = ["ClassMap", "resolve_classes"]


@dataclass(frozen=True, eq=False)
class ClassMap:
    """Translation between labels and the outputs of a network.

    Attributes
    ----------
    classes : ndarray of shape (n_classes,)
        The label of each output, in their order; both labels where there is one output. For
        multi-label problems, the names of the outputs.
    width : int
        Number of outputs of the network.
    multilabel : bool
        Whether y is an indicator matrix.
    """

    classes: np.ndarray
    width: int
    multilabel: bool = False

    @property
    def task(self) -> str:
        """``"multilabel"``, ``"binary"`` (one output) or ``"multiclass"``."""
        if self.multilabel:
            return "multilabel"
        return "binary" if self.width == 1 else "multiclass"

    def encode(self, y: Any) -> np.ndarray:
        """Return the indices of labels in ``classes``; indicator matrices are only checked.

        Parameters
        ----------
        y : array-like of shape (n_samples,) or (n_samples, width)
            Labels, or the indicator matrix of a multi-label problem.

        Returns
        -------
        ndarray of the shape of y, int64
            A column of labels becomes flat.

        Raises
        ------
        ValueError
            If y holds an unknown label, or is not a 0/1 matrix with one column an output.
        """
        y = _as_labels(y)
        if self.multilabel:
            return _check_indicator(y, self.width).astype(np.int64)
        if y.ndim != 1:
            raise ValueError(
                f"y must hold one label a sample, got an array of shape {y.shape}; only a network "
                "fitted on an indicator matrix takes one"
            )
        labels, position = np.unique(y, return_inverse=True)
        index_of = {label: index for index, label in enumerate(self.classes.tolist())}
        unknown = [label for label in labels.tolist() if label not in index_of]
        if unknown:
            raise ValueError(
                f"y holds the unknown label {unknown[0]!r}; the known labels are "
                f"{_preview(self.classes)}; remove its samples or pass classes=[...] in the order "
                "of the outputs (integers 0, 1, ... where a meta-estimator, such as a "
                "VotingClassifier, encodes the labels first)"
            )
        indices = np.array([index_of[label] for label in labels.tolist()], dtype=np.int64)
        return indices[position]

    def decode(self, index: Any) -> np.ndarray:
        """Return the labels of these indices; indicator matrices are returned as they are.

        Parameters
        ----------
        index : array-like of int, of shape (n_samples,) or (n_samples, width)
            Indices into ``classes``, or a 0/1 matrix for multi-label problems.

        Returns
        -------
        ndarray of the shape of index
        """
        index = np.asarray(index)
        return index if self.multilabel else self.classes[index]


def resolve_classes(
    y: Any,
    width: int,
    classes: Sequence[Any] | np.ndarray | None = None,
    known_classes: Sequence[Any] | np.ndarray | None = None,
) -> ClassMap:
    """Find the label of each output of a network.

    In this order: ``classes``; ``known_classes``; integer labels in range(n_classes) are indices of
    outputs, so that classes absent from y keep theirs; otherwise the sorted labels, which must be
    as many as the classes. Booleans count as 0 and 1. One output means two classes. A matrix y
    makes the problem multi-label.

    Integer labels that start at 1 are told from indices only by their greatest one: pass
    ``classes`` where y may lack it.

    Parameters
    ----------
    y : array-like of shape (n_samples,) or (n_samples, width)
        Labels, or a 0/1 indicator matrix.
    width : int
        Number of outputs of the network.
    classes : array-like, optional
        The user's word: labels in the order of the outputs.
    known_classes : array-like, optional
        The same, as a fitted scikit-learn or skorch net remembers it.

    Returns
    -------
    ClassMap
        Knows every label of y.

    Raises
    ------
    ValueError
        If labels and outputs do not fit together.
    """
    y = _as_labels(y)
    given = classes if classes is not None else known_classes
    name = "classes" if classes is not None else "the classes that the network was fitted with"
    multilabel = y.ndim == 2
    if multilabel:
        _check_indicator(y, width)
    n_classes = 2 if width == 1 and not multilabel else width
    if given is not None:
        found = _check_given(given, n_classes, width, name)
    elif multilabel:
        found = np.arange(width)
    else:
        found = _infer(y, n_classes, width)
    class_map = ClassMap(found, width, multilabel)
    class_map.encode(y)
    return class_map


def _as_labels(y: Any) -> np.ndarray:
    y = np.asarray(y)
    if y.ndim not in (1, 2):
        raise ValueError(
            f"y must be one label a sample, or a 0/1 matrix for multi-label problems, got an array "
            f"of shape {y.shape}"
        )
    return y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y


def _check_indicator(y: np.ndarray, width: int) -> np.ndarray:
    if y.ndim != 2 or y.shape[1] != width:
        raise ValueError(
            f"y must be a multi-label indicator matrix with one column an output, {width} of them, "
            f"got shape {y.shape}"
        )
    if not np.isin(y, (0, 1)).all():
        raise ValueError(
            "a y of several columns must be a multi-label indicator matrix of 0 and 1, got the "
            f"values {_preview(np.unique(y))}; for one label a sample pass a flat y"
        )
    return y


def _check_given(given: Any, n_classes: int, width: int, name: str) -> np.ndarray:
    found = np.asarray(given)
    if found.ndim != 1 or len(found) != n_classes:
        raise ValueError(
            f"{name} must be {n_classes} labels for a network with {_outputs(width)}, got "
            f"{_preview(found)}"
        )
    if len(np.unique(found)) != n_classes:
        raise ValueError(f"{name} must be different labels, got {_preview(found)}")
    return found


def _infer(y: np.ndarray, n_classes: int, width: int) -> np.ndarray:
    labels = np.unique(y)
    if _are_indices(labels, n_classes):
        return _index_labels(labels.dtype, n_classes)
    if len(labels) != n_classes:
        counted = f"{len(labels)} class" + ("es" if len(labels) != 1 else "")
        if len(labels) > n_classes:
            raise ValueError(
                f"y holds {counted} ({_preview(labels)}) but the network has {_outputs(width)}, "
                "too few for them: leave samples of some classes out, or pass a network with one "
                "output a class. One that has an output for each threshold between ordered "
                "classes takes a matrix of 0 and 1, y[:, None] > thresholds"
            )
        raise ValueError(
            f"y holds {counted} ({_preview(labels)}) but the network has {_outputs(width)}: which "
            f"output is which class cannot be told; pass classes=[...] with {n_classes} labels in "
            "the order of the outputs"
        )
    return labels


def _are_indices(labels: np.ndarray, n_classes: int) -> bool:
    if labels.dtype.kind == "O":
        return all(isinstance(label, Integral) and 0 <= int(label) < n_classes for label in labels)
    if labels.dtype.kind not in "biuf":
        return False
    return bool(np.isin(labels, np.arange(n_classes)).all())


def _index_labels(dtype: np.dtype, n_classes: int) -> np.ndarray:
    """Return 0, 1, … in the labels' own dtype, as far as that holds so many values."""
    if n_classes == 2 or dtype.kind == "f":
        return np.arange(n_classes).astype(dtype)
    holds_all = dtype.kind in "iu" and n_classes - 1 <= np.iinfo(dtype).max
    return np.arange(n_classes, dtype=dtype if holds_all else np.int64)


def _outputs(width: int) -> str:
    return "1 output, which stands for two classes" if width == 1 else f"{width} outputs"


def _preview(labels: np.ndarray) -> str:
    shown = ", ".join(repr(label) for label in labels.ravel()[:6].tolist())
    return f"[{shown}{', ...' if labels.size > 6 else ''}]"
