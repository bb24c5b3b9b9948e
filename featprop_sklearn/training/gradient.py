"""Training by gradients on feature targets, the published way: skorch runs the loop."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import ConvergenceWarning
from skorch import NeuralNet
from skorch.helper import predefined_split
from torch import nn

from featprop_sklearn.data import batches
from featprop_sklearn.networks.probe import random_state_kept
from featprop_sklearn.propagation import PROPAGATIONS
from featprop_sklearn.training.anchored import AnchoredAdamW, anchored_groups
from featprop_sklearn.training.callbacks import best_epoch, one_cycle, recorded_terms
from featprop_sklearn.training.component import (
    Component,
    Labelled,
    SplitNetwork,
    TrainingResult,
)
from featprop_sklearn.training.interpretable import GRADIENT_ERRORS, WithInput
from featprop_sklearn.training.losses import TargetLoss, task_losses, weighted_mean
from featprop_sklearn.training.row_batches import RowBatches, RowDataset

__all__ = ["GradientTrainer"]

SCHEDULES = ("constant", "one_cycle")
#: of the loss, as the history tells them
TERMS = ("task_loss", "feature_loss", "feature_weight", "gradient_error")


class GradientTrainer(BaseEstimator):
    """Train the stages up to a split on labels and feature targets together.

    AdamW minimises ``CE(net(x), y) + w·mean((feature − target)²)`` over the weights up
    to the split, with ``w = alpha·EMA(CE)/EMA(MSE)``. Where there is held-out data, the
    epoch with the least held-out task loss is kept, the start included.

    Parameters
    ----------
    alpha : float, default=0.1
        Share of the feature term, >= 0; 0 is plain fine-tuning of the same weights.
    max_epochs : int, default=10
        Passes over the data.
    lr : float, default=5e-5
        Learning rate of AdamW.
    weight_decay : float, default=5e-2
        Weight decay of AdamW. Parameters outside of torch's layers, such as factors or tokens,
        decay to where they were at the start.
    feature_only : bool, default=False
        Train on the feature targets alone, fully decoupled from what is downstream;
        ``alpha`` is then not used.
    ema_decay : float, default=0.9
        Factor of the moving averages in w, in [0, 1).
    schedule : {"constant", "one_cycle"}, default="constant"
        The learning rate over the steps: as it is, or up to ``lr`` within the first tenth and
        down to nothing along a cosine.
    label_smoothing : float, default=0.0
        Share of the wanted probabilities spread evenly over the classes, in [0, 1).
    gradient_regularization : {"cosine", "histogram_intersection", "mae", "mse"}, default=None
        Keep the gradient of each sample's loss at the input near to its guided gradient,
        which is less noisy: adds ``gradient_weight`` times the mean of this error between
        them. Behind an earlier split, the input is the feature there. The network needs ReLUs
        (ReLU6 will do), and an input that is not of integers; of inputs in a dict, those that
        are floats count. The network that ``module=None`` stands for is pretrained with the
        same term. None adds nothing.
    gradient_weight : float, default=7.5e-3
        Weight of that error, >= 0; "mae" and "mse" depend on the scale of the gradients, and
        need another one.

    Notes
    -----
    A step with ``gradient_regularization`` differentiates twice, and takes two to three and a
    half times as long. Only ReLUs are guided: of other activations the gradient is taken as it is.
    ``history_`` tells the mean error of each epoch as ``gradient_error``.

    References
    ----------
    Ding, He, Li, Li, "Hierarchical Feature-level Reverse Propagation for Post-Training
    Neural Networks", arXiv:2506.07188.

    Figueroa, Zhang, Sicre, Avrithis and Ayache, "A Learning Paradigm for Interpretable
    Gradients", VISAPP 2024, arXiv:2404.15024.

    Examples
    --------
    >>> from featprop_sklearn import FeatureBackpropClassifier, GradientTrainer
    >>> estimator = FeatureBackpropClassifier(trainer=GradientTrainer(alpha=0.02, lr=1e-3))
    >>> estimator.set_params(trainer__max_epochs=20).trainer.max_epochs
    20
    """

    def __init__(
        self,
        *,
        alpha: float = 0.1,
        max_epochs: int = 10,
        lr: float = 5e-5,
        weight_decay: float = 5e-2,
        feature_only: bool = False,
        ema_decay: float = 0.9,
        schedule: str = "constant",
        label_smoothing: float = 0.0,
        gradient_regularization: str | None = None,
        gradient_weight: float = 7.5e-3,
    ) -> None:
        self.alpha = alpha
        self.max_epochs = max_epochs
        self.lr = lr
        self.weight_decay = weight_decay
        self.feature_only = feature_only
        self.ema_decay = ema_decay
        self.schedule = schedule
        self.label_smoothing = label_smoothing
        self.gradient_regularization = gradient_regularization
        self.gradient_weight = gradient_weight

    def check(self) -> None:
        """Refuse parameters outside their range.

        Raises
        ------
        ValueError
            Naming the parameter, what is allowed and what came.
        """
        _check_number("alpha", self.alpha, low=0.0)
        _check_number("lr", self.lr, low=0.0)
        _check_number("weight_decay", self.weight_decay, low=0.0)
        _check_number("ema_decay", self.ema_decay, low=0.0, below=1.0)
        _check_number("label_smoothing", self.label_smoothing, low=0.0, below=1.0)
        _check_number("gradient_weight", self.gradient_weight, low=0.0)
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {list(SCHEDULES)}; got {self.schedule!r}.")
        if not isinstance(self.feature_only, bool | np.bool_):
            raise ValueError(f"feature_only must be True or False; got {self.feature_only!r}.")
        if not isinstance(self.max_epochs, Integral) or self.max_epochs < 0:
            raise ValueError(f"max_epochs must be an integer >= 0; got {self.max_epochs!r}.")
        if self.gradient_regularization not in (None, *GRADIENT_ERRORS):
            raise ValueError(
                f"gradient_regularization must be None or one of {list(GRADIENT_ERRORS)}; got "
                f"{self.gradient_regularization!r}."
            )
        if self.gradient_regularization is not None and self.feature_only:
            raise ValueError(
                "gradient_regularization differentiates the loss of the task, which "
                "feature_only=True leaves out. Set one of the two."
            )

    #: any targets will do
    propagations = PROPAGATIONS
    #: whether it is to be given them
    needs_targets = True

    def train(
        self,
        component: Component,
        *,
        batch_size: int,
        seed: int,
        n_jobs: int | None = None,
        verbose: int = 0,
    ) -> TrainingResult:
        """Train a private copy of a component.

        Parameters
        ----------
        component : Component
            What to train, on what; left as it is.
        batch_size : int
            Rows a step.
        seed : int
            Of shuffling and dropout; torch's global generator is left as it was.
        n_jobs : int, optional
            Not needed: one step depends on the other.
        verbose : int
            1 prints a line per epoch.

        Returns
        -------
        TrainingResult
            The trained state and the history. Ctrl-C ends the training, not the program:
            the state is then that of the best or last epoch.
        """
        self.check()
        own = component.private()
        network = own.network()
        _check_batches(network, len(own.data), batch_size)
        loss = TargetLoss(
            own.output_targets,
            alpha=float(self.alpha),
            feature_only=self.feature_only,
            decay=float(self.ema_decay),
            label_smoothing=float(self.label_smoothing),
            gradient_regularization=self.gradient_regularization,
            gradient_weight=float(self.gradient_weight),
        )
        with random_state_kept(own.data.inputs.device, seed), _seeded_elsewhere(seed):
            net = self._net(network, loss, own, batch_size, verbose)
            if self.max_epochs == 0:
                return TrainingResult(network.states(), [])
            self._check_differentiable(network, own)
            return self._fit(net, network, own, batch_size)

    def _check_differentiable(self, network: SplitNetwork, own: Component) -> None:
        """Refuse a loss that no derivative leads from to a parameter."""
        network.eval()
        with torch.enable_grad():
            output, feature = network(own.data.inputs[:1])
        terms = [] if self.feature_only else [output]
        terms += [] if own.targets is None else [feature]
        if not any(term.requires_grad for term in terms):
            raise ValueError(
                f"Nothing up to split {own.split!r} can be trained by gradients: what follows cuts "
                "them off (detach(), torch.no_grad() or numpy in the network's forward). Remove "
                "that, choose a split after it, or use trainer='closed_form'."
            )

    def train_chunk(
        self, component: Component, seen: dict[str, Any], *, batch_size: int, seed: int, **_: Any
    ) -> TrainingResult:
        """Train one epoch on a chunk of data, at a constant rate.

        Parameters
        ----------
        component : Component
            The network as the earlier chunks left it, and the new chunk.
        seen : dict
            Not needed: the weights remember.
        batch_size, seed
            As in :meth:`train`.
        """
        once = clone(self).set_params(max_epochs=1, schedule="constant")
        return once.train(component, batch_size=batch_size, seed=seed)

    def _net(
        self,
        network: SplitNetwork,
        loss: TargetLoss,
        own: Component,
        batch_size: int,
        verbose: int,
    ) -> NeuralNet:
        validation = own.validation
        callbacks: list[Any] = recorded_terms(self._terms(own))
        epochs, lr = int(self.max_epochs), float(self.lr)
        if self.schedule == "one_cycle":
            callbacks.append(("schedule", one_cycle(lr, epochs, len(own.data), batch_size)))
        split = None
        if validation is not None:
            split = predefined_split(RowDataset(validation.inputs, _truth(validation)))
            callbacks.append(("best_epoch", best_epoch(epochs)))
        # callbacks that would have nothing to say, and cost as much as a small network's step
        unused: dict[str, Any] = {} if verbose else {"callbacks__print_log": None}
        if validation is None:
            unused["callbacks__valid_loss"] = None
        decay = float(self.weight_decay)
        module = network if self.gradient_regularization is None else WithInput(network)
        return NeuralNet(
            module,
            criterion=loss,
            optimizer=AnchoredAdamW,
            optimizer__weight_decay=decay,
            optimizer__param_groups=anchored_groups(module, decay),
            # torch has no fused steps for complex numbers
            optimizer__fused=not any(p.is_complex() for p in network.parameters()),
            lr=lr,
            max_epochs=epochs,
            batch_size=batch_size,
            iterator_train=RowBatches,
            iterator_train__generator=torch.Generator().manual_seed(torch.initial_seed()),
            iterator_valid=RowBatches,
            train_split=split,
            callbacks=callbacks,
            **unused,
            device=None,
            verbose=verbose,
        )

    def _terms(self, own: Component) -> list[str]:
        """List what the loss consists of, unless it is the task loss, which skorch records."""
        features = [] if own.targets is None else ["feature_loss", "feature_weight"]
        gradients = [] if self.gradient_regularization is None else ["gradient_error"]
        return ["task_loss", *features, *gradients] if features or gradients else []

    def _fit(
        self, net: NeuralNet, network: SplitNetwork, own: Component, batch_size: int
    ) -> TrainingResult:
        start, history = network.states(), []
        if own.validation is not None:
            start_loss = _task_loss(network, own, own.validation, batch_size)
            history.append({"split": own.split, "epoch": 0, "valid_loss": start_loss})
        targets = {} if own.targets is None else {"target": own.targets}
        net.fit(RowDataset(own.data.inputs, {**_truth(own.data), **targets}))
        finished = [row for row in net.history if "dur" in row]
        history += [_history_entry(own.split, row) for row in finished]
        if own.validation is not None:
            losses = [row["valid_loss"] for row in finished]
            if not losses or not min(losses) < start_loss:
                network.restore(start)
        finite = all(torch.isfinite(p).all() for p in network.parameters())
        if not finite:
            network.restore(start)
        if not finite or not all(math.isfinite(row["train_loss"]) for row in finished):
            warnings.warn(
                f"Training up to split {own.split!r} diverged: the loss or the weights became "
                "infinite or NaN. The network keeps the state that held-out data chose, or its "
                f"start. Lower lr (now {self.lr:g}), or scale X.",
                ConvergenceWarning,
                stacklevel=2,
            )
        network.eval()
        return TrainingResult(network.states(), history, len(finished) < self.max_epochs)


@contextmanager
def _seeded_elsewhere(seed: int) -> Iterator[None]:
    """Seed the other generators that networks draw masks from, and leave them as they were."""
    numpys, pythons = np.random.get_state(), random.getstate()
    np.random.seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(numpys)
        random.setstate(pythons)


def _truth(data: Labelled) -> dict[str, torch.Tensor]:
    alike = bool((data.weights == data.weights[0]).all())
    return {"y": data.y} if alike else {"y": data.y, "weight": data.weights}


@torch.no_grad()
def _task_loss(network: SplitNetwork, own: Component, data: Labelled, batch_size: int) -> float:
    network.eval()
    total = 0.0
    for inputs, truth in RowBatches(RowDataset(data.inputs, _truth(data)), batch_size):
        losses = task_losses(network(inputs)[0], truth["y"], own.output_targets)
        # skorch averages batch means weighted by rows; the same here, to compare like with like
        total += len(inputs) * float(weighted_mean(losses, truth.get("weight")))
    return total / len(data)


def _history_entry(split: str, row: dict[str, Any]) -> dict[str, Any]:
    names = ("train_loss", *TERMS, "valid_loss")
    values = {name: float(row[name]) for name in names if name in row}
    return {"split": split, "epoch": int(row["epoch"]), **values, "seconds": float(row["dur"])}


def _check_number(name: str, value: object, *, low: float, below: float = math.inf) -> None:
    real = isinstance(value, Real) and not isinstance(value, bool)
    if not (real and low <= float(value) < below):  # type: ignore[arg-type]
        allowed = f"a number >= {low:g}" + (f" and < {below:g}" if below < math.inf else "")
        raise ValueError(f"{name} must be {allowed}; got {value!r}.")


def _check_batches(network: SplitNetwork, n_samples: int, batch_size: int) -> None:
    """Refuse batches of one row where a BatchNorm1d is trained: one row has no statistics.

    Those of images have: every pixel counts.
    """
    size = n_samples if batch_size == -1 else batch_size
    smallest = min(rows.stop - rows.start for rows in batches(n_samples, size))
    network.train()
    trained = [
        layer for layer in network.modules() if isinstance(layer, nn.BatchNorm1d) and layer.training
    ]
    if trained and smallest == 1:
        raise ValueError(
            f"{type(trained[0]).__name__} cannot be trained on batches of one row: batch_size is "
            f"{batch_size} for {n_samples} samples. Use a larger batch_size and at least two "
            "samples, or freeze the layer (requires_grad=False)."
        )
