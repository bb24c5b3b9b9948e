"""Networks that read several inputs, or integers, off one tensor of floating numbers."""

from __future__ import annotations

import difflib
import inspect
import itertools
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from featprop_sklearn.data import (
    Layout,
    Part,
    check_whole,
    module_device,
    module_dtype,
    to_tensor,
)
from featprop_sklearn.networks.probe import random_state_kept
from featprop_sklearn.networks.stand_in import StandIn, wrappers

__all__ = ["Integers", "Unpack", "input_dtype", "reads_integers", "refuse_sequence", "with_inputs"]

EXAMPLES = 8
#: ways to read the inputs that are tried on a network before it is said to refuse them
ATTEMPTS = 64

_Run = Callable[[nn.Module, Tensor], object]


def _run(module: nn.Module, x: Tensor) -> object:
    return module(x)


class _OneTensor(StandIn):
    """A network behind one tensor."""

    @abstractmethod
    def arguments(self, x: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return what the network's ``forward`` takes, by position and by name."""

    def forward(self, x: Tensor) -> Any:
        """Return what the network returns."""
        given, named = self.arguments(x)
        return self.running(x)(*given, **named)


class Unpack(_OneTensor):
    """A network that reads its named inputs off packed rows, in their own shapes and dtypes.

    Parameters
    ----------
    network : nn.Module
        The network.
    layout : Layout
        How the inputs lie in a row.
    as_dict : bool
        Whether ``forward`` takes one dict of all the inputs, rather than each by its name.
    """

    def __init__(self, network: nn.Module, layout: Layout, *, as_dict: bool = False) -> None:
        super().__init__(network)
        self._layout = layout
        self._as_dict = as_dict
        self._dtypes = {"float": module_dtype(network), "int": torch.int64, "bool": torch.bool}

    def arguments(self, x: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the inputs by name, or in one dict."""
        inputs = {part.name: self._read(x, part, place) for part, place in self._layout.pieces()}
        return ((inputs,), {}) if self._as_dict else ((), inputs)

    def _read(self, x: Tensor, part: Part, place: slice) -> Tensor:
        values = x[:, place] if part.shape else x[:, place.start]
        if len(part.shape) > 1:
            values = values.reshape(-1, *part.shape)
        # users call view on what they pass, which is contiguous
        return values.contiguous().to(self._dtypes[part.kind])

    def extra_repr(self) -> str:
        """Show the inputs."""
        return ", ".join(map(str, self._layout.parts))


class Integers(_OneTensor):
    """A network whose one input are integers, such as the token numbers of an embedding.

    Parameters
    ----------
    network : nn.Module
        The network.
    """

    def arguments(self, x: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the input."""
        return (x.to(torch.int64),), {}


def reads_integers(module: nn.Module) -> bool:
    """Return whether the network's one input are integers."""
    return any(isinstance(wrapper, Integers) for wrapper in wrappers(module))


def input_dtype(module: nn.Module) -> torch.dtype:
    """Return the dtype of the one tensor that a network is given.

    It is the network's own, but never of 16 bits where the tensor carries integers.
    """
    dtype = module_dtype(module)
    packed = any(isinstance(wrapper, _OneTensor) for wrapper in wrappers(module))
    return torch.promote_types(dtype, torch.float32) if packed else dtype


def with_inputs(
    module: nn.Module, samples: NDArray, layout: Layout | None, run: _Run = _run
) -> nn.Module:
    """Put what reads the inputs before a network that is not given one tensor of floats.

    Parameters
    ----------
    module : nn.Module
        In eval mode, already private.
    samples : ndarray of shape (n_samples, ...)
        All rows; packed ones if there is a layout.
    layout : Layout or None
        Of the dict that the samples were; None if they were one array.
    run : callable
        Runs a network on a few rows, to see whether it takes them.

    Returns
    -------
    nn.Module
        Takes one tensor of floats: the network itself, an :class:`Unpack` (integers reach the
        network as int64, or as floats if it refuses these), or :class:`Integers` if it refuses
        floats and every number is whole.

    Raises
    ------
    ValueError
        If names, shapes or dtypes do not fit, or integers are not exact.
    """
    if layout is None:
        return _with_one_input(module, samples, run)
    return _with_named_inputs(module, samples, layout, run)


def refuse_sequence(module: object, X: Any) -> None:
    """Refuse a tuple or list of arrays that may be the inputs of a network that takes several.

    Raises
    ------
    ValueError
        With what to pass instead.
    """
    network = module if isinstance(module, nn.Module) else getattr(module, "module_", None)
    if not isinstance(X, tuple | list) or not isinstance(network, nn.Module):
        return
    names, required, _ = _forward_arguments(network)
    several = all(getattr(part, "ndim", 0) > 1 for part in X) and 1 < len(X) <= len(names)
    if several or (X and len(required) > 1):
        kind = type(X).__name__
        wanted = ", ".join(f"{name!r}: X[{i}]" for i, name in enumerate(names[: len(X)]))
        raise ValueError(
            f"X is a {kind} of {len(X)} arrays, and the network ({_kind(network)}) takes several "
            f"inputs, {names}. Pass inputs by name: X={{{wanted}}}. If these are samples of one "
            "input, stack them: np.stack(X)."
        )


def _with_one_input(module: nn.Module, samples: NDArray, run: _Run) -> nn.Module:
    if len(_forward_arguments(module)[1]) > 1:
        return module  # whoever runs it next says what to pass
    refusal = _refusal(module, samples, run)
    if refusal is None:
        return module
    reader = Integers(module)
    other = _refusal(reader, np.round(samples[:EXAMPLES]), run)
    if other is None:
        check_whole(samples, "X")
        return reader
    if any(isinstance(part, nn.Embedding | nn.EmbeddingBag) for part in module.modules()):
        raise ValueError(
            f"The network ({_kind(module)}) refused X of shape (n_samples, "
            f"{', '.join(map(str, samples.shape[1:]))}) as integers: {other}; and as floats: "
            f"{refusal}. Pass X in the shape that the network takes, with numbers that its "
            "embeddings have a row for."
        )
    return module  # whoever runs it next says what is wrong


def _with_named_inputs(module: nn.Module, samples: NDArray, layout: Layout, run: _Run) -> nn.Module:
    names, required, anything = _forward_arguments(module)
    as_dict = len(required) == 1 and not anything and not {*layout.names} & {*names}
    if not as_dict:
        _check_names(module, layout)
    first: Exception | None = None
    for attempt in itertools.islice(_readings(layout, samples), ATTEMPTS):
        reader = Unpack(module, attempt, as_dict=as_dict)
        refusal = _refusal(reader, samples, run)
        if refusal is None:
            attempt.check_values(samples)
            return reader
        first = first or refusal
    given = "; ".join(map(str, layout.parts))
    itself = f" as the one argument {required[0]!r}" if as_dict else ""
    raise ValueError(
        f"The network ({_kind(module)}) refused the dict X{itself}, with {given} (shapes of one "
        f"sample): {first}. Its arguments are {names}."
        + (f" If it takes one array, pass X[{layout.names[0]!r}]." if as_dict else "")
    )


def _readings(layout: Layout, samples: NDArray) -> Iterator[Layout]:
    """Yield the layout, and those that read integers as floats or whole floats as integers."""
    choices = []
    for part, place in layout.pieces():
        whole = part.kind == "float" and (samples[:, place] == np.round(samples[:, place])).all()
        other = {"int": ["float"], "float": ["int"] if whole else []}.get(part.kind, [])
        choices.append([replace(part, kind=kind) for kind in (part.kind, *other)])
    for parts in itertools.product(*choices):
        yield Layout(parts)


def _check_names(module: nn.Module, layout: Layout) -> None:
    names, required, anything = _forward_arguments(module)
    where = f"the network's forward ({_kind(module)})"
    for name in layout.names:
        if name not in names and not anything:
            near = difflib.get_close_matches(name, names, n=2, cutoff=0.5)
            hint = f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
            unnamed = (
                "Its arguments have no names: wrap it in a module that gives them some, such as "
                f"forward(self, {', '.join(layout.names)})."
            )
            takes = f"It takes {names}." if names else unnamed
            raise ValueError(f"X[{name!r}] is no argument of {where}. {hint}{takes}")
    missing = [name for name in required if name not in layout.names]
    if missing:
        raise ValueError(
            f"X lacks {' and '.join(map(repr, missing))}, which {where} requires; it has the keys "
            f"{layout.names}."
        )


def _forward_arguments(module: nn.Module) -> tuple[list[str], list[str], bool]:
    """List what ``forward`` takes by name, what of it is required, and whether it takes all."""
    try:
        parameters = list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):  # compiled forwards have no signature
        return [], [], True
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return (
        [p.name for p in named],
        [p.name for p in named if p.default is p.empty],
        any(p.kind is p.VAR_KEYWORD for p in parameters),
    )


@torch.no_grad()
def _refusal(module: nn.Module, samples: NDArray, run: _Run) -> Exception | None:
    """Run a few rows, and return what the network raises."""
    rows = samples[:EXAMPLES] if len(samples) > 1 else np.repeat(samples, 2, axis=0)
    x = to_tensor(rows, input_dtype(module), module_device(module))
    try:
        with random_state_kept(x.device):
            run(module, x)
    except Exception as error:  # torch and user code raise anything
        return error
    return None


def _kind(module: nn.Module) -> str:
    return type(module).__name__
