"""Which rule carries relevance back through which call: by function name or layer type."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from inspect import isclass
from typing import Any

from torch import Tensor, nn

from featprop_sklearn.inspection.relevance.activations import SIGNED

__all__ = [
    "Bounds",
    "Call",
    "Options",
    "Rule",
    "as_relu",
    "call_name",
    "check_inputs",
    "find_rule",
    "register_relevance_rule",
    "ruled_layers",
    "unsupported",
]

Bounds = tuple[float | Tensor, float | Tensor]
Rule = Callable[..., Any]

_RULES: dict[str | type[nn.Module], Rule] = {}
_PRODUCTS = ("mul", "multiply")
#: functions whose arguments may change places
_COMMUTATIVE = ("add", *_PRODUCTS)
_AS_GATE = (
    " Where a module scales its input by a gate, as in squeeze-and-excitation, pass_through as "
    "the rule of the module's type hands relevance on to the input."
)


@dataclass(frozen=True)
class Options:
    """What the rules leave open.

    Attributes
    ----------
    purge : None or "sign"
        What is deleted before each hidden convolution.
    bounds : tuple of (low, high) or None
        Range of the first convolution's input; None takes each sample's own.
    """

    purge: str | None = None
    bounds: Bounds | None = None


@dataclass(frozen=True)
class Call:
    """One call in a network, to be repeated on other inputs.

    Attributes
    ----------
    function : callable
        A function of torch, or the forward of a layer.
    others : dict
        Position or name -> argument, for all arguments but the inputs.
    places : tuple of int or str
        Where the inputs belong: position or name of each tensor that depends on the
        network's input.
    name : str
        Of the function, without the underscore of an in-place one.
    path : str
        Of the module that makes the call.
    is_first : bool
        Whether no convolution lies before it.
    options : Options
        What the rules leave open.
    """

    function: Callable[..., Any]
    others: dict[int | str, Any] = field(default_factory=dict)
    places: tuple[int | str, ...] = (0,)
    name: str = ""
    path: str = ""
    is_first: bool = False
    options: Options = Options()

    def arguments(self, *inputs: Any) -> tuple[list[Any], dict[str, Any]]:
        """Return all positional and all named arguments, the inputs in their places."""
        given = {**self.others, **dict(zip(self.places, inputs, strict=True))}
        positions = sorted(place for place in given if isinstance(place, int))
        named = {place: value for place, value in given.items() if isinstance(place, str)}
        return [given[place] for place in positions], named

    def __call__(self, *inputs: Tensor) -> Any:
        """Repeat the call; inputs are never overwritten."""
        args, kwargs = self.arguments(*(value.clone() for value in inputs))
        return self.function(*args, **kwargs)


def register_relevance_rule(layer: str | type[nn.Module], rule: Rule) -> None:
    """Say how relevance passes back through a layer or a function.

    A later registration replaces an earlier one.

    Parameters
    ----------
    layer : str or type
        Name of a function of torch, such as ``"gelu"``, which serves the layers that call
        it, too; or a subclass of :class:`torch.nn.Module`, which serves its own subclasses.
    rule : callable
        ``rule(call, relevance, *inputs)`` returns the relevance of the inputs: a tensor, or
        a tuple of one for each. Tensors are batch first; ``call(*inputs)`` repeats the call.
        How many inputs the rule takes, its signature says.

    Raises
    ------
    TypeError
        If one of the two is not what is described above.
    """
    if not (isinstance(layer, str) or (isclass(layer) and issubclass(layer, nn.Module))):
        raise TypeError(
            "layer must be the name of a torch function or a subclass of torch.nn.Module; got "
            f"{layer!r}. Pass the class, not an instance."
        )
    if not callable(rule) or isclass(rule):
        raise TypeError(
            f"rule must be a function (call, relevance, *inputs) -> relevance; got {rule!r}."
        )
    _RULES[layer] = rule


def call_name(func: Callable[..., Any]) -> str:
    """Return the name that a rule is registered for: add of ``add_``."""
    name = getattr(func, "__name__", str(func))
    return name if name.startswith("_") else name.removesuffix("_")


def ruled_layers() -> tuple[str | type[nn.Module], ...]:
    """Return the names and layer types that have a rule."""
    return tuple(_RULES)


def find_rule(key: str | type[nn.Module]) -> Rule | None:
    """Return the rule of a function's name, or of the nearest registered ancestor of a type."""
    keys = (key,) if isinstance(key, str) else key.__mro__
    return next((_RULES[one] for one in keys if one in _RULES), None)


def check_inputs(rule: Rule, call: Call) -> None:
    """Check that a rule is made for the inputs of a call: as many, and in their places.

    Raises
    ------
    ValueError
        If it is not.
    """
    try:
        inspect.signature(rule).bind(call, None, *call.places)
    except TypeError:
        advice = _AS_GATE if call.name in _PRODUCTS else ""
        raise unsupported(call.path, call.name, "of these inputs together", advice) from None
    if call.places[0] not in (0, "input") and call.name not in _COMMUTATIVE:
        raise unsupported(call.path, call.name, f"with its input in place {call.places[0]!r}")


def unsupported(path: str, name: str, how: str = "", advice: str = "") -> ValueError:
    """Return the error for a call that relevance cannot pass through."""
    names = sorted(key if isinstance(key, str) else key.__name__ for key in _RULES)
    caller = f"Module {path!r}" if path else "The network"
    return ValueError(
        f"{caller} calls {name}{f' {how}' if how else ''}, and no relevance rule "
        f"tells how relevance passes back through that. There are rules for {', '.join(names)}, "
        "and reshapes, slices and concatenations need none. Let relevance start at an earlier "
        "layer=, replace the call, or give it, or the module, a rule with register_relevance_rule."
        + (advice or (as_relu(name) if name in SIGNED else ""))
    )


def as_relu(name: str) -> str:
    """Say how to treat an activation of negative values like ReLU."""
    return (
        f" {name} gives negative values here, which have no share in the relevance of a "
        "convolution, and unsettle that of a mean. To hand relevance on as through ReLU all the "
        "same, run: "
        "from featprop_sklearn.inspection.relevance import pass_through, register_relevance_rule; "
        f"register_relevance_rule({name!r}, pass_through)"
    )
