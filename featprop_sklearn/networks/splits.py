"""Names of the places where a target can be set."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from numbers import Integral

import numpy as np

from featprop_sklearn.networks.chain import Chain

__all__ = ["chain_splits", "resolve_splits"]


def chain_splits(chain: Chain) -> list[str]:
    """Return the stages whose output can receive a target: something before them can learn."""
    names: list[str] = []
    trainable = False
    for stage in chain:
        trainable = trainable or any(p.requires_grad for p in stage.module.parameters())
        if trainable:
            names.append(stage.name)
    return names


def resolve_splits(split: object, chain: Chain) -> list[str]:
    """Turn the ``split`` parameter into names of split points, in forward order.

    Parameters
    ----------
    split : str, int, or sequence of them
        ``"auto"`` is the network's output; an index counts in the list of split points.
    chain : Chain
        The network.

    Returns
    -------
    list of str
        At least one name.

    Raises
    ------
    ValueError
        If a name or an index is unknown (with the nearest names), or given twice.
    TypeError
        If ``split`` is of another type.
    """
    points = chain_splits(chain)
    if not points:
        raise ValueError(
            "module has no parameters, so there is nothing to train. "
            "Pass a network with at least one trainable layer."
        )
    if isinstance(split, (str, Integral)):
        return [_resolve_one(split, points, chain)]
    if isinstance(split, np.ndarray):
        split = split.tolist()
    if not isinstance(split, Sequence) or len(split) == 0:
        raise TypeError(
            "split must be a name, an index, a non-empty list of them, or 'auto'; "
            f"got {split!r}. The names are {points}."
        )
    names = [_resolve_one(item, points, chain) for item in split]
    if len(set(names)) < len(names):
        raise ValueError(f"split={list(split)!r} names a split point twice.")
    return sorted(names, key=points.index)


def _resolve_one(split: object, points: list[str], chain: Chain) -> str:
    if isinstance(split, Integral) and not isinstance(split, bool):
        if not -len(points) <= int(split) < len(points):
            raise ValueError(
                f"split={split} is out of range: the network has {len(points)} split points, "
                f"0 to {len(points) - 1}: {points}."
            )
        return points[int(split)]
    if not isinstance(split, str):
        raise TypeError(f"split must hold names or indices; got {split!r}. Names: {points}.")
    if split in points:
        return split
    if split == "auto":
        return points[-1]
    if split in chain.names:
        raise ValueError(
            f"split={split!r} has nothing to train before it: no stage up to it has "
            "parameters that require gradients. "
            f"The first split point is {points[0]!r}."
        )
    near = difflib.get_close_matches(split, points, n=3, cutoff=0.4)
    hint = f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
    raise ValueError(f"split={split!r} is not a split point of this network. {hint}All: {points}.")
