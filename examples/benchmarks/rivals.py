"""Post-training without feature targets: what a careful user would do otherwise."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from choosing import Fitted, Predictor, choose
from networks import adamw, features, predict
from numpy.typing import NDArray
from settings import Problem, Samples
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

RATES = (1e-3, 3e-3, 1e-2)
LENGTHS = (10, 40)
STRENGTHS = (0.01, 0.1, 1.0, 10.0)  # C of logistic regression, 1/alpha of ridge regression


@dataclass(frozen=True)
class Tuning:
    """The AdamW setting that held-out data chose, and what choosing it cost."""

    lr: float
    epochs: int
    seconds: float


def as_it_is(problem: Problem) -> Fitted:
    """Leave the network alone."""
    return Fitted(partial(predict, problem.network))


# Fine-tuning --------------------------------------------------------------------------


def tune(problem: Problem, *, head_frozen: bool) -> Tuning:
    """Choose rate and length of AdamW on all weights, or on those before the output layer."""
    started = time.perf_counter()
    candidates = _grid(problem.network, problem.fitting, problem.seed, head_frozen=head_frozen)
    chosen = choose(candidates, problem.held_out)
    return Tuning(chosen["lr"], chosen["epochs"], time.perf_counter() - started)


def fine_tuned(problem: Problem, tuning: Tuning, *, head_frozen: bool) -> Fitted:
    """Refit on all the training rows with the setting chosen."""
    chosen = {"lr": tuning.lr, "epochs": tuning.epochs}
    network = _refit(problem.network, problem, **chosen, head_frozen=head_frozen)
    return Fitted(partial(predict, network), chosen)


def probe_then_fine_tune(problem: Problem) -> Fitted:
    """LP-FT (Kumar et al., 2022): refit the output layer alone, then fine-tune everything."""
    probes = ((strength, _probed(problem, problem.fitting, strength)) for strength in STRENGTHS)
    candidates = (({"strength": s}, partial(predict, network)) for s, network in probes)
    strength = choose(candidates, problem.held_out)["strength"]
    start = _probed(problem, problem.fitting, strength)
    chosen = choose(_grid(start, problem.fitting, problem.seed), problem.held_out)
    network = _refit(_probed(problem, problem.train, strength), problem, **chosen)
    return Fitted(partial(predict, network), {"strength": strength, **chosen})


def _grid(
    network: nn.Sequential, data: Samples, seed: int, *, head_frozen: bool = False
) -> Iterator[tuple[dict[str, Any], Predictor]]:
    for lr in RATES:
        runs = adamw(network, *data, lr=lr, lengths=LENGTHS, seed=seed, head_frozen=head_frozen)
        for epochs, tuned in runs:
            yield {"lr": lr, "epochs": epochs}, partial(predict, tuned)


def _refit(
    network: nn.Sequential, problem: Problem, *, lr: float, epochs: int, head_frozen: bool = False
) -> nn.Sequential:
    [(_, trained)] = adamw(
        network,
        *problem.train,
        lr=lr,
        lengths=(epochs,),
        seed=problem.seed,
        head_frozen=head_frozen,
    )
    return trained


# Linear models on features ------------------------------------------------------------


def linear_on_features(problem: Problem) -> Fitted:
    """Logistic or ridge regression on the features of the best layer."""
    layers = [
        name
        for name, stage in problem.network.named_children()
        if not isinstance(stage, nn.Flatten)
    ]
    fitting, held_out = (
        features(problem.network, data.X, layers) for data in (problem.fitting, problem.held_out)
    )

    def candidates() -> Iterator[tuple[dict[str, Any], Predictor]]:
        for layer in layers:
            for strength in STRENGTHS:
                model = _linear(fitting[layer], problem.fitting.y, strength)
                known = _predictor(model)(held_out[layer])
                yield {"layer": layer, "strength": strength}, lambda _, known=known: known

    chosen = choose(candidates(), problem.held_out)
    layer = chosen["layer"]
    on_all = features(problem.network, problem.train.X, [layer])[layer]
    model = _predictor(_linear(on_all, problem.train.y, chosen["strength"]))
    return Fitted(lambda X: model(features(problem.network, X, [layer])[layer]), chosen)


def _linear(columns: NDArray, y: NDArray, strength: float) -> Pipeline:
    model = (
        Ridge(alpha=1 / strength)
        if np.issubdtype(y.dtype, np.floating)
        else LogisticRegression(C=strength, max_iter=2000)
    )
    return make_pipeline(StandardScaler(), model).fit(columns, y)


def _predictor(model: Pipeline) -> Predictor:
    return getattr(model, "predict_proba", model.predict)


def _probed(problem: Problem, data: Samples, strength: float) -> nn.Sequential:
    """Write a linear model of the penultimate features into the output layer of a copy."""
    columns = features(problem.network, data.X, [problem.penultimate])[problem.penultimate]
    scaler, model = (step for _, step in _linear(columns, data.y, strength).steps)
    weight, bias = np.atleast_2d(model.coef_), np.atleast_1d(model.intercept_)
    network = copy.deepcopy(problem.network)
    head = network[-1]
    if len(weight) == 1 and head.out_features == 2:  # one logit is the lead of the second class
        weight, bias = np.vstack([-weight, weight]) / 2, np.array([-bias[0], bias[0]]) / 2
    weight = weight / scaler.scale_
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight))
        head.bias.copy_(torch.from_numpy(bias - weight @ scaler.mean_))
    return network
