"""What a network computes before the softmax or sigmoid that it ends in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from featprop_sklearn.inspection.relevance.registry import call_name

__all__ = ["Heads"]

#: functions that make probabilities of logits: each output of its own, or outputs that compete
_SIGMOIDS = ("sigmoid", "logsigmoid", "log_sigmoid", "special_expit")
_SOFTMAXES = ("softmax", "log_softmax", "special_softmax", "special_log_softmax")
#: what moves numbers, and keeps all of them
_MOVING = (
    *("reshape", "reshape_as", "view", "view_as", "flatten", "unflatten", "squeeze", "unsqueeze"),
    *("permute", "transpose", "swapaxes", "swapdims", "movedim", "contiguous", "clone", "to"),
    *("float", "double", "type_as"),
)
_CUTTING = ("__getitem__", "select", "narrow")
#: elementwise functions that never fall, of one tensor and constants
_RISING = (
    *("clamp", "clamp_min", "clamp_max", "clip", "log", "log2", "log10", "exp"),
    *("logit", "special_logit", "add", "sub"),
)


@dataclass(frozen=True)
class _Traced:
    """Logits, entry by entry those of a tensor at one of its versions."""

    logits: Tensor
    per_logit: bool
    version: int


class Heads(TorchFunctionMode):
    """While active, follow what softmaxes and sigmoids return.

    A value counts as that of a head where it is what a softmax, log-softmax, sigmoid or
    log-sigmoid returned, moved (reshape, squeeze, permute, an index that drops no competing
    class, another dtype) or under functions that rise with each entry (clamp, log, exp, logit,
    a constant added). Anything else, such as 1 − p, a mean of probabilities, or one column of a
    softmax, is a value of its own, and taken as the network returns it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._traced: Any = WeakTensorKeyDictionary()

    def logits(self, outputs: Tensor) -> Tensor:
        """Return what the head that made the outputs was given; without one the outputs."""
        found = self._find(outputs)
        return outputs if found is None else found.logits

    def per_logit(self, outputs: Tensor) -> bool:
        """Return whether a sigmoid made the outputs."""
        found = self._find(outputs)
        return found is not None and found.per_logit

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run a function of torch."""
        kwargs, name = kwargs or {}, call_name(func)
        value = args[0] if args else kwargs.get("input")
        if name in (*_SIGMOIDS, *_SOFTMAXES) and isinstance(value, Tensor):
            # what a function in place was given is gone afterwards
            logits = value.clone() if func.__name__.endswith("_") else value
            return self._trace(func(*args, **kwargs), logits, name in _SIGMOIDS)
        before = self._find(value)
        result = func(*args, **kwargs)
        if before is None or not isinstance(result, Tensor):
            return result
        if _rises(name, args, kwargs):
            return self._trace(result, before.logits, before.per_logit)
        if name in _MOVING or (name in _CUTTING and _keeps(result, value, before.per_logit)):
            others = (before.logits, *args[1:]) if args else ()
            named = kwargs if args else {**kwargs, "input": before.logits}
            return self._trace(result, func(*others, **named), before.per_logit)
        return result

    def _trace(self, result: Tensor, logits: Tensor, per_logit: bool) -> Tensor:
        if result.is_floating_point() and not result.is_inference():
            self._traced[result] = _Traced(logits, per_logit, result._version)
        return result

    def _find(self, value: Any) -> _Traced | None:
        """Look a tensor up; what was overwritten since is a value of its own."""
        found = self._traced.get(value) if isinstance(value, Tensor) else None
        return found if found is not None and found.version == value._version else None


def _rises(name: str, args: Any, kwargs: dict[str, Any]) -> bool:
    """Return whether a call rises with each entry of its first argument."""
    constant = not any(isinstance(other, Tensor) for other in (*args[1:], *kwargs.values()))
    return constant and bool(args) and name in _RISING


def _keeps(result: Tensor, value: Tensor, per_logit: bool) -> bool:
    """Return whether an index leaves together what competes: it picks samples, or drops nothing."""
    of_samples = value.ndim > 1 and result.shape[1:] == value.shape[1:]
    return per_logit or of_samples or result.numel() == value.numel()
