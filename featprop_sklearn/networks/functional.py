"""Calls inside a ``forward`` as layers: the module that computes the same as one traced call."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

__all__ = ["Exp", "Permute", "Reshape", "layer_of_call"]


class Exp(nn.Module):
    """Elementwise exponential."""

    def forward(self, x: Tensor) -> Tensor:
        """Return exp(x)."""
        return x.exp()


class Reshape(nn.Module):
    """Reshape each sample; the batch dimension stays.

    Parameters
    ----------
    shape : tuple of int
        Shape of one sample after the call.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, x: Tensor) -> Tensor:
        """Return x with samples of the new shape, in one piece: a view may follow."""
        return x.reshape(x.shape[0], *self.shape).contiguous()

    def extra_repr(self) -> str:
        """Show the shape."""
        return f"{self.shape}"


class Permute(nn.Module):
    """Reorder the dimensions of each sample; the batch dimension stays first.

    Parameters
    ----------
    dims : tuple of int
        As in :func:`torch.permute`, batch dimension included (``dims[0] == 0``).
    """

    def __init__(self, dims: tuple[int, ...]) -> None:
        super().__init__()
        self.dims = tuple(dims)

    def forward(self, x: Tensor) -> Tensor:
        """Return x with its dimensions reordered."""
        return x.permute(self.dims)

    def extra_repr(self) -> str:
        """Show the order."""
        return f"{self.dims}"


# function -> the layer with the same options; their argument names agree
_LAYERS: dict[Any, type[nn.Module]] = {
    F.relu: nn.ReLU,
    F.relu6: nn.ReLU6,
    F.leaky_relu: nn.LeakyReLU,
    F.elu: nn.ELU,
    F.celu: nn.CELU,
    F.selu: nn.SELU,
    F.gelu: nn.GELU,
    F.silu: nn.SiLU,
    F.mish: nn.Mish,
    F.softplus: nn.Softplus,
    F.softsign: nn.Softsign,
    F.logsigmoid: nn.LogSigmoid,
    F.hardswish: nn.Hardswish,
    F.hardsigmoid: nn.Hardsigmoid,
    F.hardtanh: nn.Hardtanh,
    F.tanh: nn.Tanh,
    F.sigmoid: nn.Sigmoid,
    F.softmax: nn.Softmax,
    F.log_softmax: nn.LogSoftmax,
    F.max_pool1d: nn.MaxPool1d,
    F.max_pool2d: nn.MaxPool2d,
    F.max_pool3d: nn.MaxPool3d,
    F.avg_pool1d: nn.AvgPool1d,
    F.avg_pool2d: nn.AvgPool2d,
    F.avg_pool3d: nn.AvgPool3d,
    F.adaptive_avg_pool1d: nn.AdaptiveAvgPool1d,
    F.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d,
    F.adaptive_avg_pool3d: nn.AdaptiveAvgPool3d,
    # active while the network trains, as in its own forward
    F.dropout: nn.Dropout,
    F.dropout1d: nn.Dropout1d,
    F.dropout2d: nn.Dropout2d,
    F.dropout3d: nn.Dropout3d,
    F.alpha_dropout: nn.AlphaDropout,
    F.feature_alpha_dropout: nn.FeatureAlphaDropout,
}
# torch.relu(x) and x.relu() mean F.relu(x)
_LAYERS_BY_NAME: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu_": nn.ReLU,
    "tanh": nn.Tanh,
    "tanh_": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "sigmoid_": nn.Sigmoid,
    "exp": Exp,
    "softmax": nn.Softmax,
    "log_softmax": nn.LogSoftmax,
}
_RESHAPES = {"view", "reshape", "flatten", "squeeze", "unsqueeze", "unflatten", "contiguous"}
_TO_ROWS = {"view", "reshape"}
_PERMUTATIONS = {"permute", "transpose", "movedim", "swapaxes", "moveaxis"}


def layer_of_call(node: fx.Node, value: Tensor, result: Tensor) -> nn.Module | None:
    """Find the layer that computes what one traced call computes, or None.

    Whether it really does is for the caller to verify: a chain is always compared
    with the network.

    Parameters
    ----------
    node : fx.Node
        A ``call_function`` or ``call_method`` node with one tensor argument.
    value, result : Tensor
        What went into the call and what came out, on example data.

    Returns
    -------
    nn.Module or None
        A module of one tensor.
    """
    target = node.target
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    if name in _TO_ROWS and value.ndim > 1 and result.ndim == 2:
        return nn.Flatten()
    if name in _RESHAPES:
        return Reshape(tuple(result.shape[1:]))
    if name in _PERMUTATIONS:
        return _permutation(node, value)
    layer_type = _LAYERS.get(target) or _LAYERS_BY_NAME.get(name)
    if layer_type is None:
        return None
    options = _options(node, layer_type)
    return None if options is None else layer_type(**options)


def _options(node: fx.Node, layer_type: type[nn.Module]) -> dict[str, Any] | None:
    """Arguments of the call besides the tensor, under the layer's names."""
    allowed = inspect.signature(layer_type.__init__).parameters
    if isinstance(node.target, str) or node.target not in _LAYERS:
        # methods and builtins take at most `dim` here
        given = {**dict(zip(("dim",), node.args[1:], strict=False)), **node.kwargs}
    else:
        normal = node.normalized_arguments(nn.Module(), normalize_to_only_use_kwargs=True)
        if normal is None:
            return None
        given = dict(normal.kwargs)
    options = {
        key: item
        for key, item in given.items()
        if key in allowed and key != "inplace" and item != []  # stride=[] is avg_pool's default
    }
    return None if any(isinstance(item, fx.Node) for item in options.values()) else options


def _permutation(node: fx.Node, value: Tensor) -> nn.Module | None:
    """Return the same reordering with explicit dims, found on a tensor of distinct sizes."""
    if any(isinstance(arg, fx.Node) for arg in node.args[1:]):
        return None
    probe = torch.empty(tuple(range(2, 2 + value.ndim)))
    function = getattr(torch.Tensor, str(node.target), None) or node.target
    moved = function(probe, *node.args[1:], **node.kwargs)  # type: ignore[operator]
    dims = tuple(size - 2 for size in moved.shape)
    return Permute(dims) if dims[0] == 0 else None
