"""The network that is explained: a private copy that returns logits, and what it is asked about."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from featprop_sklearn.data import batches, double_device, module_device, module_dtype, to_tensor
from featprop_sklearn.estimators import FeatureBackpropClassifier, FeatureBackpropRegressor
from featprop_sklearn.inspection.relevance.classes import (
    RIVALS,
    hostile_classes,
    one_each,
    target_classes,
)
from featprop_sklearn.inspection.relevance.heads import Heads
from featprop_sklearn.networks import (
    as_network,
    private_copy,
    probe_network,
    reads_integers,
    unwrap,
)
from featprop_sklearn.networks.stand_in import StandIn

__all__ = [
    "Explained",
    "Question",
    "ask",
    "check_takes_one_tensor",
    "on_a_copy",
    "source_network",
]

#: rows of the runs that look at a network
ROWS = 2


class Explained(nn.Module):
    """A network as attribution methods see it: one tensor in, a table of logits out.

    Parameters
    ----------
    network : nn.Module
        Private, in eval mode. ReLUs in it stop working in place, which hooks cannot follow.
    x : Tensor of shape (n_samples, ...)
        A few inputs.
    two_sided : bool
        Whether its one logit decides between two classes, each of which then has one.

    Raises
    ------
    ValueError
        If the network refuses the inputs, or mixes samples.
    """

    def __init__(self, network: nn.Module, x: Tensor, *, two_sided: bool = False) -> None:
        super().__init__()
        network.requires_grad_(False)
        for part in network.modules():
            if isinstance(getattr(part, "inplace", None), bool):
                part.inplace = False  # type: ignore[assignment]
        probed = probe_network(network, x[:ROWS])
        self.network = _TwoSides(probed) if two_sided else probed
        self.eval()

    @property
    def original(self) -> nn.Module:
        """The copy of the user's own network, whose module paths are the user's.

        Of a network whose one logit has two sides it is what returns both, under these paths.
        """
        return self.network if self.two_sided else unwrap(self.network)

    @property
    def two_sided(self) -> bool:
        """Whether the logits are those of the two sides of one."""
        return isinstance(self.network, _TwoSides)

    def positive(self, x: Tensor) -> Explained:
        """Return the network with the one logit that it has, given a few inputs."""
        return Explained(unwrap(self.network), x)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of shape (n_samples, n_outputs): what went into a last head, see Heads."""
        return _logits(self.network, x)

    @torch.no_grad()
    def ends_in_sigmoid(self, x: Tensor) -> bool:
        """Return whether a sigmoid makes the outputs, so that each is a decision of its own."""
        with Heads() as heads:
            return heads.per_logit(self.network(x))

    @torch.no_grad()
    def all_logits(self, x: Tensor, batch_size: int) -> Tensor:
        """Return the logits of many inputs, batch by batch."""
        return torch.cat([self(x[rows]) for rows in batches(len(x), batch_size)])


class _TwoSides(StandIn):
    """A network of one logit z as one of two classes, whose logits are −z and z."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of both."""
        positive = _logits(self.running(x), x)
        return torch.cat([-positive, positive], dim=1)


def _logits(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with Heads() as heads:
        outputs = run(x)
    return heads.logits(outputs).reshape(len(x), -1)


@dataclass(frozen=True)
class Question:
    """Which samples of which network are explained, and for which classes.

    Attributes
    ----------
    model : Explained
        The network.
    x : Tensor of shape (n_samples, ...)
        The samples.
    logits : Tensor of shape (n_samples, n_outputs)
        What it says of them.
    target : Tensor of shape (n_samples,), int64
        Index of the logit that is explained.
    encode : callable
        Labels of classes, in any nesting -> indices of logits.
    labels : ndarray of shape (n_outputs,)
        What each logit is called.
    each : bool
        Whether the targets were given one a sample.
    """

    model: Explained
    x: Tensor
    logits: Tensor
    target: Tensor
    encode: Callable[[Any], Any]
    labels: NDArray
    each: bool = False

    def hostile(self, classes: Any) -> Tensor:
        """Return the hostile classes of each sample as a mask of shape (n_samples, n_outputs)."""
        encoded = self.encode(classes)
        return hostile_classes(encoded, self.target, self.logits, each=self.each)


def ask(estimator: Any, X: Any, target: Any, batch_size: int) -> Question:
    """Check what is asked, and copy the network.

    Parameters
    ----------
    estimator : fitted estimator of this package, nn.Module, or fitted skorch net
        Whose network is explained.
    X : array-like of shape (n_samples, ...)
        Samples.
    target : None, label or sequence of labels
        What to explain: a class of a classifier, otherwise the index of an output; None is the
        greatest logit.
    batch_size : int
        Samples in one run.

    Returns
    -------
    Question
        On a copy of the network.

    Raises
    ------
    ValueError
        If the network has several inputs, or reads integers; if X or the target do not fit.
    """
    network, x = source_network(estimator), _inputs(estimator, X)
    labels = _labels(estimator)
    two_sided = labels is not None and estimator._class_map.task == "binary"
    model = Explained(private_copy(network).to(x.device), x, two_sided=two_sided)
    logits = model.all_logits(x, batch_size)
    encode = _encoder(estimator) if labels is not None else _as_given
    found = target_classes(encode(target), logits)
    names = np.arange(logits.shape[1]) if labels is None else labels
    return Question(model, x, logits, found, encode, names, one_each(target))


def source_network(estimator: Any) -> nn.Module:
    """Return the network itself, as the user knows it."""
    if not isinstance(estimator, FeatureBackpropClassifier | FeatureBackpropRegressor):
        return as_network(estimator).module
    check_takes_one_tensor(estimator)
    return estimator.network_


def on_a_copy(estimator: Any) -> tuple[Any, nn.Module]:
    """Return what is explained, but with a copy of its network; and the copy, to be changed."""
    if isinstance(estimator, FeatureBackpropClassifier | FeatureBackpropRegressor):
        twin = copy.copy(estimator)
        twin.module_ = private_copy(estimator.module_)
        return twin, twin.network_
    network = private_copy(source_network(estimator))
    return network, network


def _inputs(estimator: Any, X: Any) -> Tensor:
    if isinstance(estimator, FeatureBackpropClassifier | FeatureBackpropRegressor):
        return estimator._inputs(estimator._known_samples(X), estimator.module_)[:]
    network = as_network(estimator).module
    rows = X.detach().cpu() if isinstance(X, Tensor) else X
    x = to_tensor(rows, module_dtype(network), double_device(module_device(network)))
    if x.ndim < 2 or len(x) == 0 or not bool(x.isfinite().all()):
        what = "NaN or infinite entries" if x.ndim > 1 and len(x) else f"shape {tuple(x.shape)}"
        raise ValueError(
            "X must hold at least one sample, in an array of shape (n_samples, ...) of finite "
            f"numbers; got {what}."
        )
    return x


def check_takes_one_tensor(estimator: Any) -> None:
    """Refuse an estimator whose network reads several inputs, or integers."""
    check_is_fitted(estimator)
    if estimator._layout is not None or reads_integers(estimator.module_):
        raise ValueError(
            "Attribution needs a network of one floating-point input; that of this "
            f"{type(estimator).__name__} reads several inputs, or integers. Explain a module that "
            "starts after its embeddings, or takes one tensor."
        )


def _labels(estimator: Any) -> NDArray | None:
    """Return the labels of a classifier of one label a sample; None means indices of logits."""
    if not isinstance(estimator, FeatureBackpropClassifier):
        return None
    return None if estimator._class_map.task == "multilabel" else estimator.classes_


def _encoder(estimator: FeatureBackpropClassifier) -> Callable[[Any], Any]:
    known = {label: index for index, label in enumerate(estimator.classes_.tolist())}

    def encode(labels: Any) -> Any:
        """Turn labels into indices; leave None, words about classes, and masks as they are."""
        if isinstance(labels, Tensor | np.ndarray | np.generic):
            return labels if labels.dtype in (bool, torch.bool) else encode(labels.tolist())
        if labels is None or (labels in RIVALS and labels not in known):
            return labels
        if isinstance(labels, Iterable) and not isinstance(labels, str):
            return [encode(label) for label in labels]
        if labels not in known:
            raise ValueError(
                f"{labels!r} is no class of this {type(estimator).__name__}. Its classes_ are "
                f"{', '.join(map(repr, known))}."
            )
        return known[labels]

    return encode


def _as_given(classes: Any) -> Any:
    return classes
