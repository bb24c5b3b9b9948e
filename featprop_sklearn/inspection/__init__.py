"""Looking at a network through its feature targets."""

from featprop_sklearn.inspection.feature_gap import feature_gap
from featprop_sklearn.inspection.split_points import describe, split_points

__all__ = ["describe", "feature_gap", "split_points"]
