"""A part of one ``forward`` as a module: the whole is run, with only that part at work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from featprop_sklearn.networks.stand_in import StandIn
from featprop_sklearn.networks.tracing import TRACED
from featprop_sklearn.networks.values import tensors_of, with_tensors

__all__ = ["Idle", "Outline", "Replay", "Said", "begin_at", "end_at", "release"]

_INTERNAL = frozenset(vars(nn.Module()))


@dataclass
class _Run:
    """One run of a :class:`Replay`: what it begins with, and what has been called so far."""

    x: Tensor
    calls: Counter[nn.Module] = field(default_factory=Counter)
    has_begun: bool = False

    def begin(self) -> Tensor:
        """Return the first tensor."""
        self.has_begun = True
        return self.x


#: each thread has its own
_RUN: ContextVar[_Run] = ContextVar("_RUN")


class _Reached(BaseException):  # which no forward catches
    """A run has come as far as it was wanted."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value


class Replay(StandIn):
    """What a network computes from one of its tensors to a later one.

    The network runs on an example; at the first tensor, the stage's input takes its place, and
    at the second the run ends. Modules that are not at work in between are :class:`Idle`, the
    others the network's own, or copies with its parameters, under the names that they have
    there. It may run in several threads at a time.

    Parameters
    ----------
    network : nn.Module
        A copy in which the two tensors are marked (:func:`begin_at`, :func:`end_at`).
    example : Said or None
        An input of the network; None if the first tensor is the network's input.
    ends_inside : bool
        Whether the second tensor comes before the network's output.
    """

    def __init__(self, network: nn.Module, example: Said | None, *, ends_inside: bool) -> None:
        super().__init__(network)
        self._example = example
        self._ends_inside = ends_inside
        self._kind = _kind(network)

    def forward(self, x: Tensor) -> Tensor:
        """Return the second tensor for the first.

        Raises
        ------
        RuntimeError
            If the network takes another way than it did when it was read.
        """
        run = _Run(x)
        token = _RUN.set(run)
        ended = not self._ends_inside
        try:
            given = run.begin() if self._example is None else self._example.again(len(x))
            output = self.original_network(given)
        except _Reached as reached:
            output, ended = reached.value, True
        finally:
            _RUN.reset(token)
        if not (run.has_begun and ended):
            raise _another_way(self._kind)
        return output

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Replay:
        super()._apply(fn, recurse)
        self._example = None if self._example is None else self._example.mapped(fn)
        return self


class Outline(nn.Module):
    """What a :class:`Replay` would hold, for those who need not run it.

    Parameters
    ----------
    parameters : iterable of nn.Parameter
        Those at work.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__()
        self.at_work = nn.ParameterList(parameters)


@dataclass(frozen=True)
class Said:
    """What a module returned for the example, and which dimensions grow with the rows.

    Attributes
    ----------
    output : object
        Tensors for one row, in containers.
    growing : list of list of bool
        One entry for each dimension of each tensor.
    """

    output: Any
    growing: list[list[bool]]

    def again(self, rows: int, first: Tensor | None = None) -> Any:
        """Return it for several rows, perhaps with another tensor in place of the first."""
        new = []
        for tensor, growing in zip(tensors := tensors_of(self.output), self.growing, strict=True):
            if first is not None and tensor is tensors[0]:
                new.append(first)
            else:
                new.append(tensor.repeat(*(rows if grows else 1 for grows in growing)))
        return with_tensors(self.output, new)

    def mapped(self, fn: Callable[[Tensor], Tensor]) -> Said:
        """Return it with every tensor changed, as ``Module.to`` does."""
        return replace(self, output=with_tensors(self.output, map(fn, tensors_of(self.output))))


class Idle(nn.Module):
    """A module that is not at work in a part of the network.

    It keeps the attributes, of parameters dtype and shape alone, and returns what the module
    returned for the example.

    Parameters
    ----------
    module : nn.Module
        The module.
    said : list of Said
        What it returned, call by call.
    at_work : callable
        Whether a parameter is, although the module is not.
    """

    def __init__(
        self, module: nn.Module, said: list[Said], at_work: Callable[[Tensor], bool]
    ) -> None:
        super().__init__()
        self.__dict__.update(_attributes(module))
        self.training = module.training
        self._said = said
        self._kind = _kind(module)
        self._begins = self._ends = False
        for name, parameter in module._parameters.items():
            if parameter is None or at_work(parameter):
                self.register_parameter(name, parameter)
            else:
                self.register_buffer(name, _looks(parameter), persistent=False)
        for name, buffer in module._buffers.items():
            self.register_buffer(name, buffer, persistent=False)
        for name, child in module._modules.items():
            self.add_module(name, child and Idle(child, [], at_work))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the module did."""
        if self._ends:
            raise _Reached(tensors_of((args, kwargs))[0])
        run = _RUN.get()
        number = run.calls[self]
        run.calls[self] += 1
        if number >= len(self._said):
            raise _another_way(self._kind)
        return self._said[number].again(len(run.x), run.begin() if self._begins else None)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Idle:
        super()._apply(fn, recurse)
        self._said = [said.mapped(fn) for said in self._said]
        return self


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Return the attributes that hold no parameters, as the flat weights of an LSTM do."""
    try:
        state = module.__getstate__()  # without what cannot be copied
    except Exception:  # parametrised modules refuse
        state = vars(module)
    return {
        name: value
        for name, value in state.items()
        if name not in _INTERNAL and not (type(value) is list and _holds_parameters(value))
    }


def _holds_parameters(values: list[Any]) -> bool:
    return any(isinstance(tensor, nn.Parameter) for tensor in tensors_of(values))


def _looks(parameter: Tensor) -> Tensor:
    return torch.zeros((), dtype=parameter.dtype, device=parameter.device).expand(parameter.shape)


def _kind(module: nn.Module) -> str:
    """Return the class of a module, of what torch.fx read that of the user's."""
    kind = type(module).__name__
    return module.meta.get(TRACED, kind) if isinstance(module, fx.GraphModule) else kind


def _another_way(kind: str) -> RuntimeError:
    return RuntimeError(
        f"{kind} is not called as on the rows that the network was read "
        "on: what its forward does depends on the data. Keep it, or the module around it, one "
        "stage: featprop_sklearn.networks.treat_as_layer(its type), before fit."
    )


def begin_at(module: nn.Module) -> None:
    """Let runs begin with what a module returns, if it is idle; else with what it is given."""
    if isinstance(module, Idle):
        module._begins = True
    else:
        module.register_forward_pre_hook(_begin, with_kwargs=True, prepend=True)


def end_at(module: nn.Module) -> None:
    """Let runs end with what a module is given, if it is idle; else with what it returns."""
    if isinstance(module, Idle):
        module._ends = True
    else:
        module.register_forward_hook(_end)


def _begin(module: nn.Module, args: Any, kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    run = _RUN.get()
    if run.has_begun:
        raise _another_way(_kind(module))
    first, x = tensors_of((args, kwargs))[0], run.begin()
    return (
        tuple(x if value is first else value for value in args),
        {name: x if value is first else value for name, value in kwargs.items()},
    )


def _end(module: nn.Module, args: Any, output: Any) -> None:
    raise _Reached(tensors_of(output)[0])


def release(module: nn.Module, kept: set[int], at_work: Callable[[Tensor], bool]) -> None:
    """Take from the copies among the modules the parameters that are not at work in them."""
    for name, parameter in list(module._parameters.items()):
        if parameter is not None and not at_work(parameter):
            del module._parameters[name]
            module.register_buffer(name, parameter.detach(), persistent=False)
    for child in module.children():
        if id(child) not in kept:
            release(child, kept, at_work)
