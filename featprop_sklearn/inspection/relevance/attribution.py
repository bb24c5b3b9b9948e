"""Relative Sectional Propagation: pixels that speak for a class, and for its rivals."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from featprop_sklearn.data import double_device, module_device, plain_torch, to_double
from featprop_sklearn.inspection.relevance.classes import (
    hostile_classes,
    one_each,
    target_classes,
)
from featprop_sklearn.inspection.relevance.heads import Heads
from featprop_sklearn.inspection.relevance.registry import Bounds, Options
from featprop_sklearn.inspection.relevance.ruled_run import RuledRun
from featprop_sklearn.inspection.relevance.seed import seed_relevance
from featprop_sklearn.inspection.relevance.seed_point import find_seed_point, layer_path
from featprop_sklearn.networks import as_network, differentiable, private_copy, probe_network

__all__ = ["RelativeSectionalPropagation"]

#: rows of the small runs that read a network
ROWS = 2
#: difference of the outputs, relative to the greatest, that rounding explains
SAME = 1e-6


class RelativeSectionalPropagation:
    """Relevance of the pixels to a class, positive, and to hostile classes, negative.

    At the last convolutional feature map A, gradients of the logits tell what of it speaks for
    the target, and what for hostile classes. The two sections are given the sums 2 and −1,
    and carried back to the pixels by a rule for each layer that keeps their sum (float64
    throughout). Fully connected layers are not propagated through.

    Parameters
    ----------
    model : nn.Module or fitted skorch net
        The network. It is never changed: each attribution works on a copy of it as it is
        then, in eval mode.
    layer : nn.Module, str or None
        A module of the model that runs once, or its path: relevance starts at its output, of
        shape (n_samples, channels, positions...). None is the last activation (ReLU, ReLU6,
        GELU, ...) of more than one position a channel, which in networks like VGG, ResNet and
        MobileNet is the last before the final pooling.
    purge : None or "sign"
        "sign" deletes, before each hidden convolution, relevance whose sign is not that of
        the sum over the channels at its position.
    bounds : tuple of (low, high) or None
        Range of the first convolution's input, as numbers or tensors that broadcast to it.
        None takes the least and the greatest value of each sample.

    References
    ----------
    Nam, Choi and Lee, "Interpreting Deep Neural Networks with Relative Sectional Propagation
    by Analyzing Comparative Gradients and Hostile Activations", AAAI 2021, arXiv:2012.03434.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from featprop_sklearn.inspection import RelativeSectionalPropagation
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(
    ...     nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3), nn.ReLU(),
    ...     nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    ... )
    >>> x = torch.randn(2, 3, 12, 12)
    >>> relevance = RelativeSectionalPropagation(model).attribute(x, target=1, hostile=[0, 4])
    >>> relevance.shape
    torch.Size([2, 3, 12, 12])
    >>> relevance.sum(dim=(1, 2, 3)).round(decimals=4)
    tensor([1., 1.])
    """

    def __init__(
        self,
        model: Any,
        layer: nn.Module | str | None = None,
        *,
        purge: str | None = None,
        bounds: Bounds | None = None,
    ) -> None:
        if purge not in (None, "sign"):
            raise ValueError(f"purge must be None or 'sign'; got {purge!r}.")
        self.model = as_network(model).module
        self.layer = layer_path(self.model, layer)
        self.options = Options(purge, bounds)

    def attribute(self, x: Tensor, target: Any = None, hostile: Any = "runner_up") -> Tensor:
        """Find the relevance of each entry of the input.

        Parameters
        ----------
        x : Tensor of shape (n_samples, channels, ...)
            Inputs of the network, such as images.
        target : None, int, or one int a sample
            Index of the logit of the class; None is the predicted one.
        hostile : str, list of int, array or None
            Classes that speak against the target: a list for all samples, one list for each,
            or a boolean array of shape (n_samples, n_classes). ``"runner_up"`` is the class of
            the greatest logit beside the target's; ``"present"``, for networks of several
            labels, are all others whose logit is not negative. Without any, None or ``[]``,
            relevance starts from the target's own map, with the signs of its gradients.

        Returns
        -------
        Tensor of the shape and dtype of ``x``
            Its sum over the channels of the input is the map to look at. The sum of all is
            1 a sample where there are hostile classes (2 where no unit speaks against the
            target, −1 where none speaks for it), but for what falls on windows without any
            activation.

        Raises
        ------
        TypeError
            If ``x`` is no floating-point tensor.
        ValueError
            If ``x`` is empty or not finite; if the network refuses it, or has a layer that
            relevance cannot pass; if ``layer``, ``target``, ``hostile`` or ``bounds`` do not
            fit.
        """
        _check_input(x)
        # whatever a caller has switched on or off
        with plain_torch(), torch.enable_grad():
            found = self._attribute(x.detach().clone(), target, hostile)
        return found.to(device=x.device, dtype=x.dtype)

    def _attribute(self, x: Tensor, target: Any, hostile: Any) -> Tensor:
        place = double_device(module_device(self.model))
        x = x.to(device=place, dtype=torch.float64)
        rows = x[:ROWS]
        twin = to_double(private_copy(self.model), place).requires_grad_(False)
        network = probe_network(twin, rows)
        point, expected = find_seed_point(network, twin, self.layer, rows)
        run, start = RuledRun(twin, self.options), x.requires_grad_()
        with run, Heads() as heads, point.replaced(run.reach), differentiable([twin]):
            outputs = network(start.clone())
        _check_same(outputs[:ROWS], expected)
        logits = heads.logits(outputs).reshape(len(x), -1)
        classes = target_classes(target, logits)
        rivals = hostile_classes(hostile, classes, logits, each=one_each(target))
        gradient = partial(run.gradient, logits)
        relevance = seed_relevance(run.features.detach(), gradient, classes, rivals)
        (found,) = torch.autograd.grad(run.seed, start, relevance)
        return found


def _check_input(x: object) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        what = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(
            f"x must be a floating-point tensor, as the network takes it; got {what}. "
            "Convert with torch.as_tensor(x, dtype=torch.float32)."
        )
    if x.ndim == 0 or len(x) == 0 or not bool(x.isfinite().all()):
        what = "NaN or infinite entries" if x.ndim and len(x) else f"shape {tuple(x.shape)}"
        raise ValueError(f"x must hold at least one sample, and finite numbers; got {what}.")


def _check_same(outputs: Tensor, expected: Tensor) -> None:
    """Compare with an ordinary run: calls under a rule never overwrite their input."""
    tolerance = SAME * float(expected.abs().max())
    if not torch.allclose(outputs, expected, rtol=0, atol=tolerance):
        raise ValueError(
            "The network overwrites a feature that it reads again later, or gives other outputs "
            "when it runs again, so relevance cannot be followed. Use inplace=False, and "
            "x = x + y for x += y, before the layer that relevance starts from."
        )
