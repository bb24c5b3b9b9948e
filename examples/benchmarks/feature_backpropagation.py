"""Post-training with feature targets: the published rule, and ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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

    def fit(data: Samples, split: str, alpha: float) -> Any:
        tuning = tunings[split]
        return estimator(
            problem,
            split=split,
            trainer=GradientTrainer(alpha=alpha, lr=tuning.lr, max_epochs=tuning.epochs),
            batch_size=batch_size_for(len(data.y)),
            validation_fraction=0,
            **rule,
        ).fit(*data)

    def candidates() -> Iterator[tuple[dict[str, Any], Predictor]]:
        for split in tunings:
            for alpha in ALPHAS:
                yield (
                    {"split": split, "alpha": alpha},
                    _predictor(fit(problem.fitting, split, alpha)),
                )

    chosen = choose(candidates(), problem.held_out)
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


def _predictor(fitted: Any) -> Predictor:
    return getattr(fitted, "predict_proba", fitted.predict)
