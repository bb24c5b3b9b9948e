"""Do maps depend on what a network has learnt? Randomised weights, and randomised labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.utils import check_random_state
from torch import nn

from featprop_sklearn.data import module_device, to_array
from featprop_sklearn.inspection.attribute import attribute, takes_hostile
from featprop_sklearn.inspection.explained import ROWS, ask, on_a_copy, source_network
from featprop_sklearn.inspection.metrics.similarity import map_similarity
from featprop_sklearn.inspection.relevance.seed_point import layer_path
from featprop_sklearn.networks.probe import random_state_kept

__all__ = ["cascading_randomisation", "data_randomisation", "independent_randomisation"]

#: the last row of each table: what maps of different samples have in common
UNRELATED = "unrelated samples"


def cascading_randomisation(
    estimator: Any,
    X: Any,
    method: str | Callable[..., Any] = "rsp",
    *,
    target: Any = None,
    random_state: int | np.random.RandomState | None = None,
    batch_size: int = 64,
    **options: Any,
) -> pd.DataFrame:
    """Initialise layers anew from the last one down, and compare the maps after each.

    A map that shows what a network has learnt falls to the level of unrelated samples. One
    that hardly changes shows the image.

    Parameters
    ----------
    estimator : FeatureBackpropClassifier or -Regressor, nn.Module, or skorch net; fitted
        Whose network is explained; copies of it are randomised.
    X : array-like of shape (n_samples, ...)
        Samples, 50 or more for figures to rely on.
    method : str or callable
        As in :func:`attribute`.
    target : None, label, or one label a sample
        The class to explain, the same throughout; None is what the trained network predicts. Of
        method "displacement" what y is in ``fit``.
    random_state : int, RandomState or None
        For layers that can be repeated; take several.
    batch_size : int
        Samples in one run of the network.
    **options : dict
        Of the method.

    Returns
    -------
    DataFrame
        Index: path of each layer with parameters or statistics, the last one first, then
        ``"unrelated samples"``: the trained network's maps compared with those of other samples.
        Columns: means of :func:`map_similarity`. Samples whose map has become constant, so that
        nothing can be compared, are left out; NaN where that are all.

    References
    ----------
    Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018, arXiv:1810.03292.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from featprop_sklearn.inspection import cascading_randomisation
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(
    ...     nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    ... )
    >>> table = cascading_randomisation(model, torch.rand(4, 1, 9, 9), random_state=0)
    >>> list(table.index)
    ['4', '0', 'unrelated samples']
    """
    check = _Check(estimator, X, method, target, batch_size, options)
    return check.table(random_state, cumulative=True)


def independent_randomisation(
    estimator: Any,
    X: Any,
    method: str | Callable[..., Any] = "rsp",
    *,
    target: Any = None,
    random_state: int | np.random.RandomState | None = None,
    batch_size: int = 64,
    **options: Any,
) -> pd.DataFrame:
    """Initialise one layer at a time anew, and compare the maps.

    Parameters
    ----------
    estimator : FeatureBackpropClassifier or -Regressor, nn.Module, or skorch net; fitted
        Whose network is explained; copies of it are randomised.
    X : array-like of shape (n_samples, ...)
        Samples, 50 or more for figures to rely on.
    method : str or callable
        As in :func:`attribute`.
    target : None, label, or one label a sample
        The class to explain, the same throughout; None is what the trained network predicts. Of
        method "displacement" what y is in ``fit``.
    random_state : int, RandomState or None
        For layers that can be repeated; take several.
    batch_size : int
        Samples in one run of the network.
    **options : dict
        Of the method.

    Returns
    -------
    DataFrame
        As of :func:`cascading_randomisation`, with all other layers as trained in each row.

    References
    ----------
    Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018, arXiv:1810.03292.
    """
    check = _Check(estimator, X, method, target, batch_size, options)
    return check.table(random_state, cumulative=False)


def data_randomisation(
    estimator: Any,
    permuted: Any,
    X: Any,
    method: str | Callable[..., Any] = "rsp",
    *,
    target: Any = None,
    batch_size: int = 64,
    **options: Any,
) -> pd.DataFrame:
    """Compare with the maps of a network that was trained on permuted labels.

    Parameters
    ----------
    estimator : FeatureBackpropClassifier or -Regressor, nn.Module, or skorch net; fitted
        Trained on the true labels.
    permuted : of the same kind
        The same network, trained on permuted labels until it knew them by heart.
    X : array-like of shape (n_samples, ...)
        Samples, 50 or more for figures to rely on.
    method : str or callable
        As in :func:`attribute`.
    target : None, label, or one label a sample
        The class to explain in both; None is what the first network predicts.
    batch_size : int
        Samples in one run of the network.
    **options : dict
        Of the method, the same for both; ``"runner_up"`` is that of the first network.

    Returns
    -------
    DataFrame
        Rows ``"permuted labels"`` and ``"unrelated samples"``; columns as of
        :func:`cascading_randomisation`.

    References
    ----------
    Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018, arXiv:1810.03292.
    """
    check = _Check(estimator, X, method, target, batch_size, options)
    return check.compared({"permuted labels": check.maps_of(permuted)})


class _Check:
    """Maps of the network as it is, and of what becomes of it, in answer to one question."""

    def __init__(
        self, estimator: Any, X: Any, method: Any, target: Any, batch_size: int, options: dict
    ) -> None:
        self.estimator, self.X, self.method = estimator, X, method
        asked = dict(options)
        if "layer" in options:  # a module of the network is none of its copies
            asked["layer"] = layer_path(source_network(estimator), options["layer"])
        # classes that depend on the logits stay those of the trained network
        if takes_hostile(method):
            question = ask(estimator, X, target, batch_size)
            rivals = question.hostile(options.get("hostile", "runner_up"))
            asked["hostile"] = to_array(rivals)
        self.asked = {"target": target, "batch_size": batch_size, **asked}
        found = attribute(estimator, X, method, **self.asked)
        self.asked["target"] = found.target
        self.inputs, self.maps = found.inputs, found.maps

    def table(self, random_state: Any, *, cumulative: bool) -> pd.DataFrame:
        """Compare the maps of each randomised network with the trained one's."""
        seed = int(check_random_state(random_state).randint(np.iinfo(np.int32).max))
        paths = _layers(self.estimator, self.inputs)
        randomised = _randomised(self.estimator, paths, seed, cumulative)
        return self.compared({path: self.maps_of(changed) for path, changed in randomised})

    def compared(self, found: dict[str, NDArray]) -> pd.DataFrame:
        """Average the similarities; add what unrelated maps have in common."""
        found = {**found, UNRELATED: np.roll(self.maps, 1, axis=0)}
        rows = {name: map_similarity(self.maps, maps).mean() for name, maps in found.items()}
        return pd.DataFrame(rows).T

    def maps_of(self, estimator: Any) -> NDArray:
        """Return another network's maps."""
        return attribute(estimator, self.X, self.method, **self.asked).maps


def _layers(estimator: Any, inputs: NDArray) -> list[str]:
    """Return the paths of modules with parameters or statistics of their own, the last first."""
    order: list[str] = []
    runs, network = on_a_copy(estimator)
    paths = {
        path: part
        for path, part in network.named_modules()
        if list(part.parameters(recurse=False)) or list(part.buffers(recurse=False))
    }
    for path, part in paths.items():
        part.register_forward_hook(lambda *_, path=path: order.append(path))
    rows = np.resize(inputs, (ROWS, *inputs.shape[1:]))
    with torch.no_grad(), random_state_kept(module_device(network)):
        getattr(runs, "module_", runs)(torch.as_tensor(rows, device=module_device(network)))
    return list(dict.fromkeys(reversed(order)))


def _randomised(
    estimator: Any, paths: list[str], seed: int, cumulative: bool
) -> Iterator[tuple[str, Any]]:
    changed, network = on_a_copy(estimator)
    for number, path in enumerate(paths):
        if not cumulative:
            changed, network = on_a_copy(estimator)
        with random_state_kept(module_device(network), seed + number):
            _initialise(network.get_submodule(path))
        yield path, changed


@torch.no_grad()
def _initialise(layer: nn.Module) -> None:
    """Draw a layer's parameters as when it was made; mix them where it does not say how."""
    reset = getattr(layer, "reset_parameters", getattr(layer, "_reset_parameters", None))
    if reset is not None:
        reset()
        return
    for parameter in layer.parameters(recurse=False):
        mixed = parameter.flatten()[torch.randperm(parameter.numel(), device="cpu")]
        parameter.copy_(mixed.reshape(parameter.shape))
