"""Feature backpropagation for people who write scikit-learn.

Post-train a pretrained torch network by sending targets, not gradients, backwards
through it (Ding, He, Li, Li, arXiv:2506.07188).
"""

from featprop_sklearn.estimators import FeatureBackpropClassifier, FeatureBackpropRegressor
from featprop_sklearn.inspection import describe, feature_gap, split_points
from featprop_sklearn.inversion import (
    LayerInverter,
    make_inversion_pipeline,
    register_inverter,
)
from featprop_sklearn.training import AutoTrainer, ClosedFormTrainer, GradientTrainer
from featprop_sklearn.version import __version__

__all__ = [
    "AutoTrainer",
    "ClosedFormTrainer",
    "FeatureBackpropClassifier",
    "FeatureBackpropRegressor",
    "GradientTrainer",
    "LayerInverter",
    "__version__",
    "describe",
    "feature_gap",
    "make_inversion_pipeline",
    "register_inverter",
    "split_points",
]
