"""One tensor of outputs from networks that return more: tuples, dicts, objects, extra axes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter, itemgetter
from typing import Any

import torch
from torch import Tensor, fx, nn

from featprop_sklearn.networks.stand_in import StandIn

__all__ = ["Found", "SingleOutput", "find_output", "tensors_in"]

Place = tuple[Callable[[Any], Any], ...]

#: most of what functions are called with; whether a type is a Mapping takes Python long to say
_SCALARS = {type(None), bool, int, float, str}


@dataclass(frozen=True)
class Found:
    """A tensor in a nest of containers.

    Attributes
    ----------
    name : str
        How Python would write its place, such as ``['logits']`` or ``[0]``.
    place : tuple of callable
        The steps that lead to it, from the outermost container on.
    value : Tensor
        The tensor.
    """

    name: str
    place: Place
    value: Tensor

    def __str__(self) -> str:
        return f"{self.name} {tuple(self.value.shape)}"


def tensors_in(
    value: object, name: str = "", place: Place = (), above: tuple[int, ...] = ()
) -> Iterator[Found]:
    """Yield the tensors in nested tuples, lists, dicts and dataclasses, or in one object.

    Of other objects, only the outermost is looked into; what contains itself, once.
    """
    if isinstance(value, Tensor):
        yield Found(name, place, value)
    elif type(value) not in _SCALARS and id(value) not in above:
        for key, item, step in _entries(value, outermost=not place):
            yield from tensors_in(item, f"{name}{key}", (*place, step), (*above, id(value)))


def _entries(value: Any, *, outermost: bool) -> Iterator[tuple[str, Any, Callable]]:
    if isinstance(value, (tuple, list)):
        names = getattr(value, "_fields", None)
        for position, item in enumerate(value):
            key = f".{names[position]}" if names else f"[{position}]"
            yield key, item, itemgetter(position)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield f"[{key!r}]", item, itemgetter(key)
    else:
        for field in _fields(value, outermost):
            yield f".{field}", getattr(value, field), attrgetter(field)


def _fields(value: Any, outermost: bool) -> list[str]:
    if isinstance(value, type):
        return []
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        return [name for name in names if hasattr(value, name)]
    return list(vars(value)) if outermost and hasattr(value, "__dict__") else []


def find_output(output: object, fewer: object, ratio: float) -> Found:
    """Find the tensor of outputs among what a network returned.

    Parameters
    ----------
    output, fewer : object
        What it returned for some rows, and for fewer rows.
    ratio : float
        How many times as many the first are.

    Returns
    -------
    Found
        The tensor itself; or what is called ``logits``; or the only floating tensor of shape
        (n_samples, n_outputs) or (n_samples,), axes of length 1 at the end aside.

    Raises
    ------
    ValueError
        If there is none, or more than one; the text goes on from "The network (...) must
        return one tensor; ".
    """
    if isinstance(output, Tensor):
        return Found("", (), output)
    found = list({id(item.value): item for item in tensors_in(output)}.values())
    named = [item for item in found if item.name in ("['logits']", ".logits")]
    if named:
        return named[0]
    fitting = [item for item in found if _is_table(item, fewer, ratio)]
    if len(fitting) == 1:
        return fitting[0]
    kind = type(output).__name__
    if fitting:
        raise ValueError(
            f"it returned {kind}, in which {' and '.join(map(str, fitting))} could each be the "
            "logits or values. Name one of them 'logits' in a dict, or wrap it in a module that "
            "returns these alone."
        )
    held = f" (it holds {', '.join(map(str, found))})" if found else ""
    raise ValueError(
        f"it returned {kind}, in which no floating tensor has shape (n_samples, n_outputs)"
        f"{held}. Wrap it in a module that returns the logits or values alone."
    )


def _is_table(item: Found, fewer: object, ratio: float) -> bool:
    """Return whether the tensor has numbers in a row for each of the rows."""
    value = item.value
    if not value.is_floating_point() or value.ndim == 0 or any(n > 1 for n in value.shape[2:]):
        return False
    try:
        return value.numel() == pick(fewer, item.place).numel() * ratio
    except Exception:  # fewer rows may come back in another form
        return False


def pick(output: Any, place: Place) -> Tensor:
    """Follow the steps to a tensor."""
    for step in place:
        output = step(output)
    return output


class SingleOutput(StandIn):
    """A network that returns one tensor of outputs, one row a sample whatever the batch size.

    Parameters
    ----------
    network : nn.Module
        The network.
    place : tuple of callable
        Steps from what it returns to its outputs (see :func:`find_output`).
    shape : tuple of int or None
        Shape of one sample's outputs, where the network's own shape does not do: it has axes
        of length 1 too many, or loses the batch dimension of a single row.
    pairs : bool
        Whether the network refuses a single row, which is then run twice over.
    """

    def __init__(
        self,
        network: nn.Module,
        place: Place = (),
        shape: tuple[int, ...] | None = None,
        *,
        pairs: bool = False,
    ) -> None:
        super().__init__(network)
        self.place = place
        self.shape = shape
        self.pairs = pairs

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs, one row a sample."""
        run = self.running(x)
        if isinstance(x, fx.Proxy):
            output = pick(run(x), self.place)
            # a lost dimension of single numbers: the chain makes the call that loses it a layer
            return output.reshape(-1, *self.shape) if self.shape else output
        if self.pairs and len(x) == 1:
            return self.pick(run(torch.cat([x, x])))[:1]
        return self.pick(run(x))

    def pick(self, output: object) -> Tensor:
        """Return the outputs among what the network returned."""
        value = pick(output, self.place)
        return value if self.shape is None else value.reshape(-1, *self.shape)
