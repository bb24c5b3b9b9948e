"""Several inputs of a network as one array: a dict of arrays, packed sample by sample."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse
from sklearn.utils import check_array

from featprop_sklearn.data.validation import without_torch

__all__ = ["LARGEST_INTEGER", "Layout", "Part", "check_whole", "is_named", "pack"]

#: float32, in which networks compute, holds every integer up to here
LARGEST_INTEGER = 2**24

_KINDS = {"b": "bool", "u": "int", "i": "int", "f": "float"}


@dataclass(frozen=True)
class Part:
    """One input of a network, as a piece of a packed row.

    Attributes
    ----------
    name : str
        Its key.
    shape : tuple of int
        Of one sample.
    kind : {"float", "int", "bool"}
        What the network reads.
    columns : tuple of str or None
        Names of the columns, where the input came as a DataFrame.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    columns: tuple[str, ...] | None = None

    @property
    def size(self) -> int:
        """Numbers per sample."""
        return math.prod(self.shape)

    def __str__(self) -> str:
        return f"{self.name} {self.shape} {self.kind}"


@dataclass(frozen=True)
class Layout:
    """How the inputs of a network lie in a packed row, one after the other."""

    parts: tuple[Part, ...]

    @property
    def names(self) -> list[str]:
        """Keys, in the order of the parts."""
        return [part.name for part in self.parts]

    def pieces(self) -> Iterator[tuple[Part, slice]]:
        """Yield each part with its place in a packed row."""
        stop = 0
        for part in self.parts:
            start, stop = stop, stop + part.size
            yield part, slice(start, stop)

    def check_values(self, packed: NDArray) -> None:
        """Check that what the network reads as integers or booleans is that, and exact.

        Raises
        ------
        ValueError
            As :func:`check_whole`.
        """
        for part, place in self.pieces():
            if part.kind != "float":
                check_whole(packed[:, place], f"X[{part.name!r}]", boolean=part.kind == "bool")

    def check(self, given: Layout, owner: str) -> None:
        """Compare what came with what an estimator was fitted on.

        Raises
        ------
        ValueError
            If keys, shapes of samples or names of columns differ.
        """
        fitted = {part.name: part for part in self.parts}
        missing = [name for name in self.names if name not in given.names]
        unknown = [name for name in given.names if name not in fitted]
        if missing or unknown:
            lacks = f"lacks {_listed(missing)}" if missing else ""
            has = f"has {_listed(unknown)} as well" if unknown else ""
            raise ValueError(
                f"X {' and '.join(filter(None, (lacks, has)))}: {owner} was fitted on a dict with "
                f"the keys {self.names}. Pass a dict with exactly these."
            )
        for part in given.parts:
            known = fitted[part.name]
            if part.shape != known.shape:
                raise ValueError(
                    f"X[{part.name!r}] holds samples of shape {part.shape}, but {owner} was "
                    f"fitted on samples of shape {known.shape}."
                )
            if part.columns and known.columns and part.columns != known.columns:
                raise ValueError(
                    f"X[{part.name!r}] has the columns {list(part.columns)}, but {owner} was "
                    f"fitted on {list(known.columns)}. Pass them in this order."
                )


def is_named(X: object) -> bool:
    """Return whether X is a dict of inputs; a sparse table may be a dict as well, of numbers."""
    return isinstance(X, Mapping) and not issparse(X)


def pack(X: Mapping[str, Any], layout: Layout | None, owner: str) -> tuple[NDArray, Layout]:
    """Check a dict of arrays, and lay the inputs of each sample one after the other.

    Parameters
    ----------
    X : mapping of str to array-like of shape (n_samples, ...)
        Arrays, tensors or DataFrames; floats, integers or booleans, all finite.
    layout : Layout or None
        What was fitted on; None learns it from X.
    owner : str
        Who was fitted, for the messages.

    Returns
    -------
    packed : ndarray of shape (n_samples, n_values), float32 or float64
        float64 only if one of the arrays is, or float32 does not hold its integers.
    layout : Layout
        The given one, or that of X.

    Raises
    ------
    TypeError
        If a key is no string.
    ValueError
        If there is no array, one is no array of numbers or has other rows than the rest, or X
        differs from the layout.
    """
    if not X.keys():
        raise ValueError("X is an empty dict. Its keys must be names of the network's arguments.")
    arrays = {name: _checked(name, values) for name, values in X.items()}
    rows = {name: len(array) for name, array in arrays.items()}
    if len(set(rows.values())) > 1:
        counts = ", ".join(f"X[{name!r}] has {count}" for name, count in rows.items())
        raise ValueError(f"The arrays of X must have the same number of rows: {counts}.")
    found = Layout(tuple(_part(name, arrays[name], X[name]) for name in arrays))
    if layout is not None:
        layout.check(found, owner)
    parts = (layout or found).parts
    packed = np.concatenate(
        [arrays[part.name].reshape(len(arrays[part.name]), part.size) for part in parts],
        axis=1,
        dtype=np.float64 if any(map(_needs_double, arrays.values())) else np.float32,
        casting="unsafe",
    )
    if layout is not None:
        layout.check_values(packed)
    return packed, layout or found


def check_whole(values: NDArray, name: str = "X", *, boolean: bool = False) -> NDArray:
    """Check numbers that the network reads as integers, and return them.

    Raises
    ------
    ValueError
        If one is not whole (or not 0 or 1, for booleans), or too large to be exact.
    """
    wrong = ~np.isin(values, (0, 1)) if boolean else values != np.floor(values)
    if wrong.any():
        wanted = "booleans" if boolean else "whole numbers"
        raise ValueError(
            f"{name} holds {values[wrong][0]}, but the network reads {wanted} there. "
            f"Pass {wanted} only."
        )
    large = (values > LARGEST_INTEGER) | (values < -LARGEST_INTEGER)
    if large.any():
        raise ValueError(
            f"{name} holds {values[large][0]:.0f}. Integers reach the network exactly up to "
            f"2**24 = {LARGEST_INTEGER} only: renumber them, or pass floats where it computes "
            "with them."
        )
    return values


def _checked(name: object, values: Any) -> NDArray:
    if not isinstance(name, str):
        raise TypeError(
            f"The keys of X must be names of the network's arguments; got {name!r}, "
            f"a {type(name).__name__}."
        )
    values = without_torch(values, f"X[{name!r}]")
    if np.ndim(values) == 0:
        raise ValueError(
            f"X[{name!r}] must be an array with one row per sample; got {values!r}. "
            "Leave out what is no input: the network's own defaults then hold."
        )
    try:
        array = check_array(values, ensure_2d=False, allow_nd=True)
    except ValueError as error:
        raise ValueError(f"X[{name!r}] is no array that a network can read: {error}") from error
    if 0 in array.shape[1:]:
        raise ValueError(
            f"X[{name!r}] holds samples of shape {array.shape[1:]}, without a number. Leave it out."
        )
    return array.astype(np.float32) if array.dtype == np.float16 else array


def _needs_double(array: NDArray) -> bool:
    if array.dtype.kind not in "iu":
        return array.dtype == np.float64
    return bool(array.size) and max(-int(array.min()), int(array.max())) > LARGEST_INTEGER


def _part(name: str, array: NDArray, given: Any) -> Part:
    columns = getattr(given, "columns", None)
    return Part(
        name,
        array.shape[1:],
        _KINDS[array.dtype.kind],
        None if columns is None else tuple(map(str, columns)),
    )


def _listed(names: list[str]) -> str:
    return " and ".join(map(repr, names))
