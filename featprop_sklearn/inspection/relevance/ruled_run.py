"""A network run in such a way that autograd carries relevance instead of gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from featprop_sklearn.inspection.relevance.convolution import convolution
from featprop_sklearn.inspection.relevance.registry import (
    Call,
    Options,
    Rule,
    call_name,
    check_inputs,
    find_rule,
    unsupported,
)
from featprop_sklearn.networks.outputs import tensors_in

__all__ = ["RuledRun"]

_PADDING = (f"{kind}Pad{n}D" for kind in ("Reflection", "Replication") for n in (1, 2, 3))
_MOVING = (
    *("View", "UnsafeView", "ReshapeAlias", "Alias", "Clone", "ToCopy", "Expand", "Repeat"),
    *("Squeeze", "Unsqueeze", "Permute", "Transpose", "T", "Slice", "Select", "Narrow"),
    *("Index", "IndexSelect", "Cat", "Stack", "Split", "SplitWithSizes", "Unbind", "Flip"),
    *("PixelShuffle", "PixelUnshuffle", "ConstantPadNd", *_PADDING),
)
#: autograd's names for what moves, copies or drops numbers, and no more: its adjoint is the rule
REARRANGEMENTS = {f"{name}Backward{number}" for name in _MOVING for number in range(4)}
INPUT = "torch::autograd::AccumulateGrad"


class _Ruled(torch.autograd.Function):
    """A call whose derivative is its relevance rule."""

    @staticmethod
    def forward(ctx: Any, rule: Rule, call: Call, *inputs: Tensor) -> Any:
        ctx.rule, ctx.call = rule, call
        ctx.save_for_backward(*inputs)
        return call(*(value.detach() for value in inputs))

    @staticmethod
    def backward(ctx: Any, relevance: Tensor) -> Any:
        found = ctx.rule(ctx.call, relevance, *ctx.saved_tensors)
        return None, None, *(found if isinstance(found, tuple) else (found,))


class RuledRun(TorchFunctionMode):
    """While active, give each call that depends on the input its relevance rule as derivative.

    Autograd does the rest: it adds up what comes back to a fork, and takes apart what comes
    back to a concatenation. A call that has no rule, and does more than move numbers, is
    refused as it occurs. From :meth:`reach` on, derivatives are the ordinary ones.

    Parameters
    ----------
    network : nn.Module
        A private copy whose parameters need no gradients; hooks are left on it.
    options : Options
        What the rules leave open.

    Attributes
    ----------
    seed, features : Tensor
        The feature at which relevance starts, as the end of the ruled part of autograd's
        graph, and as the start of the ordinary part; set by :meth:`reach`.
    """

    def __init__(self, network: nn.Module, options: Options) -> None:
        super().__init__()
        self.options = options
        self.seed: Tensor
        self.features: Tensor
        self._reached = False
        self._inside_ruled = self._is_due = False
        self._paths = [""]
        # node of autograd's graph -> whether a convolution lies before it
        self._accepted: dict[Any, bool] = {}
        for path, module in network.named_modules():
            self._follow(path, module)

    def _follow(self, path: str, module: nn.Module) -> None:
        """Know when the module runs; make one call of it if its type has a rule."""
        rule, plain, name = find_rule(type(module)), module.forward, type(module).__name__
        if rule is not None:
            module.forward = lambda *args, **kwargs: self._run(name, plain, args, kwargs, rule)
        module.register_forward_pre_hook(lambda *_: self._paths.append(path))
        module.register_forward_hook(lambda *_: self._leave())

    def _leave(self) -> None:
        self._paths.pop()

    def reach(self, features: Tensor) -> Tensor:
        """Let relevance start at a feature; return it as the rest of the network goes on.

        Within a layer that has a rule, it starts at the output of that layer.
        """
        if self._inside_ruled:
            self._is_due = True
            return features
        self._lies_behind(features)
        self._reached = True
        self.seed, self.features = features, features.detach().clone().requires_grad_()
        return self.features.clone()  # may be overwritten

    def gradient(self, logits: Tensor, classes: Tensor) -> Tensor:
        """Return the derivative of one logit a sample with respect to the features.

        Raises
        ------
        ValueError
            If the logits do not depend on the features.
        """
        chosen = logits.gather(1, classes[:, None]).sum()
        if chosen.requires_grad:
            (found,) = torch.autograd.grad(
                chosen, self.features, retain_graph=True, allow_unused=True
            )
            if found is not None:
                return found
        raise ValueError(
            "The outputs of the network do not depend on layer=: pass a layer that the outputs are "
            "computed from."
        )

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run a function of torch."""
        kwargs = kwargs or {}
        name = call_name(func)
        return self._run(name, func, args, kwargs, find_rule(name))

    def _run(
        self, name: str, func: Callable[..., Any], args: Any, kwargs: Any, rule: Rule | None
    ) -> Any:
        """Run a call, under its rule if it has one and depends on the network's input."""
        given = dict((*enumerate(args), *kwargs.items()))
        inputs = {place: value for place, value in given.items() if _depends(value)}
        if rule is not None and inputs and not self._reached:
            return self._run_ruled(name, func, given, inputs, rule)
        result = func(*args, **kwargs)
        if not self._reached:
            for found in tensors_in(result):
                self._lies_behind(found.value, name)
        return result

    def _run_ruled(
        self, name: str, func: Callable[..., Any], given: dict, inputs: dict, rule: Rule
    ) -> Any:
        path = self._paths[-1]
        behind = any([self._lies_behind(value) for value in inputs.values()])
        others = {place: value for place, value in given.items() if place not in inputs}
        call = Call(func, others, tuple(inputs), name, path, not behind, self.options)
        check_inputs(rule, call)
        self._inside_ruled = True
        result = _Ruled.apply(rule, call, *inputs.values())
        self._inside_ruled = False
        if not isinstance(result, Tensor):
            raise unsupported(path, name, "for more than one tensor")
        self._accepted[result.grad_fn] = behind or rule is convolution
        return self.reach(result) if self._is_due else result

    def _lies_behind(self, value: Tensor, name: str = "") -> bool:
        """Return whether a convolution lies before a value; refuse what has no rule."""
        new, pending, behind = [], [value.grad_fn], False
        while pending:
            node = pending.pop()
            if node in self._accepted:
                behind |= self._accepted[node]
            elif node is not None and node.name() != INPUT:
                if node.name() not in REARRANGEMENTS:
                    raise unsupported(self._paths[-1], name or node.name())
                new.append(node)
                pending += [before for before, _ in node.next_functions]
        self._accepted.update(dict.fromkeys(new, behind))
        return behind


def _depends(value: object) -> bool:
    return isinstance(value, Tensor) and value.requires_grad
