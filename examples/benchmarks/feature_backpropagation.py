"""Post-training with feature targets: the published rule, and ours."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from tempfile import TemporaryDirectory
from typing import Any

from choosing import Fitted, Predictor, choose
from networks import batch_size_for
from rivals import Tuning
from settings import Problem, Samples

from featprop_sklearn import (
    FeatureBackpropClassifier,
    FeatureBackpropRegressor,
    GradientTrainer,
    feature_gap,
    split_points,
)

ALPHAS = (0.0, 0.02, 0.1, 0.3)
QUALITY = ("repair_rate", "kept_rate", "reached")


def estimator(problem: Problem, **parameters: Any) -> Any:
    """Make an unfitted estimator around the pretrained network."""
    wrapper = FeatureBackpropRegressor if problem.is_regression else FeatureBackpropClassifier
    if problem.is_regression:
        parameters.pop("margin", None)
    return wrapper(problem.network, device="cpu", random_state=problem.seed, **parameters)


def by_gradient(problem: Problem, tunings: Mapping[str, Tuning], **rule: Any) -> Fitted:
    """Choose alpha and split; rate and length are those that AdamW chose for the same weights.

    ``tunings`` holds them by split. The refit, like that of every rival, uses all rows.
    """

    def fit(data: Samples, split: str, alpha: float, memory: str | None = None) -> Any:
        tuning = tunings[split]
        return estimator(
            problem,
            split=split,
            trainer=GradientTrainer(alpha=alpha, lr=tuning.lr, max_epochs=tuning.epochs),
            batch_size=batch_size_for(len(data.y)),
            validation_fraction=0,
            memory=memory,
            **rule,
        ).fit(*data)

    def candidates(memory: str) -> Iterator[tuple[dict[str, Any], Predictor]]:
        for split in tunings:
            for alpha in ALPHAS:
                fitted = fit(problem.fitting, split, alpha, memory)
                yield {"split": split, "alpha": alpha}, _predictor(fitted)

    with TemporaryDirectory() as memory:
        chosen = choose(candidates(memory), problem.held_out)
    return Fitted(_predictor(fit(problem.train, **chosen)), chosen)


def by_default(problem: Problem, trainer: str) -> Fitted:
    """One fit with nothing set: the estimator does its own choosing."""
    return Fitted(
        _predictor(estimator(problem, propagation="joint", trainer=trainer).fit(*problem.train))
    )


def target_quality(problem: Problem, propagation: str) -> dict[str, dict[str, float]]:
    """Quality of the pretrained network's feature targets on the training rows, by split."""
    untrained = estimator(
        problem, propagation=propagation, trainer=GradientTrainer(max_epochs=0)
    ).fit(*problem.train)
    return feature_gap(untrained, *problem.train)[list(QUALITY)].to_dict(orient="index")


def memory_saving(problem: Problem) -> dict[str, dict[str, float]]:
    """Seconds that the targets of a grid over all splits and two alphas take, by rule."""

    def grid(propagation: str, memory: str | None) -> float:
        started = time.perf_counter()
        for split in split_points(problem.network, problem.train.X):
            for alpha in ALPHAS[1:3]:
                estimator(
                    problem,
                    split=split,
                    propagation=propagation,
                    trainer=GradientTrainer(alpha=alpha, max_epochs=0),
                    memory=memory,
                ).fit(*problem.train)
        return time.perf_counter() - started

    seconds = {}
    for propagation in ("layerwise", "joint"):
        with TemporaryDirectory() as folder:
            kept = grid(propagation, folder)
        seconds[propagation] = {"without": grid(propagation, None), "with": kept}
    return seconds


def _predictor(fitted: Any) -> Predictor:
    return getattr(fitted, "predict_proba", fitted.predict)
