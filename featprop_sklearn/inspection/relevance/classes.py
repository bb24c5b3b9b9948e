"""Which class relevance speaks for, and which against it: from the arguments to indices."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["RIVALS", "hostile_classes", "one_each", "target_classes"]

#: words for hostile classes
RIVALS = ("runner_up", "present")


def target_classes(target: Any, logits: Tensor) -> Tensor:
    """Return the target class of each sample.

    Parameters
    ----------
    target : None, int or sequence of int
        One class, or one a sample; None is the class of the greatest logit.
    logits : Tensor of shape (n_samples, n_classes)
        Of the network.

    Returns
    -------
    Tensor of shape (n_samples,), int64
        Indices of logits.

    Raises
    ------
    ValueError
        If ``target`` is none of these, or no index of a logit.
    """
    n_samples, n_classes = logits.shape
    if target is None:
        return logits.argmax(dim=1)
    found = _integers(target)
    if found is None or found.shape not in ((), (n_samples,)):
        raise ValueError(
            f"target must be an integer, or one for each of the {n_samples} samples; "
            f"got {_shown(target)}."
        )
    _check_range("target", found, n_classes)
    return torch.from_numpy(np.broadcast_to(found, n_samples).copy()).to(logits.device)


def one_each(target: Any) -> bool:
    """Return whether targets are given one a sample."""
    return target is not None and _array(target).ndim > 0


def hostile_classes(hostile: Any, target: Tensor, logits: Tensor, *, each: bool = False) -> Tensor:
    """Return which classes are hostile to the target of each sample.

    Parameters
    ----------
    hostile : str, None, or sequence
        ``"runner_up"``: the class of the greatest logit but the target's. ``"present"``: all
        whose sigmoid is 0.5 or more. A list of classes, the same for all samples, or a list
        of them a sample; or a boolean array of shape (n_samples, n_classes). None or ``[]``:
        no class.
    target : Tensor of shape (n_samples,), int64
        The targets.
    logits : Tensor of shape (n_samples, n_classes)
        Of the network.
    each : bool
        Whether the targets were given one a sample. A flat list of as many hostile classes may
        then be meant so, too, and is refused.

    Returns
    -------
    Tensor of shape (n_samples, n_classes), bool
        Never true at the target.

    Raises
    ------
    ValueError
        If ``hostile`` is none of these, may be two of them, names no logit, or a target.
    """
    others = ~_one_hot(target, logits)
    if isinstance(hostile, str):
        return others & _rivals(hostile, others, logits)
    if each and len(target) > 1 and _array(hostile).shape == (len(target),):
        raise ValueError(
            f"hostile={_shown(hostile)} may be one class for each of the {len(target)} samples, as "
            "target is, or a list of classes for all of them. Pass a list for each sample, such "
            "as np.asarray(hostile)[:, None], or a boolean array of shape (n_samples, n_classes)."
        )
    found = _as_mask(hostile, logits)
    if bool((found & ~others).any()):
        raise ValueError(
            f"hostile={_shown(hostile)} holds the target of a sample. Leave it out there: pass a "
            "boolean array of shape (n_samples, n_classes) where samples differ."
        )
    return found


def _rivals(name: str, others: Tensor, logits: Tensor) -> Tensor:
    if name not in RIVALS:
        raise ValueError(
            f"hostile must be one of {', '.join(map(repr, RIVALS))}, a list of classes, or None; "
            f"got {name!r}."
        )
    if name == "present":
        return logits >= 0
    return _one_hot(logits.where(others, -torch.inf).argmax(dim=1), logits)


def _as_mask(hostile: Any, logits: Tensor) -> Tensor:
    n_samples, n_classes = logits.shape
    array = _array([] if hostile is None else hostile)
    if array.dtype == bool and array.shape == logits.shape:
        return torch.from_numpy(array.copy()).to(logits.device)
    found = _integers(array if array.size else np.zeros(0, dtype=int))
    if found is None and _is_ragged(hostile, n_samples):
        return _of_rows(hostile, logits)
    if found is None or found.ndim not in (1, 2) or (found.ndim == 2 and len(found) != n_samples):
        raise ValueError(
            "hostile must be a list of classes, a list of them for each of the "
            f"{n_samples} samples, or a boolean array of shape {(n_samples, n_classes)}; "
            f"got {_shown(hostile)}."
        )
    _check_range("hostile", found, n_classes)
    rows = torch.from_numpy(np.broadcast_to(found, (n_samples, found.shape[-1])).copy())
    return torch.zeros_like(logits, dtype=torch.bool).scatter(1, rows.to(logits.device), True)


def _is_ragged(hostile: Any, n_samples: int) -> bool:
    """Return whether there are a sequence of integers, or an empty one, for each sample."""
    if not isinstance(hostile, list | tuple) or len(hostile) != n_samples:
        return False
    rows = [_array(row) for row in hostile]
    return all(row.ndim == 1 and (not row.size or _integers(row) is not None) for row in rows)


def _of_rows(hostile: Any, logits: Tensor) -> Tensor:
    """Return the mask of a sequence of classes for each sample, of whatever lengths."""
    samples = np.repeat(np.arange(len(hostile)), [len(row) for row in hostile])
    classes = np.concatenate([_integers(_array(row)) for row in hostile if len(row)])
    _check_range("hostile", classes, logits.shape[1])
    found = np.zeros(logits.shape, dtype=bool)
    found[samples, classes] = True
    return torch.from_numpy(found).to(logits.device)


def _one_hot(classes: Tensor, logits: Tensor) -> Tensor:
    return torch.zeros_like(logits, dtype=torch.bool).scatter(1, classes[:, None], True)


def _array(value: Any) -> np.ndarray:
    if isinstance(value, Tensor):
        return value.detach().cpu().numpy()
    try:
        return np.asarray(value)
    except ValueError:  # rows of unequal lengths
        return np.asarray(None)


def _integers(value: Any) -> np.ndarray | None:
    """Return indices as int64; None if they are no integers."""
    array = _array(value)
    return array.astype(np.int64) if np.issubdtype(array.dtype, np.integer) else None


def _check_range(name: str, found: np.ndarray, n_classes: int) -> None:
    outside = found[(found < 0) | (found >= n_classes)]
    if outside.size:
        raise ValueError(
            f"{name} holds {outside.flat[0]}, which is no class of this network: it has "
            f"{n_classes} outputs, 0 to {n_classes - 1}."
        )


def _shown(value: Any) -> str:
    array = _array(value)
    return f"an array of {array.dtype} of shape {array.shape}" if array.ndim else repr(value)
