"""The estimators."""

from featprop_sklearn.estimators.classifier import FeatureBackpropClassifier
from featprop_sklearn.estimators.regressor import FeatureBackpropRegressor

__all__ = ["FeatureBackpropClassifier", "FeatureBackpropRegressor"]
