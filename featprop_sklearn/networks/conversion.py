"""Fitted networks of other libraries as torch modules: skorch nets, scikit-learn's MLPs."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import NotFittedError
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import Pipeline
from skorch import NeuralNet
from torch import nn

from featprop_sklearn.networks.functional import Exp
from featprop_sklearn.networks.probe import check_loaded

__all__ = ["Network", "as_network"]


@dataclass(frozen=True)
class Network:
    """A torch module (the user's own object: copy it before use) and what is known of it.

    Attributes
    ----------
    module : nn.Module
        One tensor in, one tensor out.
    classes : ndarray or None
        Labels in the order of the outputs, where the source knew them.
    per_logit : bool
        Whether each output is a yes/no of its own although there are several (multi-label).
    """

    module: nn.Module
    classes: NDArray | None = None
    per_logit: bool = False


def as_network(source: object) -> Network:
    """Read a network from what users bring.

    Parameters
    ----------
    source : nn.Module, fitted skorch net, fitted MLPClassifier or MLPRegressor
        Where the network comes from.

    Returns
    -------
    Network
        A scikit-learn MLP becomes a float64 ``nn.Sequential`` that ends in logits
        (classifier) or in the prediction (regressor), equal to the original to rounding. Of
        ``torch.compile``, ``DataParallel`` and ``DistributedDataParallel`` it is the module
        inside.

    Raises
    ------
    TypeError
        If the source is none of these.
    ValueError
        If a module has no weights that could be trained: lazy, on the meta device, quantised.
    sklearn.exceptions.NotFittedError
        If a skorch net or an MLP has not been fitted.
    """
    if isinstance(source, torch.jit.ScriptModule):
        raise TypeError(
            "module is a TorchScript module, whose copies cannot be trained. Pass the torch module "
            "that it was made from."
        )
    if isinstance(source, nn.Module):
        return Network(_bare(source))
    if isinstance(source, NeuralNet):
        return _from_skorch(source)
    if isinstance(source, MLPClassifier | MLPRegressor):
        return _from_mlp(source)
    hint = " Pass an instance, not the class." if isinstance(source, type) else ""
    if isinstance(source, Pipeline):
        hint = " Of a Pipeline pass the last step, and X as the steps before it transform it."
    raise TypeError(
        "module must be a torch.nn.Module, a fitted skorch net, or a fitted MLPClassifier or "
        f"MLPRegressor; got {source!r}.{hint}"
    )


def _from_skorch(net: NeuralNet) -> Network:
    if not getattr(net, "initialized_", False):
        raise NotFittedError(
            f"module is a {type(net).__name__} that has not been fitted. Call its fit first, "
            "or pass its torch module."
        )
    classes = getattr(net, "classes_", None)
    return Network(_bare(net.module_), None if classes is None else np.asarray(classes))


def _bare(module: nn.Module) -> nn.Module:
    """Take the network out of torch.compile and of the wrappers for several devices."""
    while True:
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            module = module.module
        elif isinstance(compiled := getattr(module, "_orig_mod", None), nn.Module):
            module = compiled
        else:
            check_loaded(module)
            return module


_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "identity": nn.Identity,
    "logistic": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
}


def _from_mlp(mlp: MLPClassifier | MLPRegressor) -> Network:
    if not hasattr(mlp, "coefs_"):
        raise NotFittedError(
            f"module is a {type(mlp).__name__} that has not been fitted. Call its fit first."
        )
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    last = len(mlp.coefs_) - 1
    for index, (weight, bias) in enumerate(zip(mlp.coefs_, mlp.intercepts_, strict=True)):
        name = "output" if index == last else f"hidden{index + 1}"
        layers[name] = _linear(weight, bias)
        if index < last:
            layers[f"{mlp.activation}{index + 1}"] = _ACTIVATIONS[mlp.activation]()
    if mlp.out_activation_ == "exp":  # MLPRegressor(loss="poisson")
        layers["exp"] = Exp()
    if isinstance(mlp, MLPRegressor):
        return Network(nn.Sequential(layers))
    multilabel = mlp.out_activation_ == "logistic" and mlp.n_outputs_ > 1
    return Network(nn.Sequential(layers), np.asarray(mlp.classes_), per_logit=multilabel)


def _linear(weight: NDArray, bias: NDArray) -> nn.Linear:
    n_in, n_out = weight.shape
    # no initial weights: drawing them would move torch's global generator
    layer = torch.nn.utils.skip_init(nn.Linear, n_in, n_out, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(np.array(weight.T, dtype=np.float64)))
        layer.bias.copy_(torch.from_numpy(np.array(bias, dtype=np.float64)))
    return layer
