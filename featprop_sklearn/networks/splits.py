"""Names of the places where a target can be set."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from numbers import Integral

import numpy as np

from featprop_sklearn.networks.chain import Chain, Stage

__all__ = ["chain_splits", "resolve_splits"]

_REMEDY = (
    "To set targets inside it, pass the network as an nn.Sequential of modules that each take "
    "and return one tensor."
)


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
        ``"auto"`` is the network's output; an index counts in the list of split points; the
        path of a module is as good as the name of the stage that it ends at.
    chain : Chain
        The network.

    Returns
    -------
    list of str
        At least one name.

    Raises
    ------
    ValueError
        If a name or an index is unknown (with the nearest names), given twice, or the path
        of a module that ends where no target can be set.
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
    stage = _ending_at(split, chain)
    if stage is not None and stage.name in points:
        return stage.name
    if stage is not None:
        raise ValueError(
            f"split={split!r} has nothing to train before it: no stage up to it has "
            "parameters that require gradients. "
            f"The first split point is {points[0]!r}."
        )
    raise ValueError(f"split={split!r} {_what_is_wrong(split, points, chain)}")


def _ending_at(path: str, chain: Chain) -> Stage | None:
    """Return the stage of this name, or the first that a module of this path ends at."""
    named = (stage for stage in chain if stage.name == path)
    return next(named, None) or next((stage for stage in chain if path in stage.ends), None)


def _what_is_wrong(split: str, points: list[str], chain: Chain) -> str:
    inside = [index for index, stage in enumerate(chain) if split in stage.inside]
    if inside:
        return f"{_inside(inside[0], points, chain)} All: {points}."
    paths = [path for stage in chain if stage.name in points for path in stage.ends]
    near = difflib.get_close_matches(split, dict.fromkeys([*points, *paths]), n=3, cutoff=0.4)
    hint = f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
    text = f"is not a split point of this network. {hint}All: {points}."
    if len(chain) == 1 and chain[0].inside:
        text += f" The network stays one stage: {chain[0].closed}. {_REMEDY}"
    return text


def _inside(index: int, points: list[str], chain: Chain) -> str:
    stage = chain[index]
    before = [name for name in chain.names[:index] if name in points][-1:]
    after = [name for name in chain.names[index:] if name in points][:1]
    near = [
        f"{name!r} {side} it"
        for names, side in ((before, "before"), (after, "after"))
        for name in names
    ]
    remedy = f" {_REMEDY}" if len(chain) == 1 else ""
    return (
        f"lies inside stage {stage.name!r}, which is not opened: {stage.closed}.{remedy} "
        f"Nearest split points: {', '.join(near)}."
    )
